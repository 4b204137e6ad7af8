//! Where a stream or request goes: parsed once, admitted, never changed.

use std::sync::Arc;

use http::HeaderValue;
use http::uri::Authority;
use sandbox_core::host::Host;
use sandbox_core::policy::Scheme;

use super::Inner;
use super::chain::Forward;
use super::gate::Admission;
use super::meter::HostMeter;
use super::pool::{Connections, Key};
use super::refusal::Refusal;
use crate::defence;
use crate::defence::holds;
use crate::services::directory::Managed;

/// An admitted target.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) host: Host,
    /// The same for records.
    pub(crate) host_text: Arc<str>,
    pub(crate) port: u16,
    /// Whether upstream speaks TLS.
    pub(crate) tls: bool,
    pub(crate) admission: Admission,
    /// The authority upstream sees, in normal form, without a default port.
    pub(crate) authority: Authority,
    pub(crate) host_header: HeaderValue,
    /// What the service that has the host does with its requests, if there is one.
    pub(crate) service: Option<Managed>,
    /// How far what comes back is searched for secrets, where it is read.
    pub(crate) scrubbing: Scrubbing,
    /// Whether upstream may compress: no secret goes there, or its service says that it tells none of them back.
    pub(crate) compressed: bool,
    /// Connections for requests with the service's credential, or for all where there is no service.
    pub(crate) connections: Arc<Connections>,
    /// Plain HTTP that a proxy of the host's network forwards.
    pub(crate) forward: Option<Forward>,
    pub(crate) meter: Arc<HostMeter>,
}

/// How far responses are searched for the secrets of the sandbox's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scrubbing {
    /// Not: no request of the sandbox ever gets a credential.
    Never,
    /// As they come: the host is none of a service, and would have to be told a secret by one that is.
    AsTheyCome,
    /// All of them, whole; one that cannot be searched is refused. The host is one of a service, if on another port.
    All,
}

impl Route {
    pub(super) fn new(
        inner: &Inner,
        host: Host,
        port: u16,
        tls: bool,
        admission: Admission,
    ) -> Result<Arc<Self>, Refusal> {
        let text = if port == if tls { 443 } else { 80 } {
            host.to_string()
        } else {
            format!("{host}:{port}")
        };
        let invalid = |_| Refusal::bad_request("the target is no valid authority");
        let service = inner.services.select(tls, &host, port);
        let forward = inner.forward_for(tls, &host, port);
        let shows_login = forward
            .as_ref()
            .is_some_and(|forward| forward.authorization.is_some());
        let scrubbing = if inner.services.is_empty() && !shows_login {
            Scrubbing::Never
        } else if inner.services.has_host(&host) {
            Scrubbing::All
        } else {
            Scrubbing::AsTheyCome
        };
        let allows = |service: &Managed| service.bound.service.allows_compression();
        let compressed = service.as_ref().is_none_or(allows) || !holds("no-compression-at-services");
        Ok(Arc::new(Self {
            authority: Authority::try_from(text.as_str()).map_err(|_| invalid(()))?,
            host_header: HeaderValue::try_from(text.as_str()).map_err(|_| invalid(()))?,
            connections: inner.pool.connections(Key {
                tls,
                host: host.clone(),
                port,
                permits_special_ranges: admission.permits_special_ranges
                    && defence::holds("pool-special-ranges"),
                service: service
                    .as_ref()
                    .map(|managed| managed.bound.service.name().to_owned()),
            }),
            forward,
            meter: inner.meters.host(&host),
            host_text: host.to_string().into(),
            host,
            port,
            tls,
            admission,
            service,
            scrubbing,
            compressed,
        }))
    }

    /// Connections for requests with a credential of the client's own.
    pub(super) fn own_connections(&self, inner: &Inner) -> Arc<Connections> {
        inner.pool.connections(Key {
            tls: self.tls,
            host: self.host.clone(),
            port: self.port,
            permits_special_ranges: self.admission.permits_special_ranges,
            service: None,
        })
    }

    /// How it is asked for.
    pub(crate) fn scheme(&self) -> Scheme {
        if self.tls { Scheme::Tunnel } else { Scheme::Http }
    }

    /// Whether its stream is read: somebody has to put a credential in or look at requests.
    pub(crate) fn is_read(&self) -> bool {
        self.service.as_ref().is_some_and(Managed::is_bound) || self.admission.inspect
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The same, for what the user says.
pub(crate) fn parse_host_and_port(text: &str, default_port: Option<u16>) -> Option<(Host, u16)> {
    parse_authority(text, default_port).ok()
}

/// Parses `host` or `host:port` (RFC 3986 §3.2, without user information).
pub(crate) fn parse_authority(text: &str, default_port: Option<u16>) -> Result<(Host, u16), Refusal> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bad = |why: &str| Refusal::bad_request(format!("the target is not host:port: {why}"));
    // Without brackets, the last colon of an IPv6 address is no port's.
    if host.contains(':') && !host.starts_with('[') {
        return Err(bad("write IPv6 addresses in brackets"));
    }
    let port = match port {
        None => default_port.ok_or_else(|| bad("the port is missing"))?,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) || !holds("port-is-digits") => {
            match port.parse() {
                Ok(0) | Err(_) => return Err(bad("the port is not from 1 to 65535")),
                Ok(port) => port,
            }
        }
        Some(_) => return Err(bad("the port is no number")),
    };
    let host = host.parse().map_err(|error| bad(&format!("{error}")))?;
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_have_one_form() {
        let parse = |text| parse_authority(text, Some(443)).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(parse("API.example.com."), Ok("api.example.com 443".into()));
        assert_eq!(parse("api.example.com:8443"), Ok("api.example.com 8443".into()));
        assert_eq!(parse("[::1]:8"), Ok("[::1] 8".into()));
        assert_eq!(parse("[::ffff:127.0.0.1]"), Ok("127.0.0.1 443".into()));
        for bad in [
            "",
            ":443",
            "user@a.test:443",
            "user:pw@a.test",
            "a.test:",
            "a.test:0",
            "a.test:65536",
            "a.test:+44",
            "a.test:443:443",
            "::1:443",
            "0x7f.1:443",
            "2130706433:443",
            "127.1",
            "a.test/:443",
            "a.test#:443",
            "a%2etest",
            "a test",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} {:?}", parse(bad));
        }
        assert!(parse_authority("a.test", None).is_err());
    }
}
