//! Who may be reached. The proxy asks once per attempt, before anything is resolved, minted or dialled.

use std::any::Any;
use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;

use crate::host::Host;
use crate::id::SandboxId;

/// Decides on attempts to leave the sandbox.
///
/// Implementations are called on the proxy's hot path: answer without blocking or allocating. Whatever is not
/// allowed is denied; an implementation that panics denies the attempt. ([`Any`] lets whoever holds a policy find
/// out which one it is, to change it while it is in force.)
pub trait Policy: Any + Send + Sync + fmt::Debug {
    /// The answer to one attempt, always with the rule it comes from.
    ///
    /// Asked first with [`Attempt::request`] unset. Where the answer is [`Verdict::Inspect`] the stream is
    /// read, and the question asked again for each request in it; nothing is resolved or dialled before one of
    /// them is allowed.
    fn decide(&self, attempt: &Attempt<'_>) -> Decision<'_>;

    /// Asked when the guest looks a name up: whether anything there could be allowed, on whatever port. Where the
    /// verdict is [`Verdict::Deny`] the name does not exist for the guest; otherwise it gets a synthetic address, which
    /// leads back to [`Self::decide`]. No query leaves the host for either answer. `name` is a [`Host::Name`].
    ///
    /// Unless implemented, the answer of [`Self::decide`] for a tunnel to port 443, and where that is no, the one for
    /// plain HTTP to port 80: a policy that allows only other ports should say so here.
    fn decide_name(&self, sandbox: &SandboxId, name: &Host) -> Decision<'_> {
        let attempt = |port, scheme| Attempt {
            sandbox,
            host: name,
            port,
            scheme,
            request: None,
        };
        let tunnel = self.decide(&attempt(443, Scheme::Tunnel));
        if tunnel.verdict != Verdict::Deny {
            return tunnel;
        }
        let plain = self.decide(&attempt(80, Scheme::Http));
        if plain.verdict == Verdict::Deny {
            tunnel
        } else {
            plain
        }
    }

    /// Asked for each address that an allowed name resolved to: the rule that refuses it, if any.
    ///
    /// Special ranges are vetted by the proxy in any case, see [`Decision::permits_special_ranges`].
    fn refuses_address(&self, _address: IpAddr, _port: u16) -> Option<&str> {
        None
    }

    /// Asked once, before a sandbox starts: a policy that was made wrongly (a rule that cannot be parsed) says
    /// so here, so that the mistake stops the launch instead of denying everything later.
    ///
    /// # Errors
    /// What is wrong and what to write instead, as text for the person who wrote the policy.
    fn check(&self) -> Result<(), InvalidPolicy> {
        Ok(())
    }
}

/// A policy that cannot be used as it was made.
#[derive(Debug, thiserror::Error)]
#[error("the policy cannot be used: {0}")]
pub struct InvalidPolicy(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// One attempt to reach something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// Whose attempt it is.
    pub sandbox: &'a SandboxId,
    /// The target as the client named it, in normal form.
    pub host: &'a Host,
    /// The target port.
    pub port: u16,
    /// How the client wants to speak to it.
    pub scheme: Scheme,
    /// Method and path, where the stream is readable.
    pub request: Option<RequestLine<'a>>,
}

/// How a client wants to speak to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP through the proxy.
    Http,
    /// A `CONNECT` tunnel: TLS in nearly all cases.
    Tunnel,
}

/// The part of a request that rules can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLine<'a> {
    /// The method, as sent: methods are case-sensitive (RFC 9110 §9.1).
    pub method: &'a str,
    /// The path without query, as sent.
    pub path: &'a str,
}

/// What is to happen with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes through.
    Allow,
    /// It does not.
    Deny,
    /// An [`Approver`] is asked; without one, or when it does not answer in time, the attempt is denied.
    Ask,
    /// Depends on the request: the stream is read and the question asked for each request. A stream that
    /// cannot be read is denied.
    Inspect,
}

/// A verdict and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'p> {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that decided, as the user wrote it; shown to the client and in the audit log.
    pub rule: &'p str,
    /// Whether the target may be in a special range (loopback, private, link-local, metadata, …). Names that
    /// resolve there are refused otherwise.
    pub permits_special_ranges: bool,
}

impl<'p> Decision<'p> {
    /// Allowed by `rule`, outside special ranges.
    pub const fn allow(rule: &'p str) -> Self {
        Self {
            verdict: Verdict::Allow,
            rule,
            permits_special_ranges: false,
        }
    }

    /// Denied by `rule`.
    pub const fn deny(rule: &'p str) -> Self {
        Self {
            verdict: Verdict::Deny,
            rule,
            permits_special_ranges: false,
        }
    }

    /// To be asked, because of `rule`.
    pub const fn ask(rule: &'p str) -> Self {
        Self {
            verdict: Verdict::Ask,
            rule,
            permits_special_ranges: false,
        }
    }

    /// The same decision for targets in special ranges too.
    pub const fn permitting_special_ranges(self) -> Self {
        Self {
            permits_special_ranges: true,
            ..self
        }
    }
}

/// Answers attempts whose verdict is [`Verdict::Ask`], for instance by asking a person.
///
/// Attempts that ask the same at the same time are one question. An approver that panics, takes too long, or is not
/// there says no.
#[async_trait]
pub trait Approver: Send + Sync + fmt::Debug {
    /// Whether the attempt may go through, and for how long the answer holds. Dropped when it takes too long or when
    /// nobody waits for the answer any more; either way the attempt is denied.
    async fn approve(&self, question: Question) -> Approval;
}

/// An approver's answer. Holds once unless said otherwise:
///
/// ```
/// use sandbox_core::policy::Approval;
///
/// let once = Approval::allow();
/// let whole_host = Approval::allow().for_target();
/// let never_again = Approval::deny().for_question();
/// # assert!(once.allows && whole_host.allows && !never_again.allows);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Approval {
    /// Whether the attempt goes through.
    pub allows: bool,
    /// Which later attempts are answered the same without asking.
    pub holds: Holds,
}

/// For which attempts an answer holds. Remembered answers live as long as the sandbox, and hold only while the
/// same rule says to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holds {
    /// Those that wait for it now; the next one is asked about again.
    Once,
    /// Later ones alike, too: of the same target, scheme, method and path.
    Question,
    /// All later ones at the same target and scheme, whatever the method and path.
    Target,
}

impl Approval {
    /// Yes, this once.
    pub const fn allow() -> Self {
        Self {
            allows: true,
            holds: Holds::Once,
        }
    }

    /// No, this once.
    pub const fn deny() -> Self {
        Self {
            allows: false,
            holds: Holds::Once,
        }
    }

    /// The same answer, remembered for attempts alike.
    pub const fn for_question(self) -> Self {
        Self {
            holds: Holds::Question,
            ..self
        }
    }

    /// The same answer, remembered for everything at the target that the same rule asks about.
    pub const fn for_target(self) -> Self {
        Self {
            holds: Holds::Target,
            ..self
        }
    }
}

impl From<bool> for Approval {
    /// Yes or no, this once.
    fn from(allows: bool) -> Self {
        if allows { Self::allow() } else { Self::deny() }
    }
}

/// An attempt in a form that can be kept while somebody thinks about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// Whose attempt it is.
    pub sandbox: SandboxId,
    /// The target.
    pub host: Host,
    /// The target port.
    pub port: u16,
    /// How the client wants to speak to it.
    pub scheme: Scheme,
    /// Method and path, where known. As the sandbox sent them: show them as untrusted text.
    pub request: Option<(String, String)>,
    /// The rule that says to ask.
    pub rule: String,
}
