//! WebSockets in any pairing: asked for by an HTTP/1.1 upgrade (RFC 6455 §4) or an HTTP/2 extended CONNECT
//! (RFC 8441), and opened at upstream in whichever of the two it takes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandbox_core::BoxStream;
use tokio::time::timeout;

use super::body::{RequestBody, ResponseBody};
use super::http1::{After, AfterSlot, Switched};
use super::http2::Duplex;
use super::http2::client::{Http2, UnderWay};
use super::incoming::Incoming;
use super::place::{self, Place};
use super::pool::{Checkin, Lane, Sender};
use super::refusal::Refusal;
use super::route::{Route, Scrubbing};
use super::upstream::Offer;
use super::{Inner, limits, message};
use crate::audit::record::Record;
use crate::defence::holds;
use crate::scrub::Messages;

/// What is appended to a key before it is hashed (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The protocol of extended CONNECT.
const WEBSOCKET: &str = "websocket";
/// For the settings of a new HTTP/2 connection, which say whether it takes WebSockets, to come.
const SETTINGS_TIME: Duration = Duration::from_secs(2);

/// How a client asked for a WebSocket.
#[derive(Debug)]
pub(crate) struct Asked {
    /// By extended CONNECT.
    extended: bool,
    /// The key of an upgrade, which the answer must match.
    key: Option<HeaderValue>,
    /// For the policies that replace the one that allowed it.
    path: Box<str>,
    /// Its stream, once it is answered.
    client: OnUpgrade,
}

/// What a message's stream goes on as.
pub(crate) enum Upgrade {
    Http1(OnUpgrade),
    Http2(Duplex),
}

/// What upstream answered.
pub(crate) enum Opened {
    /// It switched.
    Switched(Accepted),
    /// It did not: an ordinary response.
    Declined(Response<Incoming>, Option<Checkin>),
}

/// A WebSocket at upstream.
pub(crate) struct Accepted {
    pub(crate) response: Response<Incoming>,
    upstream: Upgrade,
    /// On a connection that it shares.
    under_way: Option<UnderWay>,
}

impl Upgrade {
    /// The stream, unless its other end went away before.
    pub(crate) async fn stream(self) -> Option<BoxStream> {
        Some(match self {
            Self::Http1(upgrade) => Box::new(TokioIo::new(upgrade.await.ok()?)),
            Self::Http2(stream) => Box::new(stream),
        })
    }
}

impl Asked {
    /// How this request asks for a WebSocket, if it does. From then on it is a `GET`, as for an upgrade, so that
    /// policies see one method for both.
    ///
    /// Other upgrades and other protocols of extended CONNECT are not offered to upstream.
    pub(crate) fn of(parts: &mut Parts, client: OnUpgrade) -> Option<Self> {
        let protocol = parts.extensions.get::<Protocol>();
        let extended = parts.version == Version::HTTP_2
            && parts.method == Method::CONNECT
            && protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case(WEBSOCKET));
        if !extended && !message::wants_websocket(parts) {
            return None;
        }
        parts.method = Method::GET;
        let key = parts.headers.remove(SEC_WEBSOCKET_KEY).filter(|_| !extended);
        Some(Self {
            extended,
            key,
            path: parts.uri.path().into(),
            client,
        })
    }

    /// Asks upstream.
    pub(crate) async fn send(
        &self,
        inner: &Inner,
        route: &Arc<Route>,
        lane: &Lane,
        request: Request<RequestBody>,
    ) -> Result<Opened, Refusal> {
        match self.connect(inner, route, lane).await? {
            Sender::H2(h2, under_way) => self.send_h2(route, request, h2, under_way).await,
            Sender::H1(h1) => self.send_h1(route, lane, request, h1).await,
        }
    }

    /// The answer to the client; the bytes go on once it is out.
    pub(crate) fn switch(
        self,
        inner: &Inner,
        route: &Arc<Route>,
        accepted: Accepted,
        after: &AfterSlot,
        record: &Arc<Record>,
        place: Place,
    ) -> Response<ResponseBody> {
        let (mut parts, _) = accepted.response.into_parts();
        if holds("reason-phrase-of-switch") {
            parts.extensions.clear();
        }
        let mut scrubber = None;
        if route.scrubbing != Scrubbing::Never {
            if holds("scrub-switch-headers") {
                inner.secrets.patterns().scrub_headers(&mut parts.headers);
            }
            scrubber = Some(Messages::new(Arc::clone(&inner.secrets)));
        }
        message::clean_response(&mut parts.headers);
        parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
        place::let_go_of_buffer(&mut parts.headers);
        place.on_head(&mut parts.headers);
        if self.extended {
            parts.status = StatusCode::OK;
            // What follows is no content (RFC 9110 §9.3.6).
            parts.headers.remove(CONTENT_LENGTH);
        } else {
            parts.status = StatusCode::SWITCHING_PROTOCOLS;
            message::set_websocket(&mut parts.headers);
            if let Some(accept) = self.key.as_ref().and_then(accept) {
                parts.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
        }
        after.set(After::WebSocket(Box::new(Switched {
            // Over HTTP/2 it is the stream that the answer goes out on.
            client: Upgrade::Http1(self.client),
            upstream: accepted.upstream,
            scrubber,
            record: Arc::clone(record),
            route: Arc::clone(route),
            path: self.path,
            held: (place, accepted.under_way),
        })));
        Response::from_parts(parts, ResponseBody::empty())
    }

    /// A connection on which upstream can be asked: one of HTTP/2 that is there and takes WebSockets, else a new one
    /// of HTTP/1.1, else a new one of HTTP/2, for servers that speak nothing else.
    async fn connect(&self, inner: &Inner, route: &Route, lane: &Lane) -> Result<Sender, Refusal> {
        if let Some(h2) = lane.for_websockets().await {
            return Ok(h2);
        }
        match inner.connect(route, None, Offer::Http1).await {
            Err(refusal) if refusal.is_no_common_protocol() => {}
            result => return result,
        }
        let (mut h2, under_way) = match inner.connect(route, None, Offer::Any).await? {
            Sender::H2(h2, under_way) => (h2, under_way),
            h1 => return Ok(h1),
        };
        lane.put(Sender::h2(&h2));
        if h2.takes_websockets(SETTINGS_TIME).await {
            return Ok(Sender::H2(h2, under_way));
        }
        Err(Refusal::upstream(
            "http_protocol_error",
            "upstream takes no WebSockets: it speaks nothing but HTTP/2, without extended CONNECT",
        ))
    }

    async fn send_h1(
        &self,
        route: &Route,
        lane: &Lane,
        request: Request<RequestBody>,
        mut h1: http1::SendRequest<RequestBody>,
    ) -> Result<Opened, Refusal> {
        let (mut parts, body) = request.into_parts();
        message::set_websocket(&mut parts.headers);
        message::target_h1(&mut parts, route);
        let key = match &self.key {
            None if self.extended => Some(new_key()?),
            key => key.clone(),
        };
        let expected = key.as_ref().and_then(accept);
        if let Some(key) = key {
            parts.headers.insert(SEC_WEBSOCKET_KEY, key);
        }
        let sent = h1.send_request(Request::from_parts(parts, body));
        let mut response = answered(sent).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            if self.extended && response.status().is_success() {
                // To the client this would be a WebSocket.
                return Err(not_opened());
            }
            let response = response.map(Incoming::Http1);
            return Ok(Opened::Declined(response, Some(Checkin::h1(lane, h1))));
        }
        // Who switches to something else would have a stream that nobody reads as what it is.
        let is_websocket = message::is_websocket(response.headers())
            && expected.is_some()
            && response.headers().get(SEC_WEBSOCKET_ACCEPT) == expected.as_ref();
        if !is_websocket && holds("websocket-accept") {
            return Err(not_opened());
        }
        Ok(Opened::Switched(Accepted {
            upstream: Upgrade::Http1(hyper::upgrade::on(&mut response)),
            response: response.map(Incoming::Http1),
            under_way: None,
        }))
    }

    async fn send_h2(
        &self,
        route: &Route,
        request: Request<RequestBody>,
        mut h2: Http2,
        under_way: UnderWay,
    ) -> Result<Opened, Refusal> {
        let (mut parts, body) = request.into_parts();
        message::target_h2(&mut parts, route);
        let (response, stream) = answered(h2.open(Request::from_parts(parts, body))).await?;
        match stream {
            Some(stream) => Ok(Opened::Switched(Accepted {
                response,
                upstream: Upgrade::Http2(stream),
                under_way: Some(under_way),
            })),
            None if response.status().is_success() => Err(not_opened()),
            None => Ok(Opened::Declined(response, Some(Checkin::h2(under_way)))),
        }
    }
}

/// Refuses a request for a WebSocket that has a body: what comes after the answer is frames, and nothing else.
pub(crate) fn check_body(body: &Incoming) -> Result<(), Refusal> {
    if body.is_end_stream() || !holds("websocket-body") {
        Ok(())
    } else {
        Err(Refusal::bad_request("a request for a WebSocket has no body"))
    }
}

async fn answered<T, E: std::fmt::Display>(sent: impl Future<Output = Result<T, E>>) -> Result<T, Refusal> {
    let time = limits::at_most(limits::RESPONSE_TIME, holds("websocket-answer-time"));
    match timeout(time, sent).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(Refusal::upstream(
            "http_response_incomplete",
            format!("upstream failed: {error}"),
        )),
        Err(_) => Err(Refusal::timeout(
            "http_response_timeout",
            "upstream did not answer in time",
        )),
    }
}

fn not_opened() -> Refusal {
    Refusal::upstream(
        "http_protocol_error",
        "upstream's answer to the request for a WebSocket opens none",
    )
}

fn new_key() -> Result<HeaderValue, Refusal> {
    let mut nonce = [0; 16];
    let failed = |_| Refusal::internal("no random numbers");
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| failed(()))?;
    HeaderValue::try_from(BASE64_STANDARD.encode(nonce)).map_err(|_| failed(()))
}

/// What the answer to this key must hold (RFC 6455 §4.2.2).
fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    use aws_lc_rs::digest;
    let text = [key.as_bytes(), GUID.as_bytes()].concat();
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    HeaderValue::try_from(BASE64_STANDARD.encode(hash)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_to_the_key_of_the_specification() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn both_forms_become_a_get_without_a_key() {
        let mut upgrade = Request::get("/chat")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let mut extended = Request::connect("https://a.test/chat").version(Version::HTTP_2);
        extended
            .extensions_mut()
            .unwrap()
            .insert(Protocol::from_static("websocket"));
        for (request, is_extended_form) in [(&mut upgrade, false), (&mut extended, true)] {
            let mut request = std::mem::take(request).body(()).unwrap();
            let client = hyper::upgrade::on(&mut request);
            let mut parts = request.into_parts().0;
            let asked = Asked::of(&mut parts, client).unwrap();
            assert_eq!(
                (asked.extended, asked.key.is_none()),
                (is_extended_form, is_extended_form)
            );
            message::clean_request(&mut parts);
            assert_eq!(parts.method, Method::GET);
            assert!(!parts.headers.contains_key(SEC_WEBSOCKET_KEY) && !parts.headers.contains_key("upgrade"));
        }
        let mut other = Request::connect("https://a.test/chat").version(Version::HTTP_2);
        other
            .extensions_mut()
            .unwrap()
            .insert(Protocol::from_static("connect-udp"));
        let mut other = other.body(()).unwrap();
        let client = hyper::upgrade::on(&mut other);
        let mut parts = other.into_parts().0;
        assert!(Asked::of(&mut parts, client).is_none() && parts.method == Method::CONNECT);
    }
}
