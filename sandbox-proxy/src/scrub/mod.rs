//! Takes injected secrets out of what comes back: streaming, across chunk borders, without delaying anything
//! that cannot be the start of one.
//!
//! This is a net under a host that echoes by mistake (error pages, debug endpoints, `Location`). A host that is
//! allowed and wants to tell a secret can always encode it in a way nobody foresaw.

mod body;
mod forms;

use std::fmt;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

pub(crate) use body::Scrubber;

/// What a secret is replaced by, byte for byte: lengths that were announced stay true.
const FILLER: u8 = b'*';

/// Secrets in every form that is looked for.
#[derive(Default)]
pub(crate) struct Patterns {
    forms: Vec<Zeroizing<Vec<u8>>>,
    search: Option<AhoCorasick>,
    longest: usize,
    /// Which bytes a form starts with: most positions are ruled out by one look.
    starts: StartBytes,
}

struct StartBytes([bool; 256]);

impl Default for StartBytes {
    fn default() -> Self {
        Self([false; 256])
    }
}

impl Patterns {
    pub(crate) fn new<'a>(secrets: impl Iterator<Item = &'a str>) -> Self {
        let forms: Vec<_> = secrets.flat_map(forms::all).collect();
        let mut starts = StartBytes::default();
        for form in &forms {
            if let Some(slot) = form
                .first()
                .and_then(|first| starts.0.get_mut(usize::from(*first)))
            {
                *slot = true;
            }
        }
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(forms.iter().map(|form| form.as_slice()))
            .ok();
        Self {
            longest: forms.iter().map(|form| form.len()).max().unwrap_or(0),
            search: search.filter(|_| !forms.is_empty()),
            forms,
            starts,
        }
    }

    /// Replaces secrets in header values. A value that holds one is made anew.
    pub(crate) fn scrub_headers(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            let mut bytes = BytesMut::new();
            for (start, end) in self.find(value.as_bytes()) {
                if bytes.is_empty() {
                    bytes.extend_from_slice(value.as_bytes());
                }
                fill(&mut bytes, start, end);
            }
            if !bytes.is_empty() {
                *value = HeaderValue::from_maybe_shared(bytes.freeze())
                    .unwrap_or_else(|_| HeaderValue::from_static("*"));
            }
        }
    }

    /// Every place where a form stands, the longest at each start, overlapping ones too.
    fn find<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut from = 0;
        std::iter::from_fn(move || {
            let input = Input::new(text).range(from..);
            let found = self.search.as_ref()?.find(input)?;
            from = found.start() + 1;
            Some((found.start(), found.end()))
        })
    }

    /// From where on `text` could be the start of a form that goes on in the next chunk; its length if nowhere.
    fn undecided_from(&self, text: &[u8]) -> usize {
        let earliest = text.len().saturating_sub(self.longest.saturating_sub(1));
        let tail = text.get(earliest..).unwrap_or(&[]);
        for (at, byte) in tail.iter().enumerate() {
            if !self.starts.0.get(usize::from(*byte)).copied().unwrap_or(false) {
                continue;
            }
            let rest = tail.get(at..).unwrap_or(&[]);
            if self
                .forms
                .iter()
                .any(|form| form.len() > rest.len() && form.starts_with(rest))
            {
                return earliest + at;
            }
        }
        text.len()
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patterns({} forms)", self.forms.len())
    }
}

/// The state of scrubbing one stream.
#[derive(Debug, Default)]
pub(crate) struct Carry {
    /// The undecided end of what came so far.
    held: BytesMut,
    /// How many of its first bytes belong to a form that was found, and go out as filler.
    condemned: usize,
}

impl Carry {
    /// What can go out after `chunk` has come. Chunks without a trace of a secret go through uncopied.
    pub(crate) fn push(&mut self, patterns: &Patterns, chunk: Bytes) -> Bytes {
        if patterns.search.is_none() {
            return chunk;
        }
        if self.held.is_empty() {
            let undecided = patterns.undecided_from(&chunk);
            let mut found = patterns.find(&chunk).peekable();
            if found.peek().is_none() {
                self.held.extend_from_slice(chunk.get(undecided..).unwrap_or(&[]));
                return chunk.slice(..undecided);
            }
        }
        self.held.extend_from_slice(&chunk);
        let undecided = patterns.undecided_from(&self.held);
        self.release(patterns, undecided)
    }

    /// What is left when the stream has ended.
    pub(crate) fn finish(&mut self, patterns: &Patterns) -> Bytes {
        let end = self.held.len();
        self.release(patterns, end)
    }

    fn release(&mut self, patterns: &Patterns, end: usize) -> Bytes {
        let mut condemned = vec![(0, self.condemned)];
        // Those that start later are found again when their start is released.
        condemned.extend(patterns.find(&self.held).filter(|(start, _)| *start < end));
        let reach = condemned.iter().map(|(_, end)| *end).max().unwrap_or(0);
        self.condemned = reach.saturating_sub(end);
        let mut out = self.held.split_to(end);
        for (start, stop) in condemned {
            fill(&mut out, start, stop);
        }
        out.freeze()
    }
}

fn fill(bytes: &mut [u8], start: usize, end: usize) {
    let end = end.min(bytes.len());
    if let Some(range) = bytes.get_mut(start..end) {
        range.fill(FILLER);
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::*;
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "sk-ant-\"4f/9+Zq=x7.Kd~";

    fn scrub(secrets: &[&str], chunks: &[&[u8]]) -> Vec<u8> {
        let patterns = Patterns::new(secrets.iter().copied());
        let mut carry = Carry::default();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&carry.push(&patterns, Bytes::copy_from_slice(chunk)));
        }
        out.extend_from_slice(&carry.finish(&patterns));
        out
    }

    #[test]
    fn secret_is_filled_in_every_form_at_every_alignment() {
        let json = serde_json::to_string(SECRET).unwrap();
        let percent: String = SECRET.bytes().map(|b| format!("%{b:02x}")).collect();
        let hex: String = SECRET.bytes().map(|b| format!("{b:02X}")).collect();
        for form in [SECRET, json.trim_matches('"'), &percent, &hex] {
            let text = format!("before {form} after");
            let out = scrub(&[SECRET], &[text.as_bytes()]);
            assert_eq!(out.len(), text.len());
            let stars = "*".repeat(form.len());
            assert_eq!(String::from_utf8(out).unwrap(), format!("before {stars} after"));
        }
        for before in ["", "u", "us", "usr", "user:"] {
            for after in ["", "a", "ab"] {
                let text = BASE64_STANDARD.encode(format!("{before}{SECRET}{after}"));
                let out = scrub(&[SECRET], &[text.as_bytes()]);
                assert_eq!(out.len(), text.len());
                // At most the two characters on either border that share bits with the neighbours remain.
                let stars = out.iter().filter(|b| **b == FILLER).count();
                assert!(
                    stars * 3 >= (SECRET.len() - 2) * 4,
                    "{text} {}",
                    String::from_utf8_lossy(&out)
                );
                let url = BASE64_URL_SAFE_NO_PAD.encode(format!("{before}{SECRET}{after}"));
                let out = scrub(&[SECRET], &[url.as_bytes()]);
                assert!(out.iter().filter(|b| **b == FILLER).count() * 3 >= (SECRET.len() - 2) * 4);
            }
        }
    }

    #[test]
    fn text_without_a_trace_is_neither_delayed_nor_copied() {
        let patterns = Patterns::new([SECRET].into_iter());
        let mut carry = Carry::default();
        let chunk = Bytes::from_static(b"data: {\"text\":\"hello!\"}\n\n");
        let out = carry.push(&patterns, chunk.clone());
        assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len()));
    }

    #[test]
    fn start_of_a_secret_is_held_back_and_given_out_when_it_is_none() {
        let patterns = Patterns::new([SECRET].into_iter());
        let mut carry = Carry::default();
        assert_eq!(carry.push(&patterns, Bytes::from_static(b"x sk-an")), "x ");
        assert_eq!(carry.push(&patterns, Bytes::from_static(b"kle")), "sk-ankle");
        assert_eq!(carry.finish(&patterns), "");
    }

    #[test]
    fn overlapping_secrets_leave_nothing() {
        let out = scrub(&["abcdefgh", "efghijkl"], &[b"1abcdefghijkl2"]);
        assert_eq!(out, b"1************2");
        let out = scrub(&["abcdefgh", "abcdefghijkl"], &[b"abcdef", b"ghij", b"kl2"]);
        assert_eq!(out, b"************2");
    }

    #[test]
    fn header_values_are_filled_and_others_kept() {
        let patterns = Patterns::new(["topsecret"].into_iter());
        let mut headers = HeaderMap::new();
        headers.insert(
            "location",
            HeaderValue::from_static("https://evil.test/?k=topsecret&x=1"),
        );
        headers.insert("etag", HeaderValue::from_static("\"1\""));
        patterns.scrub_headers(&mut headers);
        assert_eq!(headers["location"], "https://evil.test/?k=*********&x=1");
        assert_eq!(headers["etag"], "\"1\"");
    }

    #[test]
    fn debug_tells_no_secret() {
        assert_eq!(
            format!("{:?}", Patterns::new(["s3cr3ts3cr3t"].into_iter())).find("s3cr3t"),
            None
        );
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_bytes(
            text in "([ab]|abaab[ab]|aabb){0,60}",
            cuts in proptest::collection::vec(0..200usize, 0..12),
        ) {
            let secrets = ["abaabaab", "aabbaabb", "abaaba"];
            let whole = scrub(&secrets, &[text.as_bytes()]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let split = scrub(&secrets, &chunks);
            prop_assert_eq!(&split, &whole);
            prop_assert_eq!(split.len(), text.len());
            for secret in secrets {
                prop_assert!(!String::from_utf8_lossy(&whole).contains(secret));
            }
        }
    }
}
