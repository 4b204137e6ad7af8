//! Records of what happened at the border, on their way to whoever keeps or watches them, and what can be said of
//! them later. An attempt's way: `record` while it goes on, `hub` to the sinks, `log` to the disk; then `verify` and
//! `report`.

mod chain;
mod denials;
pub(crate) mod hub;
mod lines;
mod log;
pub(crate) mod record;
mod report;
mod text;
mod totals;
mod verify;
mod walk;

pub use chain::{AuditKey, Head, InvalidAuditKey, InvalidHead};
pub(crate) use hub::Hub;
pub use lines::JsonLines;
pub use log::{AuditLog, AuditLogBuilder, AuditLogError, Failure, Health};
pub use report::{ReportError, report};
pub use totals::Totals;
pub use verify::{KeyCheck, Tampered, Tampering, Verified, VerifyError, verify};
