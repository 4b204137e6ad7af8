//! Credit of one channel, as its sender and its receiver count it.

use super::{Violation, WINDOW};

/// Consumed bytes are credited once they reach this, so that small reads do not each cost a message.
const CREDIT_STEP: u32 = WINDOW / 4;

/// What the sender of a channel may still send.
#[derive(Debug)]
pub struct SendWindow {
    room: u32,
}

impl SendWindow {
    /// A channel on which nothing was sent.
    pub fn new() -> Self {
        Self { room: WINDOW }
    }

    /// Bytes that may be sent now.
    pub fn room(&self) -> usize {
        usize::try_from(self.room).unwrap_or(usize::MAX)
    }

    /// Takes room for as many of `wanted` bytes as there is, and says how many.
    pub fn take(&mut self, wanted: usize) -> usize {
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.room);
        self.room -= taken;
        usize::try_from(taken).unwrap_or(0)
    }

    /// The receiver's credit.
    ///
    /// # Errors
    /// [`Violation::BadCredit`] if it is 0 or more than is outstanding.
    pub fn credit(&mut self, bytes: u32) -> Result<(), Violation> {
        let outstanding = WINDOW - self.room;
        if bytes == 0 || bytes > outstanding {
            return Err(Violation::BadCredit { bytes, outstanding });
        }
        self.room += bytes;
        Ok(())
    }
}

/// What the receiver of a channel must still accept, and what it owes.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// Bytes the peer may send.
    room: u32,
    /// Bytes received and not yet consumed.
    held: u32,
    /// Bytes consumed and not yet credited.
    owed: u32,
}

impl ReceiveWindow {
    /// A channel on which nothing was received.
    pub fn new() -> Self {
        Self {
            room: WINDOW,
            held: 0,
            owed: 0,
        }
    }

    /// Counts a data message of `len` bytes.
    ///
    /// # Errors
    /// [`Violation::EmptyData`] or [`Violation::WindowOverrun`].
    pub fn receive(&mut self, len: usize) -> Result<(), Violation> {
        match u32::try_from(len) {
            Ok(0) => Err(Violation::EmptyData),
            Ok(bytes) if bytes <= self.room => {
                self.room -= bytes;
                self.held += bytes;
                Ok(())
            }
            _ => Err(Violation::WindowOverrun {
                sent: len,
                credit: self.room,
            }),
        }
    }

    /// Counts `len` received bytes as dealt with. Gives the credit to send now, if any is due; never more
    /// than was received.
    pub fn consume(&mut self, len: usize) -> Option<u32> {
        let bytes = u32::try_from(len).unwrap_or(u32::MAX).min(self.held);
        self.held -= bytes;
        self.owed += bytes;
        if self.owed < CREDIT_STEP {
            return None;
        }
        let credit = std::mem::take(&mut self.owed);
        self.room += credit;
        Some(credit)
    }
}

impl Default for SendWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_never_gets_more_than_the_window() {
        let mut window = SendWindow::new();
        assert_eq!(window.take(usize::MAX), WINDOW as usize);
        assert_eq!(window.take(1), 0);
        window.credit(10).unwrap();
        assert_eq!(window.take(100), 10);
    }

    #[test]
    fn credit_beyond_what_was_sent_is_a_violation() {
        let mut window = SendWindow::new();
        assert_eq!(
            window.credit(1),
            Err(Violation::BadCredit {
                bytes: 1,
                outstanding: 0
            })
        );
        window.take(5);
        assert_eq!(
            window.credit(6),
            Err(Violation::BadCredit {
                bytes: 6,
                outstanding: 5
            })
        );
        assert_eq!(
            window.credit(0),
            Err(Violation::BadCredit {
                bytes: 0,
                outstanding: 5
            })
        );
    }

    #[test]
    fn overrun_is_a_violation_and_consuming_makes_room() {
        let mut window = ReceiveWindow::new();
        let all = WINDOW as usize;
        window.receive(all).unwrap();
        assert_eq!(
            window.receive(1),
            Err(Violation::WindowOverrun { sent: 1, credit: 0 })
        );
        assert_eq!(window.consume(1), None);
        assert_eq!(window.consume(all), Some(WINDOW));
        window.receive(all).unwrap();
    }
}
