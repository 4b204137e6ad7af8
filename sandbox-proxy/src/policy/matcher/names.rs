//! Finds the tables about a name: a tree of labels, walked from the last label to the first.
//!
//! A walk ends at the first label that no rule goes on with. Labels are compared as they are, never by a hash alone.

use rustc_hash::FxHashMap;
use sandbox_core::host::HostName;

use crate::defence;
use crate::policy::parse::Target;

/// One more than the place of a table; 0 is none.
type Slot = u32;

#[derive(Debug)]
pub(super) struct Names {
    nodes: Vec<Node>,
}

/// A name that rules mention, or the end of one. The first is the root, above all.
#[derive(Debug, Default)]
struct Node {
    below: Below,
    exact: Slot,
    /// About names one label below.
    child: Slot,
    /// About all names below.
    descendant: Slot,
    /// About the name and all names below.
    domain: Slot,
}

#[derive(Debug, Default)]
enum Below {
    #[default]
    Nothing,
    /// Long chains have one each.
    One(Box<str>, u32),
    Many(FxHashMap<Box<str>, u32>),
}

impl Default for Names {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }
}

impl Names {
    /// The table for a target; the new one where it has none yet.
    pub(super) fn table(&mut self, target: &Target, new: usize) -> usize {
        let (name, slot): (_, fn(&mut Node) -> &mut Slot) = match target {
            Target::Exact(name) => (Some(name), |node| &mut node.exact),
            Target::Child(name) => (Some(name), |node| &mut node.child),
            Target::Descendant(name) => (Some(name), |node| &mut node.descendant),
            Target::Domain(name) => (Some(name), |node| &mut node.domain),
            // A network is no name and is not looked for here.
            Target::AnyName | Target::Network(_) => (None, |node| &mut node.descendant),
        };
        let mut at = 0;
        for label in name.into_iter().flat_map(|name| name.as_str().rsplit('.')) {
            let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let Some(node) = self.nodes.get_mut(at as usize) else {
                return new;
            };
            at = match node.below.get(label) {
                Some(known) => known,
                None => {
                    node.below.insert(label, next);
                    self.nodes.push(Node::default());
                    next
                }
            };
        }
        let Some(node) = self.nodes.get_mut(at as usize) else {
            return new;
        };
        let slot = slot(node);
        if *slot == 0 {
            *slot = u32::try_from(new + 1).unwrap_or(0);
        }
        *slot as usize - 1
    }

    /// Visits every table about a name.
    pub(super) fn find(&self, name: &HostName, visit: &mut dyn FnMut(usize)) {
        let mut visit = |slot: Slot| {
            if slot != 0 {
                visit(slot as usize - 1);
            }
        };
        let mut labels_left = name.as_str().bytes().filter(|byte| *byte == b'.').count() + 1;
        let mut labels = name.as_str().rsplit('.');
        let mut at = 0;
        while let Some(node) = self.nodes.get(at as usize) {
            visit(node.domain);
            match labels_left {
                0 => {
                    visit(node.exact);
                    if !defence::holds("wildcard-apex") {
                        visit(node.descendant);
                    }
                }
                1 => {
                    visit(node.child);
                    visit(node.descendant);
                }
                _ => visit(node.descendant),
            }
            let Some(next) = labels.next().and_then(|label| node.below.get(label)) else {
                return;
            };
            at = next;
            labels_left -= 1;
        }
    }
}

impl Below {
    fn get(&self, label: &str) -> Option<u32> {
        match self {
            Self::Nothing => None,
            Self::One(only, node) => (only.as_ref() == label).then_some(*node),
            Self::Many(nodes) => nodes.get(label).copied(),
        }
    }

    fn insert(&mut self, label: &str, node: u32) {
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(label.into(), node),
            Self::One(only, first) => Self::Many([(only, first), (label.into(), node)].into_iter().collect()),
            Self::Many(mut nodes) => {
                nodes.insert(label.into(), node);
                Self::Many(nodes)
            }
        };
    }
}
