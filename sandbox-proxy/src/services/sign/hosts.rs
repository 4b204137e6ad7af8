//! AWS: which of its hosts a signature may be for, and what a sandbox may not ask of them. The service itself is data.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use sandbox_core::host::{Host, is_in};

use super::{Claim, SESSION, SignError, TOKEN};
use crate::defence;
use crate::policy::Target;
use crate::services::Service;
use crate::services::endpoint::Placement;
use crate::services::query::decode;

/// What the names of AWS's services end with. Before it stand region and service, in ways that no pattern says.
const ZONES: [&str; 3] = ["amazonaws.com", "amazonaws.com.cn", "api.aws"];

/// Labels under which customers' machines and pages are.
const CUSTOMERS: [&str; 5] = ["compute", "compute-1", "elb", "elasticbeanstalk", "s3-website"];

/// Services whose hosts have another name than their signatures.
const ALIASES: [(&str, &str); 16] = [
    ("aws-marketplace", "marketplace"),
    ("awsssoportal", "portal"),
    ("connect", "contact-lens"),
    ("execute-api", "participant"),
    ("iot-jobs-data", "iot"),
    ("iotdata", "iot"),
    ("ioteventsdata", "iotevents"),
    ("iotsecuredtunneling", "tunneling"),
    ("memorydb", "memory-db"),
    ("mgh", "migrationhub-config"),
    ("mobiletargeting", "pinpoint"),
    ("s3-object-lambda", "s3"),
    ("ses", "email"),
    ("ses", "mail-manager"),
    ("sqs", "queue"),
    ("sso-oauth", "oidc"),
];

/// What `sts` may be asked: who one is, never for keys.
const STS_ACTIONS: [&str; 3] = [
    "GetCallerIdentity",
    "GetAccessKeyInfo",
    "DecodeAuthorizationMessage",
];
/// What `iam` may not be asked: it answers with a key or password.
const IAM_KEYS: [&str; 5] = [
    "CreateAccessKey",
    "CreateLoginProfile",
    "UpdateLoginProfile",
    "CreateServiceSpecificCredential",
    "ResetServiceSpecificCredential",
];

impl Service {
    /// A target that takes AWS Signature Version 4, for instance a store that speaks S3. Credentials for it are
    /// [`Credential::Aws`](sandbox_core::Credential::Aws). Requests for keys of its own are not signed here either, where
    /// they are for `sts` or `iam` as AWS has them.
    #[must_use]
    pub fn sigv4(mut self, target: &str) -> Self {
        let placement = self.signature_placement(false);
        self.endpoint(target, placement)
    }

    /// The placement as a signature; the tokens of temporary keys and of sessions become places for the client's own.
    pub(in crate::services) fn signature_placement(&mut self, of_aws: bool) -> Placement {
        self.stripped_headers.extend([TOKEN, SESSION]);
        Placement::SigV4 { of_aws }
    }
}

/// Whether all of these are hosts of AWS's services.
pub(in crate::services) fn is_of_aws(target: &Target) -> bool {
    let name = match target {
        Target::Exact(name) | Target::Child(name) | Target::Descendant(name) | Target::Domain(name) => name,
        Target::AnyName | Target::Network(_) => return false,
    };
    ZONES.iter().any(|zone| is_in(name.as_str(), zone))
}

/// Whether a signature can be for this host: the guest chooses both.
pub(super) fn check(host: &Host, claim: &Claim) -> Result<(), SignError> {
    if fits(host, claim) || !defence::holds("sigv4-scope-host-check") {
        return Ok(());
    }
    Err(SignError::OtherHost {
        service: claim.service.clone(),
        region: claim.region.clone(),
    })
}

fn fits(host: &Host, claim: &Claim) -> bool {
    let Some(name) = host.name() else { return false };
    let before = |zone| name.as_str().strip_suffix(zone)?.strip_suffix('.');
    let Some(name) = ZONES.into_iter().find_map(before) else {
        return false;
    };
    let labels: Vec<_> = name.split('.').collect();
    let is_customers = |label: &&str| {
        CUSTOMERS
            .iter()
            .any(|c| label == c || (*c == "s3-website" && label.starts_with(c)))
    };
    if labels.iter().any(is_customers) {
        return false;
    }
    let service = claim.service.to_ascii_lowercase();
    let Some(at) = labels.iter().rposition(|label| names(label, &service)) else {
        return false;
    };
    // After the service, in its label as in `s3-us-west-2`, or before it as in `us-west-2.queue`. A bucket before S3 can
    // have any name.
    let after = labels.iter().skip(at).rev().find_map(|label| region_in(label));
    let before = at
        .checked_sub(1)
        .filter(|_| !claim.is_s3())
        .and_then(|before| labels.get(before))
        .and_then(|label| region_in(label));
    after.or(before).is_none_or(|region| region == claim.region)
}

/// Whether a label is a service's.
fn names(label: &str, service: &str) -> bool {
    let aliases = ALIASES
        .iter()
        .filter(|(own, _)| *own == service)
        .map(|(_, alias)| *alias);
    std::iter::once(service).chain(aliases).any(|name| {
        label.starts_with(name)
            || label
                .strip_suffix(name)
                .is_some_and(|before| before.ends_with('-'))
    })
}

/// The region that a label is or ends with: `us-east-1`, `us-gov-west-1`.
fn region_in(label: &str) -> Option<&str> {
    const DIRECTIONS: [&str; 9] = [
        "central",
        "east",
        "north",
        "northeast",
        "northwest",
        "south",
        "southeast",
        "southwest",
        "west",
    ];
    /// What stands before the direction, where it is not two letters.
    const LONG_AREAS: [&str; 6] = ["us-gov", "us-iso", "us-isob", "us-isof", "eu-isoe", "eusc-de"];
    let mut words = label.rsplitn(3, '-');
    let (number, direction, before) = (words.next()?, words.next()?, words.next()?);
    let is_number = (1..3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || !DIRECTIONS.contains(&direction) {
        return None;
    }
    let is_end = |area: &&&str| {
        let rest = before.strip_suffix(**area);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('-'))
    };
    let area = match LONG_AREAS.iter().find(is_end) {
        Some(area) => area.len(),
        None => before.rsplit('-').next().filter(|area| area.len() == 2)?.len(),
    };
    label.get(before.len() - area..)
}

/// Services that give keys away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// All but a few of its answers hold keys.
    Sts,
    /// Some do.
    Iam,
    /// Works with keys of its own alone.
    S3Express,
}

impl Keys {
    pub(super) fn of(claim: &Claim) -> Option<Self> {
        match claim.service.to_ascii_lowercase().as_str() {
            "sts" => Some(Self::Sts),
            "iam" => Some(Self::Iam),
            "s3express" => Some(Self::S3Express),
            _ => None,
        }
    }

    /// Whether a request may be asked; `body` is all of it, or `None` where that is too long for a question. There is
    /// one way to name an action: what could be another protocol is refused.
    pub(super) fn check(self, parts: &Parts, body: Option<&[u8]>) -> Result<(), SignError> {
        let service = match self {
            Self::Sts => "sts",
            Self::Iam => "iam",
            Self::S3Express => "s3express",
        };
        let is_form = parts.uri.path() == "/" && !parts.headers.contains_key("x-amz-target");
        let actions = body
            .filter(|body| is_form && (body.is_empty() || is_plain_form(&parts.headers)))
            .map(|body| actions(parts.uri.query().unwrap_or("").as_bytes(), body));
        let may = match (self, actions.as_deref()) {
            (Self::Sts, Some([action])) => STS_ACTIONS.contains(&action.as_str()),
            (Self::Iam, Some([action])) => {
                !IAM_KEYS.iter().any(|key| key.eq_ignore_ascii_case(action.trim()))
            }
            _ => false,
        };
        if may || !defence::holds("sigv4-no-new-keys") {
            return Ok(());
        }
        Err(SignError::AsksForKeys {
            service: service.to_owned(),
        })
    }
}

/// Whether a body is a form that reads here as it does there: not compressed, in no other characters than UTF-8.
fn is_plain_form(headers: &HeaderMap) -> bool {
    let is_form = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or("?").to_ascii_lowercase();
        let (kind, parameters) = text.split_once(';').unwrap_or((&text, ""));
        kind.trim() == "application/x-www-form-urlencoded"
            && matches!(parameters.trim(), "" | "charset=utf-8" | "charset=\"utf-8\"")
    };
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    types.next().is_none_or(is_form) && types.next().is_none() && !headers.contains_key(CONTENT_ENCODING)
}

/// The actions that a request names, in its query and as a form.
fn actions(query: &[u8], body: &[u8]) -> Vec<String> {
    [query, body]
        .into_iter()
        .flat_map(|form| form.split(|byte| *byte == b'&'))
        .filter_map(|pair| {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let (name, value) = (halves.next()?, halves.next().unwrap_or(&[]));
            decode(name)
                .trim()
                .eq_ignore_ascii_case("Action")
                .then(|| decode(value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_found_at_the_end_of_labels() {
        for (label, region) in [
            ("us-east-1", Some("us-east-1")),
            ("s3-us-west-2", Some("us-west-2")),
            ("us-gov-west-1", Some("us-gov-west-1")),
            ("s3-fips-us-gov-east-1", Some("us-gov-east-1")),
            ("ap-southeast-10", Some("ap-southeast-10")),
            ("eusc-de-east-1", Some("eusc-de-east-1")),
            ("s3", None),
            ("east-1", None),
            ("my-bucket-1", None),
            ("é-us-east-1", Some("us-east-1")),
        ] {
            assert_eq!(region_in(label), region, "{label}");
        }
    }
}
