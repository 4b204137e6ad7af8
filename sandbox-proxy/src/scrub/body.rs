//! Scrubbing of a message body: data and trailers.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Frame;

use super::{Carry, Patterns};

/// Scrubs one body. Fed with frames, gives frames; what is undecided waits for the next one.
#[derive(Debug)]
pub(crate) struct Scrubber {
    patterns: Arc<Patterns>,
    carry: Carry,
}

impl Scrubber {
    pub(crate) fn new(patterns: Arc<Patterns>) -> Self {
        Self {
            patterns,
            carry: Carry::default(),
        }
    }

    /// Bytes that can go out once `data` has come; may be none.
    pub(crate) fn data(&mut self, data: Bytes) -> Bytes {
        self.carry.push(&self.patterns, data)
    }

    /// What waits at the end of the body.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.carry.finish(&self.patterns)
    }

    /// Trailers, scrubbed.
    pub(crate) fn trailers(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(trailers) = frame.trailers_mut() {
            self.patterns.scrub_headers(trailers);
        }
        frame
    }
}
