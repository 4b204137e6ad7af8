//! What is checked and changed in the heads of messages, whichever version of HTTP they came in.

use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT,
    HOST, IF_RANGE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, TE, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use super::refusal::Refusal;
use super::route::{Route, parse_authority};
use super::{limits, place};
use crate::defence::holds;
use crate::scrub::coding::Coding;

/// Sent by old clients to proxies, and never meant for upstream.
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Compression inside a WebSocket would hide a secret from the scrubber.
const WEBSOCKET_EXTENSIONS: HeaderName = HeaderName::from_static("sec-websocket-extensions");
/// Which codings a client takes for the messages of gRPC and of Connect, inside the content.
const MESSAGE_CODINGS_TAKEN: [HeaderName; 2] = [
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("connect-accept-encoding"),
];
/// Which one those of a response have.
const MESSAGE_CODINGS: [HeaderName; 2] = [
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("connect-content-encoding"),
];
/// Asks for the difference to an earlier response (RFC 3229).
const DELTA: HeaderName = HeaderName::from_static("a-im");
/// Other names of `Range`, which some servers know.
const OTHER_RANGES: [HeaderName; 2] = [
    HeaderName::from_static("request-range"),
    HeaderName::from_static("x-ms-range"),
];
/// Sums of the content or of the coded representation (RFC 1864, RFC 3230, RFC 9530).
const DIGESTS: [&str; 4] = ["content-md5", "digest", "content-digest", "repr-digest"];
/// Would send the client to a port or protocol that does not exist here.
const ALT_SVC: HeaderName = HeaderName::from_static("alt-svc");

/// What a client expects that asks first whether its body is wanted.
pub(crate) const CONTINUE: &str = "100-continue";

/// Whether a head or trailers take far more memory than their size says: HTTP/2 bounds that alone.
pub(crate) fn has_too_many_fields(headers: &HeaderMap) -> bool {
    headers.len() > limits::HEAD_FIELDS && holds("head-fields")
}

/// Refuses a request that is not for the route's host, or that two parsers could read in two ways.
pub(crate) fn check(parts: &Parts, route: &Route) -> Result<(), Refusal> {
    if parts.method == Method::CONNECT && holds("no-connect-inside") {
        return Err(Refusal::method("there is no CONNECT inside a tunnel"));
    }
    if parts.method == Method::TRACE && holds("no-trace") {
        return Err(Refusal::method(
            "TRACE would show what the proxy adds to requests",
        ));
    }
    if has_too_many_fields(&parts.headers) {
        return Err(Refusal::too_many_fields());
    }
    if !is_chunked_at_most(&parts.headers) && holds("request-transfer-codings") {
        return Err(Refusal::bad_request(
            "the request's body is coded for its transfer in other ways than chunked",
        ));
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() && holds("one-host-header") {
        return Err(Refusal::bad_request("the request has two Host headers"));
    }
    if host.is_none() && parts.uri.authority().is_none() {
        return Err(Refusal::bad_request("the request names no host"));
    }
    if let Some(scheme) = parts.uri.scheme_str()
        && scheme != if route.tls { "https" } else { "http" }
        && holds("request-scheme")
    {
        return Err(Refusal::misdirected(
            "the request is for another scheme than its connection",
        ));
    }
    let default_port = if route.tls { 443 } else { 80 };
    let agrees = |text: &str| {
        // As nearly all write it.
        if text.as_bytes() == route.host_header.as_bytes() {
            return Ok(());
        }
        let (host, port) = parse_authority(text, Some(default_port))?;
        if host == route.host && port == route.port {
            Ok(())
        } else {
            Err(Refusal::misdirected(
                "the request names another host than its connection",
            ))
        }
    };
    if let Some(authority) = parts.uri.authority()
        && holds("authority-agrees")
    {
        agrees(authority.as_str())?;
    }
    if let Some(host) = host
        && holds("host-header-agrees")
    {
        let text = host
            .to_str()
            .map_err(|_| Refusal::bad_request("the Host header is no text"))?;
        agrees(text)?;
    }
    Ok(())
}

/// Whether the request asks for a WebSocket (RFC 6455 §4.1). Other upgrades are not offered to upstream.
pub(crate) fn wants_websocket(parts: &Parts) -> bool {
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && tokens(&parts.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && tokens(&parts.headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
}

/// Whether a response says that it switched to a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    tokens(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
}

/// Whether the client asks whether its body is wanted before it sends it (RFC 9110 §10.1.1).
pub(crate) fn asks_first(parts: &Parts) -> bool {
    tokens(&parts.headers, &EXPECT).any(|token| token.eq_ignore_ascii_case(CONTINUE))
}

/// Takes out what is between the client and this proxy alone (RFC 9110 §7.6.1).
pub(crate) fn clean_request(parts: &mut Parts) {
    let takes_trailers = tokens(&parts.headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    clean(&mut parts.headers);
    // Said anew to upstreams that can answer it.
    parts.headers.remove(EXPECT);
    if takes_trailers {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out of a request's trailers what belongs to the connection, to the proxy, or to the head of a message, where a
/// receiver that merges them would take it for true (RFC 9110 §6.5.1).
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    bound_trailers(trailers);
    if holds("trailer-fields") {
        clean(trailers);
        for name in [HOST, CONTENT_LENGTH, EXPECT] {
            trailers.remove(name);
        }
    }
}

/// Leaves trailers out that take too much memory; anybody on the way may (RFC 9110 §6.5.1).
pub(crate) fn bound_trailers(trailers: &mut HeaderMap) {
    if has_too_many_fields(trailers) {
        trailers.clear();
    }
}

/// Asks upstream for a response that can be scrubbed: if asked, a `whole` one, and compressed only if it may be
/// (`compressed`) and in codings that can be read. A client that fetches an echo in pieces of its choice would cut the
/// secret where nobody recognises it; servers may always answer with the whole.
pub(crate) fn make_scrubbable(headers: &mut HeaderMap, whole: bool, compressed: bool) {
    if whole && holds("whole-responses") {
        headers.remove(RANGE);
        headers.remove(IF_RANGE);
        headers.remove(DELTA);
        for name in OTHER_RANGES {
            headers.remove(name);
        }
    }
    let identity = HeaderValue::from_static("identity");
    // A part of a compressed response cannot be decoded.
    let may_be_coded = compressed && !headers.contains_key(RANGE);
    let codings = if may_be_coded {
        readable_codings(headers)
    } else {
        None
    };
    headers.insert(ACCEPT_ENCODING, codings.unwrap_or_else(|| identity.clone()));
    for name in MESSAGE_CODINGS_TAKEN {
        if headers.contains_key(&name) && holds("message-codings-taken") {
            headers.insert(name, identity.clone());
        }
    }
    if holds("websocket-extensions") {
        headers.remove(WEBSOCKET_EXTENSIONS);
    }
}

/// What of the client's `Accept-Encoding` names codings that can be read, with the weight that it gives them.
fn readable_codings(headers: &HeaderMap) -> Option<HeaderValue> {
    let name = |member: &str| member.split(';').next().unwrap_or("").trim().to_owned();
    let readable: Vec<_> = tokens(headers, &ACCEPT_ENCODING)
        .filter(|member| Coding::named(&name(member)).is_some())
        .collect();
    HeaderValue::try_from(readable.join(", "))
        .ok()
        .filter(|value| !value.is_empty())
}

/// What stands between the bytes of a response and the scrubber.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Coded {
    /// Nothing.
    Plain,
    /// Content codings that can be undone, in the order in which they were put on.
    Readable(Vec<Coding>),
    /// A coding that cannot be undone: an unknown one, one of single messages, or one of a part of the whole.
    Unreadable,
}

/// How a response is coded.
pub(crate) fn coded(status: StatusCode, headers: &HeaderMap) -> Coded {
    let [grpc, connect] = MESSAGE_CODINGS;
    let is_other = |token: &str| !token.eq_ignore_ascii_case("identity");
    let has_coded_messages = [grpc, connect]
        .iter()
        .any(|name| tokens(headers, name).any(is_other))
        && holds("message-codings");
    let is_coded_for_transfer = !is_chunked_at_most(headers) && holds("transfer-codings");
    match Coding::all(tokens(headers, &CONTENT_ENCODING)) {
        _ if has_coded_messages || is_coded_for_transfer => Coded::Unreadable,
        Some(codings) if codings.is_empty() => Coded::Plain,
        Some(codings) if status != StatusCode::PARTIAL_CONTENT => Coded::Readable(codings),
        _ => Coded::Unreadable,
    }
}

/// Takes out what is true of the coded content alone, which the client does not get (RFC 9110 §7.7). The entity tag stays:
/// whatever this client gets from this host comes this way, so that the tag still names one sequence of bytes.
pub(crate) fn set_decoded(headers: &mut HeaderMap) {
    for name in [CONTENT_ENCODING, CONTENT_LENGTH, ACCEPT_RANGES] {
        headers.remove(name);
    }
    for name in DIGESTS {
        headers.remove(name);
    }
}

/// Whether a request or response signs its whole connection in, not itself (NTLM, and Negotiate as RFC 4559 §6 tells):
/// what follows on the connection would be taken to be from the same user.
pub(crate) fn signs_connection_in(headers: &HeaderMap) -> bool {
    let signs_in = |token: &str| {
        let scheme = token.split(' ').next().unwrap_or("");
        scheme.eq_ignore_ascii_case("ntlm") || scheme.eq_ignore_ascii_case("negotiate")
    };
    [&AUTHORIZATION, &WWW_AUTHENTICATE]
        .into_iter()
        .any(|name| tokens(headers, name).any(signs_in))
}

/// Takes out what is between upstream and this proxy alone.
pub(crate) fn clean_response(headers: &mut HeaderMap) {
    // Of two lengths the chunks' counts (RFC 9112 §6.3); the other would be a lie to the client.
    if headers.contains_key(TRANSFER_ENCODING) && holds("response-te-and-cl") {
        headers.remove(CONTENT_LENGTH);
    }
    clean(headers);
    if holds("alt-svc") {
        headers.remove(ALT_SVC);
    }
}

/// Asks for, or answers with, a WebSocket.
pub(crate) fn set_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Gives the target the form that HTTP/1.1 to an origin wants, or to a proxy that forwards the request.
pub(crate) fn target_h1(parts: &mut Parts, route: &Route) {
    parts.version = Version::HTTP_11;
    parts.headers.insert(HOST, route.host_header.clone());
    let mut target = http::uri::Parts::default();
    target.path_and_query = Some(path_and_query(&parts.uri));
    // Upgrades go through a tunnel instead.
    if let Some(forward) = route
        .forward
        .as_ref()
        .filter(|_| !parts.headers.contains_key(UPGRADE))
    {
        target.scheme = Some(http::uri::Scheme::HTTP);
        target.authority = Some(route.authority.clone());
        if let Some(authorization) = &forward.authorization {
            parts.headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
    } else if parts.uri.authority().is_none() {
        return;
    }
    parts.uri = Uri::from_parts(target).unwrap_or_default();
}

/// Gives the target the form that HTTP/2 wants.
pub(crate) fn target_h2(parts: &mut Parts, route: &Route) {
    parts.version = Version::HTTP_2;
    parts.headers.remove(HOST);
    place::let_go_of_buffer(&mut parts.headers);
    let mut target = http::uri::Parts::default();
    target.scheme = Some(http::uri::Scheme::HTTPS);
    target.authority = Some(route.authority.clone());
    target.path_and_query = Some(path_and_query(&parts.uri));
    parts.uri = Uri::from_parts(target).unwrap_or_default();
}

fn path_and_query(uri: &Uri) -> PathAndQuery {
    uri.path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn clean(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<_> = tokens(headers, &CONNECTION)
            .filter_map(|token| HeaderName::try_from(token).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        if holds("hop-by-hop-headers") {
            headers.remove(name);
        }
    }
    if holds("proxy-authorization") {
        headers.remove(PROXY_AUTHORIZATION);
    }
}

/// Whether a message has no transfer coding but the one that is undone here: the others would be lost on the way, since
/// the header that tells of them does not go on.
fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    let mut codings = tokens(headers, &TRANSFER_ENCODING);
    let is_chunked = |coding: &str| coding.eq_ignore_ascii_case("chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// The members of a comma-separated header, all lines of it together.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        // A value that is no text is one member that nobody knows.
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}
