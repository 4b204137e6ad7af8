//! Finds the rule that decides on a target, without allocating.
//!
//! Names are found through their parents (at most 126 look-ups, one per label), addresses through the prefix
//! lengths that occur. So the cost grows with the rules that match, not with those there are.

use std::collections::HashMap;
use std::net::IpAddr;

use sandbox_core::host::Host;
use sandbox_core::policy::Scheme;

use super::parse::{Action, Network, Rule, Target, parents};

#[derive(Debug, Clone, Default)]
pub(super) struct Matcher {
    rules: Vec<Rule>,
    any_name: Vec<usize>,
    exact: HashMap<Box<str>, Vec<usize>>,
    child: HashMap<Box<str>, Vec<usize>>,
    descendant: HashMap<Box<str>, Vec<usize>>,
    networks: HashMap<Network, Vec<usize>>,
    /// Prefix lengths in use, by family.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
}

impl Matcher {
    pub(super) fn insert(&mut self, rule: Rule) {
        let index = self.rules.len();
        match &rule.target {
            Target::AnyName => self.any_name.push(index),
            Target::Exact(name) => self.exact.entry(name.as_str().into()).or_default().push(index),
            Target::Child(name) => self.child.entry(name.as_str().into()).or_default().push(index),
            Target::Descendant(name) => self
                .descendant
                .entry(name.as_str().into())
                .or_default()
                .push(index),
            Target::Network(network) => {
                let lengths = if network.is_ipv4() {
                    &mut self.lengths_v4
                } else {
                    &mut self.lengths_v6
                };
                if !lengths.contains(&network.bits()) {
                    lengths.push(network.bits());
                }
                self.networks.entry(*network).or_default().push(index);
            }
        }
        self.rules.push(rule);
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule that decides: of the highest level, and there of the most severe action.
    pub(super) fn find(&self, host: &Host, port: u16, scheme: Scheme) -> Option<&Rule> {
        let mut best: Option<&Rule> = None;
        self.visit(host, &mut |rule| {
            if rule.covers(port, scheme) && best.is_none_or(|b| rule.outranks(b)) {
                best = Some(rule);
            }
        });
        best
    }

    /// For look-ups: the rule that lets something at this host through on some port, and the one that denies all of
    /// its ports. The first is `None` where the second outranks it.
    pub(super) fn find_on_any_port(&self, host: &Host) -> (Option<&Rule>, Option<&Rule>) {
        let (mut yes, mut no): (Option<&Rule>, Option<&Rule>) = (None, None);
        self.visit(host, &mut |rule| {
            let best = match rule.action {
                Action::Allow | Action::Ask => &mut yes,
                Action::Deny if rule.covers_all_ports() => &mut no,
                Action::Deny => return,
            };
            if best.is_none_or(|b| rule.outranks(b)) {
                *best = Some(rule);
            }
        });
        if let (Some(rule), Some(deny)) = (yes, no)
            && deny.outranks(rule)
        {
            yes = None;
        }
        (yes, no)
    }

    /// Calls back for every rule about this host, whatever its port and scheme.
    fn visit<'m>(&'m self, host: &Host, take: &mut dyn FnMut(&'m Rule)) {
        let mut consider = |indices: Option<&'m Vec<usize>>| {
            indices
                .into_iter()
                .flatten()
                .filter_map(|index| self.rules.get(*index))
                .for_each(&mut *take);
        };
        match host {
            Host::Name(name) => {
                consider(Some(&self.any_name));
                consider(self.exact.get(name.as_str()));
                for (depth, parent) in parents(host).enumerate() {
                    if depth == 0 {
                        consider(self.child.get(parent));
                    }
                    consider(self.descendant.get(parent));
                }
            }
            Host::Address(address) => self.networks_of(*address).for_each(|found| consider(Some(found))),
        }
    }

    /// The deny rule that an address falls under, whatever name led there.
    pub(super) fn denies_address(&self, address: IpAddr, port: u16) -> Option<&Rule> {
        self.networks_of(address.to_canonical())
            .flatten()
            .filter_map(|index| self.rules.get(*index))
            .find(|rule| rule.action == Action::Deny && (rule.first_port..=rule.last_port).contains(&port))
    }

    fn networks_of(&self, address: IpAddr) -> impl Iterator<Item = &Vec<usize>> {
        let lengths = if address.is_ipv4() {
            &self.lengths_v4
        } else {
            &self.lengths_v6
        };
        lengths
            .iter()
            .filter_map(move |bits| self.networks.get(&Network::around(address, *bits)))
    }
}

impl Rule {
    /// A total order on what matters, so that the order of rules never does: text breaks ties, permission of
    /// special ranges is given only where all else is equal.
    fn outranks(&self, other: &Rule) -> bool {
        let key = |rule: &Rule| (rule.level, rule.action, rule.permits_special_ranges());
        key(self)
            .cmp(&key(other))
            .then_with(|| other.text.cmp(&self.text))
            .is_gt()
    }
}
