//! The search for forms: as fast where none stands as memory can be read, and in a time that tells a guesser nothing.
//!
//! Every form has some *grams*, pieces of eight bytes at places of its own; the text is looked at in steps of `stride`,
//! and the places of the grams are such that whatever the form's position, one gram comes to stand where is looked:
//! one for each remainder modulo the stride, and the stride is odd so that their distance may be anything like even.
//! A gram that is found is verified by comparing the whole form.
//!
//! A gram that is found costs time, some nanoseconds. Who chooses the text could repeat a guess many times and take
//! the time. So grams overlap by no more than half, and not at all in secrets of forty bytes and more: a guess must be
//! right in four to eight characters at once before it makes any difference. A search that goes deeper with each byte
//! that is right (a trie) would give the secret away byte by byte. For the same reason escapes, in which eight bytes
//! are one or two characters, are undone before and not looked for.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::forms::Form;

/// Bytes that are looked at in one place.
const GRAM_BYTES: usize = 8;
/// The least distance of two grams of a form: how many new characters a guess has to get right at once.
const MIN_DISTANCE: usize = 4;
/// Longer strides gain nothing: then memory is the limit.
const MAX_STRIDE: usize = 15;
/// The stride that is worth overlapping grams.
const GOOD_STRIDE: usize = 5;
/// How often the text is looked at before anything is decided.
const LOOKS: usize = 8;
/// Bits of the table's address: 8 KiB, which stay in the first cache and are sparsely set.
const TABLE_BITS: u32 = 16;
const TABLE_WORDS: usize = 1 << (TABLE_BITS - 6);

/// Where a form stands: start and end.
pub(super) type Place = (usize, usize);

pub(super) struct Search {
    forms: Vec<Form>,
    stride: usize,
    gram_bytes: usize,
    /// Takes the bytes of a gram out of eight.
    mask: u64,
    /// Random, so that nobody can choose text that looks like a gram to the table.
    factor: u64,
    /// One bit for each value of a gram's hash.
    table: Box<[u64; TABLE_WORDS]>,
    /// Sorted by hash.
    grams: Vec<Gram>,
}

struct Gram {
    hash: u32,
    form: usize,
    offset: usize,
}

impl Search {
    /// `None` where there is nothing to look for.
    pub(super) fn new(forms: Vec<Form>) -> Option<Self> {
        let shortest = forms.iter().map(|form| form.len()).min()?;
        let gram_bytes = GRAM_BYTES.min(shortest);
        let stride = stride(shortest);
        let mut search = Self {
            stride,
            gram_bytes,
            mask: u64::MAX >> (64 - 8 * gram_bytes),
            factor: RandomState::new().build_hasher().finish() | 1,
            table: Box::new([0; TABLE_WORDS]),
            grams: Vec::new(),
            forms,
        };
        for (index, form) in search.forms.iter().enumerate() {
            let distance = distance(form.len(), gram_bytes, stride);
            for step in 0..stride {
                // From the end: the start of a secret is often known.
                let offset = form.len() - gram_bytes - step * distance;
                let hash = search.factor.wrapping_mul(load(form, offset) & search.mask);
                set(&mut search.table, hash);
                search.grams.push(Gram {
                    hash: key(hash),
                    form: index,
                    offset,
                });
            }
        }
        search.grams.sort_by_key(|gram| gram.hash);
        Some(search)
    }

    /// Adds every place where a form stands that starts before `limit`. Places that touch may come as one.
    pub(super) fn places(&self, text: &[u8], limit: usize, found: &mut Vec<Place>) {
        // Known to the compiler, distances cost nothing.
        let scanned = match self.stride {
            1 => self.scan::<1>(text, limit, found),
            3 => self.scan::<3>(text, limit, found),
            5 => self.scan::<5>(text, limit, found),
            7 => self.scan::<7>(text, limit, found),
            9 => self.scan::<9>(text, limit, found),
            11 => self.scan::<11>(text, limit, found),
            13 => self.scan::<13>(text, limit, found),
            15 => self.scan::<15>(text, limit, found),
            _ => 0,
        };
        let rest = (scanned..).step_by(self.stride);
        for at in rest.take_while(|at| at + self.gram_bytes <= text.len()) {
            self.verify(text, at, limit, found);
        }
    }

    /// Looks at most of the text; gives the place where the next look has to be.
    fn scan<const STRIDE: usize>(&self, text: &[u8], limit: usize, found: &mut Vec<Place>) -> usize {
        let mut at = 0;
        // Several at a time: most often none of them is anything.
        while let Some(window) = text.get(at..at + (LOOKS - 1) * STRIDE + GRAM_BYTES) {
            let mut hit = 0;
            for step in 0..LOOKS {
                hit |= self.bit(self.hash(load(window, step * STRIDE)));
            }
            if hit != 0 {
                for step in 0..LOOKS {
                    self.verify(text, at + step * STRIDE, limit, found);
                }
            }
            at += LOOKS * STRIDE;
        }
        at
    }

    /// Adds the forms that have a gram at this place.
    fn verify(&self, text: &[u8], at: usize, limit: usize, found: &mut Vec<Place>) {
        let hash = self.hash(load(text, at));
        if self.bit(hash) == 0 {
            return;
        }
        let key = key(hash);
        let first = self.grams.partition_point(|gram| gram.hash < key);
        let same = self.grams.get(first..).unwrap_or(&[]).iter();
        for gram in same.take_while(|gram| gram.hash == key) {
            let Some((form, start)) = self.forms.get(gram.form).zip(at.checked_sub(gram.offset)) else {
                continue;
            };
            let end = start + form.len();
            if start < limit && text.get(start..end) == Some(form.as_slice()) {
                add(found, (start, end));
            }
        }
    }

    #[inline(always)]
    fn hash(&self, bytes: u64) -> u64 {
        self.factor.wrapping_mul(bytes & self.mask)
    }

    #[inline(always)]
    fn bit(&self, hash: u64) -> u64 {
        let index = hash >> (64 - TABLE_BITS);
        // The index is in range by its making; this tells the compiler.
        let word = self.table[(index >> 6) as usize % TABLE_WORDS];
        (word >> (index & 63)) & 1
    }
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Search")
    }
}

/// Adds a place, to the last one if they overlap: a text of nothing but secrets takes no memory.
pub(super) fn add(found: &mut Vec<Place>, (start, end): Place) {
    match found.last_mut() {
        Some((first, last)) if start <= *last && end >= *first => {
            *first = start.min(*first);
            *last = end.max(*last);
        }
        _ => found.push((start, end)),
    }
}

/// How far apart the text is looked at, odd.
fn stride(shortest: usize) -> usize {
    let odd = |steps: usize| steps.saturating_sub(1) | 1;
    let apart = odd(shortest / GRAM_BYTES);
    let half_apart = odd(shortest.saturating_sub(GRAM_BYTES) / MIN_DISTANCE + 1);
    apart.max(half_apart.min(GOOD_STRIDE)).min(MAX_STRIDE)
}

/// How far apart the grams of a form are: as far as there is room, but so that their remainders modulo the stride differ.
fn distance(length: usize, gram_bytes: usize, stride: usize) -> usize {
    let most = (length - gram_bytes) / (stride - 1).max(1);
    let differ = |distance: &usize| gcd(*distance, stride) == 1;
    (1..=most).rev().find(differ).unwrap_or(1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn set(table: &mut [u64; TABLE_WORDS], hash: u64) {
    let index = hash >> (64 - TABLE_BITS);
    if let Some(word) = table.get_mut((index >> 6) as usize) {
        *word |= 1 << (index & 63);
    }
}

/// What of a hash tells grams from each other.
fn key(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Eight bytes, or what there is and zeros.
#[inline(always)]
fn load(text: &[u8], at: usize) -> u64 {
    let rest = text.get(at..).unwrap_or(&[]);
    match rest.first_chunk::<GRAM_BYTES>() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => rest
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn grams_have_every_remainder_and_their_distance() {
        for length in 6..400 {
            let stride = stride(length);
            assert_eq!(stride % 2, 1, "{length}");
            for longer in [length, length + 1, length * 2] {
                let gram = GRAM_BYTES.min(length);
                let distance = distance(longer, gram, stride);
                assert!(stride == 1 || distance >= MIN_DISTANCE, "{length} {longer}");
                assert!(length < 40 || distance >= GRAM_BYTES, "{length} {longer}");
                let remainders: std::collections::BTreeSet<_> = (0..stride)
                    .map(|step| (longer - gram - step * distance) % stride)
                    .collect();
                assert_eq!(remainders.len(), stride, "{length} {longer}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_place_is_found_and_no_other(
            forms in proptest::collection::vec("[ab]{6,30}", 1..4),
            text in "([ab]{0,20}|[a-z]{0,20}|aaaaaaaabbbbbbbb){0,12}",
            with in 0..4usize,
        ) {
            let text = text.replace('q', &forms[with % forms.len()]).into_bytes();
            let search = Search::new(forms.iter().map(|form| Zeroizing::new(form.clone().into_bytes())).collect()).unwrap();
            let covered = |places: &[Place]| {
                let mut marks = vec![false; text.len()];
                places.iter().for_each(|(start, end)| marks[*start..*end].fill(true));
                marks
            };
            let mut found = Vec::new();
            search.places(&text, text.len(), &mut found);
            let mut expected = Vec::new();
            for form in &forms {
                let starts = 0..text.len();
                expected.extend(starts.filter(|at| text[*at..].starts_with(form.as_bytes())).map(|at| (at, at + form.len())));
            }
            prop_assert_eq!(covered(&found), covered(&expected));
        }
    }
}
