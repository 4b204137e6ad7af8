//! One stream's state: credit both ways, what is still to be said to the guest, and who has finished.

use std::collections::VecDeque;
use std::num::Wrapping;

use super::wire::{NO_RECEIVE, NO_SEND};

/// Bytes the guest may send ahead of the host's reader. Large enough to keep a fast stream busy.
pub(super) const WINDOW: u32 = 256 << 10;

/// Names a stream: both its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// Who knows about the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// We dialled and wait for the guest.
    Dialling,
    /// Both sides know it.
    Open,
    /// The guest has forgotten it; data for the host is still on its way.
    Orphan,
}

/// A control packet that is due, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Request,
    Response,
    CreditUpdate,
    CreditRequest,
    Shutdown(u32),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub phase: Phase,
    /// Whether the key waits in the engine's queue.
    pub queued: bool,
    request_due: bool,
    response_due: bool,
    credit_due: bool,
    credit_request_due: bool,
    /// Shutdown flags decided on, and those already sent.
    finished: u32,
    told: u32,
    /// Shutdown flags the guest has sent.
    pub guest_finished: u32,
    /// The host socket has, or may have, something to read.
    pub readable: bool,
    /// The host's end is closed altogether.
    pub hung_up: bool,
    /// Nothing can be written to the host any more; what the guest sends is dropped.
    pub deaf: bool,
    write_closed: bool,
    peer_window: u32,
    peer_consumed: Wrapping<u32>,
    sent: Wrapping<u32>,
    asked_for_credit: bool,
    received: Wrapping<u32>,
    consumed: Wrapping<u32>,
    announced: Wrapping<u32>,
    /// Received and not yet taken by the host; never longer than [`WINDOW`].
    pub waiting: VecDeque<u8>,
}

impl Connection {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            queued: false,
            request_due: phase == Phase::Dialling,
            response_due: phase == Phase::Open,
            credit_due: false,
            credit_request_due: false,
            finished: 0,
            told: 0,
            guest_finished: 0,
            readable: false,
            hung_up: false,
            deaf: false,
            write_closed: false,
            peer_window: 0,
            peer_consumed: Wrapping(0),
            sent: Wrapping(0),
            asked_for_credit: false,
            received: Wrapping(0),
            consumed: Wrapping(0),
            announced: Wrapping(0),
            waiting: VecDeque::new(),
        }
    }

    /// Takes the credit that every packet of the guest carries.
    pub(super) fn credit_from_guest(&mut self, window: u32, consumed: u32) {
        self.peer_window = window;
        self.peer_consumed = Wrapping(consumed);
        if self.credit() > 0 {
            self.asked_for_credit = false;
        }
    }

    /// Bytes the guest has room for. Nonsense counters give none.
    pub(super) fn credit(&self) -> u32 {
        let in_flight = (self.sent - self.peer_consumed).0;
        self.peer_window.saturating_sub(in_flight)
    }

    /// Counts data from the guest; false if it overran its window.
    pub(super) fn receive(&mut self, len: u32) -> bool {
        let ahead = (self.received - self.consumed).0;
        if len > WINDOW.saturating_sub(ahead) || self.guest_finished & NO_SEND != 0 {
            return false;
        }
        self.received += len;
        true
    }

    /// The host has taken `len` bytes, or they were dropped.
    pub(super) fn consume(&mut self, len: usize) {
        // At most WINDOW bytes are outstanding.
        self.consumed += u32::try_from(len).unwrap_or(0);
        if (self.consumed - self.announced).0 >= WINDOW / 2 {
            self.credit_due = true;
        }
    }

    pub(super) fn send(&mut self, len: usize) {
        self.sent += u32::try_from(len).unwrap_or(0);
    }

    pub(super) fn want_credit_update(&mut self) {
        self.credit_due = true;
    }

    /// Decides to tell the guest that the host has finished in these ways.
    pub(super) fn finish(&mut self, flags: u32) {
        self.finished |= flags & (NO_RECEIVE | NO_SEND);
    }

    /// Whether data from the host may still be sent.
    pub(super) fn may_send(&self) -> bool {
        self.phase == Phase::Open && self.finished & NO_SEND == 0 && self.guest_finished & NO_RECEIVE == 0
    }

    /// The guest sends nothing more and the host has taken everything: the host may be told, once.
    pub(super) fn take_end_of_input(&mut self) -> bool {
        let over = self.guest_finished & NO_SEND != 0 && self.waiting.is_empty() && !self.write_closed;
        self.write_closed |= over;
        over
    }

    /// Both sides are done and nothing waits.
    pub(super) fn over(&self) -> bool {
        self.guest_finished == NO_RECEIVE | NO_SEND && self.waiting.is_empty()
    }

    /// Both sides know that the host is gone; only the guest's word is missing.
    pub(super) fn lingers(&self) -> bool {
        self.told == NO_RECEIVE | NO_SEND
    }

    /// The next control packet, now taken care of. Data comes between credit and the end: see [`Connection::due`].
    pub(super) fn take_due(&mut self) -> Option<Due> {
        if self.phase == Phase::Orphan {
            return None;
        }
        if std::mem::take(&mut self.request_due) {
            return Some(Due::Request);
        }
        if self.phase == Phase::Dialling {
            return None;
        }
        if std::mem::take(&mut self.response_due) {
            return Some(Due::Response);
        }
        if std::mem::take(&mut self.credit_due) {
            return Some(Due::CreditUpdate);
        }
        if std::mem::take(&mut self.credit_request_due) {
            return Some(Due::CreditRequest);
        }
        if self.finished & !self.told != 0 {
            self.told |= self.finished;
            return Some(Due::Shutdown(self.told));
        }
        None
    }

    /// Whether anything is to be sent: control now, or data with credit for it.
    pub(super) fn has_work(&mut self) -> bool {
        match self.phase {
            Phase::Orphan => false,
            Phase::Dialling => self.request_due,
            Phase::Open => {
                if self.readable && self.may_send() && self.credit() == 0 && !self.asked_for_credit {
                    // Once per standstill.
                    self.asked_for_credit = true;
                    self.credit_request_due = true;
                }
                self.response_due
                    || self.credit_due
                    || self.credit_request_due
                    || self.finished & !self.told != 0
                    || self.has_data()
            }
        }
    }

    pub(super) fn has_data(&self) -> bool {
        self.readable && self.may_send() && self.credit() > 0
    }

    /// The counters every packet to the guest carries; it knows them then.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.consumed;
        (WINDOW, self.consumed.0)
    }
}
