//! Sums of what a log holds.

use sandbox_core::audit::{AuditDecision, AuditEvent};
use serde::{Deserialize, Serialize};

/// Sums over attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Attempts that were allowed.
    pub allowed: u64,
    /// Attempts that were denied.
    pub denied: u64,
    /// Bytes from sandboxes.
    pub bytes_out: u64,
    /// Bytes to sandboxes.
    pub bytes_in: u64,
    /// Attempts of which no more is known than that they were, because their records could not be kept. They are
    /// among the others, too.
    pub lost: u64,
}

impl Totals {
    /// All attempts.
    pub fn attempts(&self) -> u64 {
        self.allowed.saturating_add(self.denied)
    }

    pub(super) fn add(&mut self, event: &AuditEvent) {
        let count = match event.decision {
            AuditDecision::Allowed => &mut self.allowed,
            AuditDecision::Denied => &mut self.denied,
        };
        *count = count.saturating_add(event.attempts);
        self.bytes_out = self.bytes_out.saturating_add(event.bytes_out);
        self.bytes_in = self.bytes_in.saturating_add(event.bytes_in);
    }

    pub(super) fn add_lost(&mut self, allowed: u64, denied: u64) {
        self.allowed = self.allowed.saturating_add(allowed);
        self.denied = self.denied.saturating_add(denied);
        self.lost = self.lost.saturating_add(allowed).saturating_add(denied);
    }
}
