//! Fewer steps where much comes: a TLS stream reads 4 KiB at a time and hands out one record, and each step costs a
//! system call or a switch of tasks. [`Ahead`] is put beneath it, [`Whole`] above it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::io::write_through;
use super::limits;

/// Reads more than it is asked for while a peer sends a lot. Holds memory only as long as that lasts.
pub(crate) struct Ahead<S> {
    stream: S,
    buffer: BytesMut,
    /// The last read was filled to its end, so there is more.
    is_much: bool,
}

impl<S> Ahead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            is_much: false,
        }
    }

    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.buffer.len().min(buf.remaining());
        buf.put_slice(self.buffer.get(..count).unwrap_or(&[]));
        self.buffer.advance(count);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.buffer.is_empty() && !this.is_much {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            this.is_much = buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if this.buffer.is_empty() {
            this.buffer.reserve(limits::AHEAD_BYTES);
            let read = poll_read_buf(Pin::new(&mut this.stream), cx, &mut this.buffer);
            if this.buffer.is_empty() {
                // Nothing came, or the end: streams live long, and a silent one needs no memory.
                (this.buffer, this.is_much) = (BytesMut::new(), false);
            }
            ready!(read)?;
        }
        this.hand_out(buf);
        Poll::Ready(Ok(()))
    }
}

write_through!([S: AsyncWrite + Unpin] Ahead<S>);

/// Fills the buffer it is given with all that is there, instead of with one record.
pub(crate) struct Whole<S> {
    stream: S,
    /// Came after bytes that were handed out first.
    error: Option<io::Error>,
}

impl<S> Whole<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, error: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Whole<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        let start = buf.filled().len();
        loop {
            let before = buf.filled().len();
            match Pin::new(&mut self.stream).poll_read(cx, buf) {
                Poll::Ready(Ok(())) if buf.filled().len() > before && buf.remaining() > 0 => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                nothing if before == start => return nothing,
                Poll::Pending => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => {
                    self.error = Some(error);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

write_through!([S: AsyncWrite + Unpin] Whole<S>);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_come_as_they_were_sent_however_they_are_read() {
        let (mut near, far) = tokio::io::duplex(100_000);
        let sent: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        tokio::spawn(async move { near.write_all(&sent).await });
        let mut stream = Whole::new(Ahead::new(far));
        let mut got = Vec::new();
        for size in [1, 4096, 3, 70_000, 20_000].into_iter().cycle() {
            let mut part = vec![0; size];
            let read = stream.read(&mut part).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(part.get(..read).unwrap());
        }
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn silent_stream_holds_no_memory() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut stream = Ahead::new(far);
        near.write_all(&[1; 200_000]).await.unwrap();
        let mut got = 0;
        while got < 200_000 {
            got += stream.read(&mut [0; 4096]).await.unwrap();
        }
        let mut byte = [0];
        assert!(is_pending(stream.read(&mut byte)).await);
        assert_eq!(stream.buffer.capacity(), 0);
    }

    async fn is_pending<F: Future>(future: F) -> bool {
        tokio::time::timeout(std::time::Duration::ZERO, future)
            .await
            .is_err()
    }

    #[tokio::test]
    async fn error_comes_after_the_bytes_before_it() {
        let stream = broken_stream();
        let mut stream = Whole::new(stream);
        let mut part = [0; 64];
        assert_eq!(stream.read(&mut part).await.unwrap(), 4);
        assert_eq!(
            stream.read(&mut part).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }

    /// Two bytes, two bytes, a reset.
    fn broken_stream() -> impl AsyncRead + Unpin {
        struct Script(u8);
        impl AsyncRead for Script {
            fn poll_read(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.0 += 1;
                if self.0 > 2 {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                buf.put_slice(b"ab");
                Poll::Ready(Ok(()))
            }
        }
        Script(0)
    }
}
