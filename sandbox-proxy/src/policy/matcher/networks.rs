//! Finds the tables about an address: networks in order, each with the one that encloses it.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::policy::network::Network;

#[derive(Debug, Default)]
pub(super) struct Builder {
    tables: HashMap<Network, usize>,
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
    table: usize,
    /// Place of the narrowest network around this one.
    parent: Option<usize>,
}

impl Builder {
    /// The table for a network; the new one where it has none yet.
    pub(super) fn table(&mut self, network: Network, new: usize) -> usize {
        *self.tables.entry(network).or_insert(new)
    }

    pub(super) fn build(self) -> Networks {
        let (v4, v6) = self
            .tables
            .into_iter()
            .partition(|(network, _)| network.is_ipv4());
        Networks {
            v4: Nested::new(v4),
            v6: Nested::new(v6),
        }
    }
}

impl Networks {
    /// Visits every table about an address.
    pub(super) fn find(&self, address: IpAddr, visit: &mut dyn FnMut(usize)) {
        let (nested, address) = match address.to_canonical() {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        // The last network that starts before the address: if it does not hold it, one around it may.
        let after = nested.0.partition_point(|range| range.first <= address);
        let mut at = after.checked_sub(1);
        while let Some(range) = at.and_then(|at| nested.0.get(at)) {
            if address <= range.last {
                visit(range.table);
            }
            at = range.parent;
        }
    }
}

impl Nested {
    fn new(tables: Vec<(Network, usize)>) -> Self {
        let mut ranges: Vec<Range> = tables
            .into_iter()
            .map(|(network, table)| {
                let (first, last) = network.ends();
                Range {
                    first,
                    last,
                    table,
                    parent: None,
                }
            })
            .collect();
        ranges.sort_unstable_by_key(|range| (range.first, std::cmp::Reverse(range.last)));
        let mut around: Vec<(usize, u128)> = Vec::new();
        for (at, range) in ranges.iter_mut().enumerate() {
            while around.pop_if(|(_, last)| *last < range.first).is_some() {}
            range.parent = around.last().map(|(parent, _)| *parent);
            around.push((at, range.last));
        }
        Self(ranges.into())
    }
}
