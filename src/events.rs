//! What happens to a sandbox, for its orchestrator.

use sandbox_core::audit::{AuditEvent, AuditSink};
use sandbox_core::backend::{MachineExit, Notice};
use std::sync::Arc;
use tokio::sync::broadcast;

/// Events a slow subscriber may fall behind by before it loses the oldest and is told how many. Bounds what a
/// guest that makes many requests can make the host hold.
pub(crate) const BACKLOG: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The sandbox tried to reach something, and was let or not.
    Attempt(Arc<AuditEvent>),
    /// Something about the machine.
    Notice(Notice),
    /// The machine has ended. The last event.
    Ended(MachineExit),
}

/// Hands audit events to the subscribers of [`Event`].
#[derive(Debug)]
pub(crate) struct Attempts(pub(crate) broadcast::Sender<Event>);

impl AuditSink for Attempts {
    fn record(&self, event: &Arc<AuditEvent>) {
        // Without subscribers there is nobody to tell.
        let _ = self.0.send(Event::Attempt(Arc::clone(event)));
    }
}
