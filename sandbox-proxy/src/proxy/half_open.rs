//! Clients of HTTP/1.1 that end their side before they have their answer.
//!
//! Over TCP such a client looks the same as one that left, until something is written to it. hyper takes both for gone, or
//! neither; what is asked for may cost money by the second, and `nc -N` wants its answer. So the end is told a little later.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::io::write_through;
use super::limits;
use crate::defence::holds;

/// A stream whose end is told at once between requests, and later while one is answered.
pub(crate) struct HalfOpen<S> {
    stream: S,
    is_answering: Arc<AtomicBool>,
    /// It has ended, and this is when that is told.
    ended: Option<Pin<Box<Sleep>>>,
}

impl<S> HalfOpen<S> {
    /// `is_answering` is whether a request has come whose answer has not left.
    pub(crate) fn new(stream: S, is_answering: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            is_answering,
            ended: None,
        }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HalfOpen<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_answering = self.is_answering.load(Relaxed);
        if self.ended.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            if buf.filled().len() > before || buf.remaining() == 0 || !is_answering {
                return Poll::Ready(Ok(()));
            }
        }
        let told = self
            .ended
            .get_or_insert_with(|| Box::pin(sleep(limits::HALF_OPEN_TIME)));
        if is_answering {
            ready!(told.as_mut().poll(cx));
            if !holds("half-open-time") {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

write_through!([S: AsyncWrite + Unpin] HalfOpen<S>);
