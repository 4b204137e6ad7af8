//! Names cut into numbers, from the last label to the first: comparing numbers is all that a search has to do.

use std::hash::{BuildHasher, RandomState};

/// The words of a name: up to eight bytes each, and none goes on over a dot. The last one of a label, and no other,
/// ends in a dot; the first label is taken to have one before it, too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'n> {
    name: &'n [u8],
    /// Bytes that are left, with the dot before the first label.
    left: usize,
}

/// Hashes names word by word, by numbers that nobody knows: so nobody can choose names, nor rules, that collide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// The hash of no words.
    pub(super) start: u64,
    factor: u64,
}

impl<'n> Words<'n> {
    pub(super) fn of(name: &'n str) -> Self {
        Self {
            name: name.as_bytes(),
            left: name.len() + 1,
        }
    }

    /// The next word, which is never 0.
    pub(super) fn next(&mut self) -> Option<u64> {
        let mut word = 0;
        while self.left > 0 {
            self.left -= 1;
            let before = self.left.checked_sub(1);
            let byte = before.and_then(|at| self.name.get(at)).map_or(b'.', |byte| *byte);
            word = (word << 8) | u64::from(byte);
            if byte == b'.' || word >> 56 != 0 {
                return Some(word);
            }
        }
        None
    }

    pub(super) fn is_empty(self) -> bool {
        self.left == 0
    }

    /// Whether one label is left, where one ended before.
    pub(super) fn is_one_label(self) -> bool {
        let rest = self.left.checked_sub(1).and_then(|end| self.name.get(..end));
        rest.is_some_and(|rest| !rest.contains(&b'.'))
    }
}

/// Whether a label is complete with this word.
pub(super) fn ends_label(word: u64) -> bool {
    word & 0xff == u64::from(b'.')
}

impl Key {
    /// Of which everything collides.
    #[cfg(test)]
    pub(super) const WEAK: Self = Self { start: 0, factor: 0 };

    pub(super) fn random() -> Self {
        let random = RandomState::new();
        Self {
            start: random.hash_one(0),
            factor: random.hash_one(1) | 1,
        }
    }

    /// The hash of words from that of all but the last.
    pub(super) fn hash(self, before: u64, word: u64) -> u64 {
        let product = u128::from(before ^ word) * u128::from(self.factor);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str) -> Vec<String> {
        let mut words = Words::of(name);
        let text = |word: u64| {
            word.to_be_bytes()
                .iter()
                .map(|byte| char::from(*byte))
                .collect::<String>()
        };
        std::iter::from_fn(|| words.next())
            .map(|word| text(word).trim_matches('\0').to_owned())
            .collect()
    }

    #[test]
    fn no_word_goes_over_a_dot_and_only_the_last_of_a_label_ends_in_one() {
        assert_eq!(words("a.bc.def"), ["fed.", "cb.", "a."]);
        assert_eq!(words("1234567.test"), ["tset.", "7654321."]);
        assert_eq!(words("12345678.test"), ["tset.", "87654321", "."]);
        assert_eq!(words("x12345678.test"), ["tset.", "87654321", "x."]);
        assert_eq!(words("x.12345678.test"), ["tset.", "87654321", ".", "x."]);
    }
}
