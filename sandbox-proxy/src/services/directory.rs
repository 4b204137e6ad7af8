//! Which service a request belongs to, found by the matcher of the policy's rules. First the host, its port and what is
//! spoken decide on the service, and so on whether a stream is read; then method and path on where its credential goes.

use std::sync::Arc;

use sandbox_core::host::Host;
use sandbox_core::policy::{RequestLine, Scheme};

use super::bound::Bound;
use super::endpoint::{Endpoint, Placement};
use super::explain::{CredentialReason, Explanation};
use crate::defence::holds;
use crate::policy::{Patterns, Ports, Seen, Target};

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// The services of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    bounds: Vec<Arc<Bound>>,
    /// The most specific targets last.
    entries: Vec<Entry>,
    /// Of the entries, with what else is spoken there than their services take.
    patterns: Option<Patterns>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bound: usize,
    endpoint: usize,
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

/// Where the credential goes in one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'m> {
    pub(crate) endpoint: &'m Endpoint,
    /// The same in words.
    place: &'m Arc<str>,
}

/// Two services for one target.
#[derive(Debug)]
pub(crate) struct Conflict {
    pub(crate) first: String,
    pub(crate) second: String,
    pub(crate) host: String,
}

impl Directory {
    pub(crate) fn new(bounds: Vec<Bound>) -> Result<Self, Conflict> {
        let bounds: Vec<_> = bounds.into_iter().map(Arc::new).collect();
        let mut entries = Vec::new();
        for (bound, value) in bounds.iter().enumerate() {
            let endpoints = 0..value.service.endpoints.len();
            entries.extend(endpoints.map(|endpoint| Entry { bound, endpoint }));
        }
        let mut directory = Self {
            bounds,
            entries,
            patterns: None,
        };
        directory.check_conflicts()?;
        let mut entries = std::mem::take(&mut directory.entries);
        entries.sort_by_key(|entry| {
            directory
                .endpoint(*entry)
                .map(|endpoint| endpoint.pattern.target.rank())
        });
        directory.entries = entries;
        directory.patterns = Some(Patterns::new(
            directory.pairs().map(|(_, endpoint)| &endpoint.pattern),
        ));
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
        let gets_secrets =
            |(_, endpoint): (_, &Endpoint)| !matches!(endpoint.placement, Placement::SigV4 { .. });
        self.at_any_port(host).any(gets_secrets)
    }

    /// The service for requests to this host and port. This is what enforcement uses and what is explained. The most
    /// specific target decides. `None`: no service has the host.
    pub(crate) fn select(&self, tls: bool, host: &Host, port: u16) -> Option<Managed> {
        let scheme = if tls || !holds("tls-only") {
            Scheme::Tunnel
        } else {
            Scheme::Http
        };
        let may = |(bound, _): &(&Arc<Bound>, _)| scheme == Scheme::Tunnel || bound.service.plain_http;
        if let Some((bound, endpoint)) = self.find(host, port, scheme).filter(may) {
            return Some(Managed::of(bound, &endpoint.pattern.target, |ports| {
                ports.hold(port)
            }));
        }
        // The same site without TLS is one where its credentials must not be sent either.
        let is_site = |ports: Ports| !tls && (ports.hold(port) || (port == HTTP && ports.hold(HTTPS)));
        let others: Vec<_> = self.at_any_port(host).collect();
        let site = others
            .iter()
            .find(|(_, endpoint)| is_site(endpoint.pattern.ports));
        let (bound, endpoint) = site.or(others.first())?;
        if !holds("bound-port") {
            return Some(Managed::of(bound, &endpoint.pattern.target, |_| true));
        }
        let mut ports: Vec<_> = others
            .iter()
            .map(|(_, endpoint)| endpoint.pattern.ports)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        Some(Managed {
            bound: Arc::clone(bound),
            endpoints: Vec::new(),
            why_not: Some(if site.is_some() {
                CredentialReason::PlainHttp
            } else {
                CredentialReason::OtherPort {
                    ports: ports.into_iter().map(|ports| ports.first..=ports.last).collect(),
                }
            }),
        })
    }

    /// What would happen to a request without a credential of the client's own.
    pub(crate) fn explain(&self, tls: bool, host: &Host, port: u16, line: RequestLine<'_>) -> Explanation {
        match self.select(tls, host, port) {
            Some(managed) => managed.explain(managed.choose(line)),
            None => Explanation::no_service(),
        }
    }

    /// Two services cannot be told apart at the same target.
    fn check_conflicts(&self) -> Result<(), Conflict> {
        for (at, (bound, endpoint)) in self.pairs().enumerate() {
            let pattern = &endpoint.pattern;
            let before = self.pairs().take(at);
            let other = before
                .map(|(other, known)| (other, &known.pattern))
                .find(|(other, known)| {
                    !Arc::ptr_eq(bound, other)
                        && known.target == pattern.target
                        && known.ports.meet(pattern.ports)
                });
            if let Some((first, _)) = other {
                return Err(Conflict {
                    first: first.service.name().to_owned(),
                    second: bound.service.name().to_owned(),
                    host: pattern.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The services that have this host on some port, the most specific target first.
    fn at_any_port(&self, host: &Host) -> impl Iterator<Item = (&Arc<Bound>, &Endpoint)> {
        let places = self.patterns.as_ref().map(|patterns| patterns.at_any_port(host));
        places.into_iter().flatten().filter_map(|at| self.pair(at))
    }

    /// The most specific target that an attempt is at.
    fn find(&self, host: &Host, port: u16, scheme: Scheme) -> Option<(&Arc<Bound>, &Endpoint)> {
        let patterns = self.patterns.as_ref()?;
        let is_at_port = |(_, endpoint): &(_, &Endpoint)| endpoint.pattern.covers(port, scheme);
        let of_others = || self.pairs().find(is_at_port).filter(|_| !holds("bound-host"));
        patterns
            .last(host, port, scheme)
            .and_then(|at| self.pair(at))
            .or_else(of_others)
    }

    fn pairs(&self) -> impl Iterator<Item = (&Arc<Bound>, &Endpoint)> {
        (0..self.entries.len()).filter_map(|at| self.pair(at))
    }

    fn pair(&self, at: usize) -> Option<(&Arc<Bound>, &Endpoint)> {
        let entry = self.entries.get(at)?;
        self.bounds.get(entry.bound).zip(self.endpoint(*entry))
    }

    fn endpoint(&self, entry: Entry) -> Option<&Endpoint> {
        self.bounds
            .get(entry.bound)?
            .service
            .endpoints
            .get(entry.endpoint)
    }
}

impl Managed {
    /// The endpoints of a service at a target, on ports that are asked for.
    fn of(bound: &Arc<Bound>, target: &Target, at: impl Fn(Ports) -> bool) -> Self {
        let endpoints = bound.service.endpoints.iter().enumerate();
        let is_here = |endpoint: &Endpoint| endpoint.pattern.target == *target && at(endpoint.pattern.ports);
        Self {
            endpoints: endpoints
                .filter(|(_, endpoint)| is_here(endpoint))
                .map(|(at, _)| at)
                .collect(),
            bound: Arc::clone(bound),
            why_not: None,
        }
    }

    /// Whether the service takes a credential on this host and port, in whatever requests.
    pub(crate) fn is_bound(&self) -> bool {
        self.why_not.is_none()
    }

    /// Whether what the client sends in the service's places is its business here: where it takes a credential, and on
    /// the same site over plain HTTP.
    pub(crate) fn is_site(&self) -> bool {
        matches!(self.why_not, None | Some(CredentialReason::PlainHttp))
    }

    /// The first endpoint that has this request. Of one that issues tokens, also a request that some server might take
    /// for its own; where nobody can say whether it is that, it gets no credential.
    pub(crate) fn choose(&self, line: RequestLine<'_>) -> Option<Chosen<'_>> {
        let endpoints = || {
            self.endpoints
                .iter()
                .filter_map(|index| self.bound.endpoint_and_place(*index))
        };
        let chosen = |(endpoint, place)| Chosen { endpoint, place };
        if endpoints().all(|(endpoint, _)| !endpoint.pattern.has_condition()) {
            return endpoints().next().map(chosen);
        }
        let seen = Seen::new(line);
        let mut might_be_for_tokens = false;
        for (endpoint, place) in endpoints() {
            if endpoint.pattern.has(&seen) {
                let gets_secret = endpoint.placement != Placement::Issued;
                return (!might_be_for_tokens || !gets_secret).then_some(Chosen { endpoint, place });
            }
            // What a token server gives is looked into, so it must not be got by another spelling of its path, by which
            // the request would be another endpoint's.
            if endpoint.issues_tokens && endpoint.pattern.might_have(&seen) && holds("issuer-path") {
                if seen.is_clear() {
                    return Some(Chosen { endpoint, place });
                }
                might_be_for_tokens = true;
            }
        }
        None
    }

    /// What happens to a request, if the client has no credential of its own and the source one.
    pub(crate) fn explain(&self, chosen: Option<Chosen<'_>>) -> Explanation {
        let reason = match (&self.why_not, chosen) {
            (Some(why_not), _) => why_not.clone(),
            (None, None) => CredentialReason::OtherRequest,
            (None, Some(chosen)) if chosen.endpoint.placement == Placement::Issued => {
                CredentialReason::Issued
            }
            (None, Some(chosen)) => CredentialReason::Injected {
                place: Arc::clone(chosen.place),
            },
        };
        Explanation::new(&self.bound.name, reason)
    }
}
