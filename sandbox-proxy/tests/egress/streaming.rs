//! Bodies that are longer than anybody wants to hold: they go through as they come, and nobody is sent more than the
//! other side takes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::support::*;

/// More than all buffers between two processes on one machine, and much less than a body of these tests.
const BUFFERS: u64 = 40 << 20;

pub type Body = BoxBody<Bytes, Infallible>;
pub type Pieces = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A client of either version whose request bodies are streams.
pub enum Client {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

impl Client {
    pub async fn new(running: &Running, at: &str, is_h2: bool) -> Self {
        let name = at.split(':').next().unwrap();
        let protocol = if is_h2 { "h2" } else { "http/1.1" };
        let tls = TokioIo::new(running.tls(at, name, &[protocol]).await.unwrap());
        if is_h2 {
            let (client, connection) = http2::handshake(TokioExecutor::new(), tls).await.unwrap();
            tokio::spawn(connection);
            Self::H2(client)
        } else {
            let (client, connection) = http1::handshake(tls).await.unwrap();
            tokio::spawn(connection);
            Self::H1(client)
        }
    }

    pub async fn send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::H1(client) => {
                let host = request.uri().authority().unwrap().as_str().parse().unwrap();
                request.headers_mut().insert("host", host);
                *request.uri_mut() = request.uri().path().parse().unwrap();
                client.send_request(request).await
            }
            Self::H2(client) => client.send_request(request).await,
        }
    }
}

/// A body, and what fills it.
pub fn streamed() -> (Pieces, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let frames = Frames(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
    (sender, frames.boxed())
}

pub fn empty() -> Body {
    Full::default().boxed()
}

/// Each version of the client with each of upstream, on a sandbox with a credential.
pub async fn pairings() -> Vec<(Upstream, Running, Client)> {
    let mut pairings = Vec::new();
    for protocol in ["http/1.1", "h2"] {
        for is_h2 in [false, true] {
            let upstream = Upstream::tls(&[protocol]).await;
            let running = Running::managed(&upstream).await;
            let client = Client::new(&running, &upstream.at("api.test"), is_h2).await;
            pairings.push((upstream, running, client));
        }
    }
    pairings
}

/// Waits until a number stays as it is.
pub async fn settled(number: impl Fn() -> u64) -> u64 {
    let mut before = number();
    loop {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let now = number();
        if now == before && now > 0 {
            return now;
        }
        before = now;
    }
}

#[tokio::test]
async fn upstream_stops_while_the_client_reads_nothing() {
    for (upstream, _running, mut client) in pairings().await {
        let at = upstream.at("api.test");
        let request = Request::get(format!("https://{at}/pour")).body(empty()).unwrap();
        let mut body = client.send(request).await.unwrap().into_body();
        let poured = || upstream.poured.load(Relaxed);
        let stopped = settled(poured).await;
        assert!(stopped < BUFFERS, "{stopped}");
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().data_ref().map_or(0, Bytes::len) as u64;
        }
        assert_eq!(length, POURED);
    }
}

#[tokio::test]
async fn client_stops_while_upstream_reads_nothing() {
    for (upstream, _running, mut client) in pairings().await {
        let at = upstream.at("api.test");
        let (pieces, body) = streamed();
        let request = Request::post(format!("https://{at}/drain")).body(body).unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let sending = tokio::spawn({
            let sent = Arc::clone(&sent);
            async move {
                let piece = Bytes::from(vec![b'x'; 64 << 10]);
                while sent.load(Relaxed) < POURED {
                    pieces.send(Ok(Frame::data(piece.clone()))).await.unwrap();
                    sent.fetch_add(piece.len() as u64, Relaxed);
                }
            }
        });
        let response = client.send(request).await.unwrap();
        let stopped = settled(|| sent.load(Relaxed)).await;
        assert!(stopped < BUFFERS, "{stopped}");
        upstream.go_on.notify_one();
        let told = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(told, POURED.to_string());
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn each_piece_of_a_conversation_arrives_before_the_next_is_sent() {
    for (upstream, _running, mut client) in pairings().await {
        let at = upstream.at("api.test");
        let (pieces, body) = streamed();
        let request = Request::post(format!("https://{at}/chat"))
            .header("content-type", "text/event-stream")
            .body(body)
            .unwrap();
        let mut body = client.send(request).await.unwrap().into_body();
        for index in 0..5 {
            let piece = format!("data: {index}\n\n");
            pieces.send(Ok(Frame::data(piece.clone().into()))).await.unwrap();
            let mut back = Vec::new();
            while back.len() < piece.len() {
                let frame = body.frame().await.unwrap().unwrap();
                back.extend_from_slice(frame.data_ref().unwrap());
            }
            assert_eq!(back, piece.as_bytes());
        }
        drop(pieces);
        assert!(body.collect().await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_in_every_pairing() {
    for (upstream, _running, mut client) in pairings().await {
        let at = upstream.at("api.test");
        let (pieces, body) = streamed();
        let request = Request::post(format!("https://{at}/chat"))
            .header("te", "trailers")
            .header("trailer", "x-end")
            .body(body)
            .unwrap();
        tokio::spawn(async move {
            pieces.send(Ok(Frame::data("data".into()))).await.unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-end", "said at the end".parse().unwrap());
            pieces.send(Ok(Frame::trailers(trailers))).await.unwrap();
        });
        let response = client.send(request).await.unwrap();
        let version = (response.version(), upstream.last().version);
        let collected = response.into_body().collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        assert_eq!(trailers["grpc-status"], "0", "{version:?}");
        assert_eq!(trailers["x-was"], "said at the end", "{version:?}");
        assert_eq!(collected.to_bytes(), "data");
    }
}

#[tokio::test]
async fn client_is_told_to_go_on_with_its_body_only_where_it_may() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let head = |host: &str| {
        format!("POST /body HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    };
    tls.write_all(head(&at).as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    tls.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    tls.write_all(b"hello").await.unwrap();
    let answer = read_all(&mut tls).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    assert_eq!(upstream.last().headers["expect"], "100-continue");
    // Refused before anything of the body is wanted.
    tls.write_all(head("evil.test").as_bytes()).await.unwrap();
    let answer = read_all(&mut tls).await;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
}

#[tokio::test]
async fn upstream_can_refuse_a_body_before_it_is_sent() {
    for (answer, rest) in [("413 Content Too Large", ""), ("417 Expectation Failed", "no")] {
        let (running, at, listener, acceptor) = raw_upstream(&["http/1.1"]).await;
        let refuses = tokio::spawn(async move {
            let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let head = head_of(&mut stream).await;
            assert!(
                head.to_lowercase().contains("\r\nexpect: 100-continue\r\n"),
                "{head}"
            );
            let length = rest.len();
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: {length}\r\n\r\n{rest}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut body = Vec::new();
            let _ = stream.read_to_end(&mut body).await;
            assert!(body.is_empty(), "{body:?}");
        });
        let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
        let head =
            format!("PUT /x HTTP/1.1\r\nHost: {at}\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n");
        tls.write_all(head.as_bytes()).await.unwrap();
        let told = read_all(&mut tls).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {}", &answer[..3])), "{told}");
        assert!(told.ends_with(rest));
        drop(tls);
        refuses.await.unwrap();
    }
}

#[tokio::test]
async fn body_goes_to_an_upstream_that_never_says_whether_it_wants_it() {
    let (running, at, listener, acceptor) = raw_upstream(&["http/1.1"]).await;
    let silent = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        head_of(&mut stream).await;
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        body
    });
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let head = format!("PUT /x HTTP/1.1\r\nHost: {at}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    tls.write_all(head.as_bytes()).await.unwrap();
    assert!(head_of(&mut tls).await.starts_with("HTTP/1.1 100 "));
    tls.write_all(b"hello").await.unwrap();
    assert!(head_of(&mut tls).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(&silent.await.unwrap(), b"hello");
}

#[tokio::test]
async fn client_that_goes_away_ends_its_request_at_upstream() {
    for (upstream, running, mut client) in pairings().await {
        let at = upstream.at("api.test");
        let request = Request::get(format!("https://{at}/pour")).body(empty()).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        drop((response, client));
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/pour"))
            .await;
        assert!(!event.outcome.is_empty(), "{event:?}");
        assert!(event.bytes_in < POURED);
        settled(|| upstream.poured.load(Relaxed)).await;
    }
}
