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
use tokio::time::{Instant, Sleep, sleep};

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

impl<S> HalfOpen<S> {
    /// Who takes some of the answer may still be there: it is told later again.
    fn note_written(&mut self) {
        if let Some(told) = self.ended.as_mut().filter(|told| !told.is_elapsed()) {
            told.as_mut().reset(Instant::now() + limits::HALF_OPEN_TIME);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HalfOpen<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.note_written();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.note_written();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn end_is_told_later_while_an_answer_goes_out_and_at_once_between_requests() {
        let (near, mut far) = tokio::io::duplex(64);
        let is_answering = Arc::new(AtomicBool::new(true));
        let mut stream = HalfOpen::new(near, Arc::clone(&is_answering));
        far.shutdown().await.unwrap();
        let mut byte = [0];
        for _ in 0..3 {
            let early = timeout(
                limits::HALF_OPEN_TIME - Duration::from_millis(1),
                stream.read(&mut byte),
            );
            assert!(early.await.is_err());
            stream.write_all(b"x").await.unwrap();
        }
        is_answering.store(false, Relaxed);
        let start = Instant::now();
        assert_eq!(stream.read(&mut byte).await.unwrap(), 0);
        assert_eq!(start.elapsed(), Duration::ZERO);
        is_answering.store(true, Relaxed);
        assert_eq!(stream.read(&mut byte).await.unwrap(), 0);
        assert!(start.elapsed() >= limits::HALF_OPEN_TIME - Duration::from_millis(1));
    }
}
