//! Doors into the parsers that read hostile bytes, for the fuzz targets in `fuzz/` and the benchmark of the
//! scrubber alone. Not for programs: what is here changes without notice.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use sandbox_core::credential::Credential;

use crate::scrub::coding::{Coding, DecodeError, Decoder, MEMORY_UNITS, Step};
use crate::scrub::{Framing, Messages, Scrubber, Secrets};
use crate::services::sign::chunks::Chunks;
use crate::tls::hello::{Sniffer, Start};

/// These bytes, cut into pieces of the given sizes, again and again; in one piece if there is no size.
fn cut<'a>(mut rest: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = sizes.next().map_or(rest.len(), |size| usize::from(*size).max(1));
        let (piece, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The server name of the client hello that a stream starts with, the stream being read in pieces of `piece` bytes;
/// `None` where it starts with something else, or is not whole.
pub fn client_hello(stream: &[u8], piece: usize) -> Option<Option<String>> {
    let mut sniffer = Sniffer::default();
    let found = stream.chunks(piece.max(1)).find_map(|piece| sniffer.push(piece));
    match found.or_else(|| sniffer.push(&[])) {
        Some(Start::Tls(hello)) => Some(hello.server_name),
        Some(Start::Other | Start::Broken | Start::Nothing) | None => None,
    }
}

/// What a client gets of a body with this content type, searched for one secret, when it comes cut into pieces of the
/// given sizes, again and again.
pub fn scrub(secret: &str, content_type: &str, body: &[u8], pieces: &[u8]) -> Vec<u8> {
    // To prepare the search takes longer than all else.
    static LAST: Mutex<Option<(String, Arc<Secrets>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let secrets = match &*last {
        Some((known, secrets)) if known == secret => Arc::clone(secrets),
        _ => {
            let secrets = Arc::new(Secrets::default());
            secrets.remember(&"fuzz".into(), &Credential::Token(secret.to_owned().into()));
            *last = Some((secret.to_owned(), Arc::clone(&secrets)));
            secrets
        }
    };
    drop(last);
    let mut headers = http::HeaderMap::new();
    if let Ok(value) = http::HeaderValue::try_from(content_type) {
        headers.insert(http::header::CONTENT_TYPE, value);
    }
    let mut scrubber = Scrubber::new(secrets, Framing::of(&headers));
    let mut out = Vec::with_capacity(body.len());
    for piece in cut(body, pieces) {
        out.extend_from_slice(&scrubber.data(Bytes::copy_from_slice(piece)).concat());
    }
    out.extend_from_slice(&scrubber.last(Bytes::new()).concat());
    out
}

/// What a client gets of a WebSocket on which upstream sends this stream in pieces of the given sizes, again and again,
/// and the most of it that waited at once; `None` where it is no WebSocket.
pub fn websocket(secret: &str, stream: &[u8], pieces: &[u8]) -> Option<(Vec<u8>, usize)> {
    let secrets = Arc::new(Secrets::default());
    secrets.remember(&"fuzz".into(), &Credential::Token(secret.to_owned().into()));
    let mut messages = Messages::new(secrets);
    let (mut out, mut came, mut waited) = (BytesMut::with_capacity(stream.len()), 0, 0);
    for piece in cut(stream, pieces) {
        messages.data(piece, &mut out).ok()?;
        came += piece.len();
        waited = waited.max(came - out.len());
    }
    Some((out.into(), waited))
}

/// One body on its way through the scrubber.
#[derive(Debug)]
pub struct Body(Scrubber);

impl Body {
    /// Of a framing that nobody knows, searched for these secrets.
    pub fn new(keys: &[&str]) -> Self {
        let secrets = Arc::new(Secrets::default());
        for key in keys {
            secrets.remember(&"bench".into(), &Credential::Token((*key).to_owned().into()));
        }
        Self(Scrubber::new(secrets, Framing::Unknown))
    }

    /// What goes out once this has come.
    pub fn data(&mut self, data: Bytes) -> [Bytes; 2] {
        self.0.data(data)
    }
}

/// How many bytes a body in this content coding decodes to when it comes in pieces of `piece` bytes; `None` if it is not
/// whole.
pub fn decode(coding: &str, body: &[u8], piece: usize) -> Option<usize> {
    let codings = Coding::all(coding.split(", "))?;
    let budget = Arc::new(tokio::sync::Semaphore::new(MEMORY_UNITS));
    let mut decoder = Decoder::new(&codings, &budget, false);
    let mut length = 0;
    for piece in body.chunks(piece.max(1)) {
        let mut input = Bytes::copy_from_slice(piece);
        loop {
            match decoder.step(&mut input).ok()? {
                Step::Data(data) => length += data.len(),
                Step::Hungry => break,
                Step::Yield => {}
            }
        }
    }
    Some(length + decoder.finish().ok()?.len())
}

/// What came of a coded body.
#[derive(Debug)]
pub struct Decoded {
    /// What came out before it ended.
    pub content: Vec<u8>,
    /// How it ended.
    pub end: End,
    /// The most that one step gave.
    pub largest_step: usize,
}

/// How a coded body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Whole,
    /// It holds something else.
    Broken,
    /// In its middle.
    Truncated,
    /// There was no memory left for it.
    Busy,
    /// It was left there: more than the limit had come out.
    TooLong,
}

/// Decodes a body that comes cut into pieces of the given sizes, again and again; in `blocks` as the decoder knows them.
/// `None` if a coding is unknown.
pub fn decode_pieces(
    coding: &str,
    blocks: bool,
    body: &[u8],
    pieces: &[u8],
    limit: usize,
) -> Option<Decoded> {
    let codings = Coding::all(coding.split(", "))?;
    let budget = Arc::new(tokio::sync::Semaphore::new(MEMORY_UNITS));
    let mut decoder = Decoder::new(&codings, &budget, blocks);
    let mut decoded = Decoded {
        content: Vec::new(),
        end: End::Whole,
        largest_step: 0,
    };
    if let Err(error) = decode_into(&mut decoded, &mut decoder, cut(body, pieces), limit) {
        decoded.end = match error {
            DecodeError::Broken(_) => End::Broken,
            DecodeError::Truncated(_) => End::Truncated,
            DecodeError::Busy => End::Busy,
        };
    }
    Some(decoded)
}

fn decode_into<'a>(
    decoded: &mut Decoded,
    decoder: &mut Decoder,
    pieces: impl Iterator<Item = &'a [u8]>,
    limit: usize,
) -> Result<(), DecodeError> {
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        loop {
            match decoder.step(&mut input)? {
                Step::Data(data) => {
                    decoded.largest_step = decoded.largest_step.max(data.len());
                    decoded.content.extend_from_slice(&data);
                }
                Step::Hungry => break,
                Step::Yield => {}
            }
            if decoded.content.len() > limit {
                decoded.end = End::TooLong;
                return Ok(());
            }
        }
    }
    decoded.content.extend_from_slice(&decoder.finish()?);
    Ok(())
}

/// What came of a body in signed chunks.
#[derive(Debug)]
pub struct Signed {
    /// What goes out, with other signatures.
    pub out: Vec<u8>,
    /// Why it is broken off, if it is.
    pub error: Option<String>,
    /// The most memory that there was for what had not gone out.
    pub most_held: usize,
}

/// Signs a body in chunks again that comes cut into pieces of the given sizes, again and again.
pub fn sign_chunks(has_trailer: bool, body: &[u8], pieces: &[u8]) -> Option<Signed> {
    let mut chunks = Chunks::fuzzed(has_trailer)?;
    let mut signed = Signed {
        out: Vec::new(),
        error: None,
        most_held: 0,
    };
    for piece in cut(body, pieces).map(Some).chain([None]) {
        let result = match piece {
            Some(piece) => chunks.push(Bytes::copy_from_slice(piece)),
            None => chunks.finish(),
        };
        signed.most_held = signed.most_held.max(chunks.held());
        while let Some(ready) = chunks.next() {
            signed.out.extend_from_slice(&ready);
        }
        if let Err(error) = result {
            signed.error = Some(error.to_string());
            break;
        }
    }
    Some(signed)
}
