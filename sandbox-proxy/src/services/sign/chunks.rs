//! Bodies in signed chunks (`aws-chunked`): each chunk is held until it is whole, signed again and sent on, so that
//! lengths and borders stay as they were.
//!
//! A chunk is `size;chunk-signature=…` in hexadecimal, a line break, its bytes and a line break; the last one is empty.
//! After it there may be trailers with a signature of their own.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::key::{Key, Scope, sha256};
use crate::defence;

/// The longest chunk that is held to be signed; SDKs send 64 or 128 KiB.
pub(crate) const MAX_CHUNK_BYTES: usize = 1 << 20;
/// The line before a chunk has some hundred bytes; bounds what is kept of one that never ends.
const MAX_LINE_BYTES: usize = 256;
/// Trailers are a checksum or two and a signature.
const MAX_TRAILER_BYTES: usize = 4096;

const SIGNATURE: &str = ";chunk-signature=";
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature:";
/// Digits of a signature.
const SIGNATURE_CHARS: usize = 64;

/// Why a body is broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("a signed chunk of the request has no valid head")]
    Head,
    #[error("a signed chunk of the request is longer than 1 MiB")]
    TooLong,
    #[error("a signed chunk of the request does not end where it says")]
    Border,
    #[error("the trailers of the signed chunks are too long or have no signature")]
    Trailers,
    #[error("the request's signed chunks end too early")]
    Truncated,
    #[error("the request goes on after its last signed chunk")]
    GoesOn,
}

/// Signs chunks again.
#[derive(Debug)]
pub(crate) struct Chunks {
    key: Key,
    scope: Scope,
    /// Every signature holds the one before it.
    previous: String,
    has_trailer: bool,
    state: State,
    /// What has come of the current line, chunk or trailers.
    held: BytesMut,
    ready: VecDeque<Bytes>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum State {
    Line,
    /// Of this length, after a line that starts with this size.
    Chunk {
        size_text: String,
        length: usize,
    },
    Trailers,
    Done,
}

impl Chunks {
    pub(super) fn new(
        key: Key,
        scope: Scope,
        seed: String,
        has_trailer: bool,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            key,
            scope,
            previous: seed,
            has_trailer,
            state: State::Line,
            held: BytesMut::new(),
            ready: VecDeque::new(),
            _place: place,
        }
    }

    /// Whether all has come that there is.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// What can go out next.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// Takes what came from the client.
    pub(crate) fn push(&mut self, mut data: Bytes) -> Result<(), ChunkError> {
        while data.has_remaining() {
            match &self.state {
                State::Line => {
                    let room = MAX_LINE_BYTES.saturating_sub(self.held.len());
                    let Some(end) = data.iter().take(room).position(|byte| *byte == b'\n') else {
                        if data.len() >= room {
                            return Err(ChunkError::Head);
                        }
                        self.held.extend_from_slice(&data);
                        return Ok(());
                    };
                    self.held.extend_from_slice(&data.split_to(end + 1));
                    self.line()?;
                }
                State::Chunk { size_text, length } => {
                    // With the line break after it.
                    let missing = (*length + 2).saturating_sub(self.held.len());
                    self.held
                        .extend_from_slice(&data.split_to(missing.min(data.len())));
                    if self.held.len() == *length + 2 {
                        let (size_text, length) = (size_text.clone(), *length);
                        self.chunk(&size_text, length)?;
                    }
                }
                State::Trailers => {
                    if self.held.len() + data.len() > MAX_TRAILER_BYTES {
                        return Err(ChunkError::Trailers);
                    }
                    self.held.extend_from_slice(&data);
                    return Ok(());
                }
                State::Done => return Err(ChunkError::GoesOn),
            }
        }
        Ok(())
    }

    /// The client's body has ended.
    pub(crate) fn finish(&mut self) -> Result<(), ChunkError> {
        match self.state {
            State::Trailers => self.trailers(),
            State::Done => Ok(()),
            _ => Err(ChunkError::Truncated),
        }
    }

    fn line(&mut self) -> Result<(), ChunkError> {
        let line = self.held.split();
        let text = std::str::from_utf8(&line).map_err(|_| ChunkError::Head)?;
        let text = text.strip_suffix("\r\n").ok_or(ChunkError::Head)?;
        let (size, signature) = text.split_once(SIGNATURE).ok_or(ChunkError::Head)?;
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex(size) || size.len() > 16 || !is_hex(signature) || signature.len() != SIGNATURE_CHARS {
            return Err(ChunkError::Head);
        }
        let length = usize::from_str_radix(size, 16).map_err(|_| ChunkError::Head)?;
        if length > MAX_CHUNK_BYTES && defence::holds("sigv4-chunk-bound") {
            return Err(ChunkError::TooLong);
        }
        let size_text = size.to_owned();
        if length == 0 && self.has_trailer {
            self.sign(&size_text, &[]);
            self.state = State::Trailers;
        } else {
            self.held.reserve(length.min(MAX_CHUNK_BYTES) + 2);
            self.state = State::Chunk { size_text, length };
        }
        Ok(())
    }

    fn chunk(&mut self, size_text: &str, length: usize) -> Result<(), ChunkError> {
        let chunk = self.held.split().freeze();
        let data = chunk.get(..length).unwrap_or(&[]);
        if !chunk.ends_with(b"\r\n") {
            return Err(ChunkError::Border);
        }
        self.sign(size_text, data);
        self.ready.push_back(chunk);
        self.state = if length == 0 { State::Done } else { State::Line };
        Ok(())
    }

    /// Writes the line before a chunk.
    fn sign(&mut self, size_text: &str, data: &[u8]) {
        let hashes = [&*sha256(&[]), &*sha256(data)];
        let text = self.scope.chunk_to_sign("PAYLOAD", &self.previous, &hashes);
        self.previous = self.key.sign(&text);
        let line = format!("{size_text}{SIGNATURE}{}\r\n", self.previous);
        self.ready.push_back(Bytes::from(line));
    }

    fn trailers(&mut self) -> Result<(), ChunkError> {
        let held = self.held.split();
        let text = std::str::from_utf8(&held).map_err(|_| ChunkError::Trailers)?;
        let (trailers, rest) = text.split_once(TRAILER_SIGNATURE).ok_or(ChunkError::Trailers)?;
        let (old, end) = rest
            .split_at_checked(SIGNATURE_CHARS)
            .ok_or(ChunkError::Trailers)?;
        if !old.bytes().all(|byte| byte.is_ascii_hexdigit()) || !end.trim().is_empty() {
            return Err(ChunkError::Trailers);
        }
        let mut lines = Vec::new();
        for line in trailers.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or(ChunkError::Trailers)?;
            lines.push(format!("{}:{}\n", name.trim().to_ascii_lowercase(), value.trim()));
        }
        lines.sort_unstable();
        let hash = sha256(lines.concat().as_bytes());
        let text = self.scope.chunk_to_sign("TRAILER", &self.previous, &[&hash]);
        self.previous = self.key.sign(&text);
        let signed = format!("{trailers}{TRAILER_SIGNATURE}{}{end}", self.previous);
        self.ready.push_back(Bytes::from(signed));
        self.state = State::Done;
        Ok(())
    }
}

#[cfg(feature = "fuzzing")]
impl Chunks {
    /// With a key that is none.
    pub(crate) fn fuzzed(has_trailer: bool) -> Option<Self> {
        let scope = Scope::new(std::time::SystemTime::UNIX_EPOCH, "region", "service");
        let key = scope.key(&"fuzz".to_owned().into());
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let place = places.try_acquire_owned().ok()?;
        Some(Self::new(key, scope, "seed".to_owned(), has_trailer, place))
    }

    /// Memory for what has come of the current line, chunk or trailers.
    pub(crate) fn held(&self) -> usize {
        self.held.capacity()
    }
}
