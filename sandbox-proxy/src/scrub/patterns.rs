//! All that is looked for, and the search for it.

use std::fmt;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};

use super::search::{Place, Search};
use super::view::{self, Escapes};
use super::{FILLER, forms};
use crate::defence::holds;

/// Bytes that one byte of a secret is written with, as longest: `\\u0073`.
const BYTES_PER_BYTE: usize = 7;
/// What waits at the end of a stream is a multiple of this, so that it tells little about the secret's characters.
const TAIL_STEP: usize = 128;
/// What goes out of a long stream at once is at least this part of the tail, so that a byte is searched a few times at most.
const TAILS_PER_BATCH: usize = 4;

/// Secrets in every form that is looked for.
#[derive(Default)]
pub(crate) struct Patterns {
    search: Option<Search>,
    escapes: Escapes,
    /// Bytes that the longest secret takes, however it is written.
    reach: usize,
    /// Bytes that the shortest takes: escapes make it longer only.
    least: usize,
}

impl Patterns {
    pub(crate) fn new<'a>(secrets: impl Iterator<Item = &'a str> + Clone) -> Self {
        let longest = secrets.clone().map(str::len).max().unwrap_or(0) * BYTES_PER_BYTE;
        let breaks = longest / view::LINE_CHARS + 1;
        let forms: Vec<_> = secrets.clone().flat_map(forms::all).collect();
        Self {
            escapes: Escapes {
                quotes: secrets.clone().any(|secret| secret.contains(['"', '\'', '\\'])),
            },
            reach: longest + breaks * view::BREAK_BYTES,
            least: forms.iter().map(|form| form.len()).min().unwrap_or(0),
            search: Search::new(forms),
        }
    }

    /// Whether there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.search.is_none()
    }

    /// How many bytes at the end of a stream can be the start of something that goes on.
    pub(super) fn tail(&self) -> usize {
        if !holds("scrub-split") {
            return 0;
        }
        (self.reach + view::ESCAPE_BYTES).next_multiple_of(TAIL_STEP)
    }

    /// How many of so many bytes that wait can go out. They go in batches: for each, all that waits is searched again, which
    /// for a server that sends one byte at a time would be all of a tail for each byte.
    pub(super) fn older(&self, waiting: usize) -> usize {
        let tail = self.tail();
        let older = waiting.saturating_sub(tail);
        if older < tail / TAILS_PER_BATCH && holds("scrub-batches") {
            return 0;
        }
        older
    }

    /// Replaces secrets in header values. A value that holds one is made anew; a header that has one in its name goes.
    pub(crate) fn scrub_headers(&self, headers: &mut HeaderMap) {
        if self.is_empty() || !holds("scrub-headers") {
            return;
        }
        let named: Vec<_> = headers
            .keys()
            .filter(|name| self.is_in(name.as_str().as_bytes()) && holds("scrub-header-names"))
            .cloned()
            .collect();
        for name in named {
            headers.remove(name);
        }
        let mut found = Vec::new();
        for value in headers.values_mut() {
            found.clear();
            self.find(value.as_bytes(), 0, value.len(), &mut found);
            if !found.is_empty() {
                let mut bytes = BytesMut::from(value.as_bytes());
                fill(&mut bytes, &found);
                *value = HeaderValue::from_maybe_shared(bytes.freeze())
                    .unwrap_or_else(|_| HeaderValue::from_static("*"));
            }
        }
    }

    /// Whether one stands in this text.
    pub(super) fn is_in(&self, text: &[u8]) -> bool {
        let mut found = Vec::new();
        self.find(text, 0, text.len(), &mut found);
        !found.is_empty()
    }

    /// Replaces secrets in a text for people.
    pub(crate) fn scrub_text(&self, text: &mut String) {
        let mut found = Vec::new();
        self.find(text.as_bytes(), 0, text.len(), &mut found);
        if found.is_empty() {
            return;
        }
        let mut bytes = std::mem::take(text).into_bytes();
        fill(&mut bytes, &found);
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }

    /// Adds every place where a form stands, or what says it, that starts before `limit`. `run` characters of an alphabet
    /// came right before the text. Places that touch may come as one.
    pub(super) fn find(&self, text: &[u8], run: usize, limit: usize, found: &mut Vec<Place>) {
        // As most names and values of headers are.
        if text.len() < self.least {
            return;
        }
        if let Some(search) = &self.search {
            search.places(text, limit, found);
            view::places(search, self.escapes, text, run, limit, self.reach, found);
        }
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Patterns")
    }
}

/// Replaces what stands in these places, as far as it is there.
pub(super) fn fill(bytes: &mut [u8], places: &[Place]) {
    for (start, end) in places {
        let end = (*end).min(bytes.len());
        if let Some(range) = bytes.get_mut(*start..end) {
            range.fill(FILLER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_filled_and_others_kept() {
        let patterns = Patterns::new(["topsecret"].into_iter());
        let mut headers = HeaderMap::new();
        headers.insert(
            "location",
            HeaderValue::from_static("https://evil.test/?k=topsecret&x=%74op%73ecret"),
        );
        headers.insert("etag", HeaderValue::from_static("\"1\""));
        headers.insert("x-topsecret", HeaderValue::from_static("1"));
        patterns.scrub_headers(&mut headers);
        assert_eq!(
            headers["location"],
            "https://evil.test/?k=*********&x=*************"
        );
        assert_eq!(headers["etag"], "\"1\"");
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn debug_tells_no_secret() {
        assert_eq!(
            format!("{:?}", Patterns::new(["s3cr3ts3cr3t"].into_iter())).find("s3cr3t"),
            None
        );
    }

    #[test]
    fn tail_is_longer_than_any_form_and_the_same_for_secrets_of_a_length() {
        let one = Patterns::new(["aaaaaaaaaaaaaaaa"].into_iter());
        let other = Patterns::new(["a-b-c/d+e_f.g~ha"].into_iter());
        assert!(one.tail() > 16 * BYTES_PER_BYTE);
        assert_eq!(one.tail(), other.tail());
    }
}
