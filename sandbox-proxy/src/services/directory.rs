//! Which service a request belongs to, found by the matcher of the policy's rules. First the host, its port and what is
//! spoken decide on the service, and so on whether a stream is read; then method and path on where its credential goes.

use std::sync::Arc;

use sandbox_core::host::Host;
use sandbox_core::policy::{RequestLine, Scheme};

use super::bound::Bound;
use super::endpoint::{Endpoint, Placement};
use super::explain::{CredentialReason, Explanation};
use crate::defence::holds;
use crate::policy::{Pattern, Patterns, Ports, Seen, Target};

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// The services of one sandbox.
#[derive(Debug)]
pub(crate) struct Directory {
    bounds: Vec<Arc<Bound>>,
    /// The most specific targets last; of several endpoints at one, the first.
    entries: Vec<Entry>,
    /// Those of the entries, in their order.
    patterns: Patterns,
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
        let all = bounds.iter().enumerate().flat_map(|(bound, value)| {
            let endpoints = value.service.endpoints.iter().enumerate();
            endpoints.map(move |(endpoint, place)| (Entry { bound, endpoint }, &place.pattern))
        });
        let mut all: Vec<_> = all.collect();
        // Backwards: of two that are alike the sort leaves the order, and the last counts.
        all.reverse();
        all.sort_by_key(|(_, pattern)| pattern.target.rank());
        let directory = Self {
            patterns: Patterns::new(all.iter().map(|(_, pattern)| *pattern)),
            entries: all.into_iter().map(|(entry, _)| entry).collect(),
            bounds,
        };
        directory.check_conflicts()?;
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
            let target = &endpoint.pattern.target;
            return Some(Managed::of(bound, target, |pattern| pattern.covers(port, scheme)));
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
            let is_same = |(other, known): &(&Arc<Bound>, &Endpoint)| {
                let known = &known.pattern;
                !Arc::ptr_eq(bound, other)
                    && known.target == pattern.target
                    && known.ports.meet(pattern.ports)
            };
            if let Some((second, _)) = self.pairs().take(at).find(is_same) {
                return Err(Conflict {
                    first: bound.service.name().to_owned(),
                    second: second.service.name().to_owned(),
                    host: pattern.to_string(),
                });
            }
        }
        Ok(())
    }

    /// All endpoints at targets that decide on some port of this host, the most specific target first.
    fn at_any_port(&self, host: &Host) -> impl Iterator<Item = (&Arc<Bound>, &Endpoint)> {
        let deciding = self.patterns.at_any_port(host).into_iter();
        let mut targets: Vec<_> = deciding
            .filter_map(|at| Some(&self.pair(at)?.1.pattern.target))
            .collect();
        targets.dedup();
        targets.into_iter().flat_map(|target| {
            let pairs = self.pairs().rev();
            pairs.filter(move |(_, endpoint)| endpoint.pattern.target == *target)
        })
    }

    /// The most specific target that an attempt is at.
    fn find(&self, host: &Host, port: u16, scheme: Scheme) -> Option<(&Arc<Bound>, &Endpoint)> {
        let found = self.patterns.last(host, port, scheme);
        if found.is_none() && !holds("bound-host") {
            let mut all = self.pairs();
            return all.find(|(_, endpoint)| endpoint.pattern.covers(port, scheme));
        }
        self.pair(found?)
    }

    fn pairs(&self) -> impl DoubleEndedIterator<Item = (&Arc<Bound>, &Endpoint)> {
        (0..self.entries.len()).filter_map(|at| self.pair(at))
    }

    fn pair(&self, at: usize) -> Option<(&Arc<Bound>, &Endpoint)> {
        let entry = self.entries.get(at)?;
        let bound = self.bounds.get(entry.bound)?;
        Some((bound, bound.service.endpoints.get(entry.endpoint)?))
    }
}

impl Managed {
    /// The endpoints of a service at a target that cover what is asked for.
    fn of(bound: &Arc<Bound>, target: &Target, covers: impl Fn(&Pattern) -> bool) -> Self {
        let endpoints = bound.service.endpoints.iter().enumerate();
        let is_here = |endpoint: &Endpoint| endpoint.pattern.target == *target && covers(&endpoint.pattern);
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

    /// Whether the method of a request counts here, so that it must not become another by a header.
    pub(crate) fn tells_methods_apart(&self) -> bool {
        let mut endpoints = self.endpoints();
        endpoints.any(|(endpoint, _)| endpoint.pattern.has_methods())
    }

    fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, &Arc<str>)> {
        self.endpoints
            .iter()
            .filter_map(|at| self.bound.endpoint_and_place(*at))
    }

    /// Whether what the client sends in the service's places is its business here: where it takes a credential, and on
    /// the same site over plain HTTP.
    pub(crate) fn is_site(&self) -> bool {
        matches!(self.why_not, None | Some(CredentialReason::PlainHttp))
    }

    /// The first endpoint that has this request. Of one that issues tokens, also a request that some server might take
    /// for its own; where nobody can say whether it is that, it gets no credential.
    pub(crate) fn choose(&self, line: RequestLine<'_>) -> Option<Chosen<'_>> {
        let chosen = |(endpoint, place)| Chosen { endpoint, place };
        if self
            .endpoints()
            .all(|(endpoint, _)| !endpoint.pattern.has_condition())
        {
            return self.endpoints().next().map(chosen);
        }
        let seen = Seen::new(line);
        let mut might_be_for_tokens = false;
        for (endpoint, place) in self.endpoints() {
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
