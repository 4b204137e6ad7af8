//! Changes of the policy while the proxy runs: at once for every attempt and request, and for tunnels that are open.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use sandbox_core::policy::{InvalidPolicy, Policy, RequestLine};

use super::route::Route;
use super::unless::unless;
use super::{Inner, Proxy};
use crate::audit::record::Record;
use crate::defence;
use crate::policy::Rules;

/// Rules that cannot be changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The policy is one of your own, which this proxy cannot change in part.
    #[error("the policy in force is not made of rules; replace it as a whole with set_policy")]
    NotRules,
    /// The changed rules have a mistake.
    #[error(transparent)]
    Invalid(#[from] InvalidPolicy),
}

impl Proxy {
    /// Replaces the policy for every attempt from now on; requests in tunnels that are read are such attempts, too.
    /// Opaque tunnels and WebSockets that the new policy would not open are ended.
    ///
    /// # Errors
    /// The new policy cannot be used; the old one stays.
    pub fn set_policy(&self, policy: Arc<dyn Policy>) -> Result<(), InvalidPolicy> {
        let _changing = self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.replace_policy(policy)
    }

    /// Changes the rules in force, as one step: no attempt sees half of it, and of changes at the same time none is
    /// lost. The same as [`set_policy`](Self::set_policy) otherwise.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use sandbox_proxy::{Proxy, Rules};
    /// # let proxy = Proxy::builder("agent".parse()?).policy(Arc::new(Rules::balanced())).build()?;
    /// // Only the rules of this name are others now.
    /// proxy.change_rules(|rules| rules.set("task", 0, Rules::new().allow("api.example.com")))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The policy in force is none of [`Rules`], or the changed ones have a mistake; nothing has changed then.
    pub fn change_rules(&self, change: impl FnOnce(Rules) -> Rules) -> Result<(), ChangeError> {
        let _changing = self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = change(self.rules().ok_or(ChangeError::NotRules)?);
        Ok(self.inner.replace_policy(Arc::new(rules))?)
    }

    /// The rules in force, for lists and for [`Rules::explain`]; `None` where the policy is not made of rules.
    pub fn rules(&self) -> Option<Rules> {
        let policy = self.inner.policy();
        let policy: &dyn Any = policy.as_ref();
        policy.downcast_ref::<Rules>().cloned()
    }

    /// Forgets the answers that the approver gave for more than once.
    pub fn forget_answers(&self) {
        self.inner.asking.forget();
    }
}

impl Inner {
    fn replace_policy(&self, policy: Arc<dyn Policy>) -> Result<(), InvalidPolicy> {
        policy.check()?;
        // Dropped at the end: it may be somebody else's code.
        let _old = self.pool.forget(|| self.policy.send_replace(policy));
        Ok(())
    }

    /// The policy of now. Attempts under way keep the one they started with.
    pub(super) fn policy(&self) -> Arc<dyn Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Runs an opaque tunnel, or a WebSocket that this request asked for, until it ends or until a new policy does not
    /// let it be. `address` is where it leads, if that was vetted.
    pub(super) async fn while_allowed(
        &self,
        route: &Route,
        request: Option<RequestLine<'_>>,
        address: Option<IpAddr>,
        record: &Record,
        tunnel: impl Future<Output = ()>,
    ) {
        let allowed = unless(tunnel, self.disallowed(route, request, address));
        if allowed.await.is_none() {
            record.outcome("the policy was replaced, and the new one does not allow the tunnel");
        }
    }

    /// Done when a policy that replaced the route's does not allow it.
    async fn disallowed(&self, route: &Route, request: Option<RequestLine<'_>>, address: Option<IpAddr>) {
        let mut changes = self.policy.subscribe();
        loop {
            if !route.admission.is_of(&self.policy())
                && defence::holds("policy-for-open-tunnels")
                && !Box::pin(self.still_allows(route, request, address)).await
            {
                return;
            }
            if changes.changed().await.is_err() {
                // The policy goes with the proxy itself.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn still_allows(
        &self,
        route: &Route,
        request: Option<RequestLine<'_>>,
        address: Option<IpAddr>,
    ) -> bool {
        let admit = |request| self.admit(&route.host, route.port, route.scheme(), request);
        let admission = match (admit(None).await, request) {
            (Ok(admission), Some(_)) if admission.inspect => admit(request).await,
            // What was opened unread cannot be read from now on.
            (Ok(admission), None) if admission.inspect => return false,
            (admission, _) => admission,
        };
        let vetted = |permits| {
            let addresses = address.as_slice();
            self.vet(route, permits, addresses).is_ok() || !defence::holds("policy-for-open-addresses")
        };
        admission.is_ok_and(|admission| vetted(admission.permits_special_ranges))
    }
}
