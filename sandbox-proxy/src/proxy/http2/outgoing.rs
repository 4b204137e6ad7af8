//! A body as it goes out over HTTP/2.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

use super::queue::Queue;
use crate::proxy::place::Place;

/// Sends a body as fast as it is taken. Ends when it has ended, and when nobody takes it any more; gives whether it came
/// to that, and did not break off.
pub(super) struct Outgoing<B> {
    /// Until all of it is in the queue.
    body: Option<B>,
    stream: SendStream<Bytes>,
    queue: Arc<Queue>,
    /// Data that waits for room, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
    /// What the receiver is told where the body breaks off.
    broken: Option<Reason>,
    /// Whether it ends only when all of it has left.
    until_left: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Outgoing<B> {
    /// All that waits for the receiver holds the `place`. Whoever gives no reason for what breaks off resets it.
    pub(super) fn new(body: B, stream: SendStream<Bytes>, place: Option<Place>) -> Self {
        Self {
            body: Some(body),
            stream,
            queue: Queue::new(place),
            waiting: None,
            broken: None,
            until_left: false,
        }
    }

    /// The same, which ends only when all of it has left.
    pub(super) fn until_left(self) -> Self {
        Self {
            until_left: true,
            ..self
        }
    }

    /// What waits for the receiver.
    pub(super) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Resets the stream; what waits for its receiver is thrown away. Once the stream's head has left, no sooner.
    pub(super) fn give_up(mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// The same, which tells the receiver so where the body breaks off.
    pub(super) fn resetting(self, reason: Reason) -> Self {
        Self {
            broken: Some(reason),
            ..self
        }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, h2::Error>> {
        loop {
            if self.waiting.is_some() {
                ready!(self.queue.poll_free(cx));
                ready!(poll_room(&mut self.stream, cx))?;
            }
            if let Some((data, is_last)) = self.waiting.take() {
                self.stream.send_data(self.queue.hold(data), is_last)?;
                if is_last {
                    self.body = None;
                }
            }
            let Some(body) = &mut self.body else {
                break;
            };
            let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(cx)) else {
                self.stream.send_data(Bytes::new(), true)?;
                self.body = None;
                break;
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) if data.is_empty() => {}
                Ok(Ok(data)) => {
                    // Of the connection's window as much as says that something waits: what is claimed before it can be
                    // used is lost to the other streams.
                    self.stream.reserve_capacity(1);
                    self.waiting = Some((data, body.is_end_stream()));
                }
                Ok(Err(frame)) => {
                    self.stream.reserve_capacity(0);
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.stream.send_trailers(trailers)?;
                    self.body = None;
                }
                Err(_) => {
                    if let Some(reason) = self.broken {
                        self.stream.send_reset(reason);
                    }
                    return Poll::Ready(Ok(false));
                }
            }
        }
        if self.until_left {
            ready!(self.queue.poll_empty(cx));
        }
        Poll::Ready(Ok(true))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Future for Outgoing<B> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = self.get_mut();
        if let Poll::Ready(sent) = this.poll_sent(cx) {
            return Poll::Ready(sent.unwrap_or(true));
        }
        // Wakes this, too, when the receiver gives the stream up.
        this.stream.poll_reset(cx).map(|_| true)
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
