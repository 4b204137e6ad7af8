//! Puts a credential into a request, and takes out what the client put in its places.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use sandbox_core::credential::{Credential, ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{ClientCredential, Endpoint, Placement, Service};

/// Why nothing was injected; the request must not go out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InjectError {
    #[error("the client sent a credential of its own, which service {0} rejects")]
    Rejected(String),
    #[error("the credential of service {0} has a form that cannot be put into a header")]
    Form(String),
    #[error("the credential of service {0} is of a kind that this proxy cannot send")]
    Kind(String),
}

/// Headers that frame a message: a credential there would break it.
pub(crate) fn is_owned_by_proxy(name: &HeaderName) -> bool {
    [
        HOST,
        CONNECTION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        TE,
        TRAILER,
        UPGRADE,
    ]
    .contains(name)
}

/// Whether the client's own credential is to be left alone, or the request refused; else where to go on.
pub(crate) fn client_keeps_its_own(parts: &Parts, service: &Service) -> Result<bool, InjectError> {
    match service.client_credential {
        ClientCredential::Replace => Ok(false),
        ClientCredential::Pass => Ok(sends_own(parts, service)),
        ClientCredential::Reject if sends_own(parts, service) => {
            Err(InjectError::Rejected(service.name.clone()))
        }
        ClientCredential::Reject => Ok(false),
    }
}

/// Takes the client's credentials out of a request's headers or trailers.
pub(crate) fn strip(headers: &mut HeaderMap, service: &Service) {
    let places: Vec<_> = headers
        .keys()
        .filter(|name| is_place(name, service))
        .cloned()
        .collect();
    for name in places {
        headers.remove(name);
    }
    strip_protocols(headers, service);
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
    let kept = HeaderValue::try_from(kept.join(", "))
        .ok()
        .filter(|kept| !kept.is_empty());
    match kept {
        Some(kept) => drop(headers.insert(SEC_WEBSOCKET_PROTOCOL, kept)),
        None => drop(headers.remove(SEC_WEBSOCKET_PROTOCOL)),
    }
}

/// The subprotocols that a client offers. What is no text is none that anybody speaks.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty())
}

/// The credential in a subprotocol, if it is one of those that are one.
fn credential_in<'a>(protocol: &'a str, service: &Service) -> Option<&'a str> {
    service.stripped_protocols.iter().find_map(|start| {
        let (head, rest) = protocol.split_at_checked(start.len())?;
        head.eq_ignore_ascii_case(start).then_some(rest)
    })
}

/// Whether a header is one in which clients send credentials. Servers behind CGI and its heirs (RFC 3875 §4.1.18)
/// cannot tell `x_api_key` from `x-api-key`.
fn is_place(name: &HeaderName, service: &Service) -> bool {
    service.stripped_headers.iter().any(|place| {
        let alike = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
        place.as_str().len() == name.as_str().len()
            && name.as_str().bytes().zip(place.as_str().bytes()).all(alike)
    })
}

/// Replaces whatever stands in the service's places by `credential`.
pub(crate) fn replace(
    parts: &mut Parts,
    service: &Service,
    endpoint: &Endpoint,
    credential: &Credential,
) -> Result<(), InjectError> {
    // No form of a secret holds a line break, which the scrubber relies on; no header can hold any of these.
    let unprintable = |secret: &SecretString| secret.expose_secret().chars().any(char::is_control);
    if credential.secrets().any(unprintable) {
        return Err(InjectError::Form(service.name.clone()));
    }
    strip(&mut parts.headers, service);
    for name in &service.stripped_parameters {
        set_parameter(parts, name, None, service)?;
    }
    match (credential, &endpoint.placement) {
        (Credential::Token(secret), Placement::Header { name, prefix }) => {
            set_header(parts, name, prefix, secret, service)
        }
        (Credential::Token(secret), Placement::Basic { username }) => {
            set_basic(parts, username, secret, service)
        }
        (Credential::Token(secret), Placement::Query { name }) => {
            set_parameter(parts, name, Some(secret), service)
        }
        (Credential::Bearer(secret), _) => set_header(parts, &AUTHORIZATION, "Bearer ", secret, service),
        (Credential::Header { name, value }, _) => match HeaderName::try_from(name.as_str()) {
            Ok(name) if !is_owned_by_proxy(&name) => set_header(parts, &name, "", value, service),
            _ => Err(InjectError::Form(service.name.clone())),
        },
        (Credential::Basic { username, password }, _) => set_basic(parts, username, password, service),
        (Credential::Query { name, value }, _) => set_parameter(parts, name, Some(value), service),
        _ => Err(InjectError::Kind(service.name.clone())),
    }
}

/// Whether anything but a placeholder stands where credentials go.
fn sends_own(parts: &Parts, service: &Service) -> bool {
    let in_headers = parts
        .headers
        .iter()
        .any(|(name, value)| is_place(name, service) && !is_placeholder(value.as_bytes(), service));
    let in_query = parameters(parts.uri.query().unwrap_or("")).any(|(_, name, value)| {
        service.stripped_parameters.iter().any(|s| is_named(name, s))
            && !is_placeholder(decode(value).as_bytes(), service)
    });
    let in_protocols = protocols(&parts.headers)
        .filter_map(|protocol| credential_in(protocol, service))
        .any(|credential| !is_placeholder(credential.as_bytes(), service));
    in_headers || in_query || in_protocols
}

/// Whether a value is a placeholder and nothing else: bare, after a scheme, or as the password of Basic.
fn is_placeholder(value: &[u8], service: &Service) -> bool {
    let Ok(text) = std::str::from_utf8(value) else {
        return false;
    };
    let (scheme, rest) = text.split_once(' ').unwrap_or(("", text));
    let known = |text: &str| {
        service
            .environment
            .iter()
            .any(|(_, placeholder)| placeholder == text)
    };
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = BASE64_STANDARD.decode(rest.trim()).unwrap_or_default();
        let decoded = String::from_utf8(decoded).unwrap_or_default();
        return decoded
            .split_once(':')
            .is_some_and(|(user, password)| known(password) || (password.is_empty() && known(user)));
    }
    known(text) || known(rest.trim())
}

fn set_header(
    parts: &mut Parts,
    name: &HeaderName,
    prefix: &str,
    secret: &SecretString,
    service: &Service,
) -> Result<(), InjectError> {
    let text = Zeroizing::new([prefix, secret.expose_secret()].concat());
    let mut value =
        HeaderValue::try_from(text.as_str()).map_err(|_| InjectError::Form(service.name.clone()))?;
    // Out of HPACK's tables and of `Debug`.
    value.set_sensitive(true);
    parts.headers.insert(name, value);
    Ok(())
}

fn set_basic(
    parts: &mut Parts,
    username: &str,
    password: &SecretString,
    service: &Service,
) -> Result<(), InjectError> {
    let pair = Zeroizing::new([username, ":", password.expose_secret()].concat());
    let encoded = SecretString::from(BASE64_STANDARD.encode(pair.as_bytes()));
    set_header(parts, &AUTHORIZATION, "Basic ", &encoded, service)
}

/// Removes every parameter of that name, however it is spelled, and adds one if there is a value.
fn set_parameter(
    parts: &mut Parts,
    name: &str,
    value: Option<&SecretString>,
    service: &Service,
) -> Result<(), InjectError> {
    let query = parts.uri.query().unwrap_or("");
    let sent = parameters(query).any(|(_, sent, _)| is_named(sent, name));
    if !sent && value.is_none() {
        return Ok(());
    }
    let mut target = Zeroizing::new(String::with_capacity(query.len() + 256));
    target.push_str(parts.uri.path());
    let mut separator = '?';
    for (pair, sent, _) in
        parameters(query).filter(|(pair, ..)| !pair.trim_end_matches(SEPARATORS).is_empty())
    {
        if !is_named(sent, name) {
            let (text, end) = match pair.strip_suffix(SEPARATORS) {
                Some(text) => (text, pair.chars().next_back().unwrap_or('&')),
                None => (pair, '&'),
            };
            target.push(separator);
            target.push_str(text);
            separator = end;
        }
    }
    if separator == ';' {
        separator = '&';
    }
    if let Some(value) = value {
        target.push(separator);
        encode(name, &mut target);
        target.push('=');
        encode(value.expose_secret(), &mut target);
    }
    let form = || InjectError::Form(service.name.clone());
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(target.as_str()).map_err(|_| form())?);
    parts.uri = Uri::from_parts(uri).map_err(|_| form())?;
    Ok(())
}

/// What stands between parameters. Some servers take a semicolon for a separator, as HTML 4 asked for.
const SEPARATORS: [char; 2] = ['&', ';'];

/// The parameters of a query: each as it stands with the separator after it, its name, its value.
fn parameters(query: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    query.split_inclusive(SEPARATORS).map(|pair| {
        let text = pair.strip_suffix(SEPARATORS).unwrap_or(pair);
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (pair, name, value)
    })
}

/// Whether a parameter is the one of this name, however it is encoded and in whatever case: not all servers tell cases
/// apart.
fn is_named(sent: &str, name: &str) -> bool {
    decode(sent).eq_ignore_ascii_case(name)
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3).
fn encode(text: &str, to: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            to.push(char::from(byte));
        } else {
            to.push('%');
            for digit in [byte >> 4, byte & 15] {
                to.push(
                    char::from_digit(u32::from(digit), 16)
                        .unwrap_or('0')
                        .to_ascii_uppercase(),
                );
            }
        }
    }
}

/// Undoes percent-encoding as a form parser would; what is no valid escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        let digit = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        bytes.push(match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                rest = tail.get(2..).unwrap_or(&[]);
                u8::try_from(high * 16 + low).unwrap_or(b'?')
            }
            (b'+', ..) => b' ',
            _ => first,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const SECRET: &str = "s3cr3t/+ä?&";

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn inject(parts: &mut Parts, service: &Service, secret: &str) -> Result<(), InjectError> {
        let endpoint = service
            .endpoint_at(true, &"api.test".parse().unwrap(), 443)
            .unwrap();
        replace(
            parts,
            service,
            endpoint,
            &Credential::Token(secret.to_owned().into()),
        )
    }

    #[test]
    fn duplicates_in_any_case_are_replaced_by_one() {
        let service = Service::custom("x").header("api.test", "X-Api-Key");
        let mut parts = request(
            "/",
            &[
                ("X-API-KEY", "mine"),
                ("x-api-key", "mine too"),
                ("Authorization", "Bearer mine"),
            ],
        );
        inject(&mut parts, &service, "managed").unwrap();
        let values: Vec<_> = parts.headers.get_all("x-api-key").iter().collect();
        assert_eq!(values, ["managed"]);
        assert!(values[0].is_sensitive());
        assert!(!parts.headers.contains_key("authorization"));
        assert!(!format!("{parts:?}").contains("managed"));
    }

    #[test]
    fn query_parameter_replaces_every_spelling_of_itself() {
        let service = Service::custom("x").query("api.test", "key");
        let mut parts = request("/v1?a=1;key=mine&%6bey=mine&b=2;c=3&&KEY=mine", &[]);
        inject(&mut parts, &service, SECRET).unwrap();
        assert_eq!(
            parts.uri.to_string(),
            "/v1?a=1;b=2;c=3&key=s3cr3t%2F%2B%C3%A4%3F%26"
        );
    }

    #[test]
    fn credentials_among_subprotocols_are_stripped_or_left_as_the_service_says() {
        let service = Service::custom("x")
            .bearer("api.test")
            .also_strips_protocol("api-key.")
            .environment("X", "holder");
        let mut parts = request(
            "/",
            &[
                ("sec-websocket-protocol", "realtime, API-KEY.mine"),
                ("Sec-WebSocket-Protocol", "api-key.mine,v1"),
            ],
        );
        inject(&mut parts, &service, "managed").unwrap();
        let left: Vec<_> = parts.headers.get_all("sec-websocket-protocol").iter().collect();
        assert_eq!(left, ["realtime, v1"]);
        let alone = &[("sec-websocket-protocol", "api-key.mine")];
        let mut parts = request("/", alone);
        inject(&mut parts, &service, "managed").unwrap();
        assert!(!parts.headers.contains_key("sec-websocket-protocol"));
        let service = service.client_credential(ClientCredential::Reject);
        assert!(client_keeps_its_own(&request("/", alone), &service).is_err());
        let placeholder = request("/", &[("sec-websocket-protocol", "v1, api-key.holder")]);
        assert_eq!(client_keeps_its_own(&placeholder, &service), Ok(false));
    }

    #[test]
    fn basic_holds_user_and_secret() {
        let service = Service::custom("x").basic("api.test", "x-access-token");
        let mut parts = request("/", &[]);
        inject(&mut parts, &service, "tok").unwrap();
        assert_eq!(parts.headers["authorization"], "Basic eC1hY2Nlc3MtdG9rZW46dG9r");
    }

    #[test]
    fn secret_with_line_break_is_refused_without_being_told() {
        let service = Service::custom("x").bearer("api.test");
        let error = inject(&mut request("/", &[]), &service, "a\r\nhost: evil").unwrap_err();
        assert!(!error.to_string().contains("evil"));
        // A query could hold one, encoded; the scrubber relies on there being none.
        let service = Service::custom("x").query("api.test", "key");
        assert!(inject(&mut request("/", &[]), &service, "a\nb").is_err());
    }

    #[test]
    fn placeholders_are_known_bare_after_a_scheme_and_inside_basic() {
        let service = Service::custom("x")
            .bearer("api.test")
            .environment("X", "holder")
            .client_credential(ClientCredential::Reject);
        for value in [
            "holder",
            "Bearer holder",
            "token holder",
            "Basic dXNlcjpob2xkZXI=",
        ] {
            let parts = request("/", &[("authorization", value)]);
            assert_eq!(client_keeps_its_own(&parts, &service), Ok(false), "{value}");
        }
        for value in ["Bearer mine", "Basic dXNlcjptaW5l", "Bearer holder mine"] {
            let parts = request("/", &[("authorization", value)]);
            assert!(client_keeps_its_own(&parts, &service).is_err(), "{value}");
        }
        let service = service.client_credential(ClientCredential::Pass);
        let own = request("/", &[("authorization", "Bearer mine")]);
        assert_eq!(client_keeps_its_own(&own, &service), Ok(true));
        assert_eq!(client_keeps_its_own(&request("/", &[]), &service), Ok(false));
    }
}
