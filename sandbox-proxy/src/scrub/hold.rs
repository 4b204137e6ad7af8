//! The end of a stream that waits, and what goes out of it.

use bytes::{Bytes, BytesMut};

use super::patterns::{Patterns, fill};
use super::search::Place;
use super::view;

/// Chunks from this size go through as they are, without a copy; the end of the chunk before them goes alone.
const LARGE_CHUNK: usize = 4 << 10;

/// What came of one stream and has not gone out.
#[derive(Debug, Default)]
pub(super) struct Hold {
    held: BytesMut,
    /// How many of its first bytes belong to a form that was found, and go out as filler.
    condemned: usize,
    /// How many characters of an alphabet have gone out last.
    run: usize,
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
        let mut places = vec![(0, self.condemned)];
        patterns.find(&self.held, self.run, end, &mut places);
        self.condemned = reach(&places).saturating_sub(end);
        let mut out = self.held.split_to(end);
        if self.held.is_empty() {
            // Streams live long; a silent one needs no memory.
            self.held = BytesMut::new();
        }
        self.run = view::run_at_end(&out, self.run);
        fill(&mut out, &places);
        out.freeze()
    }

    /// Takes a chunk in and gives the first `end` bytes of all there is, scrubbed, in one or two pieces; either may be
    /// empty. A chunk in which nothing is found is not copied if it is large or comes alone.
    pub(super) fn pass(&mut self, patterns: &Patterns, chunk: Bytes, end: usize) -> [Bytes; 2] {
        let before = self.held.len();
        let is_whole = |end: &usize| chunk.len() >= LARGE_CHUNK || (before == 0 && *end == chunk.len());
        let Some(end_of_chunk) = end.checked_sub(before).filter(is_whole) else {
            self.push(&chunk);
            return [self.release(patterns, end), Bytes::new()];
        };
        // What starts in the chunk, in places of the chunk.
        let run = view::run_at_end(&self.held, self.run);
        let mut places = Vec::new();
        patterns.find(&chunk, run, end_of_chunk, &mut places);
        // What starts before it, and so ends within the tail's length.
        let mut starts_before = vec![(0, self.condemned)];
        if before > 0 {
            self.held
                .extend_from_slice(chunk.get(..patterns.tail().min(chunk.len())).unwrap_or(&[]));
            patterns.find(&self.held, self.run, before, &mut starts_before);
            self.held.truncate(before);
            fill(&mut self.held, &starts_before);
        }
        places.push((0, reach(&starts_before).saturating_sub(before)));

        let first = std::mem::take(&mut self.held).freeze();
        let (now, later) = chunk.split_at_checked(end_of_chunk).unwrap_or((&chunk, &[]));
        self.held.extend_from_slice(later);
        self.condemned = reach(&places).saturating_sub(end_of_chunk);
        self.run = view::run_at_end(now, run);
        let is_clean = places.iter().all(|(start, end)| start >= end);
        let second = if is_clean {
            chunk.slice(..now.len())
        } else {
            let mut out = BytesMut::from(now);
            fill(&mut out, &places);
            out.freeze()
        };
        [first, second]
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

/// Where the last of these places ends.
fn reach(places: &[Place]) -> usize {
    places.iter().map(|(_, end)| *end).max().unwrap_or(0)
}
