//! The decision on one attempt: policy, and whoever is asked where the policy says so. Nothing is resolved,
//! minted or dialled before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, Method};
use sandbox_core::host::Host;
use sandbox_core::policy::{Attempt, Decision, Policy, Question, RequestLine, Scheme, Verdict};

use super::Inner;
use super::asking::Told;
use super::refusal::Refusal;
use super::route::Route;
use crate::defence;

/// Shown as the rule when a sink of records that must be kept cannot keep them.
pub(super) const AUDIT_FAILS: &str = "the audit log fails";
/// Shown as the rule when a policy panics.
pub(super) const POLICY_FAILED: &str = "the policy failed";

/// Decisions on one attempt while policies are replaced under it: nobody is asked for ever.
const MAX_DECISIONS: usize = 4;

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
    /// Whether what happens can be recorded, where nothing must happen without.
    pub(super) fn check_records(&self) -> Result<(), Refusal> {
        if self.hub.is_ready() {
            Ok(())
        } else {
            Err(Refusal::unrecorded())
        }
    }

    /// Whether the sandbox may do this.
    pub(super) async fn admit(
        &self,
        host: &Host,
        port: u16,
        scheme: Scheme,
        request: Option<RequestLine<'_>>,
    ) -> Result<Admission, Refusal> {
        self.check_records()?;
        // The defence is that nothing stands here: a look-up or a connection before the decision carries data out, and
        // certificates are only for what may be read.
        if !defence::holds("name-before-look-up")
            && let Host::Name(name) = host
        {
            let _told_anyway = self.names.lookup(name, ()).await;
        }
        if !defence::holds("decision-before-dial")
            && let Host::Name(name) = host
            && let Ok((addresses, ())) = self.names.lookup(name, ()).await
            && let Some(address) = addresses.first()
        {
            let _told_anyway = tokio::net::TcpStream::connect((*address, port)).await;
        }
        if !defence::holds("decision-before-mint") {
            let _minted_anyway = self.ca.server(host, false);
        }
        let attempt = |policy: Arc<dyn Policy>| Asked {
            policy,
            attempt: Attempt {
                sandbox: &self.sandbox,
                host,
                port,
                scheme,
                request,
            },
        };
        let mut asked = attempt(self.policy());
        for _ in 0..MAX_DECISIONS {
            let question = match asked.decide()? {
                Decided::Yes(admission) => return Ok(admission),
                Decided::Ask(question, admission) => {
                    self.ask(question).await?;
                    admission
                }
            };
            // People take their time: what they said yes to must still be a question.
            let now = self.policy();
            if question.is_of(&now) || !defence::holds("policy-after-asking") {
                return Ok(question);
            }
            asked = attempt(now);
            if let Decided::Ask(_, admission) = asked.decide()?
                && admission.rule == question.rule
            {
                return Ok(admission);
            }
        }
        Err(Refusal::denied(
            POLICY_FAILED,
            "the policy was replaced again and again while somebody was asked",
        ))
    }

    /// Whether a request in a stream that is read for it may go out.
    pub(super) async fn admit_request(&self, route: &Route, parts: &Parts) -> Result<Admission, Refusal> {
        if let Some(name) = parts.headers.keys().find(|name| is_override(name))
            && defence::holds("override-headers")
        {
            return Err(Refusal::denied(
                &route.admission.rule,
                &format!(
                    "{name} would make another request of it than the one that the policy sees; leave it out"
                ),
            ));
        }
        self.admit(&route.host, route.port, route.scheme(), Some(request_line(parts)))
            .await
    }

    async fn ask(&self, question: Question) -> Result<(), Refusal> {
        let rule = question.rule.clone();
        let why = match self.asking.ask(question).await {
            Told::Yes => return Ok(()),
            Told::No => "the approver said no",
            Told::NobodyThere => "the policy says to ask, and nobody is there to be asked",
            Told::TooLate => "the approver gave no answer in time",
            Told::Failed => "the approver failed, so nothing is allowed",
            Told::TooMany => {
                return Err(Refusal::busy(
                    "too many questions of the sandbox wait for the approver; try again when some are answered",
                ));
            }
        };
        Err(Refusal::denied(&rule, why))
    }
}

/// What rules are told of a request.
pub(super) fn request_line(parts: &Parts) -> RequestLine<'_> {
    RequestLine {
        // A WebSocket over HTTP/2 is asked for by CONNECT (RFC 8441 §4), and everywhere else by GET.
        method: match parts.method {
            Method::CONNECT => "GET",
            ref method => method.as_str(),
        },
        path: parts.uri.path(),
    }
}

/// An attempt and the policy that it is put to.
struct Asked<'a> {
    policy: Arc<dyn Policy>,
    attempt: Attempt<'a>,
}

enum Decided {
    Yes(Admission),
    /// Somebody must be asked; then, what holds if they say yes.
    Ask(Question, Admission),
}

impl Asked<'_> {
    fn decide(&self) -> Result<Decided, Refusal> {
        let Attempt {
            host, port, request, ..
        } = self.attempt;
        let decision = match catch_unwind(AssertUnwindSafe(|| self.policy.decide(&self.attempt))) {
            Ok(decision) => decision,
            Err(_) if !defence::holds("policy-panic") => Decision::allow(POLICY_FAILED),
            Err(_) => {
                tracing::error!(%host, port, "the policy panicked; the attempt is denied");
                return Err(Refusal::denied(
                    POLICY_FAILED,
                    "the policy failed, so nothing is allowed",
                ));
            }
        };
        let admission = Admission {
            policy: Arc::clone(&self.policy),
            rule: decision.rule.into(),
            permits_special_ranges: decision.permits_special_ranges,
            inspect: decision.verdict == Verdict::Inspect,
        };
        match decision.verdict {
            Verdict::Allow => Ok(Decided::Yes(admission)),
            Verdict::Inspect if request.is_none() => Ok(Decided::Yes(admission)),
            // Asked with all there is, the policy must answer.
            Verdict::Inspect => Err(Refusal::denied(decision.rule, "the policy gave no answer")),
            Verdict::Deny => Err(Refusal::denied(
                decision.rule,
                &format!("the sandbox's policy does not allow {host}:{port}; trying again does not help"),
            )),
            Verdict::Ask => Ok(Decided::Ask(self.question(decision.rule), admission)),
        }
    }

    fn question(&self, rule: &str) -> Question {
        Question {
            sandbox: self.attempt.sandbox.clone(),
            host: self.attempt.host.clone(),
            port: self.attempt.port,
            scheme: self.attempt.scheme,
            request: self
                .attempt
                .request
                .map(|line| (line.method.to_owned(), line.path.to_owned())),
            rule: rule.to_owned(),
        }
    }
}

/// Headers by which some servers take another method or path than the request's, as `X-HTTP-Method-Override`. Many
/// of them do not tell `_` from `-`.
pub(super) fn is_override(name: &HeaderName) -> bool {
    const OVERRIDES: [&str; 6] = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-original-uri",
        "x-rewrite-url",
    ];
    let bytes = || name.as_str().bytes().map(|b| if b == b'_' { b'-' } else { b });
    OVERRIDES.iter().any(|known| known.bytes().eq(bytes()))
}
