//! Finds the rule that decides on an attempt, without allocating.
//!
//! All rules are put in order once: of those that match, the one of the highest rank decides. A [`Table`] holds
//! the rules about one host pattern or network, so that the best for a port is one look-up; `names` and `networks`
//! find the tables that a target has, which `chains` makes few. So the cost grows with neither the rules there are nor
//! those that match. Rules by method and path are found by the plain text that their paths start with; those of one
//! host that share it are tried one by one.

mod chains;
mod names;
mod networks;
mod ports;
mod table;
mod words;

use std::net::IpAddr;
use std::sync::Arc;

use sandbox_core::host::Host;
use sandbox_core::policy::{RequestLine, Scheme};

use super::parse::{Action, Rule};
use super::pattern::Target;
use crate::defence;
use names::Names;
use networks::Networks;
use table::{Outcome, Search, Table};
use words::Key;

/// One more than the place of a rule in the order of all; 0 is none.
type Rank = u32;

/// A place in some list, or none: one more than the place, or 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Slot(u32);

/// What rules are asked about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'q> {
    pub(super) host: &'q Host,
    pub(super) port: u16,
    pub(super) scheme: Scheme,
    pub(super) request: Option<RequestLine<'q>>,
}

#[derive(Debug)]
pub(super) struct Matcher {
    /// A later rule outranks an earlier one.
    ranked: Box<[Arc<Rule>]>,
    names: Names,
    networks: Networks,
    tables: Box<[Table]>,
}

/// What the rules say about an attempt.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found<'r> {
    /// This rule decides.
    Rule(&'r Rule),
    /// This rule might, depending on the request.
    Inspect(&'r Rule),
    Nothing,
}

impl Matcher {
    pub(super) fn new(rules: &[Arc<Rule>]) -> Self {
        Self::with_key(rules, Key::random())
    }

    /// The same, where the hashes of all names collide.
    #[cfg(test)]
    pub(super) fn colliding(rules: &[Arc<Rule>]) -> Self {
        Self::with_key(rules, Key::WEAK)
    }

    fn with_key(rules: &[Arc<Rule>], key: Key) -> Self {
        let mut ranked = rules.to_vec();
        ranked.sort_by(|one, other| one.rank_against(other));
        Self::of_ranked(ranked, key)
    }

    /// Of rules that are in order already: a later one outranks an earlier one.
    pub(super) fn in_order(rules: Vec<Arc<Rule>>) -> Self {
        Self::of_ranked(rules, Key::random())
    }

    fn of_ranked(ranked: Vec<Arc<Rule>>, key: Key) -> Self {
        let mut names = names::Builder::default();
        let mut networks = networks::Builder::default();
        for (rule, rank) in ranked.iter().zip(1..) {
            match &rule.pattern.target {
                Target::Network(network) => networks.add(*network, rank),
                name => names.add(name, rank),
            }
        }
        let mut tables = Vec::new();
        let mut table = |ranks: &[Rank]| {
            if ranks.is_empty() {
                return Slot::NONE;
            }
            tables.push(Table::new(ranks, &ranked));
            Slot::last(&tables)
        };
        Self {
            names: names.build(key, &mut table),
            networks: networks.build(&mut table),
            tables: tables.into(),
            ranked: ranked.into(),
        }
    }

    /// What the rules say. `asks_otherwise`: where none matches, somebody is asked.
    pub(super) fn find(&self, query: Query<'_>, asks_otherwise: bool) -> Found<'_> {
        let mut search = Search::new(query, &self.ranked);
        self.for_tables(query.host, &mut |table| search.look(table));
        let otherwise = if asks_otherwise {
            Outcome::ASK
        } else {
            Outcome::DENY
        };
        match search.depends_on(otherwise) {
            Some(rank) => self.rule(rank).map_or(Found::Nothing, Found::Inspect),
            None => self.rule(search.best).map_or(Found::Nothing, Found::Rule),
        }
    }

    /// The place in the order of the highest rule that matches. Conditions that hang on a request are not looked at.
    pub(super) fn best(&self, query: Query<'_>) -> Option<usize> {
        let mut search = Search::new(query, &self.ranked);
        self.for_tables(query.host, &mut |table| search.look(table));
        Slot(search.best).place()
    }

    /// The first port, and each at which the answer for a host may differ from that of the port before it.
    pub(super) fn for_ports(&self, host: &Host, visit: &mut dyn FnMut(u16, Scheme)) {
        visit(1, Scheme::Http);
        visit(1, Scheme::Tunnel);
        self.for_tables(host, &mut |table| table.for_ports(visit));
    }

    /// The deny rule that an address falls under, whatever name led there: as for a target given as that address,
    /// whichever scheme. What depends on a request cannot be told here: it counts as if it fitted where it denies, and
    /// not at all where it allows.
    pub(super) fn denies_address(&self, address: IpAddr, port: u16) -> Option<&Rule> {
        let mut best = 0;
        self.networks.find(address, &mut |table| {
            if let Some(table) = table.of(&self.tables) {
                for scheme in [Scheme::Http, Scheme::Tunnel] {
                    best = best.max(table.best_to_deny(port, scheme));
                }
            }
        });
        self.rule(best).filter(|rule| rule.action == Action::Deny)
    }

    fn for_tables<'m>(&'m self, host: &Host, visit: &mut dyn FnMut(&'m Table)) {
        let mut visit = |table: Slot| {
            if let Some(table) = table.of(&self.tables) {
                visit(table);
            }
        };
        match host {
            Host::Name(name) => self.names.find(name, &mut visit),
            Host::Address(address) => self.networks.find(*address, &mut visit),
        }
    }

    fn rule(&self, rank: Rank) -> Option<&Rule> {
        rule(&self.ranked, rank)
    }
}

fn rule(ranked: &[Arc<Rule>], rank: Rank) -> Option<&Rule> {
    let index = usize::try_from(rank).ok()?.checked_sub(1)?;
    ranked.get(index).map(AsRef::as_ref)
}

impl Slot {
    const NONE: Self = Self(0);

    /// The last place.
    fn last<T>(list: &[T]) -> Self {
        list.len().checked_sub(1).into()
    }

    fn place(self) -> Option<usize> {
        (self.0 as usize).checked_sub(1)
    }

    /// What is there.
    fn of<T>(self, list: &[T]) -> Option<&T> {
        self.place().and_then(|at| list.get(at))
    }
}

impl From<Option<usize>> for Slot {
    fn from(place: Option<usize>) -> Self {
        Self(place.and_then(|at| u32::try_from(at + 1).ok()).unwrap_or(0))
    }
}

impl Rule {
    /// A total order on what matters, so that the order of rules never does: level, then action, then text. What
    /// permits special ranges comes last of its kind, where all else is equal.
    fn rank_against(&self, other: &Self) -> std::cmp::Ordering {
        let level = |rule: &Self| {
            if defence::holds("policy-levels") {
                rule.level
            } else {
                0
            }
        };
        let action = |rule: &Self| {
            if defence::holds("deny-beats-allow") {
                rule.action
            } else {
                Action::Allow
            }
        };
        let key = |rule: &Self| (level(rule), action(rule), rule.permits_special_ranges);
        key(self)
            .cmp(&key(other))
            .then_with(|| other.shown.cmp(&self.shown))
    }
}
