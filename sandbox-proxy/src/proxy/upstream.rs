//! The way to upstream: resolve, vet, dial, TLS, HTTP.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use sandbox_core::host::Host;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::Inner;
use super::bulk::{Ahead, Whole};
use super::dial::race;
use super::http2::client::Http2;
use super::io::{Dialled, Holding, is_out_of_descriptors};
use super::limits;
use super::pool::Sender;
use super::quota::Slot;
use super::refusal::Refusal;
use super::route::Route;
use super::unless::unless;
use crate::address;
use crate::defence;
use crate::tls::client::server_name;

/// Which protocols upstream is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Any,
    /// For upgrades, which HTTP/2 does otherwise.
    Http1,
    /// For a request that signs its connection in: alone on one, and HTTP/2 would share it.
    Alone,
}

impl Inner {
    /// Connects to an admitted target: resolves once, vets all, dials a vetted one.
    pub(super) async fn dial(&self, route: &Route) -> Result<Dialled, Refusal> {
        let meter = self.meters.connect(&route.meter)?;
        // Before the look-up, which takes descriptors, too.
        let slot = self.place().await?;
        if let Some(proxy) = self.proxy_for(&route.host, route.port) {
            let through = self.dial_through(proxy, route, slot).await;
            return through.map(|dialled| dialled.metered(meter));
        }
        let (mut addresses, slot) = self.vetted(route, slot).await?;
        if !defence::holds("resolve-once")
            && let Host::Name(name) = &route.host
        {
            addresses = self
                .names
                .lookup(name, ())
                .await
                .map_or(addresses, |(again, ())| again);
        }
        self.reach(&addresses, route.port, slot)
            .await
            .map(|dialled| dialled.metered(meter).at_vetted())
            .map_err(|error| failed(&error, route))
    }

    /// The addresses of an admitted target: looked up once, and all vetted. `slot` is what the look-up takes.
    pub(super) async fn vetted(&self, route: &Route, slot: Slot) -> Result<(Vec<IpAddr>, Slot), Refusal> {
        let (addresses, slot) = match &route.host {
            Host::Address(address) => (vec![*address], slot),
            Host::Name(name) => match timeout(
                limits::at_most(limits::RESOLVE_TIME, defence::holds("resolve-time")),
                self.names.lookup(name, slot),
            )
            .await
            {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => {
                    tracing::debug!(%error, %name, "look-up failed");
                    return Err(Refusal::upstream(
                        "dns_error",
                        format!("{name} could not be resolved"),
                    ));
                }
                Err(_) => return Err(Refusal::timeout("dns_timeout", "the look-up took too long")),
            },
        };
        self.vet(route, route.admission.permits_special_ranges, &addresses)?;
        Ok((addresses, slot))
    }

    /// Connects to one of these addresses.
    pub(super) async fn reach(&self, addresses: &[IpAddr], port: u16, slot: Slot) -> io::Result<Dialled> {
        let connect = |address| TcpStream::connect(SocketAddr::new(address, port));
        let reached = race(addresses, slot, || self.upstreams.try_take(), connect);
        let (stream, slot) = timeout(
            limits::at_most(limits::DIAL_ALL_TIME, defence::holds("dial-all-time")),
            reached,
        )
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        // Small writes of an interactive stream must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        Ok(Dialled::new(stream, slot))
    }

    /// A place for one more connection to upstream. Those that wait in the pool for a next request make room, also those
    /// that come to wait there meanwhile.
    pub(super) async fn place(&self) -> Result<Slot, Refusal> {
        if let Some(slot) = self.upstreams.try_take() {
            return Ok(slot);
        }
        let deadline = Instant::now() + limits::PLACE_TIME;
        while Instant::now() < deadline {
            self.pool.let_go_of_oldest();
            if let Some(slot) = self.upstreams.take(limits::PLACE_PAUSE).await {
                return Ok(slot);
            }
        }
        Err(Refusal::busy(
            "the sandbox has too many connections open; close some first",
        ))
    }

    /// A place for one more HTTP/2 connection, if there is one or one can be made: a host may speak nothing else.
    async fn h2_place(&self) -> Option<OwnedSemaphorePermit> {
        let places = || Arc::clone(&self.h2_upstreams);
        if let Ok(place) = places().try_acquire_owned() {
            return Some(place);
        }
        if !self.pool.let_go_of_oldest_h2() {
            return None;
        }
        // Given back when its stream is closed, which is a matter of other tasks.
        timeout(limits::PLACE_PAUSE, places().acquire_owned())
            .await
            .ok()?
            .ok()
    }

    /// A new HTTP connection to an admitted target, over `dialled` if that is given.
    ///
    /// On the heap: most requests need none, and all would have room for it.
    pub(super) fn connect<'a>(
        &'a self,
        route: &'a Route,
        dialled: Option<Dialled>,
        offer: Offer,
    ) -> Pin<Box<impl Future<Output = Result<Sender, Refusal>> + Send + 'a>> {
        Box::pin(self.connect_here(route, dialled, offer))
    }

    async fn connect_here(
        &self,
        route: &Route,
        dialled: Option<Dialled>,
        offer: Offer,
    ) -> Result<Sender, Refusal> {
        let stream = match (dialled, self.proxy_for(&route.host, route.port)) {
            (Some(stream), _) => stream,
            (None, Some(proxy)) if route.forward.is_some() && offer != Offer::Http1 => {
                let meter = self.meters.connect(&route.meter)?;
                self.dial_forward(proxy, route).await?.metered(meter)
            }
            (None, _) => self.dial(route).await?,
        };
        if !route.tls {
            return self.speak_h1(stream).await;
        }
        let tls_fault = |error: &dyn std::fmt::Display| {
            Refusal::upstream("tls_protocol_error", format!("TLS with upstream failed: {error}"))
        };
        let configs = self.clients.configs().await.map_err(|error| tls_fault(&error))?;
        let place = match offer {
            Offer::Any => self.h2_place().await,
            Offer::Http1 | Offer::Alone => None,
        };
        let config = match place {
            Some(_) => &configs.any,
            None => &configs.h1,
        };
        let name = server_name(&route.host).map_err(|error| tls_fault(&error))?;
        let handshake = TlsConnector::from(Arc::clone(config)).connect(name, Ahead::new(stream));
        let time = limits::at_most(limits::HANDSHAKE_TIME, defence::holds("upstream-handshake-time"));
        let stream = match timeout(time, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(tls_failed(&error)),
            Err(_) => {
                return Err(Refusal::timeout(
                    "connection_timeout",
                    "TLS with upstream took too long",
                ));
            }
        };
        let place = place.filter(|_| stream.get_ref().1.alpn_protocol() == Some(b"h2"));
        let stream = Whole::new(stream);
        match place {
            Some(place) => self.speak_h2(stream, place).await,
            None => self.speak_h1(stream).await,
        }
    }

    /// `permits`: whether they may be in special ranges.
    pub(super) fn vet(&self, route: &Route, permits: bool, addresses: &[IpAddr]) -> Result<(), Refusal> {
        let policy = self.policy();
        let vetted = catch_unwind(AssertUnwindSafe(|| {
            address::vet(addresses, route.port, permits, policy.as_ref())
        }));
        match vetted {
            Ok(Ok(())) => Ok(()),
            Ok(Err(address::Refusal::Rule(rule))) => Err(Refusal::address(
                format!("{} is at an address that a rule denies", route.host),
                Some(rule),
            )),
            Ok(Err(address::Refusal::Special(range))) => Err(Refusal::address(
                format!(
                    "{} is in a range that is no public host: {}",
                    route.host, range.name
                ),
                Some(route.admission.rule.to_string()),
            )),
            Err(_) => Err(Refusal::address(
                "the policy failed, so nothing is allowed".to_owned(),
                None,
            )),
        }
    }

    /// Starts HTTP/1.1 on a stream. The task that drives it ends with the connection or with this proxy.
    async fn speak_h1<S>(&self, stream: S) -> Result<Sender, Refusal>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(if defence::holds("response-head-bytes") {
                limits::HEAD_BYTES
            } else {
                usize::MAX >> 1
            })
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| http_failed(&error))?;
        let (connection, closed) = (connection.with_upgrades(), self.closed.clone());
        tokio::spawn(async move { unless(connection, closed.cancelled()).await });
        Ok(Sender::H1(sender))
    }

    /// Starts HTTP/2 on a stream. The task that drives it ends with this proxy, or when nobody can ask on it any more and
    /// what is under way has ended. The `place` goes with the stream.
    async fn speak_h2<S>(&self, stream: S, place: OwnedSemaphorePermit) -> Result<Sender, Refusal>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let holds_place = defence::holds("h2-upstream-places");
        let stream = Holding::new(stream, holds_place.then_some(place));
        let (h2, driven) = Http2::start(stream).await.map_err(|fault| http_failed(&fault))?;
        let closed = self.closed.clone();
        tokio::spawn(async move { unless(driven, closed.cancelled()).await });
        Ok(Sender::h2(&h2))
    }
}

fn http_failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::upstream(
        "http_protocol_error",
        format!("HTTP with upstream failed: {error}"),
    )
}

fn failed(error: &io::Error, route: &Route) -> Refusal {
    let shown = route.shown();
    if is_out_of_descriptors(error) {
        tracing::error!(%error, "the process has no descriptor left for a connection: raise its RLIMIT_NOFILE");
        return Refusal::busy("the host has too much open for one more connection");
    }
    match error.kind() {
        io::ErrorKind::TimedOut => Refusal::timeout("connection_timeout", &format!("{shown} did not answer")),
        io::ErrorKind::ConnectionRefused => {
            Refusal::upstream("connection_refused", format!("{shown} refused the connection"))
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            Refusal::upstream("destination_ip_unroutable", format!("there is no way to {shown}"))
        }
        kind => Refusal::upstream(
            "connection_terminated",
            format!("{shown} could not be reached: {kind}"),
        ),
    }
}

fn tls_failed(error: &io::Error) -> Refusal {
    let tls = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => Refusal::upstream(
            "tls_certificate_error",
            format!("upstream's certificate is not trusted: {why:?}"),
        ),
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            Refusal::no_common_protocol()
        }
        Some(rustls::Error::AlertReceived(alert)) => Refusal::upstream(
            "tls_alert_received",
            format!("upstream ended TLS with the alert {alert:?}"),
        ),
        _ => Refusal::upstream("tls_protocol_error", format!("TLS with upstream failed: {error}")),
    }
}
