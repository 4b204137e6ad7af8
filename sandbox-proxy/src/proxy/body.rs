//! Bodies on their way through: counted, scrubbed, never collected.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest::Digest;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::Checkin;
use crate::audit::record::Record;
use crate::scrub::Scrubber;
use crate::services::bound::Bound;
use crate::services::places;
use crate::services::sign::SignError;
use crate::services::sign::chunks::{ChunkError, Chunks};
use crate::services::sign::payload::{self, Whole};

/// A body from the guest.
#[derive(Debug)]
pub(crate) struct RequestBody {
    source: Source,
    record: Arc<Record>,
    /// The service it goes to, if any: trailers are one more place for a credential of the client's own.
    service: Option<Arc<Bound>>,
}

/// How a body from the guest goes on.
#[derive(Debug)]
enum Source {
    /// As it comes.
    Client(Incoming),
    /// It has come.
    Whole(Whole),
    /// As it comes, signed chunk by chunk.
    Chunks(Incoming, Box<Chunks>),
    /// It has ended.
    Nothing,
}

/// Why a body from the guest ends too early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the client broke it off")]
    Client(#[from] hyper::Error),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, record: Arc<Record>, service: Option<Arc<Bound>>) -> Self {
        Self {
            source: Source::Client(incoming),
            record,
            service,
        }
    }

    /// Waits for all of it and gives its SHA-256.
    pub(crate) async fn collect(&mut self, room: &Arc<Semaphore>) -> Result<(&Whole, Digest), SignError> {
        let (whole, digest) = payload::collect(self, room).await?;
        self.source = Source::Whole(whole);
        match &self.source {
            Source::Whole(whole) => Ok((whole, digest)),
            _ => Err(SignError::BrokenOff),
        }
    }

    /// Signs its chunks from here on.
    pub(crate) fn sign_chunks(&mut self, chunks: Chunks) {
        self.source = match std::mem::replace(&mut self.source, Source::Nothing) {
            Source::Client(incoming) => Source::Chunks(incoming, Box::new(chunks)),
            other => other,
        };
    }

    /// What comes from the client, counted and without credentials in trailers.
    fn poll_client(
        incoming: &mut Incoming,
        record: &Record,
        service: Option<&Arc<Bound>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = ready!(Pin::new(incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame {
            record.add_out(frame.data_ref().map_or(0, Bytes::len));
            if let (Some(trailers), Some(bound)) = (frame.trailers_mut(), service) {
                places::strip_trailers(trailers, &bound.service);
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let (record, service) = (&this.record, this.service.as_ref());
        let polled = match &mut this.source {
            Source::Client(incoming) => {
                return Self::poll_client(incoming, record, service, cx).map_err(BodyError::from);
            }
            Source::Whole(whole) => return Poll::Ready(whole.next().map(Ok)),
            Source::Nothing => return Poll::Ready(None),
            Source::Chunks(incoming, chunks) => loop {
                if let Some(ready) = chunks.next() {
                    return Poll::Ready(Some(Ok(Frame::data(ready))));
                }
                let pushed = match ready!(Self::poll_client(incoming, record, service, cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => chunks.push(data),
                        // Chunks have trailers of their own.
                        Err(_) => Ok(()),
                    },
                    Some(Err(error)) => break Some(Err(error.into())),
                    None if chunks.is_done() => break None,
                    None => chunks.finish(),
                };
                if let Err(error) = pushed {
                    break Some(Err(error.into()));
                }
            },
        };
        this.source = Source::Nothing;
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Client(incoming) => incoming.is_end_stream(),
            Source::Whole(whole) => whole.is_done(),
            Source::Chunks(..) => false,
            Source::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            // Signing anew changes no length.
            Source::Client(incoming) | Source::Chunks(incoming, _) => incoming.size_hint(),
            Source::Whole(whole) => SizeHint::with_exact(whole.len()),
            Source::Nothing => SizeHint::with_exact(0),
        }
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
