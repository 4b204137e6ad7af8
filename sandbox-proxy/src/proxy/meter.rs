//! What a sandbox may take of the network: bytes, and for each host bytes, requests and connections. Counted on the
//! connections to upstream, TLS and heads included, so nothing goes around it.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sandbox_core::host::Host;
use tokio::time::{Instant, Sleep, sleep_until};

use super::limits;
use super::refusal::Refusal;
use crate::defence::holds;

/// What one sandbox may take of the network, for its whole life unless said otherwise.
///
/// Bytes are those on connections to upstream, both ways together, with TLS and heads. When they are used up, open
/// connections break, and every further attempt is refused with a problem document that says so. Nothing but the
/// number of connections to one host is limited at first.
///
/// ```
/// use std::time::Duration;
/// use sandbox_proxy::Limits;
/// let limits = Limits::new()
///     .bytes(10 << 30)
///     .bytes_per_second(20 << 20)
///     .bytes_per_host(2 << 30)
///     .requests_per_host(600, Duration::from_secs(60));
/// # let _ = limits;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Limits {
    bytes: u64,
    bytes_per_second: Option<u64>,
    host_bytes: u64,
    host_requests: Option<(u64, Duration)>,
    host_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: u64::MAX,
            bytes_per_second: None,
            host_bytes: u64::MAX,
            host_requests: None,
            host_connections: limits::HOST_CONNECTIONS,
        }
    }
}

impl Limits {
    /// The limits of a sandbox for which nothing else is said.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes to and from all hosts together. What is on its way when they are used up, at most 64 KiB for each
    /// connection, is over it.
    pub fn bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// Bytes per second to and from all hosts together, at least one. What was not used for a second is lost.
    pub fn bytes_per_second(self, bytes: u64) -> Self {
        Self {
            bytes_per_second: Some(bytes.max(1)),
            ..self
        }
    }

    /// Bytes to and from any one host, on all its ports together.
    pub fn bytes_per_host(self, bytes: u64) -> Self {
        Self {
            host_bytes: bytes,
            ..self
        }
    }

    /// Requests to any one host within a time of at most a year; an opaque tunnel counts as one. Those over it are
    /// answered with 429 and `Retry-After`.
    pub fn requests_per_host(self, requests: u64, within: Duration) -> Self {
        Self {
            host_requests: Some((requests, within.min(limits::LONGEST_TIME))),
            ..self
        }
    }

    /// Connections to any one host at a time, at least one; 256 at first. [`ProxyBuilder::max_connections`] bounds
    /// those to all hosts together.
    ///
    /// [`ProxyBuilder::max_connections`]: crate::ProxyBuilder::max_connections
    pub fn connections_per_host(self, connections: usize) -> Self {
        Self {
            host_connections: connections.max(1),
            ..self
        }
    }
}

/// Counts what a sandbox takes.
#[derive(Debug)]
pub(crate) struct Meters {
    limits: Limits,
    bytes: AtomicU64,
    /// Until when the bytes that went through have used the rate up.
    used_until: Mutex<Instant>,
    hosts: Mutex<HashMap<Host, Arc<HostMeter>>>,
    /// Shared by the hosts for which there is no room: who visits thousands of names does not make counts forgotten.
    others: Arc<HostMeter>,
}

/// Counts what it takes of one host.
#[derive(Debug, Default)]
pub(crate) struct HostMeter {
    bytes: AtomicU64,
    connections: AtomicUsize,
    /// Since when requests are counted, and how many came.
    requests: Mutex<Option<(Instant, u64)>>,
}

/// One connection's meter. It ends as a connection to its host when dropped.
#[derive(Debug)]
pub(crate) struct Meter {
    all: Arc<Meters>,
    host: Arc<HostMeter>,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

/// Which half of a connection waits for its turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Half {
    Read,
    Write,
}

impl Meters {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            bytes: AtomicU64::new(0),
            used_until: Mutex::new(Instant::now()),
            hosts: Mutex::default(),
            others: Arc::default(),
        })
    }

    pub(crate) fn host(&self, host: &Host) -> Arc<HostMeter> {
        let mut hosts = lock(&self.hosts);
        if let Some(meter) = hosts.get(host) {
            return Arc::clone(meter);
        }
        if hosts.len() >= limits::METERED_HOSTS {
            let remembers = self.limits.host_bytes != u64::MAX || self.limits.host_requests.is_some();
            hosts.retain(|_, meter| Arc::strong_count(meter) > 1 || remembers);
        }
        if hosts.len() >= limits::METERED_HOSTS && holds("metered-hosts") {
            return Arc::clone(&self.others);
        }
        Arc::clone(hosts.entry(host.clone()).or_default())
    }

    /// Refuses where bytes are used up.
    pub(crate) fn check(&self, host: &HostMeter) -> Result<(), Refusal> {
        if self.bytes.load(Relaxed) >= self.limits.bytes && holds("byte-quota") {
            let detail = format!("the sandbox has used up its {} bytes", self.limits.bytes);
            return Err(Refusal::denied("limit: bytes of the sandbox", &detail));
        }
        if host.bytes.load(Relaxed) >= self.limits.host_bytes && holds("host-byte-quota") {
            let detail = format!(
                "the sandbox has used up its {} bytes for this host",
                self.limits.host_bytes
            );
            return Err(Refusal::denied("limit: bytes of a host", &detail));
        }
        Ok(())
    }

    /// Counts a request, or refuses it.
    pub(crate) fn request(&self, host: &HostMeter) -> Result<(), Refusal> {
        self.check(host)?;
        let Some((most, within)) = self.limits.host_requests else {
            return Ok(());
        };
        let now = Instant::now();
        let mut requests = lock(&host.requests);
        let (since, count) = match *requests {
            Some((since, count)) if now - since < within => (since, count),
            _ => (now, 0),
        };
        if count >= most && holds("host-requests") {
            let detail = format!("the sandbox may send this host {most} requests in {within:?}");
            return Err(Refusal::later(&detail, within.saturating_sub(now - since)));
        }
        *requests = Some((since, count + 1));
        Ok(())
    }

    /// Counts a connection, or refuses it.
    pub(crate) fn connect(self: &Arc<Self>, host: &Arc<HostMeter>) -> Result<Meter, Refusal> {
        self.check(host)?;
        let one_more = |count: usize| {
            (count < self.limits.host_connections || !holds("host-connections")).then_some(count + 1)
        };
        if host.connections.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            let most = self.limits.host_connections;
            let detail =
                format!("the sandbox has all its {most} connections to this host open; close some first");
            return Err(Refusal::busy(&detail));
        }
        Ok(Meter {
            all: Arc::clone(self),
            host: Arc::clone(host),
            reading: None,
            writing: None,
        })
    }
}

impl Meter {
    /// Waits until bytes may move.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, half: Half) -> Poll<io::Result<()>> {
        if self.all.check(&self.host).is_err() {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        if self.all.limits.bytes_per_second.is_none() {
            return Poll::Ready(Ok(()));
        }
        let pause = match half {
            Half::Read => &mut self.reading,
            Half::Write => &mut self.writing,
        };
        loop {
            let until = *lock(&self.all.used_until);
            if until <= Instant::now() || !holds("byte-rate") {
                *pause = None;
                return Poll::Ready(Ok(()));
            }
            let pause = pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if pause.deadline() < until {
                pause.as_mut().reset(until);
            }
            ready!(pause.as_mut().poll(cx));
        }
    }

    /// Counts bytes that moved.
    pub(crate) fn spend(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.all.bytes.fetch_add(bytes, Relaxed);
        self.host.bytes.fetch_add(bytes, Relaxed);
        if let Some(rate) = self.all.limits.bytes_per_second {
            // Of one call, so small; the rate is not zero.
            let took = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
            let mut used_until = lock(&self.all.used_until);
            let unused = Instant::now()
                .checked_sub(limits::RATE_BURST)
                .unwrap_or(*used_until);
            *used_until = (*used_until).max(unused) + took;
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.host.connections.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(index: usize) -> Host {
        format!("n{index}.test").parse().unwrap()
    }

    #[tokio::test]
    async fn names_over_the_number_that_is_remembered_share_one_count() {
        let meters = Meters::new(Limits::new().requests_per_host(1, Duration::from_secs(3600)));
        for index in 0..limits::METERED_HOSTS {
            assert!(meters.request(&meters.host(&name(index))).is_ok());
        }
        let one = meters.host(&name(limits::METERED_HOSTS));
        assert!(meters.request(&one).is_ok());
        let two = meters.host(&name(limits::METERED_HOSTS + 1));
        assert!(meters.request(&two).is_err(), "nobody gets a new count");
        assert!(
            meters.request(&meters.host(&name(0))).is_err(),
            "nor is one forgotten"
        );
        assert_eq!(lock(&meters.hosts).len(), limits::METERED_HOSTS);
    }

    #[tokio::test]
    async fn names_that_nobody_uses_make_room_where_nothing_is_to_be_remembered() {
        let meters = Meters::new(Limits::new());
        let used = meters.host(&name(0));
        for index in 1..=limits::METERED_HOSTS {
            drop(meters.host(&name(index)));
        }
        assert!(lock(&meters.hosts).len() <= 2);
        assert!(Arc::ptr_eq(&used, &meters.host(&name(0))));
    }

    #[tokio::test(start_paused = true)]
    async fn rate_holds_over_time_whatever_the_sizes() {
        let meters = Meters::new(Limits::new().bytes_per_second(1000));
        let mut meter = meters.connect(&meters.host(&name(0))).unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        for bytes in [1, 999, 64 << 10, 3, 4000] {
            std::future::poll_fn(|cx| meter.poll(cx, Half::Read))
                .await
                .unwrap();
            meter.spend(bytes);
        }
        std::future::poll_fn(|cx| meter.poll(cx, Half::Write))
            .await
            .unwrap();
        // All but the second that was saved up.
        let least = Duration::from_secs((1 + 999 + (64 << 10) + 3 + 4000) / 1000 - 1);
        assert!(start.elapsed() >= least, "{:?}", start.elapsed());
        assert!(
            start.elapsed() < least + Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
}
