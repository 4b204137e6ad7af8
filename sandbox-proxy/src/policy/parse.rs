//! The rule grammar. Text becomes a [`Rule`] here and nowhere else; an error points at the character.
//!
//! ```text
//! rule    = [ methods SP ] [ ("http" / "https") "://" ] host [ ":" ports ] [ path ] [ SP "special-ranges" ]
//! methods = METHOD *( "," METHOD )
//! host    = "**" / [ "*." / "**." / "." ] name / address [ "/" bits ] / "[" address "]" [ "/" bits ]
//! ports   = "*" / port [ "-" port ]
//! path    = "/" [ segment *( "/" segment ) ] [ "/" ]
//! segment = "**" / "*" / text / [ text ] "*" [ text ]
//! ```
//!
//! After an address without a port, `/` starts the length of a network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use sandbox_core::host::HostName;
use sandbox_core::policy::Scheme;

use super::network::{Network, truncate};
use super::path::{BadPattern, PathPattern};
use super::pattern::{Condition, Pattern, Ports, Target};
use crate::defence;

/// Protects the parser and the audit log from a rule that is no rule.
const MAX_RULE_BYTES: usize = 512;
/// The option that lets a name resolve to a special range.
const SPECIAL_RANGES: &str = "special-ranges";

/// Taken for a method even where nothing follows, which is a mistake.
const KNOWN_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// What a rule does. Ordered: of two rules of one level, the greater decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    Allow,
    Ask,
    Deny,
}

/// One parsed rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) action: Action,
    pub(super) level: i16,
    pub(super) pattern: Pattern,
    /// Whether its targets may be in special ranges: by option, or because it names nothing else.
    pub(super) permits_special_ranges: bool,
    /// Action and target, as written.
    pub(super) text: Box<str>,
    /// The named set it belongs to.
    pub(super) set: Option<Arc<str>>,
    /// `text`, and the set behind it: what clients and the audit log are told.
    pub(super) shown: Box<str>,
}

/// A text that is no rule: where it stops being one, and what to write instead.
///
/// Its `Display` shows the rule with a caret under the character:
///
/// ```
/// let error = sandbox_proxy::Rules::new().allow("example.com:https").validate().unwrap_err();
/// assert_eq!(error.offset(), 12);
/// assert_eq!(
///     error.to_string(),
///     "write a port from 1 to 65535, a range as in 8000-8999, or *\n  example.com:https\n              ^"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    text: String,
    offset: usize,
    advice: String,
}

impl RuleError {
    /// The rule (or line) that could not be parsed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where it stops being a rule, in bytes from its start.
    pub fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn new(text: &str, offset: usize, advice: impl Into<String>) -> Self {
        Self {
            text: text.to_owned(),
            offset,
            advice: advice.into(),
        }
    }
}

impl RuleError {
    /// The same mistake, seen in the line that holds the rule from its byte `at` on.
    pub(super) fn in_line(self, line: &str, at: usize) -> Self {
        Self {
            text: line.to_owned(),
            offset: at + self.offset,
            ..self
        }
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Control characters would move the caret, and could do worse to a terminal.
        let shown: String = self
            .text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let before = self.text.get(..self.offset).unwrap_or(&self.text).chars().count();
        write!(f, "{}\n  {shown}\n  {:before$}^", self.advice, "")
    }
}

impl std::error::Error for RuleError {}

/// Parses one target.
pub(super) fn rule(action: Action, text: &str) -> Result<Rule, RuleError> {
    let mut input = Input::new(text)?;
    let pattern = input.pattern(action)?;
    let permits_special_ranges =
        input.options()? || matches!(&pattern.target, Target::Network(network) if network.is_special());
    let text: Box<str> = format!("{} {}", action.verb(), input.text).into();
    Ok(Rule {
        action,
        level: 0,
        pattern,
        permits_special_ranges,
        shown: text.clone(),
        text,
        set: None,
    })
}

/// Parses a target that stands for itself, without options.
pub(super) fn pattern(text: &str) -> Result<Pattern, RuleError> {
    let mut input = Input::new(text)?;
    let pattern = input.pattern(Action::Allow)?;
    input.end()?;
    Ok(pattern)
}

/// Parses hosts, and ports where they are written.
pub(crate) fn place(text: &str) -> Result<(Target, Option<Ports>), RuleError> {
    let mut input = Input::new(text)?;
    let place = (input.target()?, input.written_ports()?);
    input.end()?;
    Ok(place)
}

impl Action {
    /// How a line of a rule file starts.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }
}

impl Rule {
    /// A rule that allows, for whoever wants nothing of it but its pattern.
    pub(super) fn about(pattern: Pattern) -> Self {
        Self {
            action: Action::Allow,
            level: 0,
            pattern,
            permits_special_ranges: false,
            text: Box::default(),
            set: None,
            shown: Box::default(),
        }
    }
}

struct Input<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Input<'a> {
    fn new(text: &'a str) -> Result<Self, RuleError> {
        if text.len() > MAX_RULE_BYTES {
            return Err(RuleError::new(
                text,
                MAX_RULE_BYTES,
                "a rule has at most 512 bytes",
            ));
        }
        let text = text.trim_end();
        if let Some(at) = text.find(|c: char| c.is_control() && c != '\t') {
            return Err(RuleError::new(text, at, "a rule has no control characters"));
        }
        Ok(Self { text, at: 0 })
    }

    /// All but the options.
    fn pattern(&mut self, action: Action) -> Result<Pattern, RuleError> {
        let methods = self.methods()?;
        let scheme = if self.take("http://") {
            Some(Scheme::Http)
        } else if self.take("https://") {
            Some(Scheme::Tunnel)
        } else {
            None
        };
        let target = self.target()?;
        let ports = self.written_ports()?;
        let path = self.path()?;
        let (ports, scheme) = match (ports, scheme, action) {
            (Some(ports), scheme, _) => (ports, scheme),
            (None, Some(Scheme::Http), _) => (Ports::one(80), Some(Scheme::Http)),
            // Whoever denies a host means all of it.
            (None, None, Action::Deny) => (Ports::ALL, None),
            (None, None, _) if !defence::holds("rule-default-port") => (Ports::ALL, None),
            (None, _, _) => (Ports::one(443), Some(Scheme::Tunnel)),
        };
        Ok(Pattern {
            target,
            ports,
            scheme: match action {
                Action::Allow | Action::Ask => scheme.or(ports.scheme()),
                Action::Deny => scheme,
            },
            condition: (!methods.is_empty() || path.is_some()).then(|| Condition {
                methods: methods.into(),
                path,
            }),
        })
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn take(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    fn error<T>(&self, advice: impl Into<String>) -> Result<T, RuleError> {
        Err(RuleError::new(self.text, self.at, advice))
    }

    /// Everything up to the first of `stops`.
    fn until(&self, stops: &[char]) -> &'a str {
        let rest = self.rest();
        rest.find(stops).and_then(|end| rest.get(..end)).unwrap_or(rest)
    }

    /// The list of methods before the target, where there is one.
    fn methods(&mut self) -> Result<Vec<Box<str>>, RuleError> {
        let start = self.at;
        let word = self.until(&[' ', '\t']);
        let is_method =
            |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b',' | b'-' | b'_');
        let rest = self.rest().get(word.len()..).unwrap_or("").trim_start();
        if rest.is_empty() && KNOWN_METHODS.contains(&word) {
            self.at += word.len();
            return self.error("write the host after the method, as in GET api.example.com");
        }
        // A host may be written in capitals, too; a rule ends after it or goes on with an option.
        if !word.bytes().all(is_method)
            || !word.starts_with(|c: char| c.is_ascii_uppercase() || c == ',')
            || rest.is_empty()
            || rest == SPECIAL_RANGES
        {
            return Ok(Vec::new());
        }
        let mut methods = Vec::new();
        for method in word.split(',') {
            match method {
                "" => return self.error("write a method here, as in GET,HEAD"),
                "CONNECT" => {
                    return self.error("CONNECT opens tunnels, and a rule without methods decides on those");
                }
                _ => methods.push(method.into()),
            }
            self.at += method.len() + 1;
        }
        self.at = start + word.len();
        self.at += self.rest().len() - self.rest().trim_start().len();
        Ok(methods)
    }

    /// The path behind the target, where there is one.
    fn path(&mut self) -> Result<Option<PathPattern>, RuleError> {
        let word = self.until(&[' ', '\t']);
        if !word.starts_with('/') {
            return Ok(None);
        }
        match PathPattern::parse(word) {
            Ok(path) => {
                self.at += word.len();
                Ok(Some(path))
            }
            Err(BadPattern { offset, advice }) => {
                self.at += offset;
                self.error(advice)
            }
        }
    }

    fn target(&mut self) -> Result<Target, RuleError> {
        if self.take("[") {
            let inside = self.until(&[']']);
            let Ok(address) = inside.parse::<Ipv6Addr>() else {
                return self.error("write an IPv6 address between the brackets");
            };
            self.at += inside.len();
            if !self.take("]") {
                return self.error("close the bracket after the IPv6 address");
            }
            return self.network(address.into());
        }
        let word = self.until(&[' ', '\t', '/']);
        // Two colons and more: IPv6 without brackets, so without a port.
        if word.bytes().filter(|b| *b == b':').count() > 1 {
            let Ok(address) = word.parse::<Ipv6Addr>() else {
                return self.error("write an IPv6 address, in brackets if a port follows");
            };
            self.at += word.len();
            return self.network(address.into());
        }
        let host = self.until(&[' ', '\t', '/', ':']);
        if host == "**" {
            self.at += host.len();
            return Ok(Target::AnyName);
        }
        if host == "*" {
            return self.error("write ** for every name, or *.example.com for the names below one");
        }
        if let Ok(address) = host.parse::<Ipv4Addr>() {
            self.at += host.len();
            return self.network(address.into());
        }
        let wild: fn(HostName) -> Target = if self.take("**.") {
            Target::Descendant
        } else if self.take("*.") {
            Target::Child
        } else if self.take(".") {
            Target::Domain
        } else {
            Target::Exact
        };
        let name = self.until(&[' ', '\t', '/', ':']);
        if let Some(star) = name.find('*') {
            self.at += star;
            return self.error("a star stands only at the start, as in *.example.com or **.example.com");
        }
        if let Some(at) = name.find('@') {
            self.at += at;
            return self.error("a rule has no user name; write only the host");
        }
        let parsed = match name.parse::<HostName>() {
            Ok(parsed) => parsed,
            Err(error) => return self.error(format!("write a host name or an address here: {error}")),
        };
        self.at += name.len();
        Ok(wild(parsed))
    }

    fn network(&mut self, address: IpAddr) -> Result<Target, RuleError> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let mut bits = most;
        if self.take("/") {
            let number = self.until(&[' ', '\t', ':', '/']);
            bits = match number.parse::<u8>() {
                Ok(bits) if bits <= most && !number.starts_with('+') => bits,
                _ => {
                    return self.error(format!(
                        "write the network's length in bits, from 0 to {most}; a path follows a port, as in :443/path"
                    ));
                }
            };
            if truncate(address, bits) != address {
                return self.error(format!(
                    "the address has bits set past /{bits}; write {}/{bits}",
                    truncate(address, bits)
                ));
            }
            self.at += number.len();
        }
        // The form in which targets are compared.
        Ok(Target::Network(match address.to_canonical() {
            IpAddr::V4(v4) if address.is_ipv6() && bits >= 96 => Network::new(v4.into(), bits - 96),
            _ => Network::new(address, bits),
        }))
    }

    fn written_ports(&mut self) -> Result<Option<Ports>, RuleError> {
        if self.take(":") {
            self.ports().map(Some)
        } else {
            Ok(None)
        }
    }

    fn ports(&mut self) -> Result<Ports, RuleError> {
        if self.take("*") {
            return Ok(Ports::ALL);
        }
        let first = self.port()?;
        let last = if self.take("-") { self.port()? } else { first };
        if last < first {
            return self.error("the range ends before it starts; write the smaller port first");
        }
        Ok(Ports { first, last })
    }

    fn port(&mut self) -> Result<u16, RuleError> {
        let rest = self.rest();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        match rest.get(..digits).unwrap_or("").parse() {
            Ok(0) | Err(_) => self.error("write a port from 1 to 65535, a range as in 8000-8999, or *"),
            Ok(port) => {
                self.at += digits;
                Ok(port)
            }
        }
    }

    /// What follows the target; whether special ranges are permitted.
    fn options(&mut self) -> Result<bool, RuleError> {
        let mut special_ranges = false;
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            if self.rest().is_empty() {
                return Ok(special_ranges);
            }
            let word = self.until(&[' ', '\t']);
            if blank == 0 || word != SPECIAL_RANGES {
                return self.error(
                    "only the option special-ranges, after a space, may follow here (methods, in capitals, stand first)",
                );
            }
            special_ranges = true;
            self.at += word.len();
        }
    }

    /// Nothing follows.
    fn end(&self) -> Result<(), RuleError> {
        if self.rest().is_empty() {
            Ok(())
        } else {
            self.error("a target stands alone here; nothing may follow it")
        }
    }
}
