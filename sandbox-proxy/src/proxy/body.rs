//! Bodies on their way through: counted, scrubbed, never collected.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::Checkin;
use crate::audit::record::Record;
use crate::scrub::Scrubber;
use crate::services::bound::Bound;
use crate::services::places;

/// A body from the guest.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Incoming,
    record: Arc<Record>,
    /// The service it goes to, if any: trailers are one more place for a credential of the client's own.
    service: Option<Arc<Bound>>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, record: Arc<Record>, service: Option<Arc<Bound>>) -> Self {
        Self {
            incoming,
            record,
            service,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame {
            self.record.add_out(frame.data_ref().map_or(0, Bytes::len));
            if let (Some(trailers), Some(bound)) = (frame.trailers_mut(), &self.service) {
                places::strip_trailers(trailers, &bound.service);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A body to the guest.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// Made by the proxy.
    Whole(Option<Bytes>),
    /// From upstream.
    Stream(Box<Streamed>),
}

/// A body from upstream, with what must live as long as it.
#[derive(Debug)]
pub(crate) struct Streamed {
    incoming: Incoming,
    record: Arc<Record>,
    scrubber: Option<Scrubber>,
    /// Ends when upstream has been silent for so long that whole lines need not wait.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether `pause` has been set since the last frame.
    pausing: bool,
    /// Gives the connection back for the next request, once the body has ended as it should.
    checkin: Option<Checkin>,
    /// A frame that waits behind what the scrubber held back.
    waiting: Option<Frame<Bytes>>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl ResponseBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }
}

impl Streamed {
    pub(crate) fn new(
        incoming: Incoming,
        record: Arc<Record>,
        scrubber: Option<Scrubber>,
        checkin: Option<Checkin>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            ended: incoming.is_end_stream(),
            incoming,
            record,
            scrubber,
            pause: None,
            pausing: false,
            checkin,
            waiting: None,
            _permit: permit,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            if let Some(frame) = self.waiting.take() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
                return self.poll_pause(cx).map(|rest| Some(Ok(Frame::data(rest))));
            };
            self.pausing = false;
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.ended = true;
                    self.record.outcome("upstream broke off the response");
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.end();
                    let rest = self.scrubber.as_mut().map(Scrubber::finish).unwrap_or_default();
                    if rest.is_empty() {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
            };
            self.record.add_in(frame.data_ref().map_or(0, Bytes::len));
            // A body of known length has ended with its last byte; nobody may ask for more.
            let last = self.incoming.is_end_stream();
            let (frame, held_back) = match &mut self.scrubber {
                None => (Some(frame), None),
                Some(scrubber) => match frame.into_data() {
                    Ok(data) => {
                        let clean = if last {
                            scrubber.last(data)
                        } else {
                            scrubber.data(data)
                        };
                        (not_empty(clean), None)
                    }
                    Err(trailers) => {
                        let trailers = scrubber.trailers(trailers);
                        (not_empty(scrubber.finish()), Some(trailers))
                    }
                },
            };
            if last {
                self.end();
            }
            self.waiting = held_back;
            if let Some(frame) = frame {
                return Poll::Ready(Some(Ok(frame)));
            }
        }
    }

    /// Waits until upstream has been silent for so long that something goes out.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let Some(scrubber) = &mut self.scrubber else {
            return Poll::Pending;
        };
        while let Some(length) = scrubber.pause() {
            let until = Instant::now() + length;
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if !self.pausing {
                pause.as_mut().reset(until);
                self.pausing = true;
            }
            ready!(pause.as_mut().poll(cx));
            self.pausing = false;
            let rest = scrubber.paused();
            if !rest.is_empty() {
                return Poll::Ready(rest);
            }
        }
        Poll::Pending
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(checkin) = self.checkin.take() {
            checkin.done();
        }
    }
}

fn not_empty(data: Bytes) -> Option<Frame<Bytes>> {
    (!data.is_empty()).then(|| Frame::data(data))
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            // While something is held back, the end of what comes in is not the end of what goes out.
            Self::Stream(stream) => stream.ended && stream.waiting.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            // Scrubbing keeps lengths; what is held back now is counted neither here nor there, which is why
            // the exact length is only told before the first byte, when it matters.
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}
