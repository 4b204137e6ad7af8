//! What the user said, and the proxy it resolves to.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox_core::SandboxId;
use sandbox_core::audit::AuditSink;
use sandbox_core::credential::CredentialSource;
use sandbox_core::host::HostName;
use sandbox_core::policy::{Approver, InvalidPolicy, Policy};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::asking::Asking;
use super::meter::Meters;
use super::pool::Pool;
use super::quota::{Ledger, Quota};
use super::{Inner, Limits, Proxy, limits};
use crate::audit::Hub;
use crate::defence::holds;
use crate::dns;
use crate::policy::Rules;
use crate::resolve::{Names, Resolver, System};
use crate::scrub::Secrets;
use crate::scrub::coding;
use crate::services::bound::Bound;
use crate::services::directory::{Conflict, Directory};
use crate::services::{InvalidService, PlaceholderTag, Service};
use crate::tls::client::{Clients, parse_roots};
use crate::tls::{Ca, CaError};
use crate::upstream_proxy::UpstreamProxy;

/// Builds a [`Proxy`]. Without a policy nothing is allowed.
#[derive(Debug)]
pub struct ProxyBuilder {
    sandbox: SandboxId,
    policy: Arc<dyn Policy>,
    approver: Option<Arc<dyn Approver>>,
    approval_time: Duration,
    services: Vec<Bound>,
    placeholder_tag: Option<PlaceholderTag>,
    fixed: HashMap<HostName, Vec<IpAddr>>,
    resolver: Box<dyn Resolver>,
    upstream_proxy: Option<UpstreamProxy>,
    roots: Vec<Vec<u8>>,
    sinks: Vec<Arc<dyn AuditSink>>,
    max_connections: Option<usize>,
    limits: Limits,
}

/// A proxy that cannot be built as asked.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The policy has a mistake.
    #[error(transparent)]
    Policy(#[from] InvalidPolicy),
    /// A service has a mistake.
    #[error(transparent)]
    Service(#[from] InvalidService),
    /// Two services want to put their credential into the same requests.
    #[error("services {first} and {second} are both for {host}: give one of them another host")]
    SameHost {
        /// One service.
        first: String,
        /// The other.
        second: String,
        /// The host and port that both have.
        host: String,
    },
    /// An extra root is no certificate.
    #[error("an extra root is no certificate: give one or more certificates as PEM, or one as DER")]
    Root,
    /// The host gives no random numbers, which placeholders need.
    #[error("the host gives no random numbers")]
    Random,
    /// The sandbox's own authority could not be made.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl ProxyBuilder {
    pub(super) fn new(sandbox: SandboxId) -> Self {
        Self {
            sandbox,
            policy: Arc::new(Rules::locked_down()),
            approver: None,
            approval_time: limits::APPROVAL_TIME,
            services: Vec::new(),
            placeholder_tag: None,
            fixed: HashMap::new(),
            resolver: Box::new(System),
            upstream_proxy: None,
            roots: Vec::new(),
            sinks: Vec::new(),
            max_connections: None,
            limits: Limits::new(),
        }
    }

    /// Decides on every attempt.
    #[must_use]
    pub fn policy(self, policy: Arc<dyn Policy>) -> Self {
        Self { policy, ..self }
    }

    /// Answers where the policy says to ask. Without one such attempts are denied.
    #[must_use]
    pub fn approver(mut self, approver: Arc<dyn Approver>) -> Self {
        self.approver = Some(approver);
        self
    }

    /// How long the approver may take; after it the attempt is denied. One minute at first, a year at most.
    #[must_use]
    pub fn approval_time(self, approval_time: Duration) -> Self {
        Self {
            approval_time: approval_time.min(limits::LONGEST_TIME),
            ..self
        }
    }

    /// Gives the sandbox the placeholders of one from whose memory it goes on: its programs hold them. Without it they
    /// are fresh, so that no two sandboxes have the same.
    #[must_use]
    pub fn placeholder_tag(mut self, tag: PlaceholderTag) -> Self {
        self.placeholder_tag = Some(tag);
        self
    }

    /// Puts this source's credential into requests to the service. The rules must allow its hosts, too.
    #[must_use]
    pub fn credential(mut self, service: Service, source: Arc<dyn CredentialSource>) -> Self {
        self.services.push(Bound::new(service, source));
        self
    }

    /// Answers a name with fixed addresses instead of looking it up. Its addresses are vetted like any, and the first 16
    /// are used. An empty list is a look-up that failed: the name is reached by nothing.
    #[must_use]
    pub fn resolve(mut self, name: HostName, addresses: Vec<IpAddr>) -> Self {
        self.fixed.insert(name, addresses);
        self
    }

    /// Looks names up; the host's own resolver at first.
    #[must_use]
    pub fn resolver(self, resolver: impl Resolver + 'static) -> Self {
        Self {
            resolver: Box::new(resolver),
            ..self
        }
    }

    /// Reaches upstream through a proxy of the host's network. What may be reached is decided before it, by the same
    /// rules; see [`UpstreamProxy`] for which addresses can be vetted then.
    #[must_use]
    pub fn upstream_proxy(mut self, proxy: UpstreamProxy) -> Self {
        self.upstream_proxy = Some(proxy);
        self
    }

    /// Trusts more roots for upstream, as PEM (any number) or DER (one), beside those of the platform.
    #[must_use]
    pub fn extra_root(mut self, certificate: impl Into<Vec<u8>>) -> Self {
        self.roots.push(certificate.into());
        self
    }

    /// Gives every audit event to this sink, too.
    #[must_use]
    pub fn audit(mut self, sink: Arc<dyn AuditSink>) -> Self {
        self.sinks.push(sink);
        self
    }

    /// How many streams the sandbox may have open, and how many connections to upstream; at least one. What is over
    /// it is answered with 503 and recorded.
    ///
    /// Without it, an eighth of the descriptors that the process may have open (its soft `RLIMIT_NOFILE` when the
    /// proxy is built), at most 1024. Whatever is said here, all proxies of a process leave a quarter of its
    /// descriptors alone, and none gets more than are left for the others. A program with many sandboxes does well
    /// to raise its soft limit to the hard one when it starts.
    #[must_use]
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = Some(max_connections.max(1));
        self
    }

    /// What the sandbox may take of the network: bytes, a rate, and of each host. See [`Limits`].
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The proxy, with a fresh certificate authority. Nothing is started or opened yet.
    ///
    /// # Errors
    /// What was said wrongly, and what to say instead.
    pub fn build(self) -> Result<Proxy, ProxyError> {
        self.policy.check()?;
        for bound in &self.services {
            bound.service.validate()?;
        }
        let mut roots = Vec::new();
        for root in &self.roots {
            roots.extend(parse_roots(root).ok_or(ProxyError::Root)?);
        }
        let cap = self.max_connections.unwrap_or_else(Ledger::default_cap);
        let secrets = Arc::<Secrets>::default();
        if let Some(login) = self.upstream_proxy.as_ref().and_then(UpstreamProxy::credential) {
            secrets.remember(&"upstream proxy".into(), &login);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let placeholder_tag = self
            .placeholder_tag
            .or_else(|| PlaceholderTag::random(provider.secure_random))
            .ok_or(ProxyError::Random)?;
        let bounds = self
            .services
            .into_iter()
            .map(|bound| bound.tagged(&placeholder_tag));
        let services = Directory::new(bounds.collect())
            .map_err(|Conflict { first, second, host }| ProxyError::SameHost { first, second, host })?;
        let places = |count, holds| Arc::new(Semaphore::new(limits::places(count, holds)));
        Ok(Proxy::new(Inner {
            ca: Ca::new(self.sandbox.clone(), Arc::clone(&provider)),
            sandbox: self.sandbox.clone(),
            policy: watch::Sender::new(self.policy),
            changing: Mutex::default(),
            asking: Asking::new(self.approver, self.approval_time),
            services,
            placeholder_tag,
            names: Names::new(self.fixed, self.resolver),
            upstream_proxy: self.upstream_proxy,
            dns: dns::State::default(),
            clients: Clients::new(provider, roots),
            hub: Arc::new(Hub::new(self.sandbox, self.sinks, Arc::clone(&secrets))),
            secrets,
            pool: Pool::default(),
            streams: Quota::new(Ledger::process(), cap),
            upstreams: Quota::new(Ledger::process(), cap),
            turned_away: places(limits::TURNED_AWAY, holds("turned-away")),
            requests: places(limits::REQUESTS, holds("requests-under-way")),
            h2_clients: places(limits::H2_CLIENTS, holds("h2-clients")),
            h2_upstreams: places(limits::H2_UPSTREAMS, holds("h2-upstreams")),
            decoding: Arc::new(Semaphore::new(coding::MEMORY_UNITS)),
            meters: Meters::new(self.limits),
            closed: CancellationToken::new(),
        }))
    }
}
