//! Names and networks are trees: a rule about one may be about all below it. So tables of up to 129 levels can be about
//! one target; they are joined here, so that few are left to look at.
//!
//! From each node a path leads on to the largest branch below it; the other branches begin paths of their own. The n-th
//! node of a path takes in those before it, as many as the lowest bit of n says, and a search goes on above them. Of a
//! path of 127 it looks at 7, and no rule is in more than 8 tables. However the tree branches, a search meets few
//! paths: each that it leaves goes on to at least as much as the search does. So of 10,000 rules it looks at 45 tables
//! at the very most.

use super::Rank;

/// A node of the tree, before and after.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Its own rules; then also those of the nodes that it takes in.
    pub(super) ranks: Vec<Rank>,
    /// The node right above, which comes before it; then the one above all that are taken in.
    pub(super) above: Option<usize>,
}

pub(super) fn join(tree: &[Link]) -> Vec<Link> {
    let joined = places(tree).into_iter().enumerate().map(|(at, place)| {
        let lowest_bit = place & place.wrapping_neg();
        let mut joined = Link {
            ranks: Vec::new(),
            above: Some(at),
        };
        for _ in 0..lowest_bit {
            if let Some(link) = joined.above.and_then(|at| tree.get(at)) {
                joined.ranks.extend_from_slice(&link.ranks);
                joined.above = link.above;
            }
        }
        joined.ranks.sort_unstable();
        joined
    });
    joined.collect()
}

/// The place of each node on its path, from 1.
fn places(tree: &[Link]) -> Vec<usize> {
    #[derive(Clone)]
    struct Branch {
        nodes: usize,
        /// The largest below: its nodes, and the first of them.
        largest: (usize, usize),
    }
    let mut branches = vec![
        Branch {
            nodes: 1,
            largest: (0, 0),
        };
        tree.len()
    ];
    for (at, link) in tree.iter().enumerate().rev() {
        let nodes = branches.get(at).map_or(0, |branch| branch.nodes);
        if let Some(above) = link.above.and_then(|above| branches.get_mut(above)) {
            above.nodes += nodes;
            above.largest = above.largest.max((nodes, at));
        }
    }
    let mut places = vec![1; tree.len()];
    for (at, branch) in branches.iter().enumerate() {
        let place = places.get(at).map_or(0, |place| *place);
        if let (1.., first) = branch.largest
            && let Some(next) = places.get_mut(first)
        {
            *next = place + 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The ranks that a search from a node meets, and in how many tables.
    fn search(tree: &[Link], mut at: Option<usize>) -> (Vec<Rank>, usize) {
        let (mut found, mut looks) = (Vec::new(), 0);
        while let Some(link) = at.map(|at| &tree[at]) {
            found.extend(&link.ranks);
            at = link.above;
            looks += 1;
        }
        found.sort_unstable();
        (found, looks)
    }

    /// In how many tables a rule is at most.
    fn most_tables(joined: &[Link]) -> usize {
        let mut ranks: Vec<_> = joined.iter().flat_map(|link| &link.ranks).collect();
        ranks.sort_unstable();
        let tables = ranks.chunk_by(|one, other| one == other).map(<[_]>::len);
        tables.max().unwrap_or(0)
    }

    /// A tree from what each node hangs on; each has one rule.
    fn tree(above: impl Iterator<Item = Option<usize>>) -> Vec<Link> {
        let links = above.zip(1..).map(|(above, rank)| Link {
            ranks: vec![rank],
            above,
        });
        links.collect()
    }

    proptest! {
        #[test]
        fn search_meets_each_rule_above_once(above in proptest::collection::vec((0..100usize, 0..4usize), 0..100)) {
            // Three of four hang on one of the last, so that there are long paths and branches.
            let above = above.into_iter().enumerate().map(|(at, (any, back))| match back {
                0 => (any < at).then_some(any),
                back => at.checked_sub(back),
            });
            let tree = tree(above);
            let joined = join(&tree);
            for at in 0..tree.len() {
                prop_assert_eq!(search(&joined, Some(at)).0, search(&tree, Some(at)).0);
            }
            prop_assert!(most_tables(&joined) <= 8);
        }
    }

    #[test]
    fn deepest_path_is_a_few_looks_and_no_rule_is_in_many_tables() {
        let tree = tree((0..129usize).map(|at| at.checked_sub(1)));
        let joined = join(&tree);
        assert_eq!((0..129).map(|at| search(&joined, Some(at)).1).max(), Some(7));
        assert_eq!(most_tables(&joined), 8);
    }

    /// Each path is left after seven nodes, where that costs most.
    #[test]
    fn whatever_the_branches_a_search_is_a_few_looks() {
        // Of node n of 7 in a row, the last has the first of two more rows below it.
        let tree = tree((0..10_000usize).map(|at| match (at / 7, at % 7) {
            (0, 0) => None,
            (row, 0) => Some((row - 1) / 2 * 7 + 6),
            _ => Some(at - 1),
        }));
        let joined = join(&tree);
        let most = (0..tree.len()).map(|at| search(&joined, Some(at)).1).max();
        assert!(most > Some(20) && most <= Some(45), "{most:?}");
        assert!(most_tables(&joined) <= 8);
    }
}
