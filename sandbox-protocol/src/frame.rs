//! Framing: a little-endian `u32` length, then that many bytes of one postcard-encoded message.
//!
//! Hostile: the length, checked against the message type's limit before anything is allocated for it,
//! and the bytes, which must be one whole message and nothing more.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the length before each message.
pub const HEADER_LEN: usize = 4;

/// A type that travels in frames.
pub trait Message: Serialize + DeserializeOwned {
    /// Longest encoding accepted, without the header. Bounds what a peer can make a [`Decoder`] hold.
    const MAX_FRAME: usize;
}

/// Why no frame could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The message is longer than its receiver accepts: send less in one message.
    #[error("a message of {len} bytes is over the limit of {max}; send less at once")]
    TooLong {
        /// Length of this message's encoding.
        len: usize,
        /// [`Message::MAX_FRAME`] of its type.
        max: usize,
    },
    /// The serializer refused, which no message of this crate gives reason for.
    #[error("a message cannot be encoded: {0}")]
    Serializer(postcard::Error),
}

/// Why a stream is not a stream of frames. Final: what follows in the stream has no known boundary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer announced a frame over the limit.
    #[error("peer announced a frame of {len} bytes, over the limit of {max}")]
    TooLong {
        /// Announced length.
        len: u32,
        /// [`Message::MAX_FRAME`] of the expected type.
        max: usize,
    },
    /// The frame's bytes are not a message of the expected type.
    #[error("peer sent a frame of {len} bytes that is no message")]
    Malformed {
        /// The frame's length.
        len: usize,
    },
    /// The stream ended inside a frame.
    #[error("stream ended with {held} bytes of an unfinished frame")]
    Truncated {
        /// Bytes received of the unfinished frame, with its header.
        held: usize,
    },
}

/// Appends `message` as one frame to `out`; on error `out` is as it was.
///
/// # Errors
/// [`EncodeError::TooLong`] if the receiver would refuse it.
pub fn encode_into<M: Message>(message: &M, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let mut framed = std::mem::take(out);
    framed.extend_from_slice(&[0; HEADER_LEN]);
    // `to_extend` hands the vector back only on success, so measure first: then it cannot fail.
    let size = postcard::experimental::serialized_size(message).map_err(EncodeError::Serializer);
    let size = match size {
        Ok(len) if len > M::MAX_FRAME => Err(EncodeError::TooLong {
            len,
            max: M::MAX_FRAME,
        }),
        other => other,
    };
    match size {
        Ok(len) => {
            framed.reserve(len);
            *out = postcard::to_extend(message, framed).map_err(EncodeError::Serializer)?;
            let len = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
            for (place, byte) in out.iter_mut().skip(start).zip(len) {
                *place = byte;
            }
            Ok(())
        }
        Err(error) => {
            framed.truncate(start);
            *out = framed;
            Err(error)
        }
    }
}

/// One message as one frame.
///
/// # Errors
/// [`EncodeError::TooLong`] if the receiver would refuse it.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    encode_into(message, &mut out)?;
    Ok(out)
}

/// Turns a stream's bytes into messages: [`push`](Self::push) what was read, then pull with
/// [`next`](Self::next) until it gives `None`.
///
/// Holds at most one unfinished frame beyond what was pushed since `next` last gave `None`.
#[derive(Debug)]
pub struct Decoder<M> {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were already given out.
    consumed: usize,
    failed: Option<FrameError>,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> Decoder<M> {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            failed: None,
            message: PhantomData,
        }
    }

    /// Takes bytes as the stream gave them, cut anywhere. After an error they are dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] or [`FrameError::Malformed`], and the same again ever after.
    #[expect(
        clippy::should_implement_trait,
        reason = "`None` means \"not yet\", which no iterator may mean"
    )]
    pub fn next(&mut self) -> Result<Option<M>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.parse() {
            Ok(Some(message)) => Ok(Some(message)),
            Ok(None) => {
                // An idle stream keeps no more memory than the frame it is waiting for needs.
                if self.consumed == self.buffer.len() {
                    self.buffer = Vec::new();
                    self.consumed = 0;
                }
                Ok(None)
            }
            Err(error) => {
                self.buffer = Vec::new();
                self.consumed = 0;
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// To be called at the end of the stream.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if it ended inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.buffer.len().saturating_sub(self.consumed) {
            0 => Ok(()),
            held => Err(FrameError::Truncated { held }),
        }
    }

    fn parse(&mut self) -> Result<Option<M>, FrameError> {
        let pending = self.buffer.get(self.consumed..).unwrap_or_default();
        let Some((header, rest)) = pending.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let announced = u32::from_le_bytes(*header);
        let len = match usize::try_from(announced) {
            Ok(len) if len <= M::MAX_FRAME => len,
            _ => {
                return Err(FrameError::TooLong {
                    len: announced,
                    max: M::MAX_FRAME,
                });
            }
        };
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        match postcard::take_from_bytes::<M>(body) {
            Ok((message, [])) => {
                self.consumed += HEADER_LEN + len;
                Ok(Some(message))
            }
            _ => Err(FrameError::Malformed { len }),
        }
    }
}

impl<M: Message> Default for Decoder<M> {
    fn default() -> Self {
        Self::new()
    }
}
