//! HTTP/2 towards upstream.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::after_others::after_others;
use super::incoming::{AnswerEnd, Answered};
use super::outgoing::Outgoing;
use super::{Duplex, Fault, Stream};
use crate::audit::record::Record;
use crate::defence::holds;
use crate::proxy::body::RequestBody;
use crate::proxy::incoming::Incoming;
use crate::proxy::interim::Hints;
use crate::proxy::io::{Heard, Turns};
use crate::proxy::limits;
use crate::proxy::unless::unless;

/// How often it is looked whether settings have come.
const SETTINGS_PAUSE: Duration = Duration::from_millis(2);
/// How often requests that wait for others to end look whether upstream takes more meanwhile.
const SLOT_PAUSE: Duration = Duration::from_millis(250);

/// A connection for requests to one target, shared by all of them. Without any of these it ends when the last of its
/// requests has.
#[derive(Debug, Clone)]
pub(crate) struct Http2 {
    requests: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What is under way, or about to be.
    under_way: AtomicUsize,
    streams: AtomicUsize,
    /// Those that wait for a stream stand in line.
    line: Mutex<()>,
    /// A stream has ended.
    ended: Notify,
}

/// Held as long as something is under way on a connection: until then, closing it is not the pool's to do.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Shared>);

/// One of as many streams as upstream takes at a time. `h2` takes more than that, and what it keeps for later it sends,
/// also when nobody wants it any more.
#[derive(Debug)]
pub(super) struct StreamSlot(Arc<Shared>);

/// A request that was not answered.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) fault: Fault,
    /// The request, if nothing of it was sent.
    pub(crate) unsent: Option<Box<Request<RequestBody>>>,
}

/// The body of a request on its way, and what it holds.
struct Upload {
    body: Outgoing<RequestBody>,
    record: Arc<Record>,
    _slot: Arc<StreamSlot>,
    _under_way: UnderWay,
}

impl Http2 {
    /// Starts on a stream. What is given back drives it, until it has ended, gives no sign of life, or is of no use any
    /// more.
    pub(crate) async fn start<S>(stream: S) -> Result<(Self, impl Future<Output = ()>), Fault>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let heard = Arc::<AtomicBool>::default();
        let stream = Turns::new(Heard::new(stream, Arc::clone(&heard)), limits::H2_TURN_BYTES);
        let (requests, mut connection) = builder().handshake(stream).await?;
        let this = Self {
            requests,
            shared: Arc::default(),
        };
        let useless = useless(connection.ping_pong(), heard, Arc::downgrade(&this.shared));
        let driven = async move {
            if let Some(Err(error)) = unless(after_others(connection), useless).await {
                tracing::debug!(error = %Fault::from(error), "HTTP/2 with upstream ended");
            }
        };
        Ok((this, driven))
    }

    /// Whether it takes no more requests.
    pub(crate) fn is_closed(&mut self) -> bool {
        let ready = self.requests.poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Err(_)))
    }

    /// From now on, until that is dropped, something is under way.
    pub(crate) fn begin(&self) -> UnderWay {
        self.shared.under_way.fetch_add(1, Relaxed);
        UnderWay(Arc::clone(&self.shared))
    }

    /// Whether something is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.shared.under_way.load(Relaxed) > 0
    }

    /// Whether upstream takes WebSockets on it. Its settings get this long to come.
    pub(crate) async fn takes_websockets(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if self.requests.is_extended_connect_protocol_enabled() {
                return true;
            }
            if Instant::now() > deadline || self.is_closed() {
                return false;
            }
            sleep(SETTINGS_PAUSE).await;
        }
    }

    /// Sends a request and waits for its answer; what is said before that goes to `hints`. Dropped before the answer, the
    /// request is cancelled.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
        hints: Option<Hints>,
    ) -> Result<Response<Incoming>, Failed> {
        let slot = match self.slot().await {
            Ok(slot) => slot,
            Err(fault) => {
                return Err(Failed {
                    fault,
                    unsent: Some(Box::new(request)),
                });
            }
        };
        let (mut parts, body) = request.into_parts();
        let ends = body.is_end_stream();
        if let Some(length) = body.size_hint().exact()
            && (length > 0 || has_content(&parts.method))
        {
            let length = || HeaderValue::from(length);
            parts.headers.entry(CONTENT_LENGTH).or_insert_with(length);
        }
        let place = body.place().clone();
        place.on_request(&mut parts.headers);
        let sent = self.requests.send_request(Request::from_parts(parts, ()), ends);
        let (mut response, stream) = sent.map_err(Fault::from)?;
        let mut upload = (!ends).then(|| Upload {
            record: Arc::clone(body.record()),
            body: Outgoing::new(body, stream, Some(place)).until_left(),
            _slot: Arc::clone(&slot),
            _under_way: self.begin(),
        });
        let mut heads = 0;
        let answered = poll_fn(|cx| {
            if let Some(sending) = &mut upload
                && let Poll::Ready(is_whole) = Pin::new(&mut sending.body).poll(cx)
            {
                upload = None;
                if !is_whole {
                    return Poll::Ready(Err(Fault::BrokenOff));
                }
            }
            poll_answer(&mut response, hints.as_ref(), &mut heads, cx)
        });
        let answer = answered.await;
        if matches!(answer, Err(Fault::TooManyInterim))
            && let Some(upload) = upload.take()
        {
            upload.body.give_up(Reason::CANCEL);
        }
        let (parts, incoming) = answer?.into_parts();
        // Upstream may answer before it has all of it.
        let upload = upload.map(|upload| {
            let (sender, ended) = oneshot::channel();
            tokio::spawn(upload.rest(ended));
            sender
        });
        let from = Answered { _slot: slot, upload };
        let body = Stream::new(incoming, &parts.headers).answering(from);
        Ok(Response::from_parts(parts, Incoming::Http2(body)))
    }

    /// Asks for a WebSocket (RFC 8441 §4).
    pub(crate) async fn open(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Option<Duplex>), Fault> {
        let slot = self.slot().await?;
        *request.method_mut() = Method::CONNECT;
        request
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        let (mut parts, body) = request.into_parts();
        body.place().on_request(&mut parts.headers);
        let sent = self.requests.send_request(Request::from_parts(parts, ()), false);
        let (response, outgoing): (_, SendStream<Bytes>) = sent?;
        let (parts, incoming) = response.await?.into_parts();
        if parts.status == StatusCode::OK {
            let stream = Duplex::new(incoming, outgoing, Some(slot));
            return Ok((Response::from_parts(parts, Incoming::Nothing), Some(stream)));
        }
        let from = Answered {
            _slot: slot,
            upload: None,
        };
        let body = Stream::new(incoming, &parts.headers).answering(from);
        Ok((Response::from_parts(parts, Incoming::Http2(body)), None))
    }

    /// Waits for one of the streams that upstream takes at a time.
    async fn slot(&mut self) -> Result<Arc<StreamSlot>, Fault> {
        let _first = self.shared.line.lock().await;
        loop {
            poll_fn(|cx| self.requests.poll_ready(cx)).await?;
            let most = self.requests.current_max_send_streams();
            let one_more =
                |count: usize| (count < most || !holds("h2-upstream-streams")).then_some(count + 1);
            if self
                .shared
                .streams
                .fetch_update(Relaxed, Relaxed, one_more)
                .is_ok()
            {
                return Ok(Arc::new(StreamSlot(Arc::clone(&self.shared))));
            }
            let _ = timeout(SLOT_PAUSE, self.shared.ended.notified()).await;
        }
    }
}

impl Upload {
    /// Sends the rest of it, as long as the answer's end is waited for; and if that was whole, as long as it moves.
    async fn rest(self, answer: oneshot::Receiver<AnswerEnd>) {
        let queue = Arc::clone(self.body.queue());
        let stands_still = async {
            if answer.await.is_ok_and(|end| end == AnswerEnd::Whole) {
                let moved = || (self.record.bytes_out(), queue.left());
                loop {
                    let before = moved();
                    sleep(limits::UPLOAD_PAUSE).await;
                    if moved() == before && holds("h2-upload-after-answer") {
                        return;
                    }
                }
            }
        };
        let mut body = self.body.resetting(Reason::CANCEL);
        if unless(&mut body, stands_still).await.is_none() {
            body.give_up(Reason::CANCEL);
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(limits::H2_FIRST_STREAMS)
        .initial_window_size(limits::bound_h2(
            limits::H2_UPSTREAM_WINDOW,
            holds("h2-upstream-window"),
        ))
        .initial_connection_window_size(limits::bound_h2(
            limits::H2_UPSTREAM_CONNECTION_WINDOW,
            holds("h2-upstream-connection-window"),
        ))
        .max_header_list_size(limits::bound_h2(
            limits::HEAD_BYTES_H2,
            holds("h2-response-head-bytes"),
        ));
    builder
}

/// Hands on what comes before the answer, and gives the answer. `heads` is how many came.
fn poll_answer(
    response: &mut ResponseFuture,
    hints: Option<&Hints>,
    heads: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Fault>> {
    while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
        let interim = interim?;
        *heads += 1;
        if *heads > limits::H2_INTERIM && holds("h2-interim-heads") {
            return Poll::Ready(Err(Fault::TooManyInterim));
        }
        if let Some(hints) = hints {
            hints.pass(interim.status(), interim.headers());
        }
    }
    Pin::new(response).poll(cx).map_err(Fault::from)
}

/// Whether an empty body is told of: for others, that is what is expected (RFC 9110 §8.6).
fn has_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// Ends when the other end gives no sign of life though something is under way, and when it does not let go of a connection
/// that nobody uses any more.
///
/// It is asked for a sign rarely: servers exist that end connections on which they are asked oftener than every five minutes
/// while they say nothing (gRPC's; its proposal A8 tells of it).
async fn useless(pings: Option<PingPong>, heard: Arc<AtomicBool>, shared: Weak<Shared>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    let mut asked: Option<Instant> = None;
    loop {
        sleep(limits::H2_PING_INTERVAL).await;
        let Some(is_busy) = shared.upgrade().map(|shared| shared.under_way.load(Relaxed) > 0) else {
            return sleep(limits::GOODBYE_TIME).await;
        };
        if heard.swap(false, Relaxed) {
            asked = None;
            continue;
        }
        let is_early = asked.is_some_and(|asked| asked.elapsed() < limits::H2_PING_PAUSE)
            && holds("upstream-ping-pause");
        if is_early || !is_busy || !holds("upstream-ping") {
            continue;
        }
        asked = Some(Instant::now());
        match timeout(limits::H2_PING_TIME, pings.ping(Ping::opaque())).await {
            // That was no more than the answer.
            Ok(Ok(_)) => heard.store(false, Relaxed),
            // The connection has ended, which is told elsewhere.
            Ok(Err(_)) => return std::future::pending().await,
            // It may stand behind much else.
            Err(_) if heard.swap(false, Relaxed) => asked = None,
            Err(_) => return,
        }
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self { fault, unsent: None }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// The type of a frame, and the flag of one that is an answer (RFC 9113 §6.5, §6.7).
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;

    /// Another end that says nothing but what it must, and counts how often it was asked for a sign of life.
    async fn think(mut stream: DuplexStream, asked: Arc<AtomicUsize>) {
        stream.read_exact(&mut [0; 24]).await.unwrap();
        let mut head = [0; 9];
        stream
            .write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        while stream.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            if head[3] == PING {
                asked.fetch_add(1, Relaxed);
                stream.write_all(&[0, 0, 8, PING, ACK, 0, 0, 0, 0]).await.unwrap();
                stream.write_all(&payload).await.unwrap();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn upstream_that_thinks_is_asked_rarely_for_a_sign_of_life_and_one_that_rests_never() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let asked = Arc::<AtomicUsize>::default();
        tokio::spawn(think(far, Arc::clone(&asked)));
        let (mut h2, driven) = Http2::start(near).await.unwrap();
        tokio::spawn(driven);
        sleep(limits::RESPONSE_TIME).await;
        assert_eq!(asked.load(Relaxed), 0);
        let under_way = h2.begin();
        sleep(limits::RESPONSE_TIME).await;
        let asked = asked.load(Relaxed);
        let most = limits::RESPONSE_TIME.as_secs() / (5 * 60);
        assert!(asked > 1 && asked as u64 <= most, "{asked}");
        assert!(!h2.is_closed());
        drop(under_way);
        assert!(!h2.is_busy());
    }
}
