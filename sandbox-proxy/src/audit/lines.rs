//! The simplest sink: a line of JSON for each event, to any writer.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use sandbox_core::audit::{AuditEvent, AuditSink};

/// Writes each event as a line of JSON. Text from the guest cannot break a line: it is escaped by JSON.
///
/// Writing happens on the proxy's path: give a file or something buffered, no slow network. Denials that say the same
/// are counted once there are very many. For a log that must stand up to tampering, crashes and full disks, see
/// [`AuditLog`](super::AuditLog).
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
    fn record(&self, event: &Arc<AuditEvent>) {
        let Ok(mut line) = serde_json::to_vec(&**event) else {
            return;
        };
        line.push(b'\n');
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writer.write_all(&line).and_then(|()| writer.flush()) {
            tracing::error!(%error, "an audit record could not be written");
        }
    }
}
