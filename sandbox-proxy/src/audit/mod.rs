//! Records of what happened at the border, on their way to whoever keeps or watches them.

mod denials;
pub(crate) mod record;

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sandbox_core::audit::{AuditDecision, AuditEvent, AuditSink};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use denials::{Denials, WINDOW};

/// Events kept for a subscriber that is slow; beyond it the oldest are lost, and the subscriber is told how many.
const SUBSCRIBER_BACKLOG: usize = 1024;

/// Writes each event as a line of JSON. Text from the guest cannot break a line: it is escaped by JSON.
///
/// Writing happens on the proxy's path: give a file or something buffered, no slow network.
pub struct JsonLines<W> {
    writer: Mutex<W>,
}

impl<W: Write + Send> JsonLines<W> {
    /// Writes to this writer, and flushes after each line.
    pub fn new(writer: W) -> Self {
        Self {
            writer: Mutex::new(writer),
        }
    }
}

impl<W> fmt::Debug for JsonLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JsonLines")
    }
}

impl<W: Write + Send> AuditSink for JsonLines<W> {
    fn record(&self, event: &AuditEvent) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writer.write_all(&line).and_then(|()| writer.flush()) {
            tracing::error!(%error, "an audit record could not be written");
        }
    }
}

/// Hands events to the sinks and to subscribers.
#[derive(Debug)]
pub(crate) struct Hub {
    sinks: Vec<Arc<dyn AuditSink>>,
    live: broadcast::Sender<Arc<AuditEvent>>,
    denials: Mutex<Lately>,
}

#[derive(Debug, Default)]
struct Lately {
    denials: Denials,
    /// Tells what was counted.
    teller: Option<JoinHandle<()>>,
}

impl Hub {
    pub(crate) fn new(sinks: Vec<Arc<dyn AuditSink>>) -> Self {
        Self {
            sinks,
            live: broadcast::channel(SUBSCRIBER_BACKLOG).0,
            denials: Mutex::default(),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<AuditEvent>> {
        self.live.subscribe()
    }

    /// Takes an event. Denials that say the same again are put together.
    fn record(self: &Arc<Self>, event: AuditEvent) {
        if event.decision == AuditDecision::Allowed {
            return self.write(event);
        }
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
            self.write(event);
        }
    }

    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, event: AuditEvent) {
        for sink in &self.sinks {
            sink.record(&event);
        }
        if self.live.receiver_count() > 0 {
            let _nobody_listens_any_more = self.live.send(Arc::new(event));
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let left = self.lately().denials.drain();
        for event in left {
            self.write(event);
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
            hub.write(event);
        }
        if is_last {
            return;
        }
    }
}
