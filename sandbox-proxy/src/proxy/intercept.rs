//! Tunnels that are read: TLS is ended here with a certificate of the sandbox's authority, and each request
//! goes through [`exchange`].

use std::pin::pin;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::bulk::{Ahead, Whole};
use super::http1::{self, After, AfterSlot};
use super::io::{Client, Dialled, Prefixed, ScopedExecutor};
use super::place::Busy;
use super::refusal::Refusal;
use super::route::Route;
use super::unless::unless;
use super::upstream::Offer;
use super::{Inner, exchange, front, limits, tunnel};
use crate::audit::record::Record;
use crate::defence::holds;
use crate::tls::hello::{self, Start};

/// Empty `SETTINGS`, and a `GOAWAY` that says `ENHANCE_YOUR_CALM` (RFC 9113 §6.5, §6.8, §7).
const TOO_MANY_H2: [u8; 26] = *b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";

/// Serves a tunnel whose requests are read.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    route: Arc<Route>,
    mut client: Client,
    upstream: Option<Dialled>,
    record: Arc<Record>,
) {
    let deadline = Instant::now() + limits::CLIENT_HANDSHAKE_TIME;
    let Some(hello) = Box::pin(tunnel::expect_hello(&mut client, &route, deadline, &record)).await else {
        return;
    };
    let Start::Tls(asked) = hello.start else {
        return;
    };
    // The client is told of HTTP/2 first only where upstream speaks it.
    let h2 = match route.connections.speaks_h2() {
        Some(h2) => h2,
        // Unknown before a request is allowed, and either can be turned into the other.
        None if route.admission.inspect => true,
        None => match inner.connect(&route, upstream, Offer::Any).await {
            Ok(sender) => {
                let h2 = matches!(sender, super::pool::Sender::H2(_));
                route.connections.lane(None).put(sender);
                h2
            }
            // The first request tries again and is told.
            Err(_) => false,
        },
    };
    // Who is over the limit of HTTP/2 and speaks nothing else is turned away below.
    let place = Arc::clone(&inner.h2_clients).try_acquire_owned().ok();
    let config = match inner
        .ca
        .server(&route.host, h2 && asked.offers_h2 && place.is_some())
    {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "no certificate for an intercepted host");
            record.outcome("no certificate could be made");
            return;
        }
    };
    let client = Ahead::new(Prefixed::new(hello.seen, client));
    // The time that upstream took is not the client's: it hears of an upstream that failed by the answer to a request.
    let accepting = TlsAcceptor::from(config).accept(client);
    let stream = match timeout(limits::CLIENT_HANDSHAKE_TIME, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            record.outcome(&format!("TLS with the client failed: {error}"));
            return;
        }
        Err(_) => {
            record.outcome("TLS with the client took too long");
            return;
        }
    };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let mut stream = Whole::new(stream);
    if h2 {
        let Some(_place) = place else {
            Refusal::busy("the sandbox has too many HTTP/2 connections open").tell(&record);
            let told = async {
                stream.write_all(&TOO_MANY_H2).await?;
                stream.shutdown().await?;
                // What is not read before a stream is closed takes what was written along (RFC 9293 §3.6.1).
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            };
            // A client that does not listen is not waited for.
            let _ = timeout(limits::GOODBYE_TIME, told).await;
            return;
        };
        serve_h2(inner, route, stream, record).await;
    } else {
        drop(place);
        serve_h1(inner, route, stream, record).await;
    }
}

/// Serves a tunnel to a plain port.
pub(crate) async fn serve_plain(inner: Arc<Inner>, route: Arc<Route>, client: Client, record: Arc<Record>) {
    serve_h1(inner, route, client, record).await;
}

/// `tunnel` is the record of the tunnel itself: written unless a request came, which has a record of its own.
async fn serve_h1<S>(inner: Arc<Inner>, route: Arc<Route>, stream: S, tunnel: Arc<Record>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let slot = AfterSlot::inside();
    let served = {
        let (inner, route, after) = (Arc::clone(&inner), Arc::clone(&route), slot.clone());
        let answer = move |request| {
            tunnel.silence();
            let (inner, route, after) = (Arc::clone(&inner), Arc::clone(&route), after.clone());
            async move { exchange::answer(&inner, &route, request, &after).await }
        };
        Box::pin(http1::serve(stream, &slot, answer)).await
    };
    if let Err(error) = served {
        front::note_malformed(&inner, Some(&route), &error);
    }
    if let Some(After::WebSocket(switched)) = slot.take() {
        tunnel::serve_websocket(&inner, *switched).await;
    }
}

async fn serve_h2<S>(inner: Arc<Inner>, route: Arc<Route>, stream: S, tunnel: Arc<Record>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let executor = ScopedExecutor::default();
    // Requests under way end with their connection, also when this future is dropped.
    let _scope = executor.guard();
    let websockets = executor.clone();
    let busy = Busy::default();
    let idle = busy.clone().none_for(limits::HEAD_TIME);
    let service = service_fn(move |mut request: Request<Incoming>| {
        tunnel.silence();
        request.extensions_mut().insert(busy.begin());
        let (inner, route, websockets) = (Arc::clone(&inner), Arc::clone(&route), websockets.clone());
        // On the heap, since it is moved several times until it is a task.
        Box::pin(async move {
            let slot = AfterSlot::default();
            let response = exchange::answer(&inner, &route, request, &slot).await;
            if let Some(After::WebSocket(switched)) = slot.take() {
                websockets.execute(async move { tunnel::serve_websocket(&inner, *switched).await });
            }
            Ok::<_, std::convert::Infallible>(response)
        })
    });
    let connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(holds("h2-streams").then_some(limits::H2_STREAMS))
        .max_header_list_size(if holds("h2-head-bytes") {
            limits::HEAD_BYTES_H2
        } else {
            u32::MAX
        })
        .initial_stream_window_size(limits::bound_h2(
            limits::H2_CLIENT_WINDOW,
            holds("h2-client-window"),
        ))
        .initial_connection_window_size(limits::bound_h2(
            limits::H2_CLIENT_CONNECTION_WINDOW,
            holds("h2-client-connection-window"),
        ))
        .max_send_buf_size(if holds("h2-client-send-buffer") {
            limits::H2_SEND_BUFFER
        } else {
            i32::MAX as usize
        })
        .enable_connect_protocol()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let idle = async {
        idle.await;
        if !holds("h2-idle") {
            std::future::pending().await
        }
    };
    let served = match unless(connection.as_mut(), idle).await {
        Some(served) => served,
        // A head that never ends is none.
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(limits::GOODBYE_TIME, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "HTTP/2 with the client ended");
    }
}

/// Tells a client whose stream is refused after the tunnel was opened, in the language it speaks.
pub(crate) async fn refuse(client: &mut Client, start: &Start, refusal: &Refusal, target: &str) {
    let told = match start {
        _ if !holds("denial-is-told") => Ok(()),
        Start::Tls(_) | Start::Broken => client.write_all(&hello::ACCESS_DENIED).await,
        Start::Other => client.write_all(&refusal.raw_response(target)).await,
        Start::Nothing => Ok(()),
    };
    if told.is_ok() {
        // Already refused; whether the client hears it is its business.
        let _ = client.shutdown().await;
    }
}
