//! What waits between the proxy and the thread that writes. Taking an event costs a lock and a push; what does not find
//! room is counted.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_core::audit::{AuditDecision, AuditEvent};

use super::AuditLogError;
use crate::audit::chain::Head;
use crate::defence::holds;

/// Events that wait to be written: what a disk can stand still for at thousands in a second. Bounds memory, to some 30
/// MiB if every text of every event is as long as may be.
pub(super) const CAPACITY: usize = 8192;
/// More than this, and a log that must have every record lets no more attempts begin.
const HIGH: usize = CAPACITY / 2;
/// How long the writer lets events come together after it was woken: waking it for each is what costs the proxy most.
const TOGETHER: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// Whether more wait than should.
    pub(super) is_behind: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    waiting: Waiting,
    /// Whether the writer sleeps until something comes.
    is_asleep: bool,
    is_over: bool,
}

/// What the writer takes at once.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) events: Vec<Arc<AuditEvent>>,
    pub(super) lost: Lost,
    pub(super) flushes: Vec<SyncSender<Result<Head, AuditLogError>>>,
    pub(super) is_closing: bool,
}

/// What found no room.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Lost {
    pub(super) allowed: u64,
    pub(super) denied: u64,
}

impl Lost {
    pub(super) fn add(&mut self, event: &AuditEvent) {
        match event.decision {
            AuditDecision::Allowed => self.allowed = self.allowed.saturating_add(event.attempts),
            AuditDecision::Denied => self.denied = self.denied.saturating_add(event.attempts),
        }
    }

    pub(super) fn is_some(&self) -> bool {
        self.allowed > 0 || self.denied > 0
    }
}

impl Queue {
    /// Takes an event, or counts it. Never waits for the disk.
    pub(super) fn push(&self, event: &Arc<AuditEvent>) {
        let mut state = self.lock();
        if state.waiting.events.len() < CAPACITY && !state.is_over {
            state.waiting.events.push(Arc::clone(event));
        } else if holds("audit-counts-lost") {
            state.waiting.lost.add(event);
        }
        if state.waiting.events.len() >= HIGH {
            self.is_behind.store(true, Relaxed);
        }
        let is_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if is_asleep {
            self.wake.notify_one();
        }
    }

    /// Asks for everything so far to be written and synced.
    pub(super) fn flush(&self, done: SyncSender<Result<Head, AuditLogError>>) {
        let mut state = self.lock();
        // Otherwise `done` is dropped, which tells the one who asks.
        if !state.is_over {
            state.waiting.flushes.push(done);
        }
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().waiting.is_closing = true;
        self.wake.notify_one();
    }

    /// Nobody writes any more: from now on everything is only counted.
    pub(super) fn end(&self) -> Waiting {
        let mut state = self.lock();
        state.is_over = true;
        std::mem::take(&mut state.waiting)
    }

    /// What waits, once there is something, or this much time has passed. `into` is empty.
    pub(super) fn take(&self, into: &mut Waiting, time: Option<Duration>) {
        let mut state = self.lock();
        if state.waiting.is_idle() {
            state.is_asleep = true;
            let sleeping = |state: &mut State| state.waiting.is_idle();
            state = match time {
                Some(time) => self.wait(state, time, sleeping),
                None => self
                    .wake
                    .wait_while(state, sleeping)
                    .unwrap_or_else(PoisonError::into_inner),
            };
            state.is_asleep = false;
            // Those who hurry wake it by themselves.
            state = self.wait(state, TOGETHER, |state| !state.waiting.hurries());
        }
        std::mem::swap(into, &mut state.waiting);
        state.waiting.is_closing = into.is_closing;
        self.is_behind.store(false, Relaxed);
    }

    /// For this much time: who asks for a flush, and whether the log is to be closed.
    pub(super) fn pause(&self, time: Duration) -> (Vec<SyncSender<Result<Head, AuditLogError>>>, bool) {
        let mut state = self.wait(self.lock(), time, |state| !state.waiting.hurries());
        (
            std::mem::take(&mut state.waiting.flushes),
            state.waiting.is_closing,
        )
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        time: Duration,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.wake.wait_timeout_while(state, time, condition);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_idle(&self) -> bool {
        self.events.is_empty() && !self.lost.is_some() && !self.hurries()
    }

    fn hurries(&self) -> bool {
        self.is_closing || !self.flushes.is_empty()
    }
}
