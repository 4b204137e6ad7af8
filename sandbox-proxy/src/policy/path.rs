//! Paths of requests, in a form that cannot be fooled, and the patterns that rules have for them.
//!
//! Servers read one path in many ways: some decode `%2F` before they split, some drop `;parameters`, merge `//`,
//! ignore case or dots at the end, look for the closest ASCII character. So a path has two forms: *as it stands* (escapes decoded, nothing else) and
//! *as read at most* (everything decoded, split, merged and dropped that any server might). A rule that allows
//! matches only where its pattern fits both; one that denies or asks where it fits either, whatever the case.
//! What no careful client sends (`/../`, control characters, escapes of escapes, broken UTF-8) is *unclear*: no
//! rule that allows fits it, and every one that denies or asks does.

use std::sync::Arc;

use crate::defence;

/// Bytes of a path that rules look into; a longer one is unclear. Protects the stack that a decision needs.
pub(super) const MAX_PATH_BYTES: usize = 2048;
/// Stands for an escaped slash where it does not split; no pattern and no clear path has it.
const ESCAPED_SLASH: char = '\u{1}';

/// What follows the target in a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathPattern {
    /// Segments before `**`, or all.
    before: Box<[Segment]>,
    /// Segments after `**`, where there is one.
    after: Option<Box<[Segment]>>,
    /// What it is found by: how many segments it starts with that are plain text, and these, joined and in lower case.
    pub(super) key: (usize, Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    /// `*`: one segment, whatever is in it.
    Any,
    /// One star between two texts, one of which may be empty.
    Around(Box<str>, Box<str>),
}

/// A path that could not be parsed as a pattern: where, and what to write instead.
pub(super) struct BadPattern {
    pub(super) offset: usize,
    pub(super) advice: &'static str,
}

/// Both forms of a path. Neither starts nor ends with a slash.
pub(super) struct Forms {
    as_it_stands: Text,
    at_most: Text,
    /// `at_most` up to its first parameter: some servers drop all that follows, not just the segment's own.
    cut: Option<usize>,
    /// `at_most` without case, which is what patterns are found by.
    key: Text,
}

/// A short text on the stack.
struct Text {
    bytes: [u8; MAX_PATH_BYTES],
    length: usize,
}

impl PathPattern {
    /// Parses a pattern that starts with `/`.
    pub(super) fn parse(text: &str) -> Result<Self, BadPattern> {
        let mut before = Vec::new();
        let mut after: Option<Vec<Segment>> = None;
        let mut offset = 1;
        let inner = text.strip_prefix('/').unwrap_or(text);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        if inner.is_empty() {
            return if text.len() > 1 {
                fault(1, "write one slash, not two")
            } else {
                Ok(Self::new(before, after))
            };
        }
        for part in inner.split('/') {
            if part == "**" {
                if after.is_some() {
                    return fault(
                        offset,
                        "a path has one ** at most; write * for each segment instead",
                    );
                }
                after = Some(Vec::new());
            } else {
                let segment = Segment::parse(part, offset)?;
                after.as_mut().unwrap_or(&mut before).push(segment);
            }
            offset += part.len() + 1;
        }
        Ok(Self::new(before, after))
    }

    fn new(before: Vec<Segment>, after: Option<Vec<Segment>>) -> Self {
        let plain: Vec<&str> = before
            .iter()
            .map_while(|segment| match segment {
                Segment::Literal(text) if text.is_ascii() => Some(text.as_ref()),
                _ => None,
            })
            .collect();
        Self {
            key: (plain.len(), plain.join("/").to_ascii_lowercase().into()),
            before: before.into(),
            after: after.map(Into::into),
        }
    }

    /// Whether a rule with this pattern is about the path. `strictly`: both forms fit as written, for rules that
    /// allow; otherwise one that fits in any case is enough.
    pub(super) fn fits(&self, forms: &Forms, strictly: bool) -> bool {
        let (stands, most) = (forms.as_it_stands.as_str(), forms.at_most.as_str());
        let fold = !strictly && defence::holds("path-case-of-deny");
        let cut = forms.cut().filter(|_| defence::holds("path-cut-at-parameters"));
        if strictly {
            self.fits_form(stands, fold)
                && (self.fits_form(most, fold) || !defence::holds("path-two-readings"))
                && cut.is_none_or(|cut| self.fits_form(cut, fold))
        } else {
            self.fits_form(stands, fold)
                || (self.fits_form(most, fold) && defence::holds("path-two-readings-of-deny"))
                || cut.is_some_and(|cut| self.fits_form(cut, fold))
        }
    }

    fn fits_form(&self, form: &str, fold: bool) -> bool {
        let count = if form.is_empty() {
            0
        } else {
            form.split('/').count()
        };
        let after = match &self.after {
            None if count != self.before.len() => return false,
            Some(after) if count < self.before.len() + after.len() => return false,
            None => &[][..],
            Some(after) => after,
        };
        let starts = self.before.iter().zip(form.split('/'));
        let ends = after.iter().rev().zip(form.rsplit('/'));
        starts.chain(ends).all(|(segment, text)| segment.fits(text, fold))
    }
}

impl Segment {
    fn parse(text: &str, offset: usize) -> Result<Self, BadPattern> {
        if text.is_empty() {
            return fault(offset, "write one slash, not two");
        }
        if text == "*" {
            return Ok(Self::Any);
        }
        let Some((start, end)) = text.split_once('*') else {
            let literal = literal(text, offset)?;
            return if literal.ends_with(['.', ' ']) {
                fault(offset, "a segment of a path does not end in a dot or blank")
            } else {
                Ok(Self::Literal(literal))
            };
        };
        if end.contains('*') {
            return fault(
                offset + start.len(),
                "a segment has one * at most; ** stands alone between slashes",
            );
        }
        let end_at = offset + start.len() + 1;
        Ok(Self::Around(literal(start, offset)?, literal(end, end_at)?))
    }

    fn fits(&self, text: &str, fold: bool) -> bool {
        match self {
            Self::Any => !text.is_empty(),
            Self::Literal(literal) => {
                literal.as_ref() == text
                    || fold
                        && rest_after(text.chars(), literal.chars())
                            .is_some_and(|mut rest| rest.next().is_none())
            }
            Self::Around(start, end) if fold => rest_after(text.chars(), start.chars())
                .is_some_and(|rest| rest_after(rest.rev(), end.chars().rev()).is_some()),
            Self::Around(start, end) => text
                .strip_prefix(start.as_ref())
                .is_some_and(|rest| rest.ends_with(end.as_ref())),
        }
    }
}

/// What is left of `text` after `start`, in any case.
fn rest_after<T, S>(mut text: T, start: S) -> Option<T>
where
    T: Iterator<Item = char>,
    S: Iterator<Item = char>,
{
    for wanted in start {
        let found = text.next()?;
        let is_same = found == wanted
            || found.to_lowercase().eq(wanted.to_lowercase())
            || without_case(found) == without_case(wanted);
        if !is_same {
            return None;
        }
    }
    Some(text)
}

/// The ASCII letter that a character becomes for servers that ignore case in all of Unicode, in lower case.
fn without_case(c: char) -> char {
    match c {
        '\u{17f}' => 's',
        '\u{130}' | '\u{131}' => 'i',
        c => c.to_ascii_lowercase(),
    }
}

/// The ASCII character that stands for this one where a server looks for the closest that it knows (Unicode's
/// compatibility forms, and the "best fit" of some file systems).
fn closest(c: char) -> char {
    if !defence::holds("path-closest-ascii") {
        return c;
    }
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '\u{2024}'..='\u{2026}' | '\u{fe52}' => '.',
        '\u{2044}' | '\u{2215}' => '/',
        '\u{2216}' | '\u{fe68}' => '\\',
        '\u{212a}' => 'K',
        c => c,
    }
}

/// Text of a pattern without stars, escapes decoded.
fn literal(text: &str, offset: usize) -> Result<Box<str>, BadPattern> {
    let mut out = String::new();
    let mut pieces = Pieces { rest: text };
    while let Some(piece) = pieces.next() {
        match piece {
            Some(Piece::Char('\\' | ';' | '?' | '#')) => {
                return fault(
                    offset,
                    "a path in a rule has no query, fragment, parameters or backslash",
                );
            }
            Some(Piece::Char(c)) => out.push(c),
            _ => return fault(offset, "write this part of the path without that escape"),
        }
    }
    if matches!(out.as_str(), "." | "..") {
        return fault(offset, "a path in a rule has no . or .. as a segment");
    }
    Ok(out.into())
}

fn fault<T>(offset: usize, advice: &'static str) -> Result<T, BadPattern> {
    Err(BadPattern { offset, advice })
}

impl Forms {
    /// Both forms of a path without its query; `None` where it is unclear.
    pub(super) fn of(path: &str) -> Option<Self> {
        let mut forms = Self {
            as_it_stands: Text::new(),
            at_most: Text::new(),
            cut: None,
            key: Text::new(),
        };
        // Where the current segment of `at_most` starts, and whether its parameters have begun.
        let (mut start, mut dropped) = (0, false);
        let mut pieces = Pieces {
            rest: path.strip_prefix('/')?,
        };
        while let Some(piece) = pieces.next() {
            let c = match piece? {
                Piece::Slash => '/',
                Piece::EscapedSlash => ESCAPED_SLASH,
                Piece::Char(c) => c,
            };
            forms.as_it_stands.push(c)?;
            match closest(c) {
                '/' | '\\' | ESCAPED_SLASH => {
                    start = forms.at_most.end_segment(start)?;
                    dropped = false;
                }
                ';' => {
                    dropped = true;
                    forms.cut.get_or_insert(forms.at_most.length);
                }
                c if !dropped => forms.at_most.push(c)?,
                _ => {}
            }
        }
        forms.at_most.end_segment(start)?;
        for text in [&mut forms.as_it_stands, &mut forms.at_most] {
            if text.as_bytes().ends_with(b"/") {
                text.length -= 1;
            }
        }
        // Whoever decodes once more, or lets the escape of a percent sign stand beside other escapes, finds more there.
        let texts = [&forms.as_it_stands, &forms.at_most];
        if texts.into_iter().any(Text::holds_escape) && defence::holds("path-double-escapes") {
            return None;
        }
        for c in forms.at_most.as_str().chars() {
            forms.key.push(without_case(c))?;
        }
        Some(forms)
    }

    /// What is left for servers that drop all after the first `;`.
    fn cut(&self) -> Option<&str> {
        let cut = self.at_most.as_str().get(..self.cut?)?;
        Some(cut.trim_end_matches(['/', '.', ' ']))
    }

    /// Visits what the first segments are found by, for each of these (ascending) numbers of segments.
    pub(super) fn for_starts(&self, depths: &[usize], visit: &mut dyn FnMut(&str)) {
        let key = self.key.as_str();
        let mut depths = depths.iter().copied().peekable();
        if depths.next_if_eq(&0).is_some() {
            visit("");
        }
        if key.is_empty() {
            return;
        }
        let ends = key.match_indices('/').map(|(at, _)| at).chain([key.len()]);
        for (end, depth) in ends.zip(1..) {
            if depths.next_if_eq(&depth).is_some() {
                visit(key.get(..end).unwrap_or(key));
            }
            if depths.peek().is_none() {
                return;
            }
        }
    }
}

impl Text {
    fn new() -> Self {
        Self {
            bytes: [0; MAX_PATH_BYTES],
            length: 0,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }

    fn as_str(&self) -> &str {
        // Only whole characters are pushed, so this is always text.
        std::str::from_utf8(self.as_bytes()).unwrap_or("")
    }

    fn push(&mut self, c: char) -> Option<()> {
        let room = self.bytes.get_mut(self.length..self.length + c.len_utf8())?;
        c.encode_utf8(room);
        self.length += c.len_utf8();
        Some(())
    }

    /// Whether there is what a second decoding would take for an escape (`%u` is one for some).
    fn holds_escape(&self) -> bool {
        self.as_bytes().windows(3).any(|bytes| match bytes {
            [b'%', b'u' | b'U', _] => true,
            [b'%', one, two] => one.is_ascii_hexdigit() && two.is_ascii_hexdigit(),
            _ => false,
        })
    }

    /// Ends the segment that began at `start`: the next one's start. `None` where it is one that leads elsewhere,
    /// or for some server might.
    fn end_segment(&mut self, start: usize) -> Option<usize> {
        let segment = self.as_str().get(start..)?;
        let trimmed = segment.trim_end_matches(['.', ' ']);
        if trimmed.is_empty() {
            // Two slashes are read as one; what is nothing but dots is not nothing.
            let clear = segment.is_empty() || !defence::holds("path-dot-segments");
            return clear.then_some(start);
        }
        self.length = start + trimmed.len();
        self.push('/')?;
        Some(self.length)
    }
}

enum Piece {
    Slash,
    EscapedSlash,
    Char(char),
}

/// Decodes a path.
struct Pieces<'a> {
    rest: &'a str,
}

impl Pieces<'_> {
    /// The next piece; inside, `None` where it is unclear.
    fn next(&mut self) -> Option<Option<Piece>> {
        let c = self.rest.chars().next()?;
        self.rest = self.rest.get(c.len_utf8()..).unwrap_or("");
        Some(match c {
            '/' => Some(Piece::Slash),
            '%' if defence::holds("path-escapes") => self.escape(),
            c if c.is_control() => None,
            c => Some(Piece::Char(c)),
        })
    }

    /// What an escape stands for (RFC 3986 §2.1), its percent sign taken already.
    fn escape(&mut self) -> Option<Piece> {
        let first = self.hex()?;
        let length = match first {
            0..=0x7f => 1,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return None,
        };
        let mut bytes = [first, 0, 0, 0];
        for byte in bytes.get_mut(1..length)? {
            self.rest = self.rest.strip_prefix('%')?;
            *byte = self.hex()?;
        }
        // Refuses longer forms than need be, as of a dot in two bytes.
        let c = std::str::from_utf8(bytes.get(..length)?).ok()?.chars().next()?;
        match c {
            '/' => Some(Piece::EscapedSlash),
            // Ends the path for servers that decode too early.
            '?' | '#' => None,
            c if c.is_control() => None,
            c => Some(Piece::Char(c)),
        }
    }

    fn hex(&mut self) -> Option<u8> {
        if !self.starts_with_hex() {
            return None;
        }
        let byte = u8::from_str_radix(self.rest.get(..2)?, 16).ok()?;
        self.rest = self.rest.get(2..)?;
        Some(byte)
    }

    fn starts_with_hex(&self) -> bool {
        let mut bytes = self.rest.bytes();
        matches!((bytes.next(), bytes.next()), (Some(a), Some(b)) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
    }
}

#[cfg(test)]
mod tests;
