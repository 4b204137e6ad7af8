//! Records of what happened at the border, on their way to whoever keeps or watches them.

pub(crate) mod record;

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use sandbox_core::audit::{AuditEvent, AuditSink};
use tokio::sync::broadcast;

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
}

impl Hub {
    pub(crate) fn new(sinks: Vec<Arc<dyn AuditSink>>) -> Self {
        Self {
            sinks,
            live: broadcast::channel(SUBSCRIBER_BACKLOG).0,
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<AuditEvent>> {
        self.live.subscribe()
    }

    fn record(&self, event: AuditEvent) {
        for sink in &self.sinks {
            sink.record(&event);
        }
        if self.live.receiver_count() > 0 {
            let _nobody_listens_any_more = self.live.send(Arc::new(event));
        }
    }
}
