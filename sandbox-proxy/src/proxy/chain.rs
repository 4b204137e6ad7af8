//! The way to upstream through a proxy of the host's network.

use std::net::IpAddr;

use http::{HeaderValue, StatusCode};
use sandbox_core::host::Host;
use tokio::time::timeout;

use super::io::Dialled;
use super::quota::Slot;
use super::refusal::Refusal;
use super::route::Route;
use super::{Inner, limits};
use crate::defence;
use crate::upstream_proxy::{AskError, Protocol, UpstreamProxy, is_private_name};

/// Addresses of a name that the proxy is asked for, one after the other.
const MAX_TARGETS: usize = 3;

/// How plain HTTP goes through an HTTP proxy: by absolute target, since many allow `CONNECT` to port 443 alone.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) authorization: Option<HeaderValue>,
}

impl Inner {
    /// The proxy that carries what is for this target, if one does. A fixed answer says where a name is: no proxy is
    /// needed to know.
    pub(super) fn proxy_for(&self, host: &Host, port: u16) -> Option<&UpstreamProxy> {
        let proxy = self.upstream_proxy.as_ref()?;
        let is_fixed = host.name().is_some_and(|name| self.names.is_fixed(name));
        (!is_fixed && proxy.carries(host, port)).then_some(proxy)
    }

    /// Whether plain HTTP for this target is forwarded by absolute target. Where names are looked up here it is not: the
    /// proxy would look them up again.
    pub(super) fn forward_for(&self, tls: bool, host: &Host, port: u16) -> Option<Forward> {
        let proxy = self.proxy_for(host, port)?;
        let forwards = !tls && proxy.protocol == Protocol::Http && !proxy.resolves_here;
        forwards.then(|| Forward {
            authorization: proxy.authorization(),
        })
    }

    /// A connection to an admitted target through the proxy.
    pub(super) async fn dial_through(
        &self,
        proxy: &UpstreamProxy,
        route: &Route,
        slot: Slot,
    ) -> Result<Dialled, Refusal> {
        let (targets, mut slot) = self.targets(proxy, route, slot).await?;
        let mut last = None;
        for target in targets {
            let place = match slot.take() {
                Some(slot) => slot,
                None => self.place().await?,
            };
            let stream = self.dial_proxy(proxy, place).await?;
            let time = limits::at_most(limits::PROXY_TIME, defence::holds("proxy-time"));
            match timeout(time, ask(proxy, stream, &target, route.port)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(refusal)) => last = Some(refusal),
                Err(_) => {
                    last = Some(Refusal::timeout(
                        "connection_timeout",
                        "the upstream proxy did not answer",
                    ))
                }
            }
        }
        Err(last.unwrap_or_else(|| Refusal::internal("no target to ask the upstream proxy for")))
    }

    /// A connection to the proxy, to forward requests on.
    pub(super) async fn dial_forward(
        &self,
        proxy: &UpstreamProxy,
        route: &Route,
    ) -> Result<Dialled, Refusal> {
        let slot = self.place().await?;
        let (_, slot) = self.targets(proxy, route, slot).await?;
        match slot {
            Some(slot) => self.dial_proxy(proxy, slot).await,
            None => Err(Refusal::internal("the connection's place was lost")),
        }
    }

    /// What the proxy is asked for, one after the other.
    async fn targets(
        &self,
        proxy: &UpstreamProxy,
        route: &Route,
        slot: Slot,
    ) -> Result<(Vec<Host>, Option<Slot>), Refusal> {
        if let Host::Name(name) = &route.host
            && !proxy.resolves_here
        {
            let is_refused = is_private_name(name.as_str()) && !route.admission.permits_special_ranges;
            if is_refused && defence::holds("proxy-private-names") {
                return Err(Refusal::address(
                    format!(
                        "{name} means a host of a private network, and what the upstream proxy finds cannot be vetted"
                    ),
                    Some(route.admission.rule.to_string()),
                ));
            }
            return Ok((vec![route.host.clone()], Some(slot)));
        }
        if !defence::holds("proxy-target-vetted") {
            return Ok((vec![route.host.clone()], Some(slot)));
        }
        match self.vetted(route, slot).await {
            Ok((addresses, slot)) => {
                let targets = addresses.into_iter().take(MAX_TARGETS).map(Host::from);
                Ok((targets.collect(), Some(slot)))
            }
            // Never a reason to leave the look-up to the proxy.
            Err(refusal) if defence::holds("resolve-failure-denies") => Err(refusal),
            Err(_) => Ok((vec![route.host.clone()], None)),
        }
    }

    /// A connection to the proxy itself, whose address is the user's word.
    async fn dial_proxy(&self, proxy: &UpstreamProxy, slot: Slot) -> Result<Dialled, Refusal> {
        let unreachable = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, ?proxy, "the upstream proxy cannot be reached");
            Refusal::upstream(
                "destination_unavailable",
                "the host's upstream proxy cannot be reached",
            )
        };
        let (addresses, slot): (Vec<IpAddr>, Slot) = match &proxy.host {
            Host::Address(address) => (vec![*address], slot),
            Host::Name(name) => match timeout(
                limits::at_most(limits::RESOLVE_TIME, defence::holds("proxy-resolve-time")),
                self.names.lookup(name, slot),
            )
            .await
            {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => return Err(unreachable(&error)),
                Err(error) => return Err(unreachable(&error)),
            },
        };
        self.reach(&addresses, proxy.port, slot)
            .await
            .map_err(|error| unreachable(&error))
    }
}

/// Asks the proxy for the target; afterwards the stream is one to it.
async fn ask(proxy: &UpstreamProxy, stream: Dialled, host: &Host, port: u16) -> Result<Dialled, Refusal> {
    match proxy.ask(stream, host, port).await {
        Ok((stream, read)) => Ok(stream.after(read)),
        Err(AskError::Status(status)) => Err(refused(status)),
        Err(AskError::Socks(error)) => Err(socks_failed(&error)),
        Err(AskError::Http(error)) => {
            tracing::debug!(%error, "CONNECT to the upstream proxy failed");
            Err(Refusal::upstream(
                "http_protocol_error",
                "the upstream proxy did not answer CONNECT as it should",
            ))
        }
    }
}

/// What the proxy's status means. Its text is its own, and not for the guest.
pub(super) fn refused(status: StatusCode) -> Refusal {
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            tracing::error!(
                "the upstream proxy wants credentials, or others than it was given: see UpstreamProxy::login"
            );
            Refusal::upstream(
                "proxy_configuration_error",
                "the host's upstream proxy wants credentials, or others than it is given",
            )
        }
        StatusCode::GATEWAY_TIMEOUT => Refusal::timeout(
            "connection_timeout",
            "the target did not answer the host's upstream proxy",
        ),
        status if status.is_client_error() => Refusal::upstream(
            "destination_unavailable",
            format!(
                "the host's upstream proxy does not allow it ({})",
                status.as_u16()
            ),
        ),
        status => Refusal::upstream(
            "destination_unavailable",
            format!(
                "the host's upstream proxy could not reach it ({})",
                status.as_u16()
            ),
        ),
    }
}

fn socks_failed(error: &tokio_socks::Error) -> Refusal {
    use tokio_socks::Error;
    match error {
        Error::NoAcceptableAuthMethods | Error::PasswordAuthFailure(_) | Error::InvalidAuthValues(_) => {
            refused(StatusCode::PROXY_AUTHENTICATION_REQUIRED)
        }
        Error::ConnectionNotAllowedByRuleset => refused(StatusCode::FORBIDDEN),
        Error::ConnectionRefused => Refusal::upstream(
            "connection_refused",
            "the target refused the connection of the upstream proxy",
        ),
        Error::NetworkUnreachable | Error::HostUnreachable | Error::TtlExpired => Refusal::upstream(
            "destination_ip_unroutable",
            "the host's upstream proxy finds no way to the target",
        ),
        error => {
            tracing::debug!(%error, "SOCKS with the upstream proxy failed");
            refused(StatusCode::BAD_GATEWAY)
        }
    }
}
