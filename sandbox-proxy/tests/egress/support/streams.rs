//! Answers of the upstream that begin before the request has ended, and go on for long; WebSockets.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use super::SECRET;
use super::upstream::{Answer, Frames, Seen, frame};

/// Bytes of `/pour`.
pub const POURED: u64 = 64 << 20;
/// It comes in pieces of this size.
const PIECE: usize = 64 << 10;

type Sender = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// Whether the path is one of these:
///
/// - `/pour` gives many bytes, and counts those that it got rid of;
/// - `/drain` reads nothing until the test lets it, then tells how many bytes came;
/// - `/chat…` gives each piece back when it comes, and at the end `grpc-status` and the request's trailers.
pub fn are_for(path: &str) -> bool {
    ["/pour", "/drain", "/chat"]
        .iter()
        .any(|start| path.starts_with(start))
}

pub fn answer(
    request: Request<Incoming>,
    seen: &Mutex<Vec<Seen>>,
    go_on: Arc<Notify>,
    poured: Arc<AtomicU64>,
) -> Answer {
    let (parts, body) = request.into_parts();
    seen.lock().unwrap().push(Seen {
        method: parts.method.clone(),
        version: parts.version,
        target: parts.uri.to_string(),
        headers: parts.headers.clone(),
        trailers: HeaderMap::new(),
        body: Bytes::new(),
    });
    let (sender, mut receiver) = mpsc::channel(1);
    let path = parts.uri.path().to_owned();
    tokio::spawn(async move {
        match path.as_str() {
            "/pour" => pour(sender, &poured).await,
            "/drain" => drain(body, sender, &go_on).await,
            _ => chat(body, sender).await,
        }
    });
    let stream = Frames(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
    let mut answer = Response::new(BodyExt::boxed(stream));
    let headers = answer.headers_mut();
    if let Some(kind) = parts.headers.get("content-type") {
        headers.insert("content-type", kind.clone());
    }
    headers.insert("trailer", HeaderValue::from_static("grpc-status, x-was"));
    answer
}

async fn pour(sender: Sender, poured: &AtomicU64) {
    let piece = Bytes::from(vec![b'x'; PIECE]);
    for _ in 0..POURED / PIECE as u64 {
        if sender.send(Ok(Frame::data(piece.clone()))).await.is_err() {
            return;
        }
        poured.fetch_add(PIECE as u64, Relaxed);
    }
}

async fn drain(mut body: Incoming, sender: Sender, go_on: &Notify) {
    go_on.notified().await;
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, Bytes::len);
    }
    let _ = sender.send(Ok(Frame::data(count.to_string().into()))).await;
}

async fn chat(mut body: Incoming, sender: Sender) {
    let mut trailers = HeaderMap::new();
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => {
                if sender.send(Ok(Frame::data(data))).await.is_err() {
                    return;
                }
            }
            Err(frame) => {
                if let Some(value) = frame.trailers_ref().and_then(|trailers| trailers.get("x-end")) {
                    trailers.insert("x-was", value.clone());
                }
            }
        }
    }
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = sender.send(Ok(Frame::trailers(trailers))).await;
}

/// A message of gRPC: not compressed, with its length.
pub fn message(payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0][..], &length, payload].concat().into()
}

/// What a WebSocket's server answers to a key (RFC 6455 §4.2.2).
pub fn accept(key: &[u8]) -> String {
    let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    BASE64_STANDARD.encode(digest)
}

/// What `/ws` says first: one text message in two frames, the border within the key.
pub fn greeting(key: &str) -> Vec<u8> {
    let text = format!("key {key};");
    let (first, second) = text.split_at(9);
    [frame(0x01, first.as_bytes()), frame(0x80, second.as_bytes())].concat()
}

/// At the other end of this WebSocket is `/ws`: it greets with the key, which must be blanked out, and what it is
/// sent comes back. Gives how many bytes it was sent.
pub async fn greets_and_echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> u64 {
    let expected = greeting(&"*".repeat(SECRET.len()));
    let mut greeting = vec![0; expected.len()];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting, expected);
    // Not HTTP any more, whatever it looks like.
    let bytes = b"\x00\xff GET / HTTP/1.1\r\n\r\n";
    stream.write_all(bytes).await.unwrap();
    let mut echo = vec![0; bytes.len() + 2];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, frame(0x82, bytes));
    bytes.len() as u64
}
