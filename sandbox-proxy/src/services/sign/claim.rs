//! What the client's own signature says, and taking it out.

use http::HeaderName;
use http::header::{AUTHORIZATION, DATE as HTTP_DATE};
use http::request::Parts;

use super::canonical::set_query;
use super::key::{ALGORITHM, TERMINATOR};
use super::payload::Payload;
use super::{CONTENT, DATE, SESSION, SignError, TOKEN};
use crate::defence;
use crate::services::query::decode;
use crate::services::{Service, places, query};

/// Parameters of a presigned request (in lower case), all of which are the client's.
const PARAMETERS: [&str; 9] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-region-set",
    "x-amz-s3session-token",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];
/// Of the version before, which is signed with the same keys.
const OLD_PARAMETER: &str = "awsaccesskeyid";
/// Where a region is chosen for SigV4A.
const REGION_SET: HeaderName = HeaderName::from_static("x-amz-region-set");
/// What names of regions and services are shorter than: they become part of what is signed and of messages.
const MAX_NAME: usize = 64;
/// Names that a client may sign; heads have fewer headers.
const MAX_SIGNED: usize = 128;

/// What the client signed for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(super) form: Form,
    pub(crate) access_key_id: String,
    pub(super) region: String,
    pub(super) service: String,
    /// Names of the headers, in lower case.
    pub(super) signed: Vec<String>,
}

/// Where the signature stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In `Authorization`.
    Header,
    /// In the query: a presigned request, good for so many seconds.
    Query { expires: u32 },
}

impl Claim {
    /// Reads the signature of a request.
    pub(crate) fn read(parts: &Parts) -> Result<Self, SignError> {
        let mut lines = parts.headers.get_all(AUTHORIZATION).iter();
        let line = lines.next();
        let query = parts.uri.query().unwrap_or("");
        let names: Vec<_> = parameters(query).map(|(_, name, _)| name).collect();
        let in_query = names
            .iter()
            .any(|name| PARAMETERS.contains(&name.as_str()) && name != "x-amz-date");
        let twice = lines.next().is_some()
            || (line.is_some() && in_query)
            || PARAMETERS
                .iter()
                .any(|parameter| names.iter().filter(|name| name == parameter).count() > 1);
        if twice && defence::holds("sigv4-one-signature") {
            return Err(SignError::Ambiguous);
        }
        if names.iter().any(|name| name == OLD_PARAMETER) && defence::holds("sigv4-old-parameters") {
            return Err(SignError::Algorithm);
        }
        match line {
            Some(line) => Self::of_header(line.to_str().map_err(|_| SignError::Algorithm)?),
            None if in_query => Self::of_query(query),
            None => Err(SignError::Unsigned),
        }
    }

    /// What is to be signed of the body, and how it comes.
    pub(super) fn payload(&self, parts: &Parts) -> Result<Payload, SignError> {
        let mut lines = parts.headers.get_all(CONTENT).iter();
        let line = lines.next();
        if lines.next().is_some() {
            return Err(SignError::Ambiguous);
        }
        let text = match line {
            Some(line) => Some(line.to_str().map_err(|_| SignError::Payload)?.to_owned()),
            None => parameters(parts.uri.query().unwrap_or(""))
                .find(|(_, name, _)| name == CONTENT.as_str())
                .map(|(_, _, value)| value),
        };
        match (text, &self.form) {
            (Some(text), _) => Payload::parse(&text),
            (None, Form::Query { .. }) if self.is_s3() => Ok(Payload::unsigned()),
            (None, _) => Ok(Payload::Hashed),
        }
    }

    /// Whether S3's rules for paths and bodies hold.
    pub(super) fn is_s3(&self) -> bool {
        self.service.starts_with("s3")
    }

    fn of_header(line: &str) -> Result<Self, SignError> {
        let (algorithm, rest) = line.trim().split_once(' ').ok_or(SignError::Algorithm)?;
        if algorithm != ALGORITHM && defence::holds("sigv4-algorithm") {
            return Err(SignError::Algorithm);
        }
        let mut fields = rest.split(',').map(str::trim);
        let credential = fields.clone().find_map(|field| field.strip_prefix("Credential="));
        let signed = fields.find_map(|field| field.strip_prefix("SignedHeaders="));
        Self::new(Form::Header, credential, signed)
    }

    fn of_query(query: &str) -> Result<Self, SignError> {
        let of = |wanted: &str| {
            parameters(query)
                .find(|(_, name, _)| name == wanted)
                .map(|(_, _, value)| value)
        };
        if of("x-amz-algorithm").as_deref() != Some(ALGORITHM) && defence::holds("sigv4-query-algorithm") {
            return Err(SignError::Algorithm);
        }
        let expires = of("x-amz-expires").and_then(|text| text.parse().ok());
        let form = Form::Query {
            expires: expires.unwrap_or(super::MAX_EXPIRES),
        };
        let credential = of("x-amz-credential");
        Self::new(form, credential.as_deref(), of("x-amz-signedheaders").as_deref())
    }

    fn new(form: Form, credential: Option<&str>, signed: Option<&str>) -> Result<Self, SignError> {
        let mut fields = credential.ok_or(SignError::Scope)?.rsplitn(5, '/');
        let mut next = || fields.next().ok_or(SignError::Scope);
        let (end, service, region) = (next()?, next()?, next()?);
        let (_day, access_key_id) = (next()?, next()?);
        let sane = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (1..MAX_NAME).contains(&name.len()) && name.bytes().all(allowed)
        };
        if end != TERMINATOR || !sane(service) || !sane(region) || access_key_id.len() > 2 * MAX_NAME {
            return Err(SignError::Scope);
        }
        Ok(Self {
            form,
            access_key_id: access_key_id.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            signed: signed
                .unwrap_or("host")
                .split(';')
                .take(MAX_SIGNED)
                .map(str::to_ascii_lowercase)
                .collect(),
        })
    }
}

/// Takes the client's signature out, and all else that it could sign or say who it is with.
pub(super) fn strip(parts: &mut Parts, service: &Service) -> Result<(), SignError> {
    if !defence::holds("sigv4-strips-client-signature") {
        return Ok(());
    }
    places::strip(&mut parts.headers, service);
    for name in [TOKEN, SESSION, DATE, HTTP_DATE, REGION_SET] {
        parts.headers.remove(name);
    }
    // Some servers that take signatures take other credentials, too.
    query::set(parts, &service.stripped_parameters, None).map_err(|query::Unwritable| SignError::Form)?;
    let query = parts.uri.query().unwrap_or("");
    let is_signature = |name: &str| PARAMETERS.contains(&name);
    if !parameters(query).any(|(_, name, _)| is_signature(&name)) {
        return Ok(());
    }
    let kept: Vec<_> = parameters(query)
        .filter(|(_, name, _)| !is_signature(name))
        .map(|(pair, ..)| pair)
        .collect();
    let kept = kept.join("&");
    set_query(parts, &kept)
}

/// The parameters of a query: each as it stands, its name in lower case, its value.
fn parameters(query: &str) -> impl Iterator<Item = (&str, String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (pair, decode(name).to_ascii_lowercase(), decode(value))
    })
}
