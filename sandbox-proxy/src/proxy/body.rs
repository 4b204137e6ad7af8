//! Bodies on their way through: counted, scrubbed, never collected.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest::Digest;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::incoming::{Incoming, IncomingError};
use super::place::Place;
use super::pool::Checkin;
use super::{limits, message};
use crate::audit::record::Record;
#[cfg(feature = "mutants")]
use crate::defence::holds;
use crate::scrub::Scrubber;
use crate::scrub::coding::{DecodeError, Decoder, Step};
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
    /// Whether the client asks first whether it is wanted (RFC 9110 §10.1.1): it is told so when this is first read.
    asks_first: bool,
    /// Until upstream wants it.
    gate: Option<Gate>,
    place: Place,
}

/// Keeps a body from being read until upstream wants it, or has said nothing for a while.
struct Gate(Pin<Box<dyn Future<Output = ()> + Send>>);

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
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
    Client(#[from] IncomingError),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

impl RequestBody {
    pub(crate) fn new(
        incoming: Incoming,
        record: Arc<Record>,
        service: Option<Arc<Bound>>,
        place: Place,
    ) -> Self {
        Self {
            source: Source::Client(incoming),
            record,
            service,
            asks_first: false,
            gate: None,
            place,
        }
    }

    /// What is written down of its request.
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Where it counts among the sandbox's requests.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The same of a client that may ask first whether it is wanted.
    pub(crate) fn asking_first(self, asks_first: bool) -> Self {
        Self { asks_first, ..self }
    }

    /// If the client asks first, keeps its body from being read until what is given back is notified, or upstream has had
    /// its time. A body that was read already is sent at once.
    pub(crate) fn wait_for_upstream(&mut self) -> Option<Arc<Notify>> {
        if !self.asks_first || matches!(self.source, Source::Whole(_)) {
            return None;
        }
        let wanted = Arc::<Notify>::default();
        let notified = Arc::clone(&wanted);
        let until = async move { drop(timeout(limits::CONTINUE_TIME, notified.notified()).await) };
        self.gate = Some(Gate(Box::pin(until)));
        Some(wanted)
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
    ) -> Poll<Option<Result<Frame<Bytes>, IncomingError>>> {
        let mut frame = ready!(Pin::new(incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame {
            record.add_out(frame.data_ref().map_or(0, Bytes::len));
            // The defence is that nothing stands here: what a body says of placeholders is no affair of the proxy's.
            #[cfg(feature = "mutants")]
            if !holds("bodies-left-alone")
                && let Some(data) = frame.data_mut()
                && data.windows(11).any(|part| part == b"placeholder")
            {
                data.clear();
            }
            if let Some(trailers) = frame.trailers_mut() {
                message::clean_trailers(trailers);
                if let Some(bound) = service {
                    places::strip_trailers(trailers, &bound.service);
                }
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
        if let Some(Gate(until)) = &mut this.gate {
            ready!(until.as_mut().poll(cx));
            this.gate = None;
        }
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
    /// Made by the proxy, or collected by it, which counts among the sandbox's requests.
    Whole(Option<Bytes>, Option<Place>),
    /// From upstream.
    Stream(Box<Streamed>),
}

/// Why a body to the guest broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseError {
    #[error(transparent)]
    Upstream(IncomingError),
    #[error("upstream gave the response up before its end")]
    GivenUp,
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl From<IncomingError> for ResponseError {
    fn from(error: IncomingError) -> Self {
        match error {
            IncomingError::Http2(fault) if fault.is_no_error() => Self::GivenUp,
            error => Self::Upstream(error),
        }
    }
}

/// What an error comes from; those above it say no more than where it was met.
fn first_cause(error: &dyn std::error::Error) -> &dyn std::error::Error {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .unwrap_or(error)
}

/// A body from upstream, with what must live as long as it.
#[derive(Debug)]
pub(crate) struct Streamed {
    incoming: Incoming,
    record: Arc<Record>,
    decoder: Option<Decoder>,
    /// What has come and is not decoded.
    coded: Bytes,
    /// How the body ended: what is coded still has to be decoded.
    end: Option<End>,
    scrubber: Option<Scrubber>,
    /// Ends when upstream has been silent for so long that whole lines need not wait.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether `pause` has been set since the last frame.
    pausing: bool,
    /// Gives the connection back for the next request, once the body has ended as it should.
    checkin: Option<Checkin>,
    /// Data that can go out, and after it trailers.
    ready: [Bytes; 2],
    trailers: Option<Frame<Bytes>>,
    ended: bool,
    place: Place,
}

/// What comes last.
#[derive(Debug)]
enum End {
    Data,
    Trailers(Frame<Bytes>),
}

/// What came next, decoded.
enum Came {
    Data(Bytes),
    /// With data that is known to be the last.
    End(Bytes, End),
}

impl ResponseBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()), None)
    }

    /// Of what came from upstream.
    pub(crate) fn collected(bytes: Bytes, place: Place) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()), Some(place))
    }

    pub(crate) fn empty() -> Self {
        Self::Whole(None, None)
    }

    /// Where it counts among the sandbox's requests; what the proxy says itself does not.
    pub(crate) fn place(&self) -> Option<Place> {
        match self {
            Self::Whole(_, place) => place.clone(),
            Self::Stream(stream) => Some(stream.place.clone()),
        }
    }
}

impl Streamed {
    pub(crate) fn new(
        incoming: Incoming,
        record: Arc<Record>,
        decoder: Option<Decoder>,
        scrubber: Option<Scrubber>,
        checkin: Option<Checkin>,
        place: Place,
    ) -> Self {
        Self {
            ended: incoming.is_end_stream(),
            incoming,
            record,
            decoder,
            coded: Bytes::new(),
            end: None,
            scrubber,
            pause: None,
            pausing: false,
            checkin,
            ready: Default::default(),
            trailers: None,
            place,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        loop {
            if let Some(frame) = self.next_ready() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let came = match self.poll_next(cx) {
                Poll::Ready(Ok(came)) => came,
                Poll::Ready(Err(error)) => {
                    self.ended = true;
                    self.record.outcome(&match &error {
                        // Not always upstream's fault: the sandbox may have used up its bytes.
                        ResponseError::Upstream(error) => {
                            format!("the response broke off: {}", first_cause(error))
                        }
                        error => error.to_string(),
                    });
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Pending => {
                    let rest = ready!(self.poll_pause(cx));
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
            };
            self.pausing = false;
            self.take_in(came);
        }
    }

    /// What comes next, decoded if it has to be.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Came, ResponseError>> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                match decoder.step(&mut self.coded)? {
                    Step::Data(data) => return Poll::Ready(Ok(Came::Data(data))),
                    Step::Hungry => {}
                    Step::Yield => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
            }
            if let Some(end) = self.end.take() {
                let rest = match &mut self.decoder {
                    Some(decoder) => decoder.finish()?,
                    None => std::mem::take(&mut self.coded),
                };
                return Poll::Ready(Ok(Came::End(rest, end)));
            }
            let frame = match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => {
                    self.end = Some(End::Data);
                    self.check_in();
                    continue;
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    self.record.add_in(data.len());
                    self.coded = data;
                }
                Err(trailers) => self.end = Some(End::Trailers(trailers)),
            }
            // A body of known length has ended with its last byte; nobody may ask for more.
            if self.incoming.is_end_stream() {
                self.end.get_or_insert(End::Data);
                self.check_in();
            }
            if self.decoder.is_none() && self.end.is_none() {
                return Poll::Ready(Ok(Came::Data(std::mem::take(&mut self.coded))));
            }
        }
    }

    fn next_ready(&mut self) -> Option<Frame<Bytes>> {
        let data = self.ready.iter_mut().find(|data| !data.is_empty());
        data.map(|data| Frame::data(std::mem::take(data)))
            .or_else(|| self.trailers.take())
    }

    fn has_ready(&self) -> bool {
        self.trailers.is_some() || self.ready.iter().any(|data| !data.is_empty())
    }

    /// Makes frames of what came, scrubbed.
    fn take_in(&mut self, came: Came) {
        let (data, end) = match came {
            Came::Data(data) => (data, None),
            Came::End(data, end) => (data, Some(end)),
        };
        self.ready = match &mut self.scrubber {
            None => [data, Bytes::new()],
            Some(scrubber) if end.is_some() => scrubber.last(data),
            Some(scrubber) => scrubber.data(data),
        };
        self.ended = end.is_some();
        if let Some(End::Trailers(trailers)) = end {
            let mut trailers = match &self.scrubber {
                None => trailers,
                Some(scrubber) => scrubber.trailers(trailers),
            };
            if let Some(fields) = trailers.trailers_mut() {
                message::bound_trailers(fields);
                self.place.on_head(fields);
            }
            self.trailers = Some(trailers);
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

    /// Gives the connection back.
    fn check_in(&mut self) {
        if let Some(checkin) = self.checkin.take() {
            checkin.done();
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if !self.ended {
            self.record
                .outcome("the client went away before the end of the response");
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        match self.get_mut() {
            Self::Whole(bytes, _) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes, _) => bytes.is_none(),
            // While something is held back, the end of what comes in is not the end of what goes out.
            Self::Stream(stream) => stream.ended && !stream.has_ready(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            // Scrubbing keeps lengths; what is held back now is counted neither here nor there, which is why
            // the exact length is only told before the first byte, when it matters.
            Self::Stream(stream) if stream.decoder.is_none() => stream.incoming.size_hint(),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
