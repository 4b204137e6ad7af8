//! The upstream: HTTPS that costs as little as it can, since it shares a processor with the load. HTTP/1.1 is spoken by
//! hand on one port, HTTP/2 by hyper on another.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::load::Ports;
use super::{KEY, Result, SMALL, pki};

/// What is written at once.
const CHUNK: usize = 64 << 10;
/// Longest head of a request.
const HEAD: usize = 16 << 10;

/// Serves until the process is killed. `/small` is 1 KiB of JSON, `/bytes/N` that many bytes of noise.
pub async fn serve(directory: &Path, ports: Ports) -> Result<()> {
    let content = Arc::new(Content::new());
    tokio::try_join!(
        listen(
            ports.h1,
            pki::server(directory, pki::LEAF, "http/1.1")?,
            &content,
            false
        ),
        listen(ports.h2, pki::server(directory, pki::LEAF, "h2")?, &content, true),
        listen(
            ports.stranger,
            pki::server(directory, pki::STRANGER, "http/1.1")?,
            &content,
            false
        ),
    )?;
    Ok(())
}

async fn listen(port: u16, tls: Arc<ServerConfig>, content: &Arc<Content>, h2: bool) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (tls, content) = (TlsAcceptor::from(Arc::clone(&tls)), Arc::clone(content));
        tokio::spawn(async move {
            // A client that goes away is no fault of ours.
            let _ = if h2 {
                serve_h2(stream, tls, content).await
            } else {
                serve_h1(stream, tls, &content).await
            };
        });
    }
}

/// What is served.
struct Content {
    small: Bytes,
    noise: Bytes,
}

impl Content {
    fn new() -> Self {
        let words =
            "The build passed; three tests were added for the parser, and the \\\"quoted\\\" case works.\\n";
        let start =
            r#"{"id":"msg_01","type":"message","role":"assistant","content":[{"type":"text","text":""#;
        let end = r#""}],"stop_reason":"end_turn"}"#;
        let text: String = words
            .chars()
            .cycle()
            .take(SMALL - start.len() - end.len())
            .collect();
        // As compressed as most large downloads are: every byte may come.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take((1 << 20) / 8)
        .flatten()
        .collect();
        Self {
            small: format!("{start}{text}{end}").into(),
            noise: noise.into(),
        }
    }

    /// Type and length of what a path asks for.
    fn find(&self, path: &str) -> Option<(&'static str, u64)> {
        match path.strip_prefix("/bytes/") {
            Some(count) => Some(("application/octet-stream", count.parse().ok()?)),
            None => (path == "/small").then_some(("application/json", self.small.len() as u64)),
        }
    }

    /// The part of a body from `sent` on that goes out next.
    fn part(&self, path: &str, sent: u64, length: u64) -> Bytes {
        if path == "/small" {
            return self.small.clone();
        }
        let from = usize::try_from(sent).unwrap_or(0) % self.noise.len();
        let most = usize::try_from(length - sent).unwrap_or(CHUNK).min(CHUNK);
        self.noise.slice(from..self.noise.len().min(from + most))
    }
}

async fn serve_h1(stream: TcpStream, tls: TlsAcceptor, content: &Content) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = tls.accept(BufReader::new(stream)).await?;
    let (mut head, mut out) = (Vec::with_capacity(1024), Vec::with_capacity(2048));
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 || head.len() > HEAD {
                return Ok(());
            }
        }
        let text = std::str::from_utf8(&head)?;
        let path = text.split(' ').nth(1).unwrap_or_default();
        let keys = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("x-api-key").then_some(value.trim())
        });
        out.clear();
        let found = content.find(path).filter(|_| keys.eq([KEY]));
        let Some((kind, length)) = found else {
            stream
                .write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
                .await?;
            stream.flush().await?;
            continue;
        };
        let line = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
        out.extend_from_slice(line.as_bytes());
        let mut sent = 0;
        while sent < length {
            let part = content.part(path, sent, length);
            sent += part.len() as u64;
            if out.is_empty() {
                stream.write_all(&part).await?;
            } else {
                out.extend_from_slice(&part);
                stream.write_all(&out).await?;
                out.clear();
            }
        }
        stream.flush().await?;
    }
}

async fn serve_h2(stream: TcpStream, tls: TlsAcceptor, content: Arc<Content>) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(BufReader::with_capacity(CHUNK, stream)).await?;
    let service = service_fn(move |request: Request<Incoming>| {
        let content = Arc::clone(&content);
        async move {
            let path = request.uri().path().to_owned();
            let keys = request
                .headers()
                .get_all("x-api-key")
                .iter()
                .map(|key| key.as_bytes());
            let found = content.find(&path).filter(|_| keys.eq([KEY.as_bytes()]));
            let (status, kind, length) = match found {
                Some((kind, length)) => (200, kind, length),
                None => (401, "text/plain", 0),
            };
            let body = Part {
                content,
                path,
                sent: 0,
                length,
            };
            let response = Response::builder().status(status).header("content-type", kind);
            Ok::<_, Infallible>(
                response
                    .body(body)
                    .unwrap_or_else(|_| unreachable!("all is static")),
            )
        }
    });
    http2::Builder::new(TokioExecutor::new())
        .max_send_buf_size(1 << 20)
        .max_concurrent_streams(1024)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

/// What is left of a body.
struct Part {
    content: Arc<Content>,
    path: String,
    sent: u64,
    length: u64,
}

impl Body for Part {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let part = self.content.part(&self.path, self.sent, self.length);
        self.sent += part.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent >= self.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.sent)
    }
}
