//! Encoded messages on their way to the transport.

use crate::frame::{self, EncodeError, Message};

/// Bytes to write, and how many of them were written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    buffer: Vec<u8>,
    sent: usize,
}

impl Outbox {
    pub(super) fn try_push<M: Message>(&mut self, message: &M) -> Result<(), EncodeError> {
        frame::encode_into(message, &mut self.buffer)
    }

    /// For messages whose size the caller has bounded below the limit.
    pub(super) fn push<M: Message>(&mut self, message: &M) {
        let pushed = self.try_push(message);
        debug_assert!(pushed.is_ok(), "{pushed:?}");
    }

    pub(super) fn pending(&self) -> &[u8] {
        self.buffer.get(self.sent..).unwrap_or_default()
    }

    pub(super) fn sent(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count).min(self.buffer.len());
        if self.sent == self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
            // A burst's memory is given back once it is over.
            self.buffer.shrink_to(super::MAX_CHUNK);
        }
    }
}
