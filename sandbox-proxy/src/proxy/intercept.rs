//! Tunnels that are read: TLS is ended here with a certificate of the sandbox's authority, and each request
//! goes through [`exchange`].

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::bulk::{Ahead, Whole};
use super::http1::{self, After, AfterSlot};
use super::io::{Client, Dialled, Prefixed};
use super::refusal::Refusal;
use super::route::Route;
use super::upstream::Offer;
use super::{Inner, exchange, front, http2, limits, tunnel};
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
                let h2 = matches!(sender, super::pool::Sender::H2(..));
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
    let served = {
        let inner = Arc::clone(&inner);
        http2::server::serve(Arc::clone(&inner), stream, move |request, slot| {
            tunnel.silence();
            let (inner, route) = (Arc::clone(&inner), Arc::clone(&route));
            async move { exchange::answer(&inner, &route, request, &slot).await }
        })
    };
    if let Err(fault) = served.await {
        tracing::debug!(%fault, "HTTP/2 with the client ended");
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
