//! Finds the rule that decides on an attempt, without allocating.
//!
//! All rules are put in order once: of those that match, the one of the highest rank decides. A [`Table`] holds
//! the rules about one host pattern or network, so that the best for a port is one look-up; `names` and `networks`
//! find the tables that a target has. So the cost grows with the tables that match, not with the rules there are.
//! Rules by method and path of one host are found by the plain text that their paths start with.

mod names;
mod networks;
mod ports;
mod table;

use std::net::IpAddr;
use std::sync::Arc;

use sandbox_core::host::Host;
use sandbox_core::policy::{RequestLine, Scheme};

use super::parse::{Action, Rule, Target};
use crate::defence;
use names::Names;
use networks::Networks;
use table::{Outcome, Search, Table};

/// One more than the place of a rule in the order of all; 0 is none.
type Rank = u32;

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
        let mut ranked = rules.to_vec();
        ranked.sort_by(|one, other| one.rank_against(other));
        let mut names = Names::default();
        let mut networks = networks::Builder::default();
        let mut members: Vec<Vec<Rank>> = Vec::new();
        for (rule, rank) in ranked.iter().zip(1..) {
            let new = members.len();
            let table = match &rule.target {
                Target::Network(network) => networks.table(*network, new),
                name => names.table(name, new),
            };
            if table == new {
                members.push(Vec::new());
            }
            if let Some(members) = members.get_mut(table) {
                members.push(rank);
            }
        }
        let tables = members.iter().map(|ranks| Table::new(ranks, &ranked)).collect();
        Self {
            ranked: ranked.into(),
            names,
            networks: networks.build(),
            tables,
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
            if let Some(table) = self.tables.get(table) {
                for scheme in [Scheme::Http, Scheme::Tunnel] {
                    best = best.max(table.best_to_deny(port, scheme));
                }
            }
        });
        self.rule(best).filter(|rule| rule.action == Action::Deny)
    }

    fn for_tables<'m>(&'m self, host: &Host, visit: &mut dyn FnMut(&'m Table)) {
        let mut visit = |table: usize| {
            if let Some(table) = self.tables.get(table) {
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
