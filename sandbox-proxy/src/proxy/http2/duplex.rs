//! A stream of HTTP/2 that carries bytes both ways (RFC 8441 §5).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Fault;
use super::client::StreamSlot;
use super::outgoing::poll_room;
use super::queue::Queue;
use crate::proxy::limits;

/// Both directions of a stream after its extended CONNECT. Dropped before it was shut down, it is reset.
pub(crate) struct Duplex {
    incoming: RecvStream,
    /// What came and is not read yet.
    came: Bytes,
    outgoing: SendStream<Bytes>,
    queue: Arc<Queue>,
    /// At upstream, among the streams of its connection.
    _slot: Option<Arc<StreamSlot>>,
}

impl Duplex {
    pub(super) fn new(
        incoming: RecvStream,
        outgoing: SendStream<Bytes>,
        slot: Option<Arc<StreamSlot>>,
    ) -> Self {
        Self {
            queue: Queue::new(None),
            _slot: slot,
            incoming,
            came: Bytes::new(),
            outgoing,
        }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.came.is_empty() {
            match ready!(self.incoming.poll_data(cx)) {
                Some(Ok(data)) => self.came = data,
                Some(Err(error)) => return Poll::Ready(ended(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.came.len().min(buf.remaining());
        buf.put_slice(self.came.get(..count).unwrap_or(&[]));
        self.came.advance(count);
        // Fails where the stream is gone, which the next call tells.
        let _ = self.incoming.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

/// A stream that is reset is the same as one of TCP that is (RFC 8441 §5), but for one that just is not needed any more.
fn ended(error: h2::Error) -> io::Result<()> {
    match Fault::from(error) {
        fault if fault.is_no_error() => Ok(()),
        fault => Err(broken(fault)),
    }
}

fn broken(fault: Fault) -> io::Error {
    match fault {
        Fault::Io(kind) => kind.into(),
        _ => io::Error::new(io::ErrorKind::ConnectionReset, fault),
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.queue.poll_free(cx));
        if self.outgoing.capacity() == 0 {
            self.outgoing
                .reserve_capacity(buf.len().min(limits::H2_SEND_BUFFER));
        }
        let room = ready!(poll_room(&mut self.outgoing, cx)).map_err(|error| broken(error.into()))?;
        let data = buf.get(..room).unwrap_or(buf);
        let held = self.queue.hold(Bytes::copy_from_slice(data));
        self.outgoing
            .send_data(held, false)
            .map_err(|error| broken(error.into()))?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Its connection sends what it has by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.outgoing.send_data(Bytes::new(), true);
        Poll::Ready(ended.map_err(|error| broken(error.into())))
    }
}
