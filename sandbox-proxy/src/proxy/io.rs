//! Streams as the proxy holds them: watched for idleness, with bytes put back, and what is given back with them.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::io::Errno;
use sandbox_core::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::meter::{Half, Meter};
use super::quota::Slot;

/// The guest's side of a tunnel: its stream, and what was read with the CONNECT before it.
pub(crate) type Client = Prefixed<Watched>;

/// A stream that counts what moves on it.
pub(crate) struct Watched {
    stream: BoxStream,
    moved: Arc<AtomicU64>,
}

impl Watched {
    pub(crate) fn new(stream: BoxStream) -> Self {
        Self {
            stream,
            moved: Arc::default(),
        }
    }

    /// Ends when nothing has moved for `limit` to twice that.
    pub(crate) fn idle(&self, limit: Duration) -> impl Future<Output = ()> + use<> {
        let moved = Arc::clone(&self.moved);
        async move {
            loop {
                let before = moved.load(Relaxed);
                tokio::time::sleep(limit).await;
                if moved.load(Relaxed) == before {
                    return;
                }
            }
        }
    }

    fn note(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Relaxed);
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.note(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.note(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.note(written);
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

/// What is written to a wrapper goes to its `stream` as it is.
macro_rules! write_through {
    ([$($generics:tt)*] $wrapper:ty) => {
        impl<$($generics)*> AsyncWrite for $wrapper {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write(cx, buf)
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
    };
}

/// A stream with bytes that are read before it.
pub(crate) struct Prefixed<S> {
    prefix: Bytes,
    stream: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(prefix: impl Into<Bytes>, stream: S) -> Self {
        let prefix = prefix.into();
        Self {
            // What is left of a buffer that was read to its end still holds all of it.
            prefix: if prefix.is_empty() { Bytes::new() } else { prefix },
            stream,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(self.prefix.get(..count).unwrap_or(&[]));
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            // Gives the memory back: tunnels live long.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

pub(super) use write_through;

write_through!([S: AsyncWrite + Unpin] Prefixed<S>);

/// A stream, and what is given back when it is gone: whoever drives it may outlive whoever asked for it.
pub(crate) struct Holding<S, T> {
    stream: S,
    _held: T,
}

impl<S, T> Holding<S, T> {
    pub(crate) fn new(stream: S, held: T) -> Self {
        Self { stream, _held: held }
    }
}

impl<S: AsyncRead + Unpin, T: Unpin> AsyncRead for Holding<S, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

write_through!([S: AsyncWrite + Unpin, T: Unpin] Holding<S, T>);

/// A connection to upstream, metered, with its place among the sandbox's.
pub(crate) struct Dialled {
    stream: Prefixed<TcpStream>,
    meter: Option<Meter>,
    /// The target's, if that is where it leads.
    vetted: Option<IpAddr>,
    _slot: Slot,
}

impl Dialled {
    pub(crate) fn new(stream: TcpStream, slot: Slot) -> Self {
        Self {
            stream: Prefixed::new(Bytes::new(), stream),
            meter: None,
            vetted: None,
            _slot: slot,
        }
    }

    /// The same connection, with bytes of it that were read already.
    pub(crate) fn after(mut self, read: Bytes) -> Self {
        self.stream.prefix = read;
        self
    }

    /// The same connection, from now on counted.
    pub(crate) fn metered(mut self, meter: Meter) -> Self {
        self.meter = Some(meter);
        self
    }

    /// The same connection, which leads to an address of its target that was vetted.
    pub(crate) fn at_vetted(mut self) -> Self {
        self.vetted = self.stream.stream.peer_addr().ok().map(|peer| peer.ip());
        self
    }

    /// The address of the target; `None` behind a proxy of the host's network.
    pub(crate) fn vetted(&self) -> Option<IpAddr> {
        self.vetted
    }
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Some(meter) = &mut self.meter {
            ready!(meter.poll(cx, Half::Read))?;
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(meter) = &self.meter {
            meter.spend(buf.filled().len() - before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(meter) = &mut self.meter {
            ready!(meter.poll(cx, Half::Write))?;
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        if let Some(meter) = &self.meter {
            meter.spend(written);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(meter) = &mut self.meter {
            ready!(meter.poll(cx, Half::Write))?;
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        if let Some(meter) = &self.meter {
            meter.spend(written);
        }
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

/// A stream that tells whether anything has come on it.
pub(crate) struct Heard<S> {
    stream: S,
    heard: Arc<AtomicBool>,
}

impl<S> Heard<S> {
    /// Sets `heard` whenever something comes.
    pub(crate) fn new(stream: S, heard: Arc<AtomicBool>) -> Self {
        Self { stream, heard }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.store(true, Relaxed);
        }
        read
    }
}

write_through!([S: AsyncWrite + Unpin] Heard<S>);

/// A stream that pauses after so many bytes were read in a row: what waits for them, with no window of its own, has its turn
/// before there is more.
pub(crate) struct Turns<S> {
    stream: S,
    most: usize,
    read: usize,
}

impl<S> Turns<S> {
    pub(crate) fn new(stream: S, most: usize) -> Self {
        Self {
            stream,
            most,
            read: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Turns<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read >= self.most {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match read {
            Poll::Ready(_) => self.read += buf.filled().len() - before,
            Poll::Pending => self.read = 0,
        }
        read
    }
}

write_through!([S: AsyncWrite + Unpin] Turns<S>);

/// Whether a call failed because the process or the machine has no descriptor left, for which
/// [`io::ErrorKind`] has no name.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}
