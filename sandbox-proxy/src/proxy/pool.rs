//! Upstream connections between requests. One pool per sandbox, keyed by scheme, host and port: a connection on
//! which one sandbox's credential went is never another's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use sandbox_core::host::Host;

use super::body::RequestBody;
use super::limits;

/// A waiting connection gets this long to finish its last exchange; else a new one is made.
const READY_TIME: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(crate) struct Pool {
    targets: Mutex<HashMap<(bool, Host, u16), Arc<Target>>>,
}

/// Connections to one target.
#[derive(Debug, Default)]
pub(crate) struct Target {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    h1: Vec<(http1::SendRequest<RequestBody>, Instant)>,
    h2: Option<http2::SendRequest<RequestBody>>,
}

/// A connection to send a request on.
#[derive(Debug)]
pub(crate) enum Sender {
    H1(http1::SendRequest<RequestBody>),
    H2(http2::SendRequest<RequestBody>),
}

/// An HTTP/1.1 connection that is busy with a response.
#[derive(Debug)]
pub(crate) struct Checkin {
    target: Arc<Target>,
    sender: http1::SendRequest<RequestBody>,
}

impl Pool {
    pub(crate) fn target(&self, tls: bool, host: &Host, port: u16) -> Arc<Target> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tls, host.clone(), port);
        if let Some(target) = targets.get(&key) {
            return Arc::clone(target);
        }
        if targets.len() >= limits::POOL_TARGETS {
            // Those in use live on with whoever uses them.
            targets.retain(|_, target| Arc::strong_count(target) > 1 && target.is_open());
        }
        let target = Arc::<Target>::default();
        if targets.len() < limits::POOL_TARGETS {
            targets.insert(key, Arc::clone(&target));
        }
        target
    }

    /// Lets go of every connection that waits: it was vetted by a policy that is no more.
    pub(crate) fn forget(&self) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, target) in targets.drain() {
            *target.lock() = Waiting::default();
        }
    }
}

impl Target {
    /// A connection that waits, if there is one.
    pub(crate) async fn checkout(&self) -> Option<Sender> {
        loop {
            let mut h1 = {
                let mut waiting = self.lock();
                waiting.drop_stale();
                if let Some(h2) = &waiting.h2 {
                    return Some(Sender::H2(h2.clone()));
                }
                waiting.h1.pop()?.0
            };
            if let Ok(Ok(())) = tokio::time::timeout(READY_TIME, h1.ready()).await {
                return Some(Sender::H1(h1));
            }
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

    /// Takes a new connection. HTTP/2 is shared from now on, HTTP/1.1 waits for its first request.
    pub(crate) fn put(&self, sender: Sender) {
        let mut waiting = self.lock();
        match sender {
            Sender::H2(h2) => waiting.h2 = Some(h2),
            Sender::H1(h1) => {
                waiting.drop_stale();
                if waiting.h1.len() < limits::POOL_PER_TARGET {
                    waiting.h1.push((h1, Instant::now()));
                }
            }
        }
    }

    fn is_open(&self) -> bool {
        self.speaks_h2().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn drop_stale(&mut self) {
        self.h1
            .retain(|(h1, since)| !h1.is_closed() && since.elapsed() < limits::POOL_IDLE_TIME);
        if self.h2.as_ref().is_some_and(http2::SendRequest::is_closed) {
            self.h2 = None;
        }
    }
}

impl Checkin {
    pub(crate) fn new(target: &Arc<Target>, sender: http1::SendRequest<RequestBody>) -> Self {
        Self {
            target: Arc::clone(target),
            sender,
        }
    }

    /// The response has ended as it should: the connection waits for the next request.
    pub(crate) fn done(self) {
        self.target.put(Sender::H1(self.sender));
    }
}
