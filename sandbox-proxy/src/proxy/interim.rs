//! Interim answers (1xx, RFC 9110 §15.2) on their way from an upstream to a client, in any pairing of versions.
//!
//! Over HTTP/2 they go out on their request's stream. hyper's server of HTTP/1.1 has no way to send any, so they go out
//! between what it writes: a stream is between messages when it is flushed while a request has no answer, since hyper
//! flushes when it has written all that it has. From the first byte that it writes next, the answer's head may be in it, and
//! nothing more is put before.
//!
//! Only in tunnels, where all is of one host: some clients take the first 103 for the answer (RFC 8297 §3), and where one
//! connection leads to several hosts, the answer itself would then be another's.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, SET_COOKIE, TRAILER};
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2::Reply;
use super::message;
use crate::defence::holds;
use crate::scrub::Secrets;

/// Interim answers that wait for a client that does not read, in bytes; further ones are left out, as hints may be
/// (RFC 8297 §2). As much may be on its way beside.
const WAITING_BYTES: usize = 4 << 10;
/// Those that are passed on: `102 Processing` and `103 Early Hints`. `100` is hyper's own, `101` is an answer, and of others
/// not all clients know that they are none.
const PASSED: [u16; 2] = [102, 103];

/// Where interim answers to a client go.
#[derive(Clone)]
pub(crate) enum Interim {
    /// On a connection for one request after the other.
    Http1(Between),
    /// On the one request's stream.
    Http2(Reply),
}

/// What is between the requests of one connection of HTTP/1.1 and its stream.
#[derive(Clone, Default)]
pub(crate) struct Between(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Whether there may be something to send: asked at each write.
    is_open: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Who writes on the stream.
    writer: Option<Waker>,
    /// The number of the request that is under way, or comes next.
    request: u64,
    is_under_way: bool,
}

/// A request that has no answer yet.
pub(crate) struct Unanswered(Way);

/// The way back to the client of one request.
#[derive(Clone)]
enum Way {
    /// On a connection, for the request of this number.
    Http1(Between, u64),
    Http2(Reply),
}

/// Takes what an upstream says before it answers one request.
pub(crate) struct Hints {
    way: Way,
    /// Whose secrets are blanked out.
    secrets: Option<Arc<Secrets>>,
    /// Whether a credential went along, whose session stays on the host.
    is_managed: bool,
}

/// A client's stream, on which interim answers go out.
pub(crate) struct Interleaved<S> {
    stream: S,
    between: Between,
    /// Whether all that was written before is flushed.
    is_between: bool,
    sending: Bytes,
}

impl Interim {
    /// From now on, until it is dropped, a request is under way.
    pub(crate) fn begin(&self) -> Unanswered {
        Unanswered(match self {
            Self::Http1(between) => Way::Http1(between.clone(), between.begin()),
            Self::Http2(reply) => Way::Http2(reply.clone()),
        })
    }
}

impl Between {
    /// The number of the request that is under way from now on.
    fn begin(&self) -> u64 {
        self.0.is_open.store(true, Relaxed);
        let mut waiting = self.lock();
        waiting.is_under_way = true;
        waiting.request
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits; else whoever writes is woken when something does.
    fn take(&self, cx: &Context<'_>) -> Option<Bytes> {
        if !self.0.is_open.load(Relaxed) {
            return None;
        }
        let mut waiting = self.lock();
        if waiting.bytes.is_empty() {
            waiting.writer = waiting.is_under_way.then(|| cx.waker().clone());
            self.0.is_open.store(waiting.is_under_way, Relaxed);
            return None;
        }
        Some(std::mem::take(&mut waiting.bytes).into())
    }

    /// Leaves out what waits.
    fn discard(&self) {
        if self.0.is_open.load(Relaxed) {
            self.lock().bytes.clear();
        }
    }

    fn put(&self, request: u64, head: &[u8]) {
        let mut waiting = self.lock();
        let is_under_way = waiting.request == request || !holds("interim-of-this-request");
        if is_under_way && waiting.bytes.len() + head.len() <= WAITING_BYTES {
            waiting.bytes.extend_from_slice(head);
            if let Some(writer) = waiting.writer.take() {
                writer.wake();
            }
        }
    }
}

impl Unanswered {
    /// `secrets` are blanked out of what comes.
    pub(crate) fn hints(&self, secrets: Option<Arc<Secrets>>, is_managed: bool) -> Hints {
        Hints {
            way: self.0.clone(),
            secrets,
            is_managed,
        }
    }
}

impl Drop for Unanswered {
    /// What comes for it later would be taken for an answer to the next, or stand amid a body. (A stream of HTTP/2 takes
    /// nothing after its answer.)
    fn drop(&mut self) {
        if let Way::Http1(between, _) = &self.0 {
            let mut waiting = between.lock();
            waiting.request += 1;
            waiting.is_under_way = false;
        }
    }
}

impl Hints {
    /// Hands an interim answer on, cleaned as the answer will be.
    pub(crate) fn pass(&self, status: StatusCode, headers: &HeaderMap) {
        let size: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if !PASSED.contains(&status.as_u16()) || size > WAITING_BYTES || message::has_too_many_fields(headers)
        {
            return;
        }
        let mut headers = headers.clone();
        // Nothing follows these heads (RFC 9110 §8.6); some clients would wait for it, or take the answer for it.
        if holds("interim-length") {
            headers.remove(CONTENT_LENGTH);
        }
        headers.remove(TRAILER);
        if self.is_managed && holds("set-cookie") {
            headers.remove(SET_COOKIE);
        }
        if let Some(secrets) = &self.secrets
            && holds("interim-scrubbed")
        {
            secrets.patterns().scrub_headers(&mut headers);
        }
        message::clean_response(&mut headers);
        match &self.way {
            Way::Http1(between, request) => between.put(*request, &head(status, &headers)),
            Way::Http2(reply) => reply.interim(status, headers),
        }
    }
}

/// A head as HTTP/1.1 writes it.
fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("");
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in headers {
        // Neither can hold a line end.
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head
}

impl<S> Interleaved<S> {
    pub(crate) fn new(stream: S, between: Between) -> Self {
        Self {
            stream,
            between,
            is_between: true,
            sending: Bytes::new(),
        }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncWrite + Unpin> Interleaved<S> {
    fn poll_sending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sending.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.sending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sending.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what waits. Only between messages.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_sending(cx))?;
            match self.between.take(cx) {
                Some(bytes) => self.sending = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Before hyper writes: once what waits, and from then on no more than that.
    fn poll_before(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_between = std::mem::replace(&mut self.is_between, !holds("interim-between"));
        if !is_between {
            self.between.discard();
        } else if self.sending.is_empty()
            && let Some(bytes) = self.between.take(cx)
        {
            self.sending = bytes;
        }
        self.poll_sending(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Interleaved<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Interleaved<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_before(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_before(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.is_between = true;
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    fn hint(request: &Unanswered) {
        let mut headers = HeaderMap::new();
        headers.insert("link", "</a>".parse().unwrap());
        request
            .hints(None, false)
            .pass(StatusCode::from_u16(103).unwrap(), &headers);
    }

    /// All that comes until the other side is dropped.
    async fn all(mut far: tokio::io::DuplexStream) -> Vec<u8> {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        got
    }

    /// The hint, and what comes after it.
    fn expected(rest: &[u8]) -> Vec<u8> {
        [HINT, rest].concat()
    }

    #[tokio::test]
    async fn hint_goes_before_the_answer_and_none_after_it() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let between = Between::default();
        let interim = Interim::Http1(between.clone());
        let mut stream = Interleaved::new(near, between);
        let request = interim.begin();
        hint(&request);
        let late = request.hints(None, false);
        drop(request);
        stream.write_all(b"answer").await.unwrap();
        late.pass(StatusCode::PROCESSING, &HeaderMap::new());
        stream.flush().await.unwrap();
        // Neither is there an answer to a request before amid one to the next.
        let _next = interim.begin();
        late.pass(StatusCode::PROCESSING, &HeaderMap::new());
        stream.flush().await.unwrap();
        drop(stream);
        assert_eq!(all(far).await, expected(b"answer"));
    }

    #[tokio::test]
    async fn hint_never_stands_amid_what_is_being_written() {
        let (near, far) = tokio::io::duplex(4);
        let between = Between::default();
        let interim = Interim::Http1(between.clone());
        let mut stream = Interleaved::new(near, between);
        let request = interim.begin();
        let reading = tokio::spawn(all(far));
        // The end of an answer before, in two writes without a flush between.
        stream.write_all(b"body of ").await.unwrap();
        hint(&request);
        drop(request);
        stream.write_all(b"one; head of two").await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
        assert_eq!(reading.await.unwrap(), b"body of one; head of two");
    }

    #[tokio::test]
    async fn hint_to_the_next_request_never_stands_before_this_ones_answer() {
        let (near, far) = tokio::io::duplex(8);
        let between = Between::default();
        let interim = Interim::Http1(between.clone());
        let mut stream = Interleaved::new(near, between);
        let request = interim.begin();
        hint(&request);
        drop(request);
        // The answer waits behind the hint, which nobody reads yet.
        let mut writing = Box::pin(async {
            stream.write_all(b"answer").await.unwrap();
            stream.flush().await.unwrap();
            stream
        });
        assert!(is_pending(&mut writing).await);
        let next = interim.begin();
        hint(&next);
        drop(next);
        let reading = tokio::spawn(all(far));
        drop(writing.await);
        assert_eq!(reading.await.unwrap(), expected(b"answer"));
    }

    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn hint_goes_out_while_the_answer_is_waited_for() {
        let (near, mut far) = tokio::io::duplex(8);
        let between = Between::default();
        let interim = Interim::Http1(between.clone());
        let mut stream = Interleaved::new(near, between);
        let request = interim.begin();
        // As hyper does: whenever it is woken, it flushes.
        let flushing = tokio::spawn(async move {
            std::future::poll_fn(|cx| match Pin::new(&mut stream).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(error),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            })
            .await
        });
        tokio::task::yield_now().await;
        hint(&request);
        let mut got = vec![0; expected(b"").len()];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(got, expected(b""));
        flushing.abort();
    }

    #[test]
    fn who_does_not_read_is_held_little_for() {
        let between = Between::default();
        let interim = Interim::Http1(between.clone());
        let request = interim.begin();
        for _ in 0..1000 {
            hint(&request);
        }
        assert!(between.lock().bytes.len() <= WAITING_BYTES);
    }
}
