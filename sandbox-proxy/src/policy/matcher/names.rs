//! Finds the tables about a name: a tree of its [`words`](super::words), walked from the last label to the first.
//!
//! The tree lies in one hash table, each node where the hash of all words up to it says: so no step waits for what the
//! step before has read. A node is the right one if its word is, and the node above; hashes alone decide nothing.
//!
//! A word takes 24 to 48 bytes, once for all names with the same end. 10,000 rules about names of four labels take less
//! than 3 MiB with all their tables; as many about names of 120 labels that share none, 33 MiB.

use sandbox_core::host::HostName;

use super::chains::{Link, join};
use super::words::{Key, Words, ends_label};
use super::{Rank, Slot};
use crate::defence;
use crate::policy::pattern::Target;

#[derive(Debug)]
pub(super) struct Names {
    key: Key,
    /// Their number is a power of two; at least a third are free.
    nodes: Box<[Node]>,
    mentioned: Box<[Mentioned]>,
    zones: Box<[Zone]>,
    /// About every name.
    any: Slot,
}

/// The end of a mentioned name, or all of it; free where the word is 0.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    word: u64,
    above: Slot,
    mentioned: Slot,
}

/// What rules say where they mention a name.
#[derive(Debug)]
struct Mentioned {
    exact: Slot,
    /// About names one label below.
    child: Slot,
    /// The name's own if it has one, or the next above.
    zone: Slot,
}

/// What rules say about all names below one.
#[derive(Debug)]
struct Zone {
    table: Slot,
    /// Where the search goes on.
    above: Slot,
}

#[derive(Debug, Default)]
pub(super) struct Builder<'r> {
    rules: Vec<RuleOfName<'r>>,
    any: Vec<Rank>,
}

/// Ordered so that a name comes right before all below it.
#[derive(Debug)]
struct RuleOfName<'r> {
    words: Box<[u64]>,
    rank: Rank,
    target: &'r Target,
}

impl<'r> Builder<'r> {
    pub(super) fn add(&mut self, target: &'r Target, rank: Rank) {
        match target {
            Target::Exact(name) | Target::Child(name) | Target::Descendant(name) | Target::Domain(name) => {
                let mut words = Words::of(name.as_str());
                let words = std::iter::from_fn(|| words.next()).collect();
                self.rules.push(RuleOfName { words, rank, target });
            }
            Target::AnyName => self.any.push(rank),
            // It is no name, and is not looked for here.
            Target::Network(_) => {}
        }
    }

    /// `table` makes a table of some rules, the lowest first.
    pub(super) fn build(mut self, key: Key, table: &mut dyn FnMut(&[Rank]) -> Slot) -> Names {
        self.rules
            .sort_unstable_by(|one, other| (&one.words, one.rank).cmp(&(&other.words, other.rank)));
        let (mut nodes, mut mentioned, mut zones) = (Vec::new(), Vec::new(), Vec::new());
        // From the first node to the last: the word, the node, and the zone that it is in.
        let mut path: Vec<(u64, Slot, Slot)> = Vec::new();
        for rules in self.rules.chunk_by(|one, other| one.words == other.words) {
            let words = rules.first().map_or(&[][..], |rule| &rule.words);
            let known = path.iter().zip(words);
            path.truncate(known.take_while(|((known, ..), word)| known == *word).count());
            for &word in words.iter().skip(path.len()) {
                let (_, above, zone) = path.last().copied().unwrap_or_default();
                nodes.push(Node {
                    word,
                    above,
                    mentioned: Slot::NONE,
                });
                path.push((word, Slot::last(&nodes), zone));
            }
            let ranks = |is_meant: fn(&Target) -> bool| -> Vec<Rank> {
                let meant = rules.iter().filter(|rule| is_meant(rule.target));
                meant.map(|rule| rule.rank).collect()
            };
            let exact = ranks(|target| matches!(target, Target::Exact(_) | Target::Domain(_)));
            let child = ranks(|target| matches!(target, Target::Child(_)));
            let below = ranks(|target| matches!(target, Target::Descendant(_) | Target::Domain(_)));
            // In this order the last node of a name is a new one.
            if let (Some(node), Some((_, _, zone))) = (nodes.last_mut(), path.last_mut()) {
                if !below.is_empty() {
                    zones.push(Link {
                        ranks: below,
                        above: zone.place(),
                    });
                    *zone = Slot::last(&zones);
                }
                mentioned.push(Mentioned {
                    exact: table(&exact),
                    child: table(&child),
                    zone: *zone,
                });
                node.mentioned = Slot::last(&mentioned);
            }
        }
        let zones = join(&zones).into_iter().map(|zone| Zone {
            table: table(&zone.ranks),
            above: zone.above.into(),
        });
        Names {
            key,
            nodes: spread(nodes, key),
            mentioned: mentioned.into(),
            zones: zones.collect(),
            any: table(&self.any),
        }
    }
}

/// Puts each node where its hash says; each comes after the one above it.
fn spread(nodes: Vec<Node>, key: Key) -> Box<[Node]> {
    let size = (nodes.len() + nodes.len() / 2 + 1).next_power_of_two();
    let mut spread = vec![Node::default(); size];
    // Of each, its place now and its hash.
    let mut done: Vec<(Slot, u64)> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let above = node.above.place().and_then(|at| done.get(at));
        let (above, hash) = above.copied().unwrap_or((Slot::NONE, key.start));
        let hash = key.hash(hash, node.word);
        let free = probes(hash, size).find(|at| spread.get(*at).is_some_and(|node| node.word == 0));
        if let Some(place) = free.and_then(|at| spread.get_mut(at)) {
            *place = Node { above, ..node };
        }
        done.push((free.into(), hash));
    }
    spread.into()
}

impl Names {
    /// Visits every table about a name.
    pub(super) fn find(&self, name: &HostName, visit: &mut dyn FnMut(Slot)) {
        visit(self.any);
        let mut words = Words::of(name.as_str());
        let (mut at, mut hash) = (Slot::NONE, self.key.start);
        // The name up to its last complete label, if rules mention it, and what is left of the name before that.
        let (mut parent, mut left) = (Slot::NONE, words);
        // The longest name above that rules mention.
        let mut above = Slot::NONE;
        while let Some(word) = words.next() {
            hash = self.key.hash(hash, word);
            let Some((found, mentioned)) = self.node(hash, at, word) else {
                break;
            };
            at = found;
            let is_whole = words.is_empty();
            if is_whole && let Some(mentioned) = mentioned.of(&self.mentioned) {
                visit(mentioned.exact);
            }
            if !is_whole && ends_label(word) {
                (parent, left) = (mentioned, words);
            }
            if mentioned != Slot::NONE && (!is_whole || !defence::holds("wildcard-apex")) {
                above = mentioned;
            }
        }
        if let Some(parent) = parent.of(&self.mentioned)
            && (left.is_one_label() || !defence::holds("wildcard-depth"))
        {
            visit(parent.child);
        }
        let mut zone = above.of(&self.mentioned).map_or(Slot::NONE, |above| above.zone);
        while let Some(found) = zone.of(&self.zones) {
            visit(found.table);
            zone = found.above;
        }
    }

    /// The node of a word, and what it mentions.
    fn node(&self, hash: u64, above: Slot, word: u64) -> Option<(Slot, Slot)> {
        for at in probes(hash, self.nodes.len()) {
            let node = self.nodes.get(at)?;
            if node.word == word && node.above == above {
                return Some((Some(at).into(), node.mentioned));
            }
            if node.word == 0 {
                return None;
            }
        }
        None
    }
}

/// Where a node with this hash may be, the likeliest first.
fn probes(hash: u64, size: usize) -> impl Iterator<Item = usize> {
    let first = (hash >> 32) as usize;
    (first..first + size).map(move |at| at & (size - 1))
}
