//! Scrubbing of a message body: data and trailers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;

use super::framing::Framing;
use super::hold::Hold;
use super::{LINE_PAUSE, Secrets};
use crate::defence::holds;

/// Scrubs one body. Fed with data, gives data; the rest waits for more or for the end, whole lines for a pause.
#[derive(Debug)]
pub(crate) struct Scrubber {
    secrets: Arc<Secrets>,
    framing: Framing,
    hold: Hold,
}

impl Scrubber {
    pub(crate) fn new(secrets: Arc<Secrets>, framing: Framing) -> Self {
        Self {
            secrets,
            framing,
            hold: Hold::default(),
        }
    }

    /// Bytes that can go out once `data` has come, in two pieces; either may be none.
    pub(crate) fn data(&mut self, data: Bytes) -> [Bytes; 2] {
        let patterns = self.secrets.patterns();
        if patterns.is_empty() || !holds("scrub-body") {
            return [data, Bytes::new()];
        }
        let settled = match self.framing.settled(&data) {
            0 => 0,
            settled => self.hold.len() + settled,
        };
        let old = patterns.older(self.hold.len() + data.len());
        self.hold.pass(&patterns, data, settled.max(old))
    }

    /// Bytes that go out once `data` has come and is known to be the last, in two pieces; either may be none.
    pub(crate) fn last(&mut self, data: Bytes) -> [Bytes; 2] {
        let patterns = self.secrets.patterns();
        if (self.hold.is_empty() && patterns.is_empty()) || !holds("scrub-body-end") {
            return [data, Bytes::new()];
        }
        let end = self.hold.len() + data.len();
        self.hold.pass(&patterns, data, end)
    }

    /// After how much silence [`paused`](Self::paused) is to be called; `None` where silence changes nothing.
    pub(crate) fn pause(&self) -> Option<Duration> {
        (self.hold.whole_lines() > 0).then_some(LINE_PAUSE)
    }

    /// Bytes that go out since nothing has come for the time that [`pause`](Self::pause) said.
    pub(crate) fn paused(&mut self) -> Bytes {
        let lines = self.hold.whole_lines();
        self.hold.release(&self.secrets.patterns(), lines)
    }

    /// Trailers, scrubbed.
    pub(crate) fn trailers(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(trailers) = frame.trailers_mut()
            && holds("scrub-trailers")
        {
            self.secrets.patterns().scrub_headers(trailers);
        }
        frame
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
