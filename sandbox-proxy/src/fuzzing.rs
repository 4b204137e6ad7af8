//! Doors into the parsers that read hostile bytes, for the fuzz targets in `fuzz/` and the benchmark of the
//! scrubber alone. Not for programs: what is here changes without notice.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sandbox_core::credential::Credential;

use crate::scrub::coding::{Coding, Decoder, MEMORY_UNITS, Step};
use crate::scrub::{Framing, Scrubber, Secrets};
use crate::tls::hello::{Sniffer, Start};

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
    let mut rest = body;
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| usize::from(*size).max(1));
        let (piece, after) = rest.split_at(size.min(rest.len()));
        out.extend_from_slice(&scrubber.data(Bytes::copy_from_slice(piece)).concat());
        rest = after;
    }
    out.extend_from_slice(&scrubber.last(Bytes::new()).concat());
    out
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
