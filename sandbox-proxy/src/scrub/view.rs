//! What a text says once the escapes in it are undone: percent-encoding (also twice), the escapes of JSON and of
//! source code (also nested), HTML entities, and the line breaks of encoders. Each escape for itself, so that any mix
//! of them, in any case, is seen through.
//!
//! What is undone where depends on the text alone, never on a secret, and on nothing that comes before it but the
//! number of characters since the last that no encoder writes: so it does not matter how a stream is cut.

use std::ops::Range;

use zeroize::Zeroizing;

use super::forms::Form;
use super::search::{Place, Search, add};
use crate::defence::holds;

/// Encoders that break lines do so after so many characters or more (64 in PEM, 76 in MIME, 60 in `xxd -p`).
pub(super) const LINE_CHARS: usize = 48;
/// A line break as longest: `\r\n` as a JSON string within another has it.
pub(super) const BREAK_BYTES: usize = 6;
/// The longest escape: two halves of a character in JSON. What is undone depends on so many bytes.
pub(super) const ESCAPE_BYTES: usize = 12;
/// An entity as longest: `&#0000115;`.
const ENTITY_BYTES: usize = 10;

/// Something that stands for something else.
#[derive(Debug, Clone, Copy)]
struct Edit {
    at: usize,
    length: usize,
    said: [u8; 4],
    said_length: usize,
}

impl Edit {
    fn says(&self) -> &[u8] {
        self.said.get(..self.said_length).unwrap_or(&[])
    }
}

/// Which of the escapes are undone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Escapes {
    /// Those of quotes and backslashes. They are everywhere in JSON, and hide nothing of a secret that has none.
    pub(super) quotes: bool,
}

/// Adds the places where a form stands that starts before `limit` and is written with escapes, in at most `reach`
/// bytes. `run` characters of an alphabet came right before the text.
pub(super) fn places(
    search: &Search,
    escapes: Escapes,
    text: &[u8],
    run: usize,
    limit: usize,
    reach: usize,
    found: &mut Vec<Place>,
) {
    let edits = edits(text, run, escapes);
    let mut rest = edits.as_slice();
    while let Some(first) = rest.first() {
        // Those that one form can hold together, and what it can hold before and after them.
        let apart = |pair: &[Edit]| {
            let [a, b] = pair else { return false };
            b.at > a.at + a.length + 2 * reach
        };
        let count = rest
            .windows(2)
            .position(apart)
            .map_or(rest.len(), |last| last + 1);
        let (near, further) = rest.split_at(count.min(rest.len()));
        rest = further;
        let end = near.last().map_or(0, |last| last.at + last.length);
        let around = first.at.saturating_sub(reach)..end.saturating_add(reach).min(text.len());
        if around.start < limit {
            places_around(search, text, near, around, limit, reach, found);
        }
    }
}

fn places_around(
    search: &Search,
    text: &[u8],
    edits: &[Edit],
    around: Range<usize>,
    limit: usize,
    reach: usize,
    found: &mut Vec<Place>,
) {
    let mut said = Zeroizing::new(Vec::with_capacity(around.len()));
    // For each edit, where what it says stands in what is said.
    let mut points = Vec::with_capacity(edits.len());
    let mut from = around.start;
    for edit in edits {
        said.extend_from_slice(text.get(from..edit.at).unwrap_or(&[]));
        let start = said.len();
        said.extend_from_slice(edit.says());
        points.push((start, said.len(), edit.at, edit.at + edit.length));
        from = edit.at + edit.length;
    }
    said.extend_from_slice(text.get(from..around.end).unwrap_or(&[]));
    let mut inner = Vec::new();
    search.places(&said, said.len(), &mut inner);
    // Where a byte of what is said stands in the text.
    let original = |at: usize| {
        let passed = points.partition_point(|(start, ..)| *start <= at);
        match passed.checked_sub(1).and_then(|last| points.get(last)) {
            None => around.start + at..around.start + at + 1,
            Some((_, said_end, start, end)) if at < *said_end => *start..*end,
            Some((_, said_end, _, end)) => end + (at - said_end)..end + (at - said_end) + 1,
        }
    };
    for (start, end) in inner {
        let place = (original(start).start, original(end.saturating_sub(1)).end);
        if place.0 < limit && place.1 - place.0 <= reach {
            add(found, place);
        }
    }
}

/// Whether a byte is less than all of the alphabets', as spaces and quotes are; sees eight at a time.
#[inline(always)]
fn has_space(block: &[u8; LINE_CHARS / 2]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    let (words, _) = block.as_chunks::<8>();
    let less = words.iter().fold(0, |less, word| {
        let word = u64::from_le_bytes(*word);
        less | (word.wrapping_sub(ONES * b'+' as u64) & !word)
    });
    less & (ONES << 7) != 0
}

/// What the bytes say.
pub(super) fn plain(text: &[u8]) -> Form {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut from = 0;
    for edit in edits(text, 0, Escapes { quotes: true }) {
        out.extend_from_slice(text.get(from..edit.at).unwrap_or(&[]));
        out.extend_from_slice(edit.says());
        from = edit.at + edit.length;
    }
    out.extend_from_slice(text.get(from..).unwrap_or(&[]));
    out
}

/// How many characters of an alphabet stand at the end of a text, counted as far as it matters, if `before` of them came
/// right before it.
pub(super) fn run_at_end(text: &[u8], before: usize) -> usize {
    let run = text
        .iter()
        .rev()
        .take(LINE_CHARS)
        .take_while(|byte| is_of_an_alphabet(byte))
        .count();
    if run == text.len() {
        (run + before).min(LINE_CHARS)
    } else {
        run
    }
}

fn edits(text: &[u8], run: usize, escapes: Escapes) -> Vec<Edit> {
    let mut edits = Vec::new();
    let mut escaped = memchr::memchr3_iter(b'\\', b'%', b'&', text).peekable();
    let mut breaks = Breaks { text, from: 0 }.peekable();
    let mut from = 0;
    loop {
        let at = match (escaped.peek(), breaks.peek()) {
            (Some(a), Some(b)) if a < b => escaped.next(),
            (Some(_), None) => escaped.next(),
            _ => breaks.next(),
        };
        let Some(at) = at else {
            return edits;
        };
        if at >= from
            && may_begin(text, at)
            && let Some(edit) = edit_at(text, at, run, escapes)
        {
            from = at + edit.length;
            edits.push(edit);
        }
    }
}

/// Whether an escape can begin here, by its first two bytes: in compressed data, most do not.
#[inline]
fn may_begin(text: &[u8], at: usize) -> bool {
    let second = text.get(at + 1).copied().unwrap_or_default();
    match text.get(at) {
        Some(b'%') => second.is_ascii_hexdigit(),
        Some(b'&') => second == b'#' || second.is_ascii_lowercase(),
        _ => true,
    }
}

/// Line breaks, without most of those that do not come after [`LINE_CHARS`] of an alphabet: most text has no such run, and
/// to see that takes less than to look at every line.
struct Breaks<'a> {
    text: &'a [u8],
    from: usize,
}

impl Iterator for Breaks<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        // Near the start, the run may have begun before the text.
        let start = if self.from < LINE_CHARS {
            self.from
        } else {
            // So many in a row hold a whole block, wherever blocks begin.
            let (blocks, _) = self
                .text
                .get(self.from - LINE_CHARS..)?
                .as_chunks::<{ LINE_CHARS / 2 }>();
            let is_run =
                |block: &[u8; LINE_CHARS / 2]| !has_space(block) && block.iter().all(is_of_an_alphabet);
            self.from - LINE_CHARS + blocks.iter().position(is_run)? * (LINE_CHARS / 2)
        };
        let rest = self.text.get(start.max(self.from)..)?;
        match memchr::memchr2(b'\n', b'\r', rest) {
            Some(at) if start.max(self.from) + at >= LINE_CHARS && self.from < LINE_CHARS => {
                // None is near the start.
                self.from = LINE_CHARS;
                self.next()
            }
            Some(at) => {
                self.from = start.max(self.from) + at + 1;
                Some(self.from - 1)
            }
            None => None,
        }
    }
}

fn edit_at(text: &[u8], at: usize, run: usize, escapes: Escapes) -> Option<Edit> {
    let rest = text.get(at..)?;
    let edit = |length: usize, said: &[u8]| {
        let mut edit = Edit {
            at,
            length,
            said: [0; 4],
            said_length: said.len(),
        };
        edit.said.get_mut(..said.len())?.copy_from_slice(said);
        Some(edit)
    };
    match rest {
        [b'\n' | b'\r', ..] | [b'\\', b'n' | b'r', ..] => {
            if !is_after_a_line(text, at, run) {
                return None;
            }
            let length = [&b"\\r\\\\n"[..], b"\\r\\n", b"\r\n", b"\\n", b"\n", b"\\r", b"\r"]
                .iter()
                .find(|form| rest.starts_with(form))?
                .len();
            let goes_on = is_of_an_alphabet(rest.get(length)?) && holds("scrub-lines");
            goes_on.then(|| edit(length, b""))?
        }
        [b'%', b'2', b'5', a, b, ..] if holds("scrub-percent-twice") && hex(&[*a, *b]).is_some() => {
            edit(5, &[u8::try_from(hex(&[*a, *b])?).ok()?])
        }
        [b'%', a, b, ..] if holds("scrub-percent") => edit(3, &[u8::try_from(hex(&[*a, *b])?).ok()?]),
        [b'\\', escape @ ..] if holds("scrub-json") => match escape {
            [b'u', ..] => {
                let unit = |at: usize| hex(rest.get(at + 2..at + 6)?);
                let is_pair = rest.get(6..8) == Some(b"\\u");
                let first = unit(0)?;
                let second = if is_pair { unit(6) } else { None };
                let units = [first, second.unwrap_or(0)];
                if (0xd800..0xdc00).contains(&first)
                    && let Some(Ok(c)) = char::decode_utf16(units).next()
                {
                    return edit(12, c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                let c = char::from_u32(u32::from(first)).unwrap_or(char::REPLACEMENT_CHARACTER);
                edit(6, c.encode_utf8(&mut [0; 4]).as_bytes())
            }
            [b'x', a, b, ..] => edit(4, &[u8::try_from(hex(&[*a, *b])?).ok()?]),
            [b'/', ..] => edit(2, b"/"),
            [c @ (b'"' | b'\''), ..] if escapes.quotes => edit(2, &[*c]),
            // The escape of an escape: what it escapes is looked at for itself.
            [b'\\', b'u' | b'x' | b'/' | b'\\', ..] => edit(1, b""),
            [b'\\', ..] if escapes.quotes => edit(1, b""),
            [b'\\', b'n' | b'r', ..] if run_at_end(text.get(..at)?, run) >= LINE_CHARS => edit(1, b""),
            _ => None,
        },
        [b'&', name @ ..] if holds("scrub-html") => {
            let name = name.get(..name.len().min(ENTITY_BYTES))?;
            let name = name.get(..memchr::memchr(b';', name)?)?;
            let c = match name {
                b"amp" => '&',
                b"lt" => '<',
                b"gt" => '>',
                b"quot" => '"',
                b"apos" => '\'',
                b"plus" => '+',
                b"sol" => '/',
                b"equals" => '=',
                [b'#', b'x' | b'X', digits @ ..] => number(digits, 16)?,
                [b'#', digits @ ..] => number(digits, 10)?,
                _ => return None,
            };
            edit(name.len() + 2, c.encode_utf8(&mut [0; 4]).as_bytes())
        }
        _ => None,
    }
}

/// Whether as many characters as an encoder writes in a line come before this.
fn is_after_a_line(text: &[u8], at: usize, run: usize) -> bool {
    let before = text.get(..at).unwrap_or(&[]);
    // The escape of a line break may be escaped.
    let slashes = before
        .iter()
        .rev()
        .take(2)
        .take_while(|byte| **byte == b'\\')
        .count();
    let line = before.get(..before.len() - slashes).unwrap_or(&[]);
    run_at_end(line, run) >= LINE_CHARS
}

/// Whether base64 in any alphabet, or hexadecimal, has this character.
#[inline(always)]
fn is_of_an_alphabet(byte: &u8) -> bool {
    const ALPHABET: [bool; 256] = {
        let mut alphabet = [false; 256];
        let mut byte = 0;
        while byte < 128u8 {
            alphabet[byte as usize] =
                byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_');
            byte += 1;
        }
        alphabet
    };
    ALPHABET[usize::from(*byte)]
}

fn hex(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0u16, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value << 4 | u16::try_from(digit).ok()?)
    })
}

fn number(digits: &[u8], radix: u32) -> Option<char> {
    // A sign would be read, too.
    let is_fine = digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_fine)?;
    char::from_u32(u32::from_str_radix(text, radix).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        String::from_utf8(plain(text.as_bytes()).to_vec()).unwrap()
    }

    #[test]
    fn escapes_of_every_kind_are_undone() {
        for (text, says) in [
            ("a%2Fb%2fc%", "a/b/c%"),
            ("%2573%25", "s%"),
            ("100%zz", "100%zz"),
            (r"\u0073\u006B\/\x2d", "sk/-"),
            (r"\\u0073 \\\\u0073 \\\/", "s s /"),
            (r#"say \"x\" and \\"#, r#"say "x" and \"#),
            (r"\ud834\udd1e \ud834x", "\u{1d11e} \u{fffd}x"),
            ("&lt;&#115;&#x6B;&#x6b;&quot;&amp;&nope;&", "<skk\"&&nope;&"),
            ("&#99999999;&#-5;", "&#99999999;&#-5;"),
        ] {
            assert_eq!(said(text), says, "{text}");
        }
    }

    #[test]
    fn line_breaks_of_encoders_are_left_out_and_others_kept() {
        let line = "QUJD".repeat(15);
        assert_eq!(said(&format!("{line}\r\n{line}\n")), format!("{line}{line}\n"));
        assert_eq!(said(&format!("{line}\\r\\n{line}\\n{line}")), line.repeat(3));
        assert_eq!(said(&format!("{line}\\\\n{line}")), line.repeat(2));
        assert_eq!(said("two\nlines of\ntext"), "two\nlines of\ntext");
        // Wherever they begin.
        for before in 0..70 {
            let before = "word ".repeat(14)[..before].to_owned() + " ";
            let text = format!("{before}{line}\n{line}\r\nQUJD, and\nmore");
            assert_eq!(said(&text), format!("{before}{line}{line}QUJD, and\nmore"));
        }
        for run in 0..LINE_CHARS {
            let text = format!("{}\nQUJD", &line[..LINE_CHARS - run]);
            assert_eq!(edits(text.as_bytes(), run, Escapes::default()).len(), 1, "{run}");
            let text = format!("{}\nQUJD", &line[..LINE_CHARS - run - 1]);
            assert_eq!(edits(text.as_bytes(), run, Escapes::default()).len(), 0, "{run}");
        }
    }

    #[test]
    fn run_is_counted_across_borders() {
        assert_eq!(run_at_end(b"abc", 4), 7);
        assert_eq!(run_at_end(b"a bc", 4), 2);
        assert_eq!(run_at_end(b"", 4), 4);
        assert_eq!(run_at_end(&[b'a'; 100], 4), LINE_CHARS);
    }
}
