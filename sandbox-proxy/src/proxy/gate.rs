//! The decision on one attempt: policy, and whoever is asked where the policy says so. Nothing is resolved,
//! minted or dialled before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use sandbox_core::host::Host;
use sandbox_core::policy::{Attempt, Policy, Question, RequestLine, Scheme, Verdict};
use tokio::time::timeout;

use super::Inner;
use super::refusal::Refusal;

/// Shown as the rule when a sink of records that must be kept cannot keep them.
const AUDIT_FAILS: &str = "the audit log fails";
/// Shown as the rule when a policy panics.
const POLICY_FAILED: &str = "the policy failed";

/// A yes.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    /// Who said it.
    policy: Arc<dyn Policy>,
    pub(crate) rule: Arc<str>,
    pub(crate) permits_special_ranges: bool,
    /// Each request must be asked for again.
    pub(crate) inspect: bool,
}

impl Admission {
    /// Whether this policy said it, or one that has been replaced.
    pub(super) fn is_of(&self, policy: &Arc<dyn Policy>) -> bool {
        Arc::ptr_eq(&self.policy, policy)
    }
}

impl Inner {
    /// Whether the sandbox may do this.
    pub(super) async fn admit(
        &self,
        host: &Host,
        port: u16,
        scheme: Scheme,
        request: Option<RequestLine<'_>>,
    ) -> Result<Admission, Refusal> {
        if !self.hub.is_ready() {
            return Err(Refusal::denied(
                AUDIT_FAILS,
                "attempts cannot be recorded now, so nothing is allowed; the host's operator must see to it",
            ));
        }
        let policy = self.policy();
        let attempt = Attempt {
            sandbox: &self.sandbox,
            host,
            port,
            scheme,
            request,
        };
        let Ok(decision) = catch_unwind(AssertUnwindSafe(|| policy.decide(&attempt))) else {
            tracing::error!(%host, port, "the policy panicked; the attempt is denied");
            return Err(Refusal::denied(
                POLICY_FAILED,
                "the policy failed, so nothing is allowed",
            ));
        };
        let admission = Admission {
            policy: Arc::clone(&policy),
            rule: decision.rule.into(),
            permits_special_ranges: decision.permits_special_ranges,
            inspect: decision.verdict == Verdict::Inspect,
        };
        match decision.verdict {
            Verdict::Allow => Ok(admission),
            Verdict::Inspect if request.is_none() => Ok(admission),
            // Asked with all there is, the policy must answer.
            Verdict::Inspect => Err(Refusal::denied(decision.rule, "the policy gave no answer")),
            Verdict::Deny => Err(Refusal::denied(
                decision.rule,
                &format!("the sandbox's policy does not allow {host}:{port}; trying again does not help"),
            )),
            Verdict::Ask => self.ask(&attempt, decision.rule).await.map(|()| admission),
        }
    }

    /// The policy of now. Attempts under way keep the one they started with.
    pub(super) fn policy(&self) -> Arc<dyn Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(&self, attempt: &Attempt<'_>, rule: &str) -> Result<(), Refusal> {
        let Some(approver) = &self.approver else {
            return Err(Refusal::denied(
                rule,
                "the policy says to ask, and nobody is there to be asked",
            ));
        };
        let question = Question {
            sandbox: self.sandbox.clone(),
            host: attempt.host.clone(),
            port: attempt.port,
            scheme: attempt.scheme,
            request: attempt
                .request
                .map(|line| (line.method.to_owned(), line.path.to_owned())),
            rule: rule.to_owned(),
        };
        match timeout(self.approval_time, approver.approve(question)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::denied(rule, "the approver said no")),
            Err(_) => Err(Refusal::denied(rule, "the approver gave no answer in time")),
        }
    }
}
