//! Bodies that are hashed before their request goes out: collected, within bounds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::SignError;
use super::chunks::MAX_CHUNK_BYTES;
use crate::defence;

/// The longest body that is collected to be hashed: requests with images to a model have up to 25 MB. S3's clients send
/// hashes, and larger bodies stream.
pub(crate) const MAX_BODY_BYTES: usize = 32 << 20;
/// What all bodies that one sandbox has collected for one service may take together: a guest that sends many at once
/// makes the host hold no more.
const ROOM_BYTES: usize = 64 << 20;
/// Bodies are kept in pieces of this length, however small the frames are that they come in.
const PIECE_BYTES: usize = 64 << 10;
/// For a body to come whole: one that stands still holds its room no longer.
const COLLECT_TIME: Duration = Duration::from_secs(120);
/// For a place for a chunk, while others are on their way.
const PLACE_TIME: Duration = Duration::from_secs(10);

/// How a request's body is signed, as `x-amz-content-sha256` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// This text is signed, whatever the body is: its hash, or that it is not signed. It streams.
    Literal(String),
    /// The hash has yet to be found.
    Hashed,
    /// Each chunk has a signature of its own.
    Chunks { trailer: bool },
}

const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
const CHUNKS: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const CHUNKS_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

impl Payload {
    pub(super) fn parse(text: &str) -> Result<Self, SignError> {
        let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.trim() {
            UNSIGNED | UNSIGNED_TRAILER => Ok(Self::Literal(text.to_owned())),
            CHUNKS => Ok(Self::Chunks { trailer: false }),
            CHUNKS_TRAILER => Ok(Self::Chunks { trailer: true }),
            _ if is_hash || !defence::holds("sigv4-payload-kind") => Ok(Self::Literal(text.to_owned())),
            _ => Err(SignError::Payload),
        }
    }

    pub(super) fn unsigned() -> Self {
        Self::Literal(UNSIGNED.to_owned())
    }

    /// What the head's signature holds of the body.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Literal(text) => text.clone(),
            Self::Hashed => String::new(),
            Self::Chunks { trailer: false } => CHUNKS.to_owned(),
            Self::Chunks { trailer: true } => CHUNKS_TRAILER.to_owned(),
        }
    }
}

/// Room for the bodies of one service and sandbox.
pub(crate) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM_BYTES / PIECE_BYTES))
}

/// A place for one chunk, for as long as its request goes on.
pub(super) async fn place_for_chunk(room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, SignError> {
    let pieces = u32::try_from(MAX_CHUNK_BYTES / PIECE_BYTES).unwrap_or(u32::MAX);
    match timeout(PLACE_TIME, Arc::clone(room).acquire_many_owned(pieces)).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(SignError::Busy),
    }
}

/// A whole body, given out piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pieces: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// Given back with the last piece.
    places: Vec<OwnedSemaphorePermit>,
}

impl Whole {
    /// What is left of it, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none()
    }

    pub(crate) fn next(&mut self) -> Option<Frame<Bytes>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(Frame::data(piece));
        }
        self.places.clear();
        self.trailers.take().map(Frame::trailers)
    }

    /// All of it, if it is short.
    pub(super) fn first(&self) -> Option<&[u8]> {
        match (self.pieces.len(), self.pieces.front()) {
            (0, _) => Some(&[]),
            (1, Some(piece)) => Some(piece),
            _ => None,
        }
    }
}

/// Collects a body, and hashes it on the way.
pub(crate) async fn collect<B>(
    body: &mut B,
    room: &Arc<Semaphore>,
) -> Result<(Whole, digest::Digest), SignError>
where
    B: Body<Data = Bytes> + Unpin,
{
    match timeout(COLLECT_TIME, collect_all(body, room)).await {
        Ok(collected) => collected,
        Err(_) => Err(SignError::TooSlow),
    }
}

async fn collect_all<B>(body: &mut B, room: &Arc<Semaphore>) -> Result<(Whole, digest::Digest), SignError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut whole = Whole::default();
    let mut piece = BytesMut::new();
    let mut total = 0_usize;
    let announced = body.size_hint().lower();
    let bounded = defence::holds("sigv4-body-bound");
    if bounded && announced > MAX_BODY_BYTES as u64 {
        return Err(SignError::TooLarge);
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| SignError::BrokenOff)?;
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                whole.trailers = frame.into_trailers().ok();
                continue;
            }
        };
        total = total.saturating_add(data.len());
        if bounded && total > MAX_BODY_BYTES {
            return Err(SignError::TooLarge);
        }
        hash.update(&data);
        while !data.is_empty() {
            if piece.capacity() == piece.len() {
                if !piece.is_empty() {
                    whole.pieces.push_back(piece.split().freeze());
                }
                if bounded {
                    let place = Arc::clone(room).try_acquire_owned();
                    whole.places.push(place.map_err(|_| SignError::Busy)?);
                }
                piece = BytesMut::with_capacity(PIECE_BYTES);
            }
            let part = data.split_to(data.len().min(piece.capacity() - piece.len()));
            piece.extend_from_slice(&part);
        }
    }
    if !piece.is_empty() {
        whole.pieces.push_back(piece.freeze());
    }
    Ok((whole, hash.finish()))
}
