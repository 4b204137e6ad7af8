//! What a rule is about: hosts, ports, what is spoken there, and which requests. The policy has rules with such a
//! pattern; services have them for their credentials, and the host's own proxy for its exceptions.

use std::fmt;
use std::sync::Arc;

use sandbox_core::host::{Host, HostName};
use sandbox_core::policy::{RequestLine, Scheme};

use super::matcher::{Matcher, Query};
use super::network::Network;
use super::parse::{self, Action, Rule, RuleError};
use super::path::{Forms, PathPattern};
use crate::defence;

/// Attempts that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) target: Target,
    pub(crate) ports: Ports,
    /// `None`: whatever is spoken there.
    pub(crate) scheme: Option<Scheme>,
    /// Which requests it is about, where not all.
    pub(super) condition: Option<Condition>,
}

/// Which hosts a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    AnyName,
    Exact(HostName),
    /// Names one label below.
    Child(HostName),
    /// Names any number of labels below.
    Descendant(HostName),
    /// A name and all names below.
    Domain(HostName),
    Network(Network),
}

/// A range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

/// What a rule wants of a request. Known only where the stream is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// One of these; none for any.
    pub(super) methods: Box<[Box<str>]>,
    pub(super) path: Option<PathPattern>,
}

/// A request as conditions look at it: its path is read once.
pub(crate) struct Seen<'r> {
    line: RequestLine<'r>,
    /// `None`: unclear.
    forms: Option<Forms>,
}

/// Patterns of which the last that matches counts, found by the matcher of rules.
#[derive(Debug)]
pub(crate) struct Patterns(Matcher);

impl Pattern {
    /// Parses a target, as what follows the action in a rule that allows: no port means 443, or 80 after `http://`.
    pub(crate) fn parse(text: &str) -> Result<Self, RuleError> {
        parse::pattern(text)
    }

    /// Every attempt at the hosts of a target, at one port or all.
    pub(crate) fn whole(target: Target, port: Option<u16>) -> Self {
        Self {
            target,
            ports: port.map_or(Ports::ALL, Ports::one),
            scheme: None,
            condition: None,
        }
    }

    /// Whether port and scheme match; the target is the matcher's business.
    pub(crate) fn covers(&self, port: u16, scheme: Scheme) -> bool {
        self.ports.hold(port) && self.scheme.is_none_or(|only| only == scheme)
    }

    pub(crate) fn has_condition(&self) -> bool {
        self.condition.is_some()
    }

    /// Whether it is about some methods only.
    pub(crate) fn has_methods(&self) -> bool {
        self.condition
            .as_ref()
            .is_some_and(|condition| !condition.methods.is_empty())
    }

    /// The same requests at hosts, and where they are said at ports, of one's own.
    pub(crate) fn move_to(&mut self, target: Target, ports: Option<Ports>) {
        self.target = target;
        if let Some(ports) = ports {
            self.ports = ports;
            if self.scheme != Some(Scheme::Http) {
                self.scheme = ports.scheme();
            }
        }
    }

    /// Whether it is about a request to one of its targets: as a rule that allows sees it, which wants every reading of
    /// the path to fit.
    pub(crate) fn has(&self, seen: &Seen<'_>) -> bool {
        self.fits(Action::Allow, seen)
    }

    /// The same as a rule that denies sees it: whether some server might take the request for one of these. Of an
    /// unclear path nobody can say, so it might.
    pub(crate) fn might_have(&self, seen: &Seen<'_>) -> bool {
        self.fits(Action::Deny, seen)
    }

    fn fits(&self, action: Action, seen: &Seen<'_>) -> bool {
        self.condition
            .as_ref()
            .is_none_or(|condition| condition.fits(action, seen.line, seen.forms.as_ref()))
    }
}

impl Target {
    /// How much it narrows down: more for a longer name, then for fewer of the names below it.
    pub(crate) fn rank(&self) -> (usize, u8) {
        let labels = |name: &HostName| name.as_str().split('.').count();
        match self {
            Self::AnyName => (0, 0),
            Self::Exact(_) => (usize::MAX, 0),
            Self::Child(base) => (labels(base), 3),
            Self::Descendant(base) => (labels(base), 2),
            Self::Domain(base) => (labels(base), 1),
            Self::Network(network) => (network.bits().into(), 0),
        }
    }
}

impl Ports {
    pub(crate) const ALL: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    pub(crate) const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    pub(crate) fn hold(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// What is spoken there where nothing else is said: a port is no licence for clear text on the one of TLS.
    pub(super) fn scheme(self) -> Option<Scheme> {
        (self == Self::one(443)).then_some(Scheme::Tunnel)
    }

    /// Whether a port is in both.
    pub(crate) fn meet(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl Condition {
    /// Whether a rule of this action is about a request; without `forms` its path is unclear. What allows is taken
    /// by the word. What denies or asks is not got around by another case, which methods do not have (RFC 9110 §9.1)
    /// but some servers ignore.
    pub(super) fn fits(&self, action: Action, line: RequestLine<'_>, forms: Option<&Forms>) -> bool {
        let strictly = action == Action::Allow;
        let fits_method = |method: &str| {
            method == line.method
                || (!strictly
                    && method.eq_ignore_ascii_case(line.method)
                    && defence::holds("method-case-of-deny"))
        };
        let fits_path = |path: &PathPattern| match forms {
            Some(forms) => path.fits(forms, strictly),
            None => !strictly && defence::holds("unclear-path"),
        };
        (self.methods.is_empty() || self.methods.iter().any(|method| fits_method(method)))
            && self.path.as_ref().is_none_or(fits_path)
    }
}

impl<'r> Seen<'r> {
    pub(crate) fn new(line: RequestLine<'r>) -> Self {
        Self {
            forms: Forms::of(line.path),
            line,
        }
    }

    /// Whether all servers read the path alike, but for what they make of escapes, case and parameters.
    pub(crate) fn is_clear(&self) -> bool {
        self.forms.is_some()
    }
}

impl Patterns {
    /// Conditions are left out: they are their owner's business.
    pub(crate) fn new<'p>(patterns: impl IntoIterator<Item = &'p Pattern>) -> Self {
        let rules = patterns.into_iter().map(|pattern| {
            let pattern = Pattern {
                condition: None,
                ..pattern.clone()
            };
            Arc::new(Rule::about(pattern))
        });
        Self(Matcher::in_order(rules.collect()))
    }

    /// The place of the last that is about an attempt.
    pub(crate) fn last(&self, host: &Host, port: u16, scheme: Scheme) -> Option<usize> {
        let query = Query {
            host,
            port,
            scheme,
            request: None,
        };
        self.0.best(query)
    }

    /// The places of those that decide on some port of a host, the last first.
    pub(crate) fn at_any_port(&self, host: &Host) -> Vec<usize> {
        let mut places = Vec::new();
        self.0.for_ports(host, &mut |port, scheme| {
            places.extend(self.last(host, port.max(1), scheme));
        });
        places.sort_unstable_by(|one, other| other.cmp(one));
        places.dedup();
        places
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.target, self.ports)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyName => f.write_str("**"),
            Self::Exact(name) => name.fmt(f),
            Self::Child(base) => write!(f, "*.{base}"),
            Self::Descendant(base) => write!(f, "**.{base}"),
            Self::Domain(base) => write!(f, ".{base}"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (1, u16::MAX) => f.write_str("*"),
            (first, last) if first == last => first.fmt(f),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}
