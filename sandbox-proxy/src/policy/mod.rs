//! Which hosts a sandbox may reach: rules, the presets made of them, and the one function that answers.
//!
//! `parse` turns text into rules, `matcher` finds those that match, `presets` holds curated sets as data.

mod matcher;
mod parse;
mod presets;

use std::net::IpAddr;
use std::str::FromStr;

use sandbox_core::SandboxId;
use sandbox_core::host::Host;
use sandbox_core::policy::{Attempt, Decision, InvalidPolicy, Policy, Verdict};

use matcher::Matcher;
pub use parse::RuleError;
use parse::{Action, Rule};

/// Shown as the rule where none matched.
const NOTHING_MATCHED: &str = "no rule allows it";
/// Shown as the rule where the set holds a rule that could not be parsed: then nothing is allowed.
const SET_IS_INVALID: &str = "the rule set has an error, so nothing is allowed";

/// A set of rules. What no rule allows is denied; an empty set denies everything.
///
/// A rule is a target, written as a person would write it:
///
/// | rule | matches |
/// |---|---|
/// | `api.example.com` | that name, port 443, through a tunnel (TLS) |
/// | `*.example.com` | names exactly one label below; not `example.com` |
/// | `**.example.com` | names any number of labels below; not `example.com` |
/// | `**` | every name, but no target given as an address |
/// | `db.example.com:5432` | that port, whatever is spoken there |
/// | `example.com:8000-8999`, `example.com:*` | a range of ports, all ports |
/// | `http://example.com` or `example.com:80` | plain HTTP |
/// | `192.0.2.7:8080`, `[2001:db8::1]:443` | a target given as that address |
/// | `10.0.0.0/8:5432`, `[fd00::]/8` | targets given as addresses in that network; never a name that resolves there |
///
/// A *deny* rule without a port means all ports; any other rule without a port means 443 only. Deny beats ask,
/// and ask beats allow, whatever the order and however specific the rules are; see [`Rules::level`] for
/// exceptions. A name that resolves to a special range (loopback, private, cloud metadata, …) is refused unless
/// the rule that allows it ends in ` special-ranges`; an address or network rule that lies within a special
/// range permits it by itself.
///
/// ```
/// use sandbox_proxy::Rules;
///
/// let rules = Rules::balanced()
///     .allow("*.internal.example")
///     .allow("db.internal.example:5432 special-ranges")
///     .deny("gist.github.com");
/// rules.validate()?;
/// # Ok::<(), sandbox_proxy::RuleError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Rules {
    matcher: Matcher,
    level: i16,
    asks_otherwise: bool,
    error: Option<RuleError>,
}

/// Why an attempt was answered as it was: what [`Policy::decide`] of [`Rules`] answers, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation<'r> {
    /// The answer.
    pub decision: Decision<'r>,
    /// The level of the rule that decided; `None` where no rule matched.
    pub level: Option<i16>,
}

impl Rules {
    /// No rule: nothing is allowed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every public host, on 443 and as plain HTTP. Special ranges stay closed.
    pub fn open() -> Self {
        presets::load("open", presets::OPEN)
    }

    /// A curated list for development: package registries, source hosts, model providers, documentation.
    pub fn balanced() -> Self {
        presets::load("balanced", presets::BALANCED)
    }

    /// Nothing but what is added to it.
    pub fn locked_down() -> Self {
        presets::load("locked_down", presets::LOCKED_DOWN)
    }

    /// Adds a rule that allows. A mistake in it is kept for [`Rules::validate`]; until then the set allows nothing.
    #[must_use]
    pub fn allow(self, target: &str) -> Self {
        self.with(Action::Allow, target)
    }

    /// Adds a rule that denies, whatever else allows it at the same level.
    #[must_use]
    pub fn deny(self, target: &str) -> Self {
        self.with(Action::Deny, target)
    }

    /// Adds a rule that asks the [`Approver`](sandbox_core::policy::Approver).
    #[must_use]
    pub fn ask(self, target: &str) -> Self {
        self.with(Action::Ask, target)
    }

    /// Sets the level of the rules added after this call; 0 at first. Of all rules that match, those of the
    /// highest level decide alone.
    #[must_use]
    pub fn level(self, level: i16) -> Self {
        Self { level, ..self }
    }

    /// Asks the approver where no rule matches, instead of denying.
    #[must_use]
    pub fn otherwise_ask(self) -> Self {
        Self {
            asks_otherwise: true,
            ..self
        }
    }

    /// Parses lines of `allow TARGET`, `deny TARGET` and `ask TARGET`. Empty lines and what follows a `#` at the
    /// start of a line or after a space are left out.
    ///
    /// # Errors
    /// The first rule that cannot be parsed, with the place in it.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let mut rules = Self::new();
        for line in text.lines() {
            if let Some(rule) = parse::line(line)? {
                rules.matcher.insert(rule);
            }
        }
        Ok(rules)
    }

    /// The set itself, or the first mistake made in building it.
    ///
    /// # Errors
    /// The first rule that could not be parsed, with the place in it.
    pub fn validate(&self) -> Result<(), RuleError> {
        self.error.clone().map_or(Ok(()), Err)
    }

    /// The answer to an attempt and where it comes from. This is the function that enforces, too.
    pub fn explain(&self, attempt: &Attempt<'_>) -> Explanation<'_> {
        let unmatched = |decision| Explanation {
            decision,
            level: None,
        };
        if self.error.is_some() {
            return unmatched(Decision::deny(SET_IS_INVALID));
        }
        match self.matcher.find(attempt.host, attempt.port, attempt.scheme) {
            Some(rule) => Explanation {
                decision: Decision {
                    verdict: rule.action.verdict(),
                    rule: &rule.text,
                    permits_special_ranges: rule.permits_special_ranges(),
                },
                level: Some(rule.level),
            },
            None if self.asks_otherwise => unmatched(Decision::ask(NOTHING_MATCHED)),
            None => unmatched(Decision::deny(NOTHING_MATCHED)),
        }
    }

    /// The answer to a look-up of this name: no where nothing lets through any port of it, or a
    /// rule denies all of them. A yes is no promise: the attempt itself is decided with its port.
    pub fn explain_name(&self, name: &Host) -> Decision<'_> {
        if self.error.is_some() {
            return Decision::deny(SET_IS_INVALID);
        }
        let (yes, no) = self.matcher.find_on_any_port(name);
        match (yes, no) {
            (Some(rule), _) => Decision {
                verdict: rule.action.verdict(),
                rule: &rule.text,
                permits_special_ranges: rule.permits_special_ranges(),
            },
            (None, Some(rule)) => Decision::deny(&rule.text),
            (None, None) if self.asks_otherwise => Decision::ask(NOTHING_MATCHED),
            (None, None) => Decision::deny(NOTHING_MATCHED),
        }
    }

    /// The rules as they were written, each with its action and the preset it comes from.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.matcher.rules().iter().map(|rule| rule.text.as_ref())
    }

    fn with(mut self, action: Action, target: &str) -> Self {
        match parse::rule(action, target) {
            Ok(rule) => self.matcher.insert(Rule {
                level: self.level,
                ..rule
            }),
            Err(error) => self.error = self.error.or(Some(error)),
        }
        self
    }
}

impl FromStr for Rules {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Self::parse(text)
    }
}

impl Policy for Rules {
    fn decide(&self, attempt: &Attempt<'_>) -> Decision<'_> {
        self.explain(attempt).decision
    }

    fn decide_name(&self, _sandbox: &SandboxId, name: &Host) -> Decision<'_> {
        self.explain_name(name)
    }

    fn refuses_address(&self, address: IpAddr, port: u16) -> Option<&str> {
        self.matcher
            .denies_address(address, port)
            .map(|rule| rule.text.as_ref())
    }

    fn check(&self) -> Result<(), InvalidPolicy> {
        self.validate().map_err(|error| InvalidPolicy(error.into()))
    }
}

impl Action {
    fn verdict(self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allow,
            Self::Ask => Verdict::Ask,
            Self::Deny => Verdict::Deny,
        }
    }
}

#[cfg(test)]
mod tests;
