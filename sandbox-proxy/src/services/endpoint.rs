//! Endpoints of services: which requests they are for, and where the credential goes in those.

use http::HeaderName;
use sandbox_core::policy::Scheme;

use super::InvalidService;
use super::sign::is_of_aws;
use crate::policy::{self, Pattern, Ports, RuleError, Target};

/// A network with a shorter prefix is no service's: `10.0.0.0/8` is the widest that somebody has for himself.
const MIN_NETWORK_BITS: u8 = 8;

/// Some requests, and where the credential goes in them.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// As rules of the policy have it.
    pub(crate) pattern: Pattern,
    pub(crate) placement: Placement,
    /// Whether its answers are tokens, which pass where the placement is [`Placement::Issued`].
    pub(crate) issues_tokens: bool,
}

/// Where the credential goes in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// A header of this name, its value after a prefix: `Bearer `, or nothing.
    Header {
        name: HeaderName,
        prefix: String,
        /// Encodes the secret, as one registry wants it.
        base64: bool,
    },
    /// `Authorization: Basic` (RFC 7617).
    Basic(Basic),
    /// A query parameter.
    Query { name: String },
    /// Wherever in the service's places the client has a placeholder: bare, after a scheme, or as one half of Basic. A
    /// request without one gets nothing.
    InPlace,
    /// As a signature (AWS Signature Version 4) in the place of the client's. Some rules are AWS's own.
    SigV4 { of_aws: bool },
    /// Nowhere: a bearer token that the service itself gave to the client goes through.
    Issued,
}

/// Which part of Basic the secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Basic {
    /// The password of this user.
    PasswordOf(String),
    /// The user name, beside this password.
    UserWith(String),
    /// Both: `user:password`.
    Pair,
}

impl Endpoint {
    /// Parses a target, which must be somebody's.
    pub(super) fn parse(service: &str, text: &str, placement: Placement) -> Result<Self, InvalidService> {
        let pattern = Pattern::parse(text).map_err(|cause| no_target(service, text, cause))?;
        check_owner(service, text, &pattern.target)?;
        Ok(Self {
            pattern,
            placement,
            issues_tokens: false,
        })
    }

    /// What of it cannot be as its service has it, whichever target it has.
    pub(super) fn check(&self, service: &str, plain_http: bool) -> Result<(), InvalidService> {
        let is_plain = self.pattern.scheme == Some(Scheme::Http) || self.pattern.ports == Ports::one(80);
        if is_plain && !plain_http {
            return Err(InvalidService::PlainHttp {
                service: service.to_owned(),
                target: self.pattern.to_string(),
            });
        }
        // A signature is for no answers that are tokens, and one by AWS's rules for AWS's hosts alone.
        let why = match self.placement {
            Placement::SigV4 { .. } if self.issues_tokens => {
                "issues-tokens is for hosts that take a credential, not for those that take a signature"
            }
            Placement::SigV4 { of_aws: true } if !is_of_aws(&self.pattern.target) => {
                "sigv4-of-aws is for hosts of AWS alone; put = \"sigv4\" is for others"
            }
            _ => return Ok(()),
        };
        Err(InvalidService::Signature {
            service: service.to_owned(),
            host: self.pattern.target.to_string(),
            why,
        })
    }
}

/// Parses hosts, and ports where they are written.
pub(super) fn place(service: &str, text: &str) -> Result<(Target, Option<Ports>), InvalidService> {
    let place = policy::place(text).map_err(|cause| no_target(service, text, cause))?;
    check_owner(service, text, &place.0)?;
    Ok(place)
}

fn no_target(service: &str, text: &str, cause: RuleError) -> InvalidService {
    InvalidService::Target {
        service: service.to_owned(),
        text: text.to_owned(),
        cause,
    }
}

/// Nobody owns every name, all names under a top-level domain, or the greater part of all addresses.
fn check_owner(service: &str, text: &str, target: &Target) -> Result<(), InvalidService> {
    let is_somebodys = match target {
        Target::AnyName => false,
        Target::Exact(_) => true,
        Target::Child(base) | Target::Descendant(base) | Target::Domain(base) => base.as_str().contains('.'),
        Target::Network(network) => network.bits() >= MIN_NETWORK_BITS,
    };
    if is_somebodys {
        return Ok(());
    }
    Err(InvalidService::TooWide {
        service: service.to_owned(),
        text: text.to_owned(),
    })
}

impl Placement {
    pub(crate) fn bearer() -> Self {
        Self::Header {
            name: http::header::AUTHORIZATION,
            prefix: "Bearer ".to_owned(),
            base64: false,
        }
    }

    /// For people; names places, never values.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Header { name, prefix, .. } if prefix.is_empty() => format!("in header {name}"),
            Self::Header { name, prefix, .. } => format!("in header {name} after \"{}\"", prefix.trim_end()),
            Self::Basic(_) => "as Basic in header authorization".to_owned(),
            Self::Query { name } => format!("in query parameter {name}"),
            Self::InPlace => "in the placeholder's place".to_owned(),
            Self::SigV4 { .. } => "as a signature in the place of the client's".to_owned(),
            Self::Issued => "as a token that the service gave to the client".to_owned(),
        }
    }
}
