//! The places of a request in which clients send credentials to a service, and what stands there.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::{Service, query};
use crate::defence::holds;

/// Headers by which some servers and their front ends take another host or target than that of the request. A request
/// with a credential is for the host that it is bound to and no other.
const OVERRIDES: [HeaderName; 10] = [
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-http-host-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-original-uri"),
    HeaderName::from_static("x-forwarded-uri"),
    HeaderName::from_static("x-rewrite-url"),
];

/// As servers read Basic: padding or none.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Headers that frame a message or are for the proxy itself: a credential there would break it.
pub(crate) fn is_owned_by_proxy(name: &HeaderName) -> bool {
    [
        HOST,
        CONNECTION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        TE,
        TRAILER,
        UPGRADE,
        PROXY_AUTHORIZATION,
    ]
    .contains(name)
}

/// Takes the client's credentials out of a request's headers or trailers.
pub(crate) fn strip(headers: &mut HeaderMap, service: &Service) {
    if !holds("client-credential-headers") {
        return;
    }
    remove(headers, |name| is_place(name, service));
    strip_protocols(headers, service);
}

fn remove(headers: &mut HeaderMap, is_meant: impl Fn(&HeaderName) -> bool) {
    let names: Vec<_> = headers.keys().filter(|name| is_meant(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Takes out of a request's trailers what a receiver that merges them into headers would take for the client's
/// credential, or for another host (RFC 9110 §6.5.1).
pub(crate) fn strip_trailers(trailers: &mut HeaderMap, service: &Service) {
    if holds("client-credential-trailers") {
        strip(trailers, service);
        strip_overrides(trailers);
    }
}

/// Takes out what names another host than the request is for.
pub(crate) fn strip_overrides(headers: &mut HeaderMap) {
    if holds("host-overrides") {
        remove(headers, |name| OVERRIDES.iter().any(|other| is_like(name, other)));
    }
}

/// Takes those members out of `Sec-WebSocket-Protocol` that are credentials; the others stay for the server to choose
/// from.
fn strip_protocols(headers: &mut HeaderMap, service: &Service) {
    if !protocols(headers).any(|protocol| credential_in(protocol, service).is_some()) {
        return;
    }
    let kept: Vec<_> = protocols(headers)
        .filter(|protocol| credential_in(protocol, service).is_none())
        .collect();
    let kept = HeaderValue::try_from(kept.join(&b", "[..]))
        .ok()
        .filter(|kept| !kept.is_empty());
    match kept {
        Some(kept) => drop(headers.insert(SEC_WEBSOCKET_PROTOCOL, kept)),
        None => drop(headers.remove(SEC_WEBSOCKET_PROTOCOL)),
    }
}

/// The subprotocols that a client offers, as bytes: one that is no text does not hide those beside it.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|protocol| !protocol.is_empty())
}

/// The credential in a subprotocol, if it is one of those that are one.
fn credential_in<'a>(protocol: &'a [u8], service: &Service) -> Option<&'a [u8]> {
    service.stripped_protocols.iter().find_map(|start| {
        let (head, rest) = protocol.split_at_checked(start.len())?;
        head.eq_ignore_ascii_case(start.as_bytes()).then_some(rest)
    })
}

/// Whether a header is one in which clients send credentials. Servers behind CGI and its heirs (RFC 3875 §4.1.18)
/// cannot tell `x_api_key` from `x-api-key`, and some not `x.api.key`.
pub(super) fn is_place(name: &HeaderName, service: &Service) -> bool {
    service.stripped_headers.iter().any(|place| is_like(name, place))
}

fn is_like(name: &HeaderName, place: &HeaderName) -> bool {
    let alike = |(a, b): (u8, u8)| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    place.as_str().len() == name.as_str().len()
        && name.as_str().bytes().zip(place.as_str().bytes()).all(alike)
}

/// Takes out a header however it is spelled: the source of a credential chose it, so that the service does not know it.
pub(super) fn strip_header(headers: &mut HeaderMap, place: &HeaderName) {
    remove(headers, |name| is_like(name, place));
}

/// Whether anything but a placeholder stands where credentials go.
pub(super) fn hold_clients_own(parts: &Parts, service: &Service) -> bool {
    let in_headers = parts
        .headers
        .iter()
        .any(|(name, value)| is_place(name, service) && find(value.as_bytes(), service).is_none());
    let in_query = query::parameters(parts.uri.query().unwrap_or("")).any(|(_, name, value)| {
        service
            .stripped_parameters
            .iter()
            .any(|s| query::is_named(name, s))
            && find(query::decode(value).as_bytes(), service).is_none()
    });
    let in_protocols = protocols(&parts.headers)
        .filter_map(|protocol| credential_in(protocol, service))
        .any(|credential| find(credential, service).is_none());
    in_headers || in_query || in_protocols
}

/// Where in a value the placeholder stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Bare,
    /// After an authentication scheme.
    After(String),
    /// As the user name of Basic, beside this password.
    User(String),
    /// As the password of Basic, of this user.
    Password(String),
}

/// The placeholder in a value that is one and holds nothing that could be another credential: bare, after a scheme, or
/// as one half of Basic.
pub(super) fn find(value: &[u8], service: &Service) -> Option<Found> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if service.is_placeholder(text) {
        return Some(Found::Bare);
    }
    let (scheme, rest) = text.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("basic") && holds("basic-placeholders") {
        let decoded = Zeroizing::new(LENIENT.decode(rest).ok()?);
        let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        return if service.is_placeholder(password) {
            Some(Found::Password(user.to_owned()))
        } else {
            service
                .is_placeholder(user)
                .then(|| Found::User(password.to_owned()))
        };
    }
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (is_scheme && service.is_placeholder(rest)).then(|| Found::After(scheme.to_owned()))
}

/// Places in which a placeholder stands.
#[derive(Debug, Default)]
pub(super) struct Placeholders {
    pub(super) headers: Vec<(HeaderName, Found)>,
    pub(super) parameters: Vec<String>,
}

/// Where the client has placeholders: each header and parameter once.
pub(super) fn placeholders(parts: &Parts, service: &Service) -> Placeholders {
    let mut placeholders = Placeholders::default();
    for name in parts.headers.keys().filter(|name| is_place(name, service)) {
        let mut values = parts.headers.get_all(name).into_iter();
        if let Some(found) = values.find_map(|value| find(value.as_bytes(), service)) {
            placeholders.headers.push((name.clone(), found));
        }
    }
    let query = parts.uri.query().unwrap_or("");
    for name in &service.stripped_parameters {
        let stands = query::parameters(query).any(|(_, sent, value)| {
            query::is_named(sent, name) && service.is_placeholder(&query::decode(value))
        });
        if stands && !placeholders.parameters.contains(name) {
            placeholders.parameters.push(name.clone());
        }
    }
    placeholders
}

/// The one bearer token that a request has in `Authorization`, if that is all there is.
pub(super) fn bearer(headers: &HeaderMap) -> Option<(String, HeaderValue)> {
    let mut values = headers.get_all(AUTHORIZATION).into_iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.bytes().all(is_token)).then(|| {
        let mut value = value.clone();
        value.set_sensitive(true);
        (token.to_owned(), value)
    })
}
