//! Which hosts a sandbox may reach: rules, the presets made of them, and the one function that answers.
//!
//! `parse` turns text into rules, each with a `pattern` of what it is about, with `path` for those of requests; `lines`
//! reads files of them; `matcher` finds the one that decides; `presets` holds curated sets as data.

mod lines;
mod matcher;
mod network;
mod parse;
mod path;
mod pattern;
mod presets;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use sandbox_core::SandboxId;
use sandbox_core::host::Host;
use sandbox_core::policy::{Attempt, Decision, InvalidPolicy, Policy, Scheme, Verdict};

use crate::address;
use crate::defence;
use matcher::{Found, Matcher, Query};
pub(crate) use network::Network;
pub use parse::RuleError;
pub(crate) use parse::place;
use parse::{Action, Rule};
pub(crate) use pattern::{Pattern, Patterns, Ports, Seen, Target};
pub use presets::Preset;

/// Shown as the rule where none matched.
const NOTHING_MATCHED: &str = "no rule allows it";
/// Shown as the rule where the set holds a rule that could not be parsed: then nothing is allowed.
const SET_IS_INVALID: &str = "the rule set has an error, so nothing is allowed";
/// Rules in one policy. Protects the host from a file that is no rule file.
const MAX_RULES: usize = 1 << 20;

/// A set of rules. What no rule allows is denied; an empty set denies everything.
///
/// A rule is a target, written as a person would write it:
///
/// | rule | matches |
/// |---|---|
/// | `api.example.com` | that name, port 443, through a tunnel (TLS) |
/// | `*.example.com` | names exactly one label below; not `example.com` |
/// | `**.example.com` | names any number of labels below; not `example.com` |
/// | `.example.com` | `example.com` and names any number of labels below |
/// | `**` | every name, but no target given as an address |
/// | `db.example.com:5432` | that port, whatever is spoken there |
/// | `example.com:8000-8999`, `example.com:*` | a range of ports, all ports |
/// | `http://example.com` or `example.com:80` | plain HTTP |
/// | `192.0.2.7:8080`, `[2001:db8::1]:443` | a target given as that address |
/// | `10.0.0.0/8:5432`, `[fd00::]/8` | targets given as addresses in that network; never a name that resolves there |
/// | `GET,HEAD api.example.com` | requests with one of these methods |
/// | `example.com/docs/**` | requests for `/docs` and all below it; `*` is one segment or a part of one |
///
/// A *deny* rule without a port means all ports; any other rule without a port means 443 only. Deny beats ask,
/// and ask beats allow, whatever the order and however specific the rules are; see [`Rules::level`] for
/// exceptions. A name that resolves to a special range (loopback, private, cloud metadata, …) is refused unless
/// the rule that allows it ends in ` special-ranges`; an address or network rule that lies within a special
/// range permits it by itself.
///
/// A rule with a method or path makes the proxy read the streams that it could decide on; what cannot be read is
/// denied. Methods and paths that allow are compared by the letter, those that deny or ask in any case. A path that
/// servers read in different ways is allowed only where all readings are, and denied where one is; the query is
/// not looked at.
///
/// ```
/// use sandbox_proxy::Rules;
///
/// let rules = Rules::balanced()
///     .allow("*.internal.example")
///     .allow("db.internal.example:5432 special-ranges")
///     .allow("GET,HEAD https://api.example.com/repos/acme/**")
///     .deny("gist.github.com");
/// rules.validate()?;
/// # Ok::<(), sandbox_proxy::RuleError>(())
/// ```
#[derive(Clone, Default)]
pub struct Rules {
    rules: Vec<Arc<Rule>>,
    level: i16,
    asks_otherwise: bool,
    error: Option<RuleError>,
    /// Made when first asked, at the latest; thrown away with every change.
    matcher: OnceLock<Arc<Matcher>>,
}

/// Why an attempt was answered as it was: what [`Policy::decide`] of [`Rules`] answers, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation<'r> {
    /// The answer.
    pub decision: Decision<'r>,
    /// The level of the rule that decided; `None` where no rule matched.
    pub level: Option<i16>,
    /// The named set of the rule that decided, if it belongs to one.
    pub set: Option<&'r str>,
}

/// One rule of a set, for lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'r> {
    /// Action and target, as written.
    pub rule: &'r str,
    /// The named set or preset it belongs to.
    pub set: Option<&'r str>,
    /// Its level.
    pub level: i16,
}

impl Rules {
    /// No rule: nothing is allowed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every public host, on 443 and as plain HTTP. Special ranges stay closed.
    pub fn open() -> Self {
        Preset::OPEN.rules()
    }

    /// A curated list for development: package registries, source hosts, model providers, documentation.
    pub fn balanced() -> Self {
        Preset::BALANCED.rules()
    }

    /// Nothing but what is added to it.
    pub fn locked_down() -> Self {
        Preset::LOCKED_DOWN.rules()
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

    /// Adds `rules` as the set of this name, in the place of the one that had it. Their levels count from `level`;
    /// sets within them become one. What they say of attempts that no rule matches does not count.
    ///
    /// A name has 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`. Presets are the sets `open` and `balanced`.
    ///
    /// ```
    /// use sandbox_proxy::Rules;
    ///
    /// let rules = Rules::balanced()
    ///     .set("team", 0, Rules::new().allow("*.internal.example"))
    ///     .set("never", 100, Rules::new().deny("paste.example"));
    /// rules.validate()?;
    /// # Ok::<(), sandbox_proxy::RuleError>(())
    /// ```
    #[must_use]
    pub fn set(mut self, name: &str, level: i16, rules: Self) -> Self {
        self.remove_set(name);
        let added = self.push_set(name, level, rules);
        self.noting(added)
    }

    /// The same without the rules of the set of this name, if there is one.
    #[must_use]
    pub fn without_set(mut self, name: &str) -> Self {
        self.remove_set(name);
        self
    }

    /// The same without one rule, written as it is in [`Rules::entries`]: `"allow bitbucket.org"`. That there is no
    /// such rule is a mistake like one in a rule.
    #[must_use]
    pub fn without(mut self, rule: &str) -> Self {
        let before = self.rules.len();
        self.rules.retain(|known| known.text.as_ref() != rule);
        self.matcher = OnceLock::new();
        if self.rules.len() < before {
            return self;
        }
        let advice = "there is no such rule to leave out; entries() lists them as they are written";
        self.noting(Err(RuleError::new(rule, 0, advice)))
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
    /// start of a line or after a space are left out. `level N` sets the level of the rules after it, `set NAME` or
    /// `set NAME level N` the set that they belong to, and `otherwise ask` stands for [`Rules::otherwise_ask`].
    /// [`Display`](fmt::Display) writes such lines.
    ///
    /// # Errors
    /// The first rule that cannot be parsed, with the place in it.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let mut rules = Self::new();
        lines::parse(text, &mut rules)?;
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
    ///
    /// Allocates nothing once [`check`](Policy::check) was called, or another attempt explained.
    pub fn explain(&self, attempt: &Attempt<'_>) -> Explanation<'_> {
        self.answer(Query {
            host: attempt.host,
            port: attempt.port,
            scheme: attempt.scheme,
            request: attempt.request,
        })
    }

    /// The answer to a look-up of this name: no where no port of it could ever be allowed, for any request. A yes is
    /// no promise: the attempt itself is decided with its port.
    pub fn explain_name(&self, name: &Host) -> Decision<'_> {
        let about = |port, scheme| {
            let query = Query {
                host: name,
                port,
                scheme,
                request: None,
            };
            self.answer(query).decision
        };
        let mut found = about(443, Scheme::Tunnel);
        if found.verdict == Verdict::Deny && self.error.is_none() {
            self.matcher().for_ports(name, &mut |port, scheme| {
                if found.verdict == Verdict::Deny {
                    let other = about(port.max(1), scheme);
                    if other.verdict != Verdict::Deny {
                        found = other;
                    }
                }
            });
        }
        found
    }

    fn answer(&self, query: Query<'_>) -> Explanation<'_> {
        let unmatched = |decision| Explanation {
            decision,
            level: None,
            set: None,
        };
        if self.error.is_some() && defence::holds("rules-with-mistake") {
            return unmatched(Decision::deny(SET_IS_INVALID));
        }
        let (rule, verdict) = match self.matcher().find(query, self.asks_otherwise) {
            Found::Rule(rule) => (rule, rule.action.verdict()),
            Found::Inspect(rule) => (rule, Verdict::Inspect),
            Found::Nothing if self.asks_otherwise => return unmatched(Decision::ask(NOTHING_MATCHED)),
            Found::Nothing if !defence::holds("deny-by-default") => {
                return unmatched(Decision::allow(NOTHING_MATCHED));
            }
            Found::Nothing => return unmatched(Decision::deny(NOTHING_MATCHED)),
        };
        Explanation {
            decision: Decision {
                verdict,
                rule: &rule.shown,
                permits_special_ranges: verdict != Verdict::Inspect && rule.permits_special_ranges,
            },
            level: Some(rule.level),
            set: rule.set.as_deref(),
        }
    }

    /// The rules as they were written, each with its action and the set or preset it comes from.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.shown.as_ref())
    }

    /// The rules, each with its set and level.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.rules.iter().map(|rule| Entry {
            rule: &rule.text,
            set: rule.set.as_deref(),
            level: rule.level,
        })
    }

    fn matcher(&self) -> &Matcher {
        self.matcher.get_or_init(|| Arc::new(Matcher::new(&self.rules)))
    }

    fn with(mut self, action: Action, target: &str) -> Self {
        let level = self.level;
        let added = parse::rule(action, target).and_then(|rule| self.push(rule, level, None));
        self.noting(added)
    }

    fn remove_set(&mut self, name: &str) {
        self.rules.retain(|rule| rule.set.as_deref() != Some(name));
        self.matcher = OnceLock::new();
    }

    fn push_set(&mut self, name: &str, level: i16, rules: Self) -> Result<(), RuleError> {
        let name = set_name(name)?;
        rules.validate()?;
        for rule in rules.rules {
            let level = rule.level.saturating_add(level);
            self.push(Arc::unwrap_or_clone(rule), level, Some(Arc::clone(&name)))?;
        }
        Ok(())
    }

    fn push(&mut self, rule: Rule, level: i16, set: Option<Arc<str>>) -> Result<(), RuleError> {
        if self.rules.len() >= MAX_RULES {
            return Err(RuleError::new(
                &rule.text,
                0,
                "these are more rules than a policy may have",
            ));
        }
        let shown = match &set {
            Some(name) => format!("{} ({name})", rule.text).into(),
            None => rule.text.clone(),
        };
        self.rules.push(Arc::new(Rule {
            level,
            set,
            shown,
            ..rule
        }));
        self.matcher = OnceLock::new();
        Ok(())
    }

    /// The first mistake stays.
    fn noting(mut self, result: Result<(), RuleError>) -> Self {
        self.error = self.error.or(result.err());
        self
    }
}

/// Checks the name of a set.
fn set_name(name: &str) -> Result<Arc<str>, RuleError> {
    let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let advice = "name a set with 1 to 64 of a-z, 0-9, '-', '_' and '.'";
    match name.find(|c| !is_fine(c)) {
        Some(at) => Err(RuleError::new(name, at, advice)),
        None if name.is_empty() || name.len() > 64 => Err(RuleError::new(name, name.len().min(64), advice)),
        None => Ok(name.into()),
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Rules");
        debug
            .field("rules", &self.rules.len())
            .field("asks_otherwise", &self.asks_otherwise);
        debug.field("error", &self.error).finish()
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
        let embedded = address::embedded_v4(address).map(IpAddr::V4);
        let rule = [Some(address), embedded]
            .into_iter()
            .flatten()
            .find_map(|address| self.matcher().denies_address(address, port))?;
        defence::holds("deny-rules-for-resolved").then_some(&rule.shown)
    }

    fn check(&self) -> Result<(), InvalidPolicy> {
        self.validate().map_err(|error| InvalidPolicy(error.into()))?;
        // Here, so that the first attempt does not wait for it.
        let _ = self.matcher();
        Ok(())
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
mod properties;
#[cfg(test)]
mod tests;
