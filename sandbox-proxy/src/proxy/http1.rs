//! HTTP/1.1 towards the guest, and what its streams turn into when they stop being HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::ResponseBody;
use super::half_open::HalfOpen;
use super::http2::Reply;
use super::http2::client::UnderWay;
use super::incoming::Incoming;
use super::interim::{Between, Interim, Interleaved};
use super::io::{Dialled, Heard};
use super::limits;
use super::place::Place;
use super::route::Route;
use super::websocket::Upgrade;
use crate::audit::record::Record;
use crate::defence::holds;
use crate::scrub::Messages;

/// What a stream goes on as, after its last HTTP message.
pub(crate) enum After {
    /// A tunnel, opened by CONNECT.
    Tunnel {
        client: OnUpgrade,
        route: Arc<Route>,
        /// The connection to upstream, where one was made before the answer.
        upstream: Option<Dialled>,
        record: Arc<Record>,
    },
    WebSocket(Box<Switched>),
}

/// A WebSocket after its handshake.
pub(crate) struct Switched {
    pub(crate) client: Upgrade,
    pub(crate) upstream: Upgrade,
    pub(crate) scrubber: Option<Messages>,
    pub(crate) record: Arc<Record>,
    /// What allowed it, and what it asked for.
    pub(crate) route: Arc<Route>,
    pub(crate) path: Box<str>,
    /// As long as it is open, it counts as a request, and as under way on a connection that it shares.
    pub(crate) held: (Place, Option<UnderWay>),
}

/// Where the answers to a stream's requests leave what is said before them, and what the stream goes on as.
#[derive(Clone, Default)]
pub(crate) struct AfterSlot {
    /// In a tunnel, where all is of one host.
    pub(crate) interim: Option<Interim>,
    after: Arc<Mutex<Option<After>>>,
    /// Whether a request has come whose answer has not left.
    is_answering: Arc<AtomicBool>,
}

impl AfterSlot {
    /// Of a stream in a tunnel.
    pub(crate) fn inside() -> Self {
        Self {
            interim: Some(Interim::Http1(Between::default())),
            ..Self::default()
        }
    }

    /// Of a stream of HTTP/2, which is one request's.
    pub(crate) fn of_stream(reply: Reply) -> Self {
        Self {
            interim: Some(Interim::Http2(reply)),
            ..Self::default()
        }
    }

    pub(crate) fn set(&self, after: After) {
        self.is_answering.store(false, Relaxed);
        *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    pub(crate) fn take(&self) -> Option<After> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Serves a connection until it ends or stops being HTTP. One that is kept open without a byte of a further head until
/// its time is over has ended as it should.
pub(crate) async fn serve<S, F, R>(stream: S, slot: &AfterSlot, answer: F) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> R + Send,
    R: Future<Output = Response<ResponseBody>> + Send,
{
    let between = match &slot.interim {
        Some(Interim::Http1(between)) => between.clone(),
        _ => Between::default(),
    };
    let is_answering = Arc::clone(&slot.is_answering);
    let stream = HalfOpen::new(stream, Arc::clone(&is_answering));
    let stream = Interleaved::new(stream, between);
    let begins = Arc::clone(&is_answering);
    let service = service_fn(move |request: Request<_>| {
        begins.store(true, Relaxed);
        let response = answer(request.map(Incoming::Http1));
        async move { Ok::<_, Infallible>(response.await) }
    });
    let heard = Arc::<AtomicBool>::default();
    let stream = Heard::new(stream, Arc::clone(&heard));
    let mut http = http1::Builder::new();
    let timer = HeadTimer {
        heard: Arc::clone(&heard),
        is_answering,
    };
    http.timer(timer)
        .header_read_timeout(holds("slow-head-timeout").then_some(limits::HEAD_TIME));
    if holds("request-head-bytes") {
        // A buffer that is full of one read may hold a longer head.
        http.max_header_size(limits::HEAD_BYTES);
    }
    let served = http
        .max_buf_size(limits::HEAD_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    match served {
        Err(error) if error.is_timeout() && !heard.load(Relaxed) => Ok(()),
        served => served,
    }
}

/// A client's stream as hyper has it.
pub(crate) type Served<S> = Heard<Interleaved<HalfOpen<S>>>;

/// Notes when it begins to be waited for a head: hyper starts the time for it then, and tells in no other way whether any
/// of it came. (What came before, behind an earlier request, is not told apart from that: it opens nothing.)
struct HeadTimer {
    heard: Arc<AtomicBool>,
    is_answering: Arc<AtomicBool>,
}

impl HeadTimer {
    fn starts(&self) -> TokioTimer {
        self.heard.store(false, Relaxed);
        self.is_answering.store(false, Relaxed);
        TokioTimer::new()
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.starts().sleep(duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.starts().sleep_until(deadline)
    }

    fn now(&self) -> Instant {
        TokioTimer::new().now()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        self.starts().reset(sleep, deadline);
    }
}
