//! A body as it goes out over HTTP/2.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

/// Sends a body as fast as it is taken. Ends when it has ended, and when nobody takes it any more.
pub(super) struct Outgoing<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Data that waits for room, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
    /// What the receiver is told where the body breaks off.
    broken: Reason,
}

impl<B: Body<Data = Bytes> + Unpin> Outgoing<B> {
    pub(super) fn new(body: B, stream: SendStream<Bytes>, broken: Reason) -> Self {
        Self {
            body,
            stream,
            waiting: None,
            broken,
        }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if self.waiting.is_some() {
                ready!(poll_room(&mut self.stream, cx))?;
            }
            if let Some((data, is_last)) = self.waiting.take() {
                self.stream.send_data(data, is_last)?;
                if is_last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(self.stream.send_data(Bytes::new(), true));
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) if data.is_empty() => {}
                Ok(Ok(data)) => {
                    // Of the connection's window as much as says that something waits: what is claimed before it can be
                    // used is lost to the other streams.
                    self.stream.reserve_capacity(1);
                    self.waiting = Some((data, self.body.is_end_stream()));
                }
                Ok(Err(frame)) => {
                    self.stream.reserve_capacity(0);
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return Poll::Ready(self.stream.send_trailers(trailers));
                }
                Err(_) => {
                    self.stream.send_reset(self.broken);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Future for Outgoing<B> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.poll_sent(cx).is_ready() {
            return Poll::Ready(());
        }
        // Wakes this, too, when the receiver gives the stream up.
        this.stream.poll_reset(cx).map(drop)
    }
}

/// Waits until some of the stream's data may be sent.
pub(super) fn poll_room(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, h2::Error>> {
    loop {
        match stream.capacity() {
            0 => {}
            room => return Poll::Ready(Ok(room)),
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(result) => drop(result?),
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        }
    }
}
