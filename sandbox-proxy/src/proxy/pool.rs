//! Upstream connections between requests. One pool per sandbox, keyed by all that makes two connections differ in what
//! upstream may take them for: see [`Key`]. A connection on which one sandbox's credential went is never another's, and
//! none is used for a second host because its certificate or address would do (RFC 9113 §9.1.1 allows it).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1;
use sandbox_core::host::Host;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::body::RequestBody;
use super::http2::client::{Http2, UnderWay};
use super::limits;
use crate::defence;
use crate::services::bound::CredentialId;

/// A waiting connection gets this long to finish its last exchange; else a new one is made.
const READY_TIME: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(crate) struct Pool {
    by_key: Mutex<HashMap<Key, Arc<Connections>>>,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) tls: bool,
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// What one rule let through to a special range is not for another's.
    pub(crate) permits_special_ranges: bool,
    /// The service whose credential goes out on it, one at a time ([`Lane`]); `None` for what the client sends by itself.
    /// Upstreams exist that take the first request's word for all that follow.
    pub(crate) service: Option<String>,
}

/// The connections to one target.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    waiting: Mutex<Waiting>,
}

/// The same for requests with one credential. One that has taken its place goes out on connections of its own: upstream
/// may go by what the first request on a connection said.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    connections: Arc<Connections>,
    credential: Option<CredentialId>,
}

/// Each with the time since when it waits; an HTTP/2 connection is shared, and waits from when it was last asked
/// for. Requests under way on it keep it open whatever becomes of it here.
#[derive(Debug, Default)]
struct Waiting {
    h1: Vec<(http1::SendRequest<RequestBody>, Instant)>,
    h2: Option<(Http2, Instant)>,
    /// What those that wait were used with, unless they are new.
    credential: Option<CredentialId>,
    /// Lets go of what waited too long.
    sweeper: Option<JoinHandle<()>>,
}

/// A connection to send a request on.
#[derive(Debug)]
pub(crate) enum Sender {
    H1(http1::SendRequest<RequestBody>),
    /// Beside others' requests.
    H2(Http2, UnderWay),
}

/// A connection that is busy with a response.
#[derive(Debug)]
pub(crate) enum Checkin {
    H1(Lane, http1::SendRequest<RequestBody>),
    H2 { _under_way: UnderWay },
}

impl Pool {
    pub(crate) fn connections(&self, mut key: Key) -> Arc<Connections> {
        if !defence::holds("pool-host") {
            key.host = Host::Address(std::net::Ipv4Addr::UNSPECIFIED.into());
        }
        if !defence::holds("pool-credential") {
            key.service = None;
        }
        let mut by_key = self.lock();
        if let Some(connections) = by_key.get(&key) {
            return Arc::clone(connections);
        }
        if by_key.len() >= limits::POOL_TARGETS {
            // Those in use live on with whoever uses them.
            by_key.retain(|_, connections| Arc::strong_count(connections) > 1 && connections.is_open());
        }
        let connections = Arc::<Connections>::default();
        if by_key.len() < limits::POOL_TARGETS {
            by_key.insert(key, Arc::clone(&connections));
        }
        connections
    }

    /// Lets go of every connection that waits: it was vetted by a policy that is no more. `change` makes it so; who
    /// sees that it did finds none of them.
    pub(crate) fn forget<T>(&self, change: impl FnOnce() -> T) -> T {
        let mut by_key = self.lock();
        let changed = change();
        for (_, connections) in by_key.drain() {
            connections.lock().clear();
        }
        changed
    }

    /// Lets go of the connection that has waited longest, if one waits on which nothing is under way: another needs its
    /// place.
    pub(crate) fn let_go_of_oldest(&self) {
        self.let_go(Waiting::oldest, Waiting::drop_oldest);
    }

    /// The same among those of HTTP/2 alone. Whether there was one.
    pub(crate) fn let_go_of_oldest_h2(&self) -> bool {
        self.let_go(Waiting::idle_h2, |waiting| waiting.h2 = None)
    }

    /// Lets go of what has waited longest, where `since` says since when it does.
    fn let_go(&self, since: fn(&Waiting) -> Option<Instant>, drop: fn(&mut Waiting)) -> bool {
        let by_key = self.lock();
        let oldest = by_key.values().filter_map(|connections| {
            let mut waiting = connections.lock();
            // What upstream has closed holds no place.
            waiting.drop_stale();
            Some((since(&waiting)?, connections))
        });
        let oldest = oldest.min_by_key(|(since, _)| *since);
        oldest
            .map(|(_, connections)| drop(&mut connections.lock()))
            .is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Connections>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// For requests with this credential, or with none of a service's.
    pub(crate) fn lane(self: &Arc<Self>, credential: Option<CredentialId>) -> Lane {
        Lane {
            connections: Arc::clone(self),
            credential: credential.filter(|_| defence::holds("pool-rotation")),
        }
    }

    /// Whether a connection waits, and if so whether it speaks HTTP/2.
    pub(crate) fn speaks_h2(&self) -> Option<bool> {
        let mut waiting = self.lock();
        waiting.drop_stale();
        match (&waiting.h2, waiting.h1.is_empty()) {
            (Some(_), _) => Some(true),
            (None, false) => Some(false),
            (None, true) => None,
        }
    }

    fn is_open(&self) -> bool {
        self.speaks_h2().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// A connection that waits, if there is one.
    pub(crate) async fn checkout(&self) -> Option<Sender> {
        loop {
            let mut h1 = match self.lock().take(Instant::now())? {
                Sender::H1(h1) => h1,
                h2 => return Some(h2),
            };
            if h1.is_ready() || matches!(timeout(READY_TIME, h1.ready()).await, Ok(Ok(()))) {
                return Some(Sender::H1(h1));
            }
        }
    }

    /// The connection on which WebSockets can be opened beside other requests (RFC 8441), if there is one.
    pub(crate) async fn for_websockets(&self) -> Option<Sender> {
        let mut h2 = {
            let mut waiting = self.lock();
            waiting.drop_stale();
            let (h2, since) = waiting.h2.as_mut()?;
            *since = Instant::now();
            h2.clone()
        };
        let under_way = h2.begin();
        h2.takes_websockets(READY_TIME)
            .await
            .then_some(Sender::H2(h2, under_way))
    }

    /// Takes a connection that is new or was used for requests of this lane. HTTP/2 is shared from now on, HTTP/1.1 waits
    /// for its next request.
    pub(crate) fn put(&self, sender: Sender) {
        let mut waiting = self.connections.lock();
        if self.credential.is_some() && waiting.credential.is_some_and(|now| Some(now) != self.credential) {
            // Another credential has taken the place of this one meanwhile.
            return;
        }
        waiting.credential = waiting.credential.or(self.credential);
        match sender {
            Sender::H2(h2, _) => waiting.h2 = Some((h2, Instant::now())),
            Sender::H1(h1) => {
                if waiting.h1.len() >= limits::POOL_PER_TARGET {
                    waiting.drop_stale();
                }
                if waiting.h1.len() < limits::POOL_PER_TARGET {
                    waiting.h1.push((h1, Instant::now()));
                }
            }
        }
        // One may have ended with the runtime that it was in.
        let is_swept = waiting.sweeper.as_ref().is_some_and(|task| !task.is_finished());
        if !is_swept && !waiting.is_empty() {
            waiting.sweeper = Some(tokio::spawn(sweep(Arc::downgrade(&self.connections))));
        }
    }

    /// What waits for requests of this lane: what was used with another credential is let go of first.
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        let mut waiting = self.connections.lock();
        if self.credential.is_some() && waiting.credential != self.credential {
            if waiting.credential.is_some() {
                waiting.clear();
            }
            waiting.credential = self.credential;
        }
        waiting
    }
}

/// Lets go of connections that waited too long, until none waits: a guest that falls silent holds no descriptors.
async fn sweep(connections: std::sync::Weak<Connections>) {
    loop {
        sleep(limits::POOL_IDLE_TIME / 3).await;
        let Some(connections) = connections.upgrade() else {
            return;
        };
        let mut waiting = connections.lock();
        waiting.drop_stale();
        if waiting.is_empty() {
            waiting.sweeper = None;
            return;
        }
    }
}

impl Waiting {
    /// The connection to send on, if there is one: each request asks, so others than that are not looked at.
    fn take(&mut self, now: Instant) -> Option<Sender> {
        self.h2
            .take_if(|(h2, since)| h2.is_closed() || !is_fresh(*since, now));
        if let Some((h2, since)) = &mut self.h2 {
            *since = now;
            return Some(Sender::h2(h2));
        }
        // The last that came is the freshest.
        while let Some((h1, since)) = self.h1.pop() {
            if !h1.is_closed() && is_fresh(since, now) {
                return Some(Sender::H1(h1));
            }
        }
        None
    }

    fn drop_stale(&mut self) {
        let now = Instant::now();
        self.h1
            .retain(|(h1, since)| !h1.is_closed() && is_fresh(*since, now));
        self.h2
            .take_if(|(h2, since)| h2.is_closed() || !is_fresh(*since, now));
    }

    fn is_empty(&self) -> bool {
        self.h1.is_empty() && self.h2.is_none()
    }

    /// Since when the one waits that has waited longest. An HTTP/2 connection with something under way would stay open
    /// without its sender, and give back no place.
    fn oldest(&self) -> Option<Instant> {
        let h1 = self.h1.iter().map(|(_, since)| *since).min();
        h1.into_iter().chain(self.idle_h2()).min()
    }

    /// Since when the HTTP/2 connection waits, if nothing is under way on it.
    fn idle_h2(&self) -> Option<Instant> {
        let h2 = self.h2.as_ref();
        let idle = h2.filter(|(h2, _)| !h2.is_busy() || !defence::holds("pool-busy"));
        idle.map(|(_, since)| *since)
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.oldest() else {
            return;
        };
        self.h2.take_if(|(_, since)| *since == oldest);
        if let Some(at) = self.h1.iter().position(|(_, since)| *since == oldest) {
            self.h1.remove(at);
        }
    }

    fn clear(&mut self) {
        self.h1.clear();
        self.h2 = None;
    }
}

/// Whether a connection that waits since then may still be used.
fn is_fresh(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < limits::POOL_IDLE_TIME
}

impl Sender {
    /// For a request on this connection.
    pub(crate) fn h2(h2: &Http2) -> Self {
        Self::H2(h2.clone(), h2.begin())
    }
}

impl Checkin {
    pub(crate) fn h1(lane: &Lane, sender: http1::SendRequest<RequestBody>) -> Self {
        Self::H1(lane.clone(), sender)
    }

    pub(crate) fn h2(under_way: UnderWay) -> Self {
        Self::H2 {
            _under_way: under_way,
        }
    }

    /// The response has ended as it should: the connection waits for the next request.
    pub(crate) fn done(self) {
        match self {
            Self::H1(lane, sender) => lane.put(Sender::H1(sender)),
            Self::H2 { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;

    use super::*;

    async fn connection() -> (http1::SendRequest<RequestBody>, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(64);
        let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        (sender, far)
    }

    async fn connection_h2() -> (Http2, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (h2, driven) = Http2::start(near).await.unwrap();
        tokio::spawn(driven);
        (h2, far)
    }

    fn key(host: &str, service: Option<&str>) -> Key {
        Key {
            tls: false,
            host: host.parse().unwrap(),
            port: 80,
            permits_special_ranges: false,
            service: service.map(str::to_owned),
        }
    }

    #[test]
    fn connections_are_shared_only_where_everything_agrees() {
        let pool = Pool::default();
        let first = pool.connections(key("one.test", Some("a")));
        assert!(Arc::ptr_eq(&first, &pool.connections(key("one.test", Some("a")))));
        let tls = Key {
            tls: true,
            ..key("one.test", Some("a"))
        };
        let port = Key {
            port: 81,
            ..key("one.test", Some("a"))
        };
        let special = Key {
            permits_special_ranges: true,
            ..key("one.test", Some("a"))
        };
        for other in [
            special,
            key("two.test", Some("a")),
            key("one.test", Some("b")),
            key("one.test", None),
            tls,
            port,
        ] {
            assert!(
                !Arc::ptr_eq(&first, &pool.connections(other.clone())),
                "{other:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_wait_too_long_are_closed_though_nobody_asks() {
        let connections = Arc::<Connections>::default();
        let (sender, mut far) = connection().await;
        connections.lane(None).put(Sender::H1(sender));
        let mut byte = [0];
        // The clock is the test's: it jumps to whatever comes next, which is the end of the connection.
        let ended = timeout(
            2 * limits::POOL_IDLE_TIME,
            tokio::io::AsyncReadExt::read(&mut far, &mut byte),
        );
        assert_eq!(ended.await.unwrap().unwrap(), 0);
        assert!(connections.lock().sweeper.is_none(), "its task has ended, too");
    }

    #[tokio::test(start_paused = true)]
    async fn oldest_connection_of_all_targets_makes_room() {
        let pool = Pool::default();
        let (first, mut far) = connection().await;
        let (second, _far) = connection().await;
        let one = pool.connections(key("one.test", None));
        let two = pool.connections(key("two.test", None));
        two.lane(None).put(Sender::H1(first));
        sleep(std::time::Duration::from_secs(1)).await;
        one.lane(None).put(Sender::H1(second));
        pool.let_go_of_oldest();
        assert_eq!(
            tokio::io::AsyncReadExt::read(&mut far, &mut [0]).await.unwrap(),
            0
        );
        assert!(!two.is_open() && one.is_open());
        pool.let_go_of_oldest();
        assert!(!one.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_upstream_has_closed_do_not_stand_before_others_that_can_make_room() {
        let pool = Pool::default();
        let (closed, far) = connection().await;
        let one = pool.connections(key("one.test", None));
        one.lane(None).put(Sender::H1(closed));
        drop(far);
        sleep(std::time::Duration::from_secs(1)).await;
        let (open, mut far) = connection().await;
        let two = pool.connections(key("two.test", None));
        two.lane(None).put(Sender::H1(open));
        pool.let_go_of_oldest();
        assert_eq!(
            tokio::io::AsyncReadExt::read(&mut far, &mut [0]).await.unwrap(),
            0
        );
    }

    #[tokio::test(start_paused = true)]
    async fn connection_with_something_under_way_makes_no_room() {
        let pool = Pool::default();
        let (h2, _far_h2) = connection_h2().await;
        let busy = pool.connections(key("busy.test", None));
        let response = Checkin::h2(h2.begin());
        busy.lane(None).put(Sender::h2(&h2));
        sleep(std::time::Duration::from_secs(1)).await;
        let (idle, _far) = connection().await;
        let other = pool.connections(key("other.test", None));
        other.lane(None).put(Sender::H1(idle));
        pool.let_go_of_oldest();
        assert!(busy.is_open() && !other.is_open(), "though it waits for longer");
        pool.let_go_of_oldest();
        assert!(busy.is_open(), "it would give back no place");
        drop(response);
        pool.let_go_of_oldest();
        assert!(!busy.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn connection_is_let_go_of_in_time_though_something_is_under_way() {
        let (h2, _far) = connection_h2().await;
        let connections = Arc::<Connections>::default();
        let _response = Checkin::h2(h2.begin());
        connections.lane(None).put(Sender::h2(&h2));
        sleep(2 * limits::POOL_IDLE_TIME).await;
        let waiting = connections.lock();
        assert!(waiting.is_empty() && waiting.sweeper.is_none());
    }

    #[tokio::test]
    async fn connection_that_one_credential_went_out_on_is_not_for_the_next() {
        let connections = Arc::<Connections>::default();
        let (old, new) = (CredentialId::of_test(1), CredentialId::of_test(2));
        let (old, new) = (connections.lane(Some(old)), connections.lane(Some(new)));
        let (fresh, _far) = connection().await;
        // Made before anybody knew what it would be for.
        connections.lane(None).put(Sender::H1(fresh));
        let used = old.checkout().await.expect("whoever comes first");
        old.put(used);
        let under_way = old.checkout().await.expect("what it was used for");
        let (second, _far) = connection().await;
        old.put(Sender::H1(second));
        assert!(new.checkout().await.is_none());
        old.put(under_way);
        assert!(new.checkout().await.is_none(), "nor what ends later");
        let (third, _far) = connection().await;
        new.put(Sender::H1(third));
        assert!(new.checkout().await.is_some());
    }
}
