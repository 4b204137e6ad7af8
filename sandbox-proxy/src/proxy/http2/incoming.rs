//! A body as it comes in over HTTP/2.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::client::StreamSlot;
use super::{Fault, Reply};
use crate::defence::holds;

/// The body of one request or response. What is taken out of it makes room for more.
#[derive(Debug)]
pub(crate) struct Stream {
    stream: RecvStream,
    /// What is still to come, if the head says so; `h2` holds the other end to it.
    length: Option<u64>,
    has_trailers_next: bool,
    /// Of a client that waits to be told that its body is wanted.
    asks_first: Option<Reply>,
    /// Of an upstream.
    from: Option<Answered>,
}

/// What goes with the body of an answer.
#[derive(Debug)]
pub(super) struct Answered {
    /// Among the streams of its connection.
    pub(super) _slot: Arc<StreamSlot>,
    /// Hears of its end: the request's body is still going out.
    pub(super) upload: Option<oneshot::Sender<AnswerEnd>>,
}

/// How an answer ended, for the request's body that it did not wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerEnd {
    Whole,
    /// Nobody wants the rest of it.
    GivenUp,
}

impl Stream {
    /// The body behind this head.
    pub(super) fn new(stream: RecvStream, head: &HeaderMap) -> Self {
        let length = head.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        Self {
            length: length.and_then(|length| length.parse().ok()),
            stream,
            has_trailers_next: false,
            asks_first: None,
            from: None,
        }
    }

    /// The same, of an answer.
    pub(super) fn answering(mut self, from: Answered) -> Self {
        self.from = Some(from);
        self
    }

    /// The same, which tells the client that it is wanted when it is first asked for.
    pub(super) fn asking_first(mut self, reply: Reply) -> Self {
        self.asks_first = Some(reply);
        self
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let data = ready!(self.stream.poll_data(cx));
        if let Some(Ok(data)) = &data {
            // Fails where the stream is gone, which the next call tells.
            let _ = self.stream.flow_control().release_capacity(data.len());
            self.length = self.length.map(|length| length.saturating_sub(data.len() as u64));
        }
        Poll::Ready(data)
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        if let Some(reply) = this.asks_first.take() {
            reply.go_on();
        }
        let came = if this.has_trailers_next {
            ready!(this.stream.poll_trailers(cx)).map(|trailers| trailers.map(Frame::trailers))
        } else {
            match ready!(this.poll_data(cx)) {
                Some(data) => data.map(|data| Some(Frame::data(data))),
                None => {
                    this.has_trailers_next = true;
                    return Pin::new(this).poll_frame(cx);
                }
            }
        };
        Poll::Ready(match came.map_err(Fault::from) {
            // That is no end: the end of a stream is said.
            Err(fault) if fault.is_no_error() && !holds("reset-is-no-end") => None,
            came => came.transpose(),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(upload) = self.from.as_mut().and_then(|from| from.upload.take()) {
            // Whoever has as much as was announced asks for no more.
            let is_whole = self.stream.is_end_stream() || self.length == Some(0);
            // It may have ended before.
            let _ = upload.send(if is_whole {
                AnswerEnd::Whole
            } else {
                AnswerEnd::GivenUp
            });
        }
    }
}
