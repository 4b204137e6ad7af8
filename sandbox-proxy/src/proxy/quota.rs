//! Descriptors: how many of the process's own a sandbox may hold, as streams of its guest and as connections to
//! upstream.
//!
//! All sandboxes of a process and the program around them share one table of descriptors (`RLIMIT_NOFILE`). A
//! [`Quota`] bounds one sandbox's part of one kind. The [`Ledger`] bounds all of them together, and lets nobody
//! hold more than is left free: one greedy guest gets half at most, a second one half of the rest, and so on, without
//! anything being taken back. So a few greedy guests leave room for the next sandbox; where as many are greedy as the
//! total can be halved (seven, with the 1024 descriptors that many systems start with), nothing is left for another.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::limits;
use crate::defence::holds;

/// What all sandboxes of a process hold together.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// How many there may be; `None`: as the process's limit says, whenever it is asked.
    total: Option<usize>,
    used: Mutex<usize>,
    freed: Notify,
}

/// What one sandbox may hold of one kind.
#[derive(Debug)]
pub(crate) struct Quota {
    ledger: Arc<Ledger>,
    cap: usize,
    /// Changed only while the ledger is locked.
    used: Mutex<usize>,
}

/// One descriptor's place. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    quota: Arc<Quota>,
}

impl Ledger {
    /// That of this process: descriptors are the process's, whoever opens them.
    pub(crate) fn process() -> Arc<Self> {
        static PROCESS: LazyLock<Arc<Ledger>> = LazyLock::new(|| Arc::new(Ledger::new(None)));
        Arc::clone(&PROCESS)
    }

    fn new(total: Option<usize>) -> Self {
        Self {
            total,
            used: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// Of each kind, what one sandbox may hold unless it was told otherwise.
    pub(crate) fn default_cap() -> usize {
        (soft_limit() / limits::SANDBOX_PART).clamp(1, limits::MAX_PER_SANDBOX)
    }

    fn total(&self) -> usize {
        self.total
            .unwrap_or_else(|| soft_limit() / limits::PROXY_PART.1 * limits::PROXY_PART.0)
    }
}

impl Quota {
    pub(crate) fn new(ledger: Arc<Ledger>, cap: usize) -> Arc<Self> {
        Arc::new(Self {
            ledger,
            cap,
            used: Mutex::default(),
        })
    }

    /// A place, if there is one now.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let mut all = lock(&self.ledger.used);
        let mut own = lock(&self.used);
        let free = self.ledger.total().saturating_sub(*all);
        let own_is_full = *own >= self.cap && holds("sandbox-descriptors");
        if own_is_full || *own >= free && holds("process-descriptors") {
            return None;
        }
        *all += 1;
        *own += 1;
        Some(Slot {
            quota: Arc::clone(self),
        })
    }

    /// A place, as soon as there is one.
    pub(crate) async fn take(self: &Arc<Self>, patience: Duration) -> Option<Slot> {
        let wait = async {
            loop {
                let mut freed = std::pin::pin!(self.ledger.freed.notified());
                freed.as_mut().enable();
                if let Some(slot) = self.try_take() {
                    return slot;
                }
                freed.await;
            }
        };
        timeout(patience, wait).await.ok()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut all = lock(&self.quota.ledger.used);
            let mut own = lock(&self.quota.used);
            *all = all.saturating_sub(1);
            *own = own.saturating_sub(1);
        }
        self.quota.ledger.freed.notify_waiters();
    }
}

fn lock(count: &Mutex<usize>) -> std::sync::MutexGuard<'_, usize> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many descriptors the process may have open; a great number where there is no limit.
fn soft_limit() -> usize {
    getrlimit(Resource::Nofile)
        .current
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(quota: &Arc<Quota>) -> Vec<Slot> {
        std::iter::from_fn(|| quota.try_take()).collect()
    }

    #[test]
    fn greedy_sandboxes_leave_room_for_the_next() {
        let ledger = Arc::new(Ledger::new(Some(96)));
        let sandbox = || Quota::new(Arc::clone(&ledger), 1000);
        let mut held = Vec::new();
        for expected in [48, 24, 12, 6, 3] {
            let slots = fill(&sandbox());
            assert_eq!(slots.len(), expected);
            held.push(slots);
        }
        held.clear();
        assert_eq!(*lock(&ledger.used), 0);
    }

    #[test]
    fn one_sandbox_has_its_own_bound_too() {
        let ledger = Arc::new(Ledger::new(Some(1000)));
        let quota = Quota::new(ledger, 3);
        let mut slots = fill(&quota);
        assert_eq!(slots.len(), 3);
        slots.pop();
        assert_eq!(fill(&quota).len(), 1);
    }

    #[test]
    fn defaults_stay_below_the_processs_limit() {
        let soft = soft_limit();
        assert!(2 * Ledger::default_cap() < soft);
        assert!(Ledger::process().total() < soft);
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_next_place() {
        let quota = Quota::new(Arc::new(Ledger::new(Some(1000))), 1);
        let slot = quota.try_take().unwrap();
        assert!(quota.take(Duration::from_millis(1)).await.is_none());
        let waiter = tokio::spawn({
            let quota = Arc::clone(&quota);
            async move { quota.take(Duration::from_secs(60)).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(slot);
        assert!(waiter.await.unwrap());
    }
}
