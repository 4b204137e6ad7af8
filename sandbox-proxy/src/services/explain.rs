//! Why a request gets a credential or none, in words that hold no secret.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::bound::BoundError;
use super::inject::InjectError;

/// Why requests get a credential, or why not: what enforcement found, not a second opinion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The service that the host belongs to, if any.
    pub service: Option<Arc<str>>,
    /// The reason.
    pub reason: CredentialReason,
}

/// The reason in an [`Explanation`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CredentialReason {
    /// The credential of the service's source is put in.
    Injected {
        /// Where it goes, for people.
        place: Arc<str>,
    },
    /// No service has this host. A TLS stream to it is read only where a rule asks for method or path.
    NoService,
    /// The service has this host on other ports only.
    OtherPort {
        /// Those ports.
        ports: Vec<RangeInclusive<u16>>,
    },
    /// The service takes its credential over TLS only, and this is plain HTTP.
    PlainHttp,
    /// The service has this host, but takes no credential in requests with this method and path.
    OtherRequest,
    /// The service puts the credential where the client has a placeholder, and there was none.
    NoPlaceholder,
    /// The client's own credential went through, as the service says ([`ClientCredential::Pass`](super::ClientCredential::Pass)).
    ClientsOwn,
    /// The client's own credential was refused, as the service says
    /// ([`ClientCredential::Reject`](super::ClientCredential::Reject)).
    Rejected,
    /// The service's own token server gave a token to the client, which goes through.
    Issued,
    /// The service's own token server gives tokens to clients, and the client sent none that it was given.
    NotIssued,
    /// The source gave no credential.
    Source {
        /// What it said; never the credential.
        cause: String,
    },
    /// The source took too long.
    SourceTimeout,
    /// The request cannot be signed with the source's keys.
    Unsignable {
        /// Why.
        cause: String,
    },
    /// The source gave something that cannot be sent in the service's place.
    Unsendable {
        /// What is wrong with it; never the credential.
        cause: String,
    },
}

impl Explanation {
    pub(crate) fn new(service: &Arc<str>, reason: CredentialReason) -> Self {
        Self {
            service: Some(Arc::clone(service)),
            reason,
        }
    }

    pub(crate) const fn no_service() -> Self {
        Self {
            service: None,
            reason: CredentialReason::NoService,
        }
    }

    /// What somebody else said, which may be long.
    pub(crate) fn cause_mut(&mut self) -> Option<&mut String> {
        match &mut self.reason {
            CredentialReason::Source { cause }
            | CredentialReason::Unsignable { cause }
            | CredentialReason::Unsendable { cause } => Some(cause),
            _ => None,
        }
    }

    /// Whether the credential of the service's source is put in.
    pub fn is_injected(&self) -> bool {
        matches!(self.reason, CredentialReason::Injected { .. })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = &self.service {
            write!(f, "{service}: ")?;
        }
        self.reason.fmt(f)
    }
}

impl fmt::Display for CredentialReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Injected { place } => write!(f, "injected {place}"),
            Self::NoService => f.write_str("not injected: no service has this host"),
            Self::OtherPort { ports } => {
                f.write_str("not injected: the service has this host on other ports only:")?;
                ports
                    .iter()
                    .try_for_each(|ports| match (ports.start(), ports.end()) {
                        (first, last) if first == last => write!(f, " {first}"),
                        (first, last) => write!(f, " {first}-{last}"),
                    })
            }
            Self::PlainHttp => {
                f.write_str("not injected: the service takes TLS only, and this is plain HTTP")
            }
            Self::OtherRequest => {
                f.write_str("not injected: the service takes no credential with this method and path")
            }
            Self::NoPlaceholder => {
                f.write_str("not injected: the client sent no placeholder where the service expects one")
            }
            Self::ClientsOwn => {
                f.write_str("not injected: the client's own credential passes, as the service says")
            }
            Self::Rejected => {
                f.write_str("not injected: the client sent its own credential, which the service rejects")
            }
            Self::Issued => {
                f.write_str("not injected: a token that the service gave to the client goes through")
            }
            Self::NotIssued => {
                f.write_str("not injected: the client has no token that the service gave to this sandbox")
            }
            Self::Source { cause } => write!(f, "not injected: {cause}"),
            Self::SourceTimeout => f.write_str("not injected: the source took too long"),
            Self::Unsendable { cause } | Self::Unsignable { cause } => write!(f, "not injected: {cause}"),
        }
    }
}

impl From<&BoundError> for CredentialReason {
    fn from(error: &BoundError) -> Self {
        match error {
            BoundError::Source { cause, .. } => Self::Source {
                cause: cause.to_string(),
            },
            BoundError::Inject(InjectError::Rejected(_)) => Self::Rejected,
            BoundError::Sign(error) => Self::Unsignable {
                cause: error.to_string(),
            },
            BoundError::Inject(error) => Self::Unsendable {
                cause: error.to_string(),
            },
        }
    }
}
