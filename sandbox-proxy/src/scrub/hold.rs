//! The end of a stream that waits, and what goes out of it.

use bytes::{Bytes, BytesMut};

use super::patterns::{Patterns, fill};

/// What came of one stream and has not gone out.
#[derive(Debug, Default)]
pub(super) struct Hold {
    held: BytesMut,
    /// How many of its first bytes belong to a form that was found, and go out as filler.
    condemned: usize,
}

impl Hold {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.held.extend_from_slice(chunk);
    }

    /// The first `end` bytes, scrubbed. What starts among them and goes on is filled when the rest goes out.
    pub(super) fn release(&mut self, patterns: &Patterns, end: usize) -> Bytes {
        let end = end.min(self.held.len());
        if end == 0 {
            return Bytes::new();
        }
        let mut marks = patterns.find(&self.held, end);
        marks.push((0, self.condemned));
        let reach = marks.iter().map(|(_, stop)| *stop).max().unwrap_or(0);
        self.condemned = reach.saturating_sub(end);
        let mut out = self.held.split_to(end);
        if self.held.is_empty() {
            // Streams live long; a silent one needs no memory.
            self.held = BytesMut::new();
        }
        for (start, stop) in marks {
            fill(&mut out, start, stop);
        }
        out.freeze()
    }

    /// Everything, scrubbed.
    pub(super) fn release_all(&mut self, patterns: &Patterns) -> Bytes {
        self.release(patterns, self.held.len())
    }

    /// How many bytes the lines take that are whole.
    pub(super) fn whole_lines(&self) -> usize {
        memchr::memrchr2(b'\n', b'\r', &self.held).map_or(0, |at| at + 1)
    }
}
