//! HTTP/1.1 towards the guest, and what its streams turn into when they stop being HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use super::body::ResponseBody;
use super::io::Dialled;
use super::limits;
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
    /// It counts as a request as long as it is open.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Where the answer to a request leaves what the stream goes on as.
#[derive(Clone, Default)]
pub(crate) struct AfterSlot(Arc<Mutex<Option<After>>>);

impl AfterSlot {
    pub(crate) fn set(&self, after: After) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    pub(crate) fn take(&self) -> Option<After> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Serves a connection until it ends or stops being HTTP.
pub(crate) async fn serve<S, F, R>(stream: S, answer: F) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> R + Send,
    R: Future<Output = Response<ResponseBody>> + Send,
{
    let service = service_fn(move |request| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(holds("slow-head-timeout").then_some(limits::HEAD_TIME));
    if holds("request-head-bytes") {
        // A buffer that is full of one read may hold a longer head.
        http.max_header_size(limits::HEAD_BYTES);
    }
    http.max_buf_size(limits::HEAD_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
}
