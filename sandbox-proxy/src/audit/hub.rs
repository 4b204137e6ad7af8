//! Hands events to the sinks and to subscribers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sandbox_core::SandboxId;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditSink};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::denials::{Denials, WINDOW};
use crate::defence::holds;
use crate::scrub::Secrets;

/// Events kept for a subscriber that is slow; beyond it the oldest are lost, and the subscriber is told how many.
const SUBSCRIBER_BACKLOG: usize = 1024;

/// Hands events to the sinks and to subscribers. Those that take every attempt get each at once; for the others,
/// denials that say the same again and again are put together.
#[derive(Debug)]
pub(crate) struct Hub {
    sandbox: SandboxId,
    /// Those that take every attempt.
    all: Vec<Arc<dyn AuditSink>>,
    /// Those that do not.
    counted: Vec<Arc<dyn AuditSink>>,
    live: broadcast::Sender<Arc<AuditEvent>>,
    denials: Mutex<Lately>,
    secrets: Arc<Secrets>,
}

#[derive(Debug, Default)]
struct Lately {
    denials: Denials,
    /// Tells what was counted.
    teller: Option<JoinHandle<()>>,
}

impl Hub {
    /// `secrets` are those that no record may hold.
    pub(crate) fn new(sandbox: SandboxId, sinks: Vec<Arc<dyn AuditSink>>, secrets: Arc<Secrets>) -> Self {
        let (all, counted) = sinks
            .into_iter()
            .partition(|sink| sink.takes_every_attempt() && holds("audit-every-attempt"));
        Self {
            sandbox,
            all,
            counted,
            live: broadcast::channel(SUBSCRIBER_BACKLOG).0,
            denials: Mutex::default(),
            secrets,
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<AuditEvent>> {
        self.live.subscribe()
    }

    /// Whose events they are.
    pub(super) fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    /// Whether anybody would take an event now.
    pub(super) fn is_heard(&self) -> bool {
        !self.all.is_empty() || !self.counted.is_empty() || self.live.receiver_count() > 0
    }

    /// Whether every sink says that attempts may be allowed. A sink that panics says nothing, which is no.
    pub(crate) fn is_ready(&self) -> bool {
        let mut sinks = self.all.iter().chain(&self.counted);
        sinks.all(|sink| catch_unwind(AssertUnwindSafe(|| sink.is_ready())).unwrap_or(false))
            || !holds("audit-fails-closed")
    }

    /// Takes the known secrets out of a text.
    pub(super) fn scrub(&self, text: &mut String) {
        if !text.is_empty() && holds("audit-scrubs-secrets") {
            self.secrets.patterns().scrub_text(text);
        }
    }

    /// Takes an event.
    pub(super) fn record(self: &Arc<Self>, event: AuditEvent) {
        let event = Arc::new(event);
        give(&self.all, &event);
        if event.decision == AuditDecision::Allowed {
            return self.tell(event);
        }
        if self.counted.is_empty() && self.live.receiver_count() == 0 {
            return;
        }
        let event = Arc::unwrap_or_clone(event);
        let told = {
            let mut lately = self.lately();
            let now = Instant::now();
            let mut told = lately.denials.due(now);
            told.extend(lately.denials.take(event, now));
            // Without a runtime, what was counted is told with the next denial or at the end.
            if lately.teller.as_ref().is_none_or(JoinHandle::is_finished)
                && let Ok(runtime) = tokio::runtime::Handle::try_current()
            {
                lately.teller = Some(runtime.spawn(tell_counted(Arc::downgrade(self))));
            }
            told
        };
        for event in told {
            self.tell(Arc::new(event));
        }
    }

    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To all who do not take every attempt.
    fn tell(&self, event: Arc<AuditEvent>) {
        give(&self.counted, &event);
        if self.live.receiver_count() > 0 {
            let _nobody_listens_any_more = self.live.send(event);
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let left = self.lately().denials.drain();
        for event in left {
            self.tell(Arc::new(event));
        }
    }
}

/// Records are written while things end, for which a panic of somebody else's sink would be the end of the process.
fn give(sinks: &[Arc<dyn AuditSink>], event: &Arc<AuditEvent>) {
    for sink in sinks {
        if catch_unwind(AssertUnwindSafe(|| sink.record(event))).is_err() {
            tracing::error!(?sink, "an audit sink panicked; it did not take a record");
        }
    }
}

/// Tells denials that were counted when their time is over, until there are none.
async fn tell_counted(hub: Weak<Hub>) {
    loop {
        sleep(WINDOW).await;
        let Some(hub) = hub.upgrade() else {
            return;
        };
        let (due, is_last) = {
            let mut lately = hub.lately();
            let due = lately.denials.due(Instant::now());
            let is_last = lately.denials.is_empty();
            if is_last {
                lately.teller = None;
            }
            (due, is_last)
        };
        for event in due {
            hub.tell(Arc::new(event));
        }
        if is_last {
            return;
        }
    }
}
