//! The decision on a look-up: whether a name exists for the guest.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hickory_proto::rr::RecordType;
use sandbox_core::host::Host;
use sandbox_core::policy::Verdict;

use super::Inner;
use super::gate::{AUDIT_FAILS, POLICY_FAILED};
use crate::audit::record::Record;

impl Inner {
    /// Whether the sandbox may look this name up; the rule, if not. A no is recorded, with the record type `kind`.
    pub(crate) fn admit_name(&self, host: &Host, kind: u16) -> Result<(), String> {
        if !self.hub.is_ready() {
            self.record_look_up(&host.to_string(), kind, AUDIT_FAILS);
            return Err(AUDIT_FAILS.to_owned());
        }
        let policy = self.policy();
        let rule = match catch_unwind(AssertUnwindSafe(|| policy.decide_name(&self.sandbox, host))) {
            Ok(decision) if decision.verdict == Verdict::Deny => decision.rule,
            Ok(_) => return Ok(()),
            Err(_) => POLICY_FAILED,
        };
        self.record_look_up(&host.to_string(), kind, rule);
        Err(rule.to_owned())
    }

    /// Records that a look-up was denied.
    pub(crate) fn record_look_up(&self, name: &str, kind: u16, rule: &str) {
        let record = Record::start(&self.hub);
        record.lookup(name, &RecordType::from(kind).to_string());
        record.denied(
            rule,
            "nothing at this name is allowed, so it does not exist for the sandbox",
        );
    }

    /// Looks a name up for no use: what DNS here does without.
    #[cfg(feature = "mutants")]
    pub(crate) fn look_up_in_vain(self: &std::sync::Arc<Self>, name: &sandbox_core::host::HostName) {
        let (inner, name) = (std::sync::Arc::clone(self), name.clone());
        tokio::spawn(async move { inner.names.lookup(&name, ()).await.map(drop) });
    }
}
