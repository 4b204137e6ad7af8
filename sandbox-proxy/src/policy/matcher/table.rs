//! The rules about one host pattern or network, and the search through several such tables.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use sandbox_core::policy::{RequestLine, Scheme};

use super::ports::Ports;
use super::{Query, Rank, rule};
use crate::defence::holds;
use crate::policy::parse::{Action, Rule};
use crate::policy::path::Forms;
use crate::policy::pattern::Condition;

#[derive(Debug)]
pub(super) struct Table {
    /// Of the rules without method and path, by scheme.
    plain: [Ports; 2],
    conditional: Option<Box<Conditional>>,
}

/// Rules with a method or path.
#[derive(Debug)]
struct Conditional {
    /// By what they would do, and by scheme: whether a request must be looked at.
    outcomes: [[Ports; 2]; Outcome::COUNT],
    /// By the plain text that their paths start with; the highest rank first.
    by_start: FxHashMap<Arc<str>, Box<[Rank]>>,
    /// Of those starts, in segments.
    depths: Box<[usize]>,
    /// Those that deny or ask by path, which an unclear path falls under; the highest rank first.
    broad: Box<[Rank]>,
    reads_paths: bool,
}

/// What a rule does to an attempt that it decides on. Rules of the same outcome need not be told apart before
/// there is a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome(usize);

impl Outcome {
    const COUNT: usize = 5;
    pub(super) const DENY: Self = Self(0);
    pub(super) const ASK: Self = Self(1);
    const ALLOW: Self = Self(3);

    fn of(rule: &Rule) -> Self {
        let special = usize::from(rule.permits_special_ranges);
        match rule.action {
            Action::Deny => Self::DENY,
            Action::Ask => Self(Self::ASK.0 + special),
            Action::Allow => Self(Self::ALLOW.0 + special),
        }
    }
}

fn index(scheme: Scheme) -> usize {
    match scheme {
        Scheme::Http => 0,
        Scheme::Tunnel => 1,
    }
}

/// The ports of some rules, by scheme.
fn ports<'r>(rules: impl Iterator<Item = (Rank, &'r Rule)> + Clone) -> [Ports; 2] {
    [Scheme::Http, Scheme::Tunnel].map(|scheme| {
        let ranges = rules
            .clone()
            .filter(|(_, rule)| rule.pattern.scheme.is_none_or(|only| only == scheme))
            .map(|(rank, rule)| (rule.pattern.ports.first, rule.pattern.ports.last, rank));
        Ports::new(ranges.collect())
    })
}

impl Table {
    /// From its rules' ranks, the lowest first.
    pub(super) fn new(members: &[Rank], ranked: &[Arc<Rule>]) -> Self {
        let rules = || {
            members
                .iter()
                .filter_map(|rank| Some((*rank, rule(ranked, *rank)?)))
        };
        let conditional: Vec<_> = rules()
            .filter(|(_, rule)| rule.pattern.condition.is_some())
            .collect();
        Self {
            plain: ports(rules().filter(|(_, rule)| rule.pattern.condition.is_none())),
            conditional: (!conditional.is_empty()).then(|| Box::new(Conditional::new(&conditional))),
        }
    }

    /// The highest rank for a port among rules without a condition and those that deny, whatever the request.
    pub(super) fn best_to_deny(&self, port: u16, scheme: Scheme) -> Rank {
        let at = |ports: &[Ports; 2]| ports.get(index(scheme)).map_or(0, |ports| ports.at(port));
        let plain = at(&self.plain);
        let Some(conditional) = &self.conditional else {
            return plain;
        };
        let counts =
            |outcome: usize| Outcome(outcome) == Outcome::DENY || !holds("deny-rules-without-request");
        let outcomes = conditional.outcomes.iter().enumerate();
        outcomes
            .filter(|(outcome, _)| counts(*outcome))
            .map(|(_, ports)| at(ports))
            .fold(plain, Rank::max)
    }

    /// Each port at which something begins or ends.
    pub(super) fn for_ports(&self, visit: &mut dyn FnMut(u16, Scheme)) {
        let conditional = self
            .conditional
            .iter()
            .flat_map(|conditional| &conditional.outcomes);
        for by_scheme in std::iter::once(&self.plain).chain(conditional) {
            for (ports, scheme) in by_scheme.iter().zip([Scheme::Http, Scheme::Tunnel]) {
                ports.starts().for_each(|port| visit(port, scheme));
            }
        }
    }
}

impl Conditional {
    fn new(rules: &[(Rank, &Rule)]) -> Self {
        let mut by_start: FxHashMap<Arc<str>, Vec<Rank>> = FxHashMap::default();
        let mut depths = Vec::new();
        let (mut broad, mut reads_paths) = (Vec::new(), false);
        for (rank, rule) in rules.iter().rev() {
            let path = rule
                .pattern
                .condition
                .as_ref()
                .and_then(|condition| condition.path.as_ref());
            let (depth, start) = path.map(|path| path.key.clone()).unwrap_or_default();
            by_start.entry(start).or_default().push(*rank);
            depths.push(depth);
            reads_paths |= path.is_some();
            if path.is_some() && rule.action != Action::Allow {
                broad.push(*rank);
            }
        }
        depths.sort_unstable();
        depths.dedup();
        let outcomes = std::array::from_fn(|outcome| {
            ports(
                rules
                    .iter()
                    .copied()
                    .filter(|(_, rule)| Outcome::of(rule) == Outcome(outcome)),
            )
        });
        Self {
            outcomes,
            by_start: by_start
                .into_iter()
                .map(|(start, ranks)| (start, ranks.into()))
                .collect(),
            depths: depths.into(),
            broad: broad.into(),
            reads_paths,
        }
    }
}

/// A search for the rule that decides on one attempt.
pub(super) struct Search<'s> {
    query: Query<'s>,
    ranked: &'s [Arc<Rule>],
    /// The highest rank found so far that matches.
    pub(super) best: Rank,
    /// The highest ranks of those that might match, by what they would do.
    possible: [Rank; Outcome::COUNT],
    path: Path,
}

/// The request's path, once a rule wants to see it.
#[expect(
    clippy::large_enum_variant,
    reason = "a decision takes it from the stack, and most never write it"
)]
enum Path {
    Unread,
    Unclear,
    Clear(Forms),
}

impl<'s> Search<'s> {
    pub(super) fn new(query: Query<'s>, ranked: &'s [Arc<Rule>]) -> Self {
        Self {
            query,
            ranked,
            best: 0,
            possible: [0; Outcome::COUNT],
            path: Path::Unread,
        }
    }

    pub(super) fn look(&mut self, table: &Table) {
        let (scheme, port) = (index(self.query.scheme), self.query.port);
        let plain = table.plain.get(scheme).map_or(0, |ports| ports.at(port));
        self.best = self.best.max(plain);
        let Some(conditional) = table.conditional.as_deref() else {
            return;
        };
        let mut highest = 0;
        let by_outcome = conditional.outcomes.iter().filter_map(|ports| ports.get(scheme));
        for (possible, ports) in self.possible.iter_mut().zip(by_outcome) {
            let rank = ports.at(port);
            *possible = rank.max(*possible);
            highest = rank.max(highest);
        }
        if let Some(line) = self.query.request
            && highest > self.best
        {
            self.look_at_request(conditional, line);
        }
    }

    fn look_at_request(&mut self, conditional: &Conditional, line: RequestLine<'_>) {
        if conditional.reads_paths && matches!(self.path, Path::Unread) {
            self.path = Forms::of(line.path).map_or(Path::Unclear, Path::Clear);
        }
        let forms = match &self.path {
            Path::Clear(forms) => Some(forms),
            Path::Unread | Path::Unclear => None,
        };
        let (query, ranked, best) = (self.query, self.ranked, &mut self.best);
        let mut look = |ranks: &[Rank]| {
            for &rank in ranks.iter().take_while(|rank| **rank > *best) {
                let fits = |rule: &Rule, condition: &Condition| {
                    rule.pattern.covers(query.port, query.scheme) && condition.fits(rule.action, line, forms)
                };
                if let Some(rule) = rule(ranked, rank)
                    && let Some(condition) = &rule.pattern.condition
                    && fits(rule, condition)
                {
                    *best = rank;
                    return;
                }
            }
        };
        match forms {
            Some(forms) => forms.for_starts(&conditional.depths, &mut |start| {
                if let Some(ranks) = conditional.by_start.get(start) {
                    look(ranks);
                }
            }),
            None => {
                if let Some(ranks) = conditional.by_start.get("") {
                    look(ranks);
                }
                look(&conditional.broad);
            }
        }
    }

    /// Where the answer depends on a request that is not known yet: the highest rank of the rules that it depends
    /// on. `otherwise` is what happens where nothing matches.
    pub(super) fn depends_on(&self, otherwise: Outcome) -> Option<Rank> {
        if self.query.request.is_some() {
            return None;
        }
        let outcome = rule(self.ranked, self.best).map_or(otherwise, Outcome::of);
        let others = self.possible.iter().enumerate();
        others
            .filter(|(at, rank)| **rank > self.best && Outcome(*at) != outcome)
            .map(|(_, rank)| *rank)
            .max()
    }
}
