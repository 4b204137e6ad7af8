//! HTTP/1.1 towards the guest, and what its streams turn into when they stop being HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::ResponseBody;
use super::interim::{Interim, Interleaved};
use super::io::{Dialled, write_through};
use super::limits;
use super::place::Place;
use super::pool::UnderWay;
use super::route::Route;
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
    pub(crate) client: OnUpgrade,
    pub(crate) upstream: OnUpgrade,
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
}

impl AfterSlot {
    /// Of a stream in a tunnel.
    pub(crate) fn inside() -> Self {
        Self {
            interim: Some(Interim::default()),
            ..Self::default()
        }
    }

    pub(crate) fn set(&self, after: After) {
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
    let stream = Interleaved::new(stream, slot.interim.clone().unwrap_or_default());
    let service = service_fn(move |request| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let heard = Arc::<AtomicBool>::default();
    let stream = HeadStream {
        stream,
        heard: Arc::clone(&heard),
    };
    let mut http = http1::Builder::new();
    http.timer(HeadTimer(Arc::clone(&heard)))
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
pub(crate) type Served<S> = HeadStream<Interleaved<S>>;

/// A stream that tells whether anything has come on it since it was last waited for a head.
pub(crate) struct HeadStream<S> {
    stream: S,
    heard: Arc<AtomicBool>,
}

impl<S> Served<S> {
    pub(crate) fn into_inner(self) -> S {
        self.stream.into_inner()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadStream<S> {
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

write_through!([S: AsyncWrite + Unpin] HeadStream<S>);

/// Notes when it begins to be waited for a head: hyper starts the time for it then, and tells in no other way whether any
/// of it came. (What came before, behind an earlier request, is not told apart from that: it opens nothing.)
struct HeadTimer(Arc<AtomicBool>);

impl HeadTimer {
    fn starts(&self) -> TokioTimer {
        self.0.store(false, Relaxed);
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
