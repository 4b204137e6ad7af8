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
        } else if self.sent >= super::MAX_CHUNK && self.sent >= self.buffer.len() / 2 {
            // A queue that is never quite empty must not keep all that ever went through it.
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{MAX_CHUNK, Request};

    #[test]
    fn a_queue_that_is_never_empty_keeps_only_what_is_unsent() {
        let mut outbox = Outbox::default();
        let message = Request::Stdin(vec![7; MAX_CHUNK].into());
        outbox.push(&message);
        for _ in 0..64 {
            outbox.push(&message);
            let whole = frame::encode(&message).unwrap().len();
            assert_eq!(outbox.pending()[..whole], frame::encode(&message).unwrap()[..]);
            outbox.sent(whole);
        }
        assert!(outbox.buffer.len() < 4 * MAX_CHUNK, "{}", outbox.buffer.len());
    }
}
