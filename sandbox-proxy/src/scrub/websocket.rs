//! Scrubbing of what a WebSocket's server sends (RFC 6455 §5): its frames are not masked, and no extension was
//! agreed on, so payloads stand in them as they are.
//!
//! A message is searched as a whole, across its frames; frames keep their sizes. When a message ends nothing of it
//! waits, and none of it goes out with less than the usual tail behind it before that.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Secrets;
use super::hold::Hold;
use crate::defence::holds;

/// The longest head of a frame from a server: two bytes and a length of eight.
const MAX_HEAD_BYTES: usize = 10;
/// The longest payload of a control frame (§5.5).
const MAX_CONTROL_BYTES: u64 = 125;
/// Heads and pieces that wait behind a message's tail. Bounds memory under a server that sends empty frames; frames that
/// come many at once and can go out are none of them.
const MAX_WAITING: usize = 4096;

const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASK: u8 = 0x80;

/// Upstream sends something that is no WebSocket as it was agreed on; nobody can look into it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream sent something that is no WebSocket frame")]
pub(crate) struct NoFrame;

/// Scrubs one direction of a WebSocket.
#[derive(Debug)]
pub(crate) struct Messages {
    secrets: Arc<Secrets>,
    /// What came of the next frame's head.
    head: Vec<u8>,
    frame: Frame,
    /// Payload of the message that is under way.
    hold: Hold,
    /// Payload of it that can go out, as far as what comes before it has gone.
    clean: BytesMut,
    /// The order in which things go out.
    waiting: VecDeque<Piece>,
    control: BytesMut,
}

/// The frame that is under way.
#[derive(Debug, Default)]
struct Frame {
    left: u64,
    is_control: bool,
    is_last: bool,
}

#[derive(Debug)]
enum Piece {
    /// As it is: a head, or a whole control frame that was scrubbed.
    Whole(Bytes),
    /// So many bytes of the message's payload.
    Payload(usize),
}

impl Messages {
    pub(crate) fn new(secrets: Arc<Secrets>) -> Self {
        Self {
            secrets,
            head: Vec::new(),
            frame: Frame::default(),
            hold: Hold::default(),
            clean: BytesMut::new(),
            waiting: VecDeque::new(),
            control: BytesMut::new(),
        }
    }

    /// Adds to `out` what can go out once `data` has come.
    ///
    /// # Errors
    /// The stream is no WebSocket without extensions, and must end. What stood before that is in `out` all the same:
    /// whether it comes through must not hang on where upstream's bytes happened to be cut.
    pub(crate) fn data(&mut self, data: &[u8], out: &mut BytesMut) -> Result<(), NoFrame> {
        if !holds("scrub-websocket") {
            out.extend_from_slice(data);
            return Ok(());
        }
        let taken = self.take_in(data, out);
        self.go_out(out);
        taken
    }

    fn take_in(&mut self, mut data: &[u8], out: &mut BytesMut) -> Result<(), NoFrame> {
        while !data.is_empty() {
            if self.frame.left > 0 {
                let count = usize::try_from(self.frame.left)
                    .unwrap_or(usize::MAX)
                    .min(data.len());
                let (payload, rest) = data.split_at_checked(count).ok_or(NoFrame)?;
                data = rest;
                self.payload(payload);
            } else {
                let (byte, rest) = data.split_first().ok_or(NoFrame)?;
                data = rest;
                self.head.push(*byte);
                self.try_head()?;
            }
            if self.waiting.len() > MAX_WAITING {
                self.go_out(out);
                if self.waiting.len() > MAX_WAITING && holds("websocket-waiting") {
                    return Err(NoFrame);
                }
            }
        }
        Ok(())
    }

    /// Starts a frame if its head is whole.
    fn try_head(&mut self) -> Result<(), NoFrame> {
        let (first, second, long) = match *self.head.as_slice() {
            [first, second, ref long @ ..] => (first, second, long),
            _ => return Ok(()),
        };
        let opcode = first & 0x0f;
        let is_control = opcode & 0x08 != 0;
        if first & RESERVED_BITS != 0 || second & MASK != 0 || !matches!(opcode, 0..=2 | 8..=10) {
            return Err(NoFrame);
        }
        let long_bytes = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if long.len() < long_bytes {
            debug_assert!(self.head.len() < MAX_HEAD_BYTES);
            return Ok(());
        }
        let length = match long_bytes {
            0 => u64::from(second),
            _ => long.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let is_last = first & FIN != 0;
        if is_control && (!is_last || length > MAX_CONTROL_BYTES) {
            return Err(NoFrame);
        }
        self.frame = Frame {
            left: length,
            is_control,
            is_last,
        };
        let head = Bytes::from(std::mem::take(&mut self.head));
        self.waiting.push_back(Piece::Whole(head));
        if length == 0 {
            self.frame_ended();
        }
        Ok(())
    }

    fn payload(&mut self, payload: &[u8]) {
        self.frame.left = self.frame.left.saturating_sub(payload.len() as u64);
        if self.frame.is_control {
            self.control.extend_from_slice(payload);
        } else {
            self.hold.push(payload);
            match self.waiting.back_mut() {
                Some(Piece::Payload(count)) => *count += payload.len(),
                _ => self.waiting.push_back(Piece::Payload(payload.len())),
            }
        }
        if self.frame.left == 0 {
            self.frame_ended();
        }
    }

    fn frame_ended(&mut self) {
        let patterns = self.secrets.patterns();
        if self.frame.is_control {
            let mut control = Hold::default();
            control.push(&self.control.split());
            let clean = control.release_all(&patterns);
            self.waiting.push_back(Piece::Whole(clean));
        } else if self.frame.is_last {
            let rest = self.hold.release_all(&patterns);
            self.clean.extend_from_slice(&rest);
        }
    }

    /// Moves what can go out, in its order.
    fn go_out(&mut self, out: &mut BytesMut) {
        let patterns = self.secrets.patterns();
        let old = patterns.older(self.hold.len());
        let old = self.hold.release(&patterns, old);
        self.clean.extend_from_slice(&old);
        while let Some(piece) = self.waiting.front_mut() {
            match piece {
                Piece::Whole(bytes) => out.extend_from_slice(bytes),
                Piece::Payload(count) => {
                    let ready = (*count).min(self.clean.len());
                    out.extend_from_slice(&self.clean.split_to(ready));
                    *count -= ready;
                    if *count > 0 {
                        break;
                    }
                }
            }
            self.waiting.pop_front();
        }
        if self.clean.is_empty() {
            self.clean = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sandbox_core::credential::Credential;

    use super::*;

    const SECRET: &str = "sk-websocket-secret";

    fn messages() -> Messages {
        let secrets = Arc::<Secrets>::default();
        secrets.remember(&"x".into(), &Credential::Token(SECRET.to_owned().into()));
        Messages::new(secrets)
    }

    /// What goes out for this.
    fn pass(messages: &mut Messages, data: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        messages.data(data, &mut out).unwrap();
        out
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            short @ ..126 => bytes.push(short.try_into().unwrap()),
            long => {
                bytes.push(126);
                bytes.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
            }
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn whole_message_goes_out_at_once() {
        let text = format!("the key is {SECRET}!");
        let out = pass(&mut messages(), &frame(0x81, text.as_bytes()));
        let clean = text.replace(SECRET, &"*".repeat(SECRET.len()));
        assert_eq!(out, frame(0x81, clean.as_bytes()));
    }

    #[test]
    fn secret_is_found_across_the_frames_of_a_message_and_a_ping_between_them() {
        let (a, b) = SECRET.as_bytes().split_at(7);
        let stream = [
            frame(0x01, a),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x80, b),
        ]
        .concat();
        let stars = [b'*'; 64];
        let expected = [
            frame(0x01, &stars[..7]),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x80, &stars[..SECRET.len() - 7]),
        ]
        .concat();
        let mut messages = messages();
        let mut out = Vec::new();
        for byte in &stream {
            out.extend_from_slice(&pass(&mut messages, &[*byte]));
        }
        assert_eq!(out, expected);
    }

    #[test]
    fn start_of_the_secret_waits_no_longer_than_anything_else() {
        for text in ["sk-websocket-secr", "unrelated content"] {
            let mut messages = messages();
            // A frame of 200 bytes, of which these came.
            let out = pass(
                &mut messages,
                &[&[0x82, 126, 0, 200][..], text.as_bytes()].concat(),
            );
            assert_eq!(out.len(), 4, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_looked_into_is_refused() {
        for bytes in [
            &[0x81, 0x83, 1, 2, 3, 4][..],
            &[0xc1, 3],
            &[0x83, 0],
            &[0x09, 0],
            &[0x89, 126, 0, 200],
        ] {
            let refused = messages().data(bytes, &mut BytesMut::new());
            assert_eq!(refused, Err(NoFrame), "{bytes:?}");
        }
        let mut messages = messages();
        pass(&mut messages, &frame(0x01, b"held"));
        let endless = [0; 4 * MAX_WAITING];
        assert_eq!(messages.data(&endless, &mut BytesMut::new()), Err(NoFrame));
    }

    #[test]
    fn messages_before_what_is_refused_go_out_however_they_are_cut() {
        let before = [frame(0x81, b"first"), frame(0x89, b"ping")].concat();
        let begun = frame(0x01, SECRET.as_bytes());
        let stream = [&before[..], &begun, &frame(0xc0, b"refused")].concat();
        for size in [1, 7, stream.len()] {
            let (mut messages, mut out) = (messages(), BytesMut::new());
            let refused = stream
                .chunks(size)
                .try_for_each(|piece| messages.data(piece, &mut out));
            assert_eq!(refused, Err(NoFrame));
            // Of the message that was under way, nothing that is not certain.
            assert_eq!(out, [&before[..], &begun[..2]].concat(), "{size}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn thousands_of_small_frames_may_come_in_one_piece(
            kinds in proptest::collection::vec((0..4u8, 1..4usize), 2100..9000),
        ) {
            let mut stream = Vec::new();
            let mut goes_on = false;
            for (kind, size) in kinds {
                let opcode = u8::from(!goes_on);
                let first = match kind {
                    0 => 0x89,
                    1 => opcode,
                    _ => opcode | FIN,
                };
                if kind > 0 {
                    goes_on = first & FIN == 0;
                }
                stream.extend(frame(first, &[b'a'; 3][..size]));
            }
            stream.extend(frame(u8::from(!goes_on) | FIN, b"end"));
            prop_assert_eq!(pass(&mut messages(), &stream), stream);
        }

        /// Of one message, so that its last bytes wait, and what frames them.
        #[test]
        fn thousands_of_small_parts_may_come_in_one_piece(sizes in proptest::collection::vec(1..4usize, 2100..9000)) {
            let mut stream = frame(1, b"start");
            for size in sizes {
                stream.extend(frame(0, &[b'a'; 3][..size]));
            }
            let mut messages = messages();
            let mut out = pass(&mut messages, &stream);
            let last = frame(FIN, b"end");
            out.extend_from_slice(&pass(&mut messages, &last));
            stream.extend(last);
            prop_assert_eq!(out, stream);
        }
    }

    proptest! {
        #[test]
        fn frames_keep_their_sizes_however_they_are_cut(
            payloads in proptest::collection::vec("(sk-websocket-secret|[a-z]{0,9}|sk-){0,40}", 1..6),
            cuts in proptest::collection::vec(0..3000usize, 0..12),
        ) {
            let last = payloads.len() - 1;
            let stream = payloads.iter().enumerate().map(|(index, payload)| {
                let first = if index == 0 { 1 } else { 0 } | if index == last { FIN } else { 0 };
                frame(first, payload.as_bytes())
            }).collect::<Vec<_>>().concat();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut messages = messages();
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                out.extend_from_slice(&pass(&mut messages, &stream[pair[0]..pair[1]]));
            }
            prop_assert_eq!(out.len(), stream.len());
            let payload = |mut bytes: &[u8]| {
                let mut all = Vec::new();
                while let [_, length, rest @ ..] = bytes {
                    let (length, rest) = match *length {
                        126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
                        short => (usize::from(short), rest),
                    };
                    all.extend_from_slice(&rest[..length]);
                    bytes = &rest[length..];
                }
                String::from_utf8(all).unwrap()
            };
            let stars = "*".repeat(SECRET.len());
            prop_assert_eq!(payload(&out), payload(&stream).replace(SECRET, &stars));
        }
    }
}
