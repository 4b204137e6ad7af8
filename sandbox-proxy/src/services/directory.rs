//! Which service a request belongs to. Hosts are found by hash, through their parents for wildcards, so the cost does
//! not grow with the number of services.

use std::collections::HashMap;
use std::sync::Arc;

use sandbox_core::host::{Host, HostName};

use super::bound::Bound;
use super::endpoint::{Endpoint, Hosts, Placement};
use super::explain::{CredentialReason, Explanation};
use crate::defence::holds;

/// The services of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    bounds: Vec<Arc<Bound>>,
    exact: HashMap<Host, Vec<Entry>>,
    /// By the name below which they are.
    children: HashMap<Box<str>, Vec<Entry>>,
    descendants: HashMap<Box<str>, Vec<Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bound: usize,
    endpoint: usize,
    port: u16,
    plain_http: bool,
}

/// What a service does with the requests of one route.
#[derive(Debug, Clone)]
pub(crate) struct Managed {
    pub(crate) bound: Arc<Bound>,
    /// Which endpoints are for the route's host and port; none where the service takes no credential there.
    endpoints: Vec<usize>,
    /// Set where there is none.
    why_not: Option<CredentialReason>,
}

/// Two services for one host and port.
#[derive(Debug)]
pub(crate) struct Conflict {
    pub(crate) first: String,
    pub(crate) second: String,
    pub(crate) host: String,
}

impl Directory {
    pub(crate) fn new(bounds: Vec<Bound>) -> Result<Self, Conflict> {
        let mut directory = Self::default();
        for (bound, value) in bounds.into_iter().enumerate() {
            for (endpoint, place) in value.service.endpoints.iter().enumerate() {
                let entries = directory.entries(&place.hosts);
                let is_other = |entry: &&Entry| entry.port == place.port && entry.bound != bound;
                if let Some(other) = entries.iter().find(is_other).map(|entry| entry.bound) {
                    let first = directory.bounds.get(other);
                    return Err(Conflict {
                        first: first.map_or("", |bound| bound.service.name()).to_owned(),
                        second: value.service.name().to_owned(),
                        host: format!("{}:{}", place.hosts, place.port),
                    });
                }
                entries.push(Entry {
                    bound,
                    endpoint,
                    port: place.port,
                    plain_http: value.service.plain_http,
                });
            }
            directory.bounds.push(Arc::new(value));
        }
        Ok(directory)
    }

    pub(crate) fn bounds(&self) -> &[Arc<Bound>] {
        &self.bounds
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bounds.is_empty()
    }

    /// Whether this host is one of a service's, on whatever port, and gets secrets that open something by themselves.
    /// With a signature goes out no secret but the token of temporary keys, which is worth nothing without them.
    pub(crate) fn has_host(&self, host: &Host) -> bool {
        let gets_secrets = |entry: &Entry| {
            let endpoint = self
                .bounds
                .get(entry.bound)?
                .service
                .endpoints
                .get(entry.endpoint)?;
            Some(!matches!(endpoint.placement, Placement::SigV4 { .. }))
        };
        self.candidates(host)
            .flatten()
            .any(|entry| gets_secrets(entry).unwrap_or(true))
    }

    /// The service for requests to this host and port. This is what enforcement uses and what is explained. The most
    /// specific pattern of hosts decides. `None`: no service has the host.
    pub(crate) fn select(&self, tls: bool, host: &Host, port: u16) -> Option<Managed> {
        let mut ports = Vec::new();
        let mut elsewhere = None;
        for entries in self.candidates(host) {
            let first = entries.iter().find(|entry| {
                (entry.port == port || !holds("bound-port"))
                    && (tls || entry.plain_http || !holds("tls-only"))
            });
            if let Some(first) = first {
                let endpoints = entries
                    .iter()
                    .filter(|entry| entry.bound == first.bound && entry.port == first.port);
                return Some(Managed {
                    bound: Arc::clone(self.bounds.get(first.bound)?),
                    endpoints: endpoints.map(|entry| entry.endpoint).collect(),
                    why_not: None,
                });
            }
            elsewhere = elsewhere.or_else(|| {
                // The same site without TLS is one where its credentials must not be sent either.
                let is_site =
                    |entry: &&Entry| !tls && (entry.port == port || (entry.port, port) == (443, 80));
                entries.iter().find(is_site).or(entries.first())
            });
            ports.extend(entries.iter().map(|entry| entry.port));
        }
        let elsewhere = elsewhere?;
        let is_plain = !tls && (elsewhere.port == port || (elsewhere.port, port) == (443, 80));
        ports.sort_unstable();
        ports.dedup();
        Some(Managed {
            bound: Arc::clone(self.bounds.get(elsewhere.bound)?),
            endpoints: Vec::new(),
            why_not: Some(if is_plain {
                CredentialReason::PlainHttp
            } else {
                CredentialReason::OtherPort { ports }
            }),
        })
    }

    /// What would happen to a request without a credential of the client's own.
    pub(crate) fn explain(&self, tls: bool, host: &Host, port: u16, path: &str) -> Explanation {
        let Some(managed) = self.select(tls, host, port) else {
            return Explanation::no_service();
        };
        managed.explain(path)
    }

    /// The entries whose pattern has this host, the most specific pattern first.
    fn candidates<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = &'a Vec<Entry>> {
        let name = host.name().map_or("", HostName::as_str);
        let parents = name
            .match_indices('.')
            .filter_map(move |(dot, _)| name.get(dot + 1..));
        let wild = parents.enumerate().flat_map(move |(depth, parent)| {
            let child = self.children.get(parent).filter(|_| depth == 0);
            child.into_iter().chain(self.descendants.get(parent))
        });
        let all = [&self.children, &self.descendants]
            .into_iter()
            .flat_map(HashMap::values);
        let of_others = self.exact.values().chain(all).filter(|_| !holds("bound-host"));
        self.exact.get(host).into_iter().chain(wild).chain(of_others)
    }

    fn entries(&mut self, hosts: &Hosts) -> &mut Vec<Entry> {
        match hosts {
            Hosts::Exact(host) => self.exact.entry(host.clone()).or_default(),
            Hosts::Children(base) => self.children.entry(base.as_str().into()).or_default(),
            Hosts::Descendants(base) => self.descendants.entry(base.as_str().into()).or_default(),
        }
    }
}

impl Managed {
    /// Whether the service takes a credential on this host and port, on whatever path.
    pub(crate) fn is_bound(&self) -> bool {
        self.why_not.is_none()
    }

    /// Whether what the client sends in the service's places is its business here: where it takes a credential, and on
    /// the same site over plain HTTP.
    pub(crate) fn is_site(&self) -> bool {
        matches!(self.why_not, None | Some(CredentialReason::PlainHttp))
    }

    /// The first endpoint that has this path. Of one that issues tokens, also a path that some server might read as its
    /// own; where nobody can say whether a path is that, it gets no credential.
    pub(crate) fn endpoint(&self, path: &str) -> Option<&Endpoint> {
        self.endpoint_and_place(path).map(|(endpoint, _)| endpoint)
    }

    /// The same, with where its credential goes in words.
    fn endpoint_and_place(&self, path: &str) -> Option<(&Endpoint, &Arc<str>)> {
        let mut is_clear = true;
        for index in &self.endpoints {
            let (endpoint, place) = self.bound.endpoint_and_place(*index)?;
            if endpoint.has_path(path) {
                let gets_secret = endpoint.placement != Placement::Issued;
                return (is_clear || !gets_secret).then_some((endpoint, place));
            }
            // What a token server gives is looked into, so it must not be got by another spelling of its path, by which
            // the request would be another endpoint's.
            if endpoint.issues_tokens && holds("issuer-path") {
                match endpoint.might_have_path(path) {
                    Some(true) => return Some((endpoint, place)),
                    Some(false) => {}
                    None => is_clear = false,
                }
            }
        }
        None
    }

    /// The service, if answers to requests with this path are its tokens.
    pub(crate) fn issuer(&self, path: &str) -> Option<Arc<Bound>> {
        let issues = self.endpoint(path).is_some_and(|endpoint| endpoint.issues_tokens);
        issues.then(|| Arc::clone(&self.bound))
    }

    /// What happens to a request with this path, if the client has no credential of its own and the source one.
    pub(crate) fn explain(&self, path: &str) -> Explanation {
        let reason = match (&self.why_not, self.endpoint_and_place(path)) {
            (Some(why_not), _) => why_not.clone(),
            (None, None) => CredentialReason::OtherPath,
            (None, Some((endpoint, _))) if endpoint.placement == Placement::Issued => {
                CredentialReason::Issued
            }
            (None, Some((_, place))) => CredentialReason::Injected {
                place: Arc::clone(place),
            },
        };
        Explanation::new(&self.bound.name, reason)
    }
}
