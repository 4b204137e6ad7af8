//! For each port, the highest rank among ranges of ports.

use std::collections::BinaryHeap;

use super::Rank;
use crate::defence::holds;

/// Ranges of ports, each with the highest rank in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports {
    /// Where each range starts; it ends where the next one does. Before the first there is no rank.
    steps: Box<[(u16, Rank)]>,
}

impl Ports {
    /// From ranges of first and last port.
    pub(super) fn new(mut ranges: Vec<(u16, u16, Rank)>) -> Self {
        ranges.sort_unstable();
        let mut starts: Vec<u16> = ranges
            .iter()
            .flat_map(|&(first, last, _)| [Some(first), last.checked_add(1)])
            .flatten()
            .collect();
        starts.sort_unstable();
        starts.dedup();
        let mut coming = ranges.into_iter().peekable();
        // Those that have begun, the highest rank first; ended ones are thrown out when they come up.
        let mut open = BinaryHeap::new();
        let mut steps: Vec<(u16, Rank)> = Vec::new();
        for start in starts {
            while let Some((_, last, rank)) = coming.next_if(|&(first, ..)| first <= start) {
                open.push((rank, last));
            }
            while open
                .peek()
                .is_some_and(|&(_, last)| last < start && holds("port-range-end"))
            {
                open.pop();
            }
            let rank = open.peek().map_or(0, |&(rank, _)| rank);
            if steps.last().map_or(0, |&(_, before)| before) != rank {
                steps.push((start, rank));
            }
        }
        Self { steps: steps.into() }
    }

    /// The highest rank at a port, 0 if there is none.
    pub(super) fn at(&self, port: u16) -> Rank {
        // Nearly always there is one range.
        if let [(start, rank)] | [(start, rank), (_, 0)] = *self.steps
            && self.steps.get(1).is_none_or(|&(end, _)| port < end)
        {
            return if port >= start { rank } else { 0 };
        }
        let after = self.steps.partition_point(|&(start, _)| start <= port);
        let step = after.checked_sub(1).and_then(|at| self.steps.get(at));
        step.map_or(0, |&(_, rank)| rank)
    }

    /// Where ranges start.
    pub(super) fn starts(&self) -> impl Iterator<Item = u16> {
        self.steps.iter().map(|&(start, _)| start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_port_has_the_highest_rank_that_covers_it(
            ranges in proptest::collection::vec((0..40u16, 0..40u16, 1..50u32), 0..8),
            odd in prop_oneof![0..50u16, 65500..=65535u16],
        ) {
            let mut ranges: Vec<_> = ranges.into_iter().map(|(a, b, rank)| (a.min(b), a.max(b), rank)).collect();
            ranges.push((65530, 65535, 7));
            let ports = Ports::new(ranges.clone());
            for port in (0..50).chain([odd]) {
                let covers = ranges.iter().filter(|(first, last, _)| (first..=last).contains(&&port));
                let wanted = covers.map(|&(.., rank)| rank).max().unwrap_or(0);
                prop_assert_eq!(ports.at(port), wanted, "{}", port);
            }
        }
    }
}
