//! Scrubbing of a message body: data and trailers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;

use super::framing::Framing;
use super::hold::Hold;
use super::{LINE_PAUSE, PAUSE, Secrets};

/// Scrubs one body. Fed with data, gives data; the rest waits for more, for a pause, or for the end.
#[derive(Debug)]
pub(crate) struct Scrubber {
    secrets: Arc<Secrets>,
    framing: Framing,
    hold: Hold,
    /// Whole lines have gone out since the last data came: the pause lasts on.
    lines_out: bool,
}

impl Scrubber {
    pub(crate) fn new(secrets: Arc<Secrets>, framing: Framing) -> Self {
        Self {
            secrets,
            framing,
            hold: Hold::default(),
            lines_out: false,
        }
    }

    /// Bytes that can go out once `data` has come; may be none.
    pub(crate) fn data(&mut self, data: Bytes) -> Bytes {
        let patterns = self.secrets.patterns();
        if patterns.is_empty() {
            return data;
        }
        self.lines_out = false;
        let settled = match self.framing.settled(&data) {
            0 => 0,
            settled => self.hold.len() + settled,
        };
        self.hold.push(&data);
        let old = self.hold.len().saturating_sub(patterns.tail());
        self.hold.release(&patterns, settled.max(old))
    }

    /// Bytes that go out once `data` has come and is known to be the last.
    pub(crate) fn last(&mut self, data: Bytes) -> Bytes {
        if self.hold.is_empty() && self.secrets.patterns().is_empty() {
            return data;
        }
        self.hold.push(&data);
        self.finish()
    }

    /// What waits at the end of the body.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.hold.release_all(&self.secrets.patterns())
    }

    /// After how much silence [`paused`](Self::paused) is to be called; `None` while nothing waits.
    pub(crate) fn pause(&self) -> Option<Duration> {
        if self.hold.is_empty() {
            None
        } else if !self.lines_out && self.hold.whole_lines() > 0 {
            Some(LINE_PAUSE)
        } else {
            Some(PAUSE)
        }
    }

    /// Bytes that go out since nothing has come for the time that [`pause`](Self::pause) said.
    pub(crate) fn paused(&mut self) -> Bytes {
        let patterns = self.secrets.patterns();
        let lines = self.hold.whole_lines();
        if !self.lines_out && lines > 0 {
            self.lines_out = true;
            self.hold.release(&patterns, lines)
        } else {
            self.hold.release_all(&patterns)
        }
    }

    /// Trailers, scrubbed.
    pub(crate) fn trailers(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(trailers) = frame.trailers_mut() {
            self.secrets.patterns().scrub_headers(trailers);
        }
        frame
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
