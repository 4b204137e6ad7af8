//! Finds the tables about an address: networks in order, each with the one that encloses it.

use std::collections::HashMap;
use std::net::IpAddr;

use super::chains::{Link, join};
use super::{Rank, Slot};
use crate::policy::network::Network;

#[derive(Debug, Default)]
pub(super) struct Builder {
    networks: HashMap<Network, Vec<Rank>>,
}

/// Networks of both families. IPv4 and IPv6 never mix.
#[derive(Debug)]
pub(super) struct Networks {
    v4: Nested,
    v6: Nested,
}

/// Sorted by first address, an enclosing network before those in it.
#[derive(Debug, Default)]
struct Nested(Box<[Range]>);

#[derive(Debug)]
struct Range {
    first: u128,
    last: u128,
    table: Slot,
    /// Where the search goes on.
    above: Slot,
    /// The narrowest network around this one.
    around: Slot,
}

impl Builder {
    /// Adds a rule, after all of lower ranks.
    pub(super) fn add(&mut self, network: Network, rank: Rank) {
        self.networks.entry(network).or_default().push(rank);
    }

    /// `table` makes a table of some rules.
    pub(super) fn build(self, table: &mut dyn FnMut(&[Rank]) -> Slot) -> Networks {
        let (v4, v6) = self
            .networks
            .into_iter()
            .partition(|(network, _)| network.is_ipv4());
        Networks {
            v4: Nested::new(v4, table),
            v6: Nested::new(v6, table),
        }
    }
}

impl Networks {
    /// Visits every table about an address.
    pub(super) fn find(&self, address: IpAddr, visit: &mut dyn FnMut(Slot)) {
        let (Nested(ranges), address) = match address.to_canonical() {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        // The last network that starts before the address: if it does not hold it, one around it may.
        let after = ranges.partition_point(|range| range.first <= address);
        let mut at: Slot = after.checked_sub(1).into();
        while let Some(range) = at.of(ranges)
            && address > range.last
        {
            at = range.around;
        }
        while let Some(range) = at.of(ranges) {
            visit(range.table);
            at = range.above;
        }
    }
}

impl Nested {
    fn new(mut networks: Vec<(Network, Vec<Rank>)>, table: &mut dyn FnMut(&[Rank]) -> Slot) -> Self {
        networks.sort_unstable_by_key(|(network, _)| {
            let (first, last) = network.ends();
            (first, std::cmp::Reverse(last))
        });
        let mut tree: Vec<Link> = Vec::with_capacity(networks.len());
        let mut around: Vec<(usize, u128)> = Vec::new();
        for (at, (network, ranks)) in networks.iter_mut().enumerate() {
            let (first, last) = network.ends();
            while around.pop_if(|(_, last)| *last < first).is_some() {}
            tree.push(Link {
                ranks: std::mem::take(ranks),
                above: around.last().map(|(parent, _)| *parent),
            });
            around.push((at, last));
        }
        let ranges = networks.iter().zip(&tree).zip(join(&tree));
        let ranges = ranges.map(|(((network, _), own), joined)| {
            let (first, last) = network.ends();
            Range {
                first,
                last,
                table: table(&joined.ranks),
                above: joined.above.into(),
                around: own.above.into(),
            }
        });
        Self(ranges.collect())
    }
}
