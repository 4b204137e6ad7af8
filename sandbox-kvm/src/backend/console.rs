//! The last output of a guest or of the VMM process: a bounded ring, shown without control characters.

use std::collections::VecDeque;

/// Console output kept per machine; a hundred machines stay under 7 MiB.
pub(super) const CONSOLE_BYTES: usize = 64 << 10;
/// Diagnostics of the VMM process kept.
pub(super) const DIAGNOSTIC_BYTES: usize = 8 << 10;

/// The newest bytes of an endless stream.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Tail {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
        }
    }

    /// Adds bytes, losing the oldest beyond the limit.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = bytes
            .get(bytes.len().saturating_sub(self.limit)..)
            .unwrap_or(bytes);
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend(bytes);
    }

    /// All of it as lines; whatever could drive a terminal is escaped.
    pub(super) fn escaped(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let mut shown = String::with_capacity(bytes.len());
        for character in String::from_utf8_lossy(&bytes).chars() {
            match character {
                '\n' | '\t' => shown.push(character),
                '\r' => {}
                control if control.is_control() => shown.extend(control.escape_default()),
                // Invisible and direction-changing characters could hide or reorder text.
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                    shown.extend(character.escape_default());
                }
                plain => shown.push(plain),
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_bytes_are_kept() {
        let mut tail = Tail::new(4);
        tail.push(b"ab");
        tail.push(b"cde");
        assert_eq!(tail.escaped(), "bcde");
        tail.push(b"0123456789");
        assert_eq!(tail.escaped(), "6789");
    }

    #[test]
    fn control_sequences_are_shown_and_not_obeyed() {
        let mut tail = Tail::new(100);
        tail.push(b"ok\r\n\x1b[2J\x07\xff");
        assert_eq!(tail.escaped(), "ok\n\\u{1b}[2J\\u{7}\u{fffd}");
    }
}
