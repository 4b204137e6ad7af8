//! One reader for each coding. Gzip, deflate and brotli are read by code without `unsafe`, since their bytes are
//! hostile. For zstd there is none that gives what it has before its window is full, which would hold up streams; it
//! is read by the reference implementation, which is fuzzed without pause.

use std::io::Write;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use bytes::{Buf, Bytes};
use flate2::write::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::{Coding, DecodeError, STEP_BYTES};
use crate::defence::holds;

/// The window that a zstd stream may ask for, as a power of two: 8 MiB, as RFC 9659 says. Bounds memory.
const ZSTD_WINDOW_LOG: u32 = 23;
/// A reader of gzip or deflate: a window of 32 KiB, one more to write from, and tables.
const DEFLATE_MEMORY: usize = 112 << 10;
/// Tables of a brotli reader, beside its window.
const BROTLI_TABLES: usize = 256 << 10;
/// Writes of a step that give nothing: a member of gzip can be empty, and takes 20 bytes and a new reader.
const MAX_WRITES: usize = 32;
/// Output that is smaller is copied out of its buffer, so that it does not hold all of it.
const SMALL_OUTPUT: usize = STEP_BYTES / 4;

pub(super) struct Reader {
    kind: Kind,
    /// Whether a byte has come. A body of none is no stream that was cut off: answers to HEAD have none.
    has_begun: bool,
    /// Whether the last step gave all it could, so that more may come of the same input.
    is_full: bool,
}

enum Kind {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    /// `None` until the first two bytes say which of the two deflates it is.
    Deflate {
        stream: Option<Box<Decompress>>,
        start: Vec<u8>,
        has_ended: bool,
    },
    Brotli {
        state: Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>,
        window: usize,
        has_ended: bool,
    },
    Zstd {
        context: Box<DCtx<'static>>,
        /// Whether what has come is a number of whole frames.
        is_whole: bool,
    },
    /// There was no memory for a reader.
    None,
}

impl Reader {
    pub(super) fn new(coding: Coding) -> Self {
        let kind = match coding {
            Coding::Gzip => Kind::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Coding::Deflate => Kind::Deflate {
                stream: None,
                start: Vec::new(),
                has_ended: false,
            },
            Coding::Brotli => Kind::Brotli {
                // Strict: without the windows of a gigabyte that are no part of the standard.
                state: Box::new(BrotliState::new_strict(
                    StandardAlloc::default(),
                    StandardAlloc::default(),
                    StandardAlloc::default(),
                )),
                window: 0,
                has_ended: false,
            },
            Coding::Zstd => zstd(),
        };
        Self {
            kind,
            has_begun: false,
            is_full: false,
        }
    }

    pub(super) fn coding(&self) -> Coding {
        match self.kind {
            Kind::Gzip(_) => Coding::Gzip,
            Kind::Deflate { .. } => Coding::Deflate,
            Kind::Brotli { .. } => Coding::Brotli,
            Kind::Zstd { .. } | Kind::None => Coding::Zstd,
        }
    }

    /// Bytes that this reader holds by now.
    pub(super) fn memory(&self) -> usize {
        if !self.has_begun {
            return 0;
        }
        match &self.kind {
            Kind::Gzip(_) | Kind::Deflate { .. } => DEFLATE_MEMORY,
            Kind::Brotli { window, .. } => BROTLI_TABLES + window,
            Kind::Zstd { context, .. } => context.sizeof(),
            Kind::None => 0,
        }
    }

    /// Takes what it needs of the input for at most [`STEP_BYTES`] of output, or all of it. Nothing comes out if it needs more.
    pub(super) fn step(&mut self, input: &mut Bytes) -> Result<Bytes, DecodeError> {
        let broken = DecodeError::Broken(self.coding());
        if input.is_empty() && !self.is_full {
            return Ok(Bytes::new());
        }
        self.has_begun = true;
        let output = match &mut self.kind {
            Kind::Gzip(stream) => gzip(stream, input).ok_or(broken)?,
            Kind::Deflate {
                stream,
                start,
                has_ended,
            } => deflate(stream, start, has_ended, input).ok_or(broken)?,
            Kind::Brotli {
                state,
                window,
                has_ended,
            } => {
                if *window == 0 {
                    *window = input
                        .first()
                        .and_then(|first| brotli_window(*first))
                        .ok_or(broken)?;
                }
                brotli(state, has_ended, input).ok_or(broken)?
            }
            Kind::Zstd { context, is_whole } => {
                let mut output = Vec::with_capacity(STEP_BYTES);
                let mut source = InBuffer::around(input);
                let left = context.decompress_stream(&mut OutBuffer::around(&mut output), &mut source);
                let taken = source.pos();
                match left {
                    // Without input and output it only asks for the next frame's head.
                    Ok(left) if taken > 0 || !output.is_empty() => *is_whole = left == 0,
                    Ok(_) => {}
                    Err(_) => return Err(broken),
                }
                input.advance(taken);
                output
            }
            Kind::None => return Err(DecodeError::Busy),
        };
        self.is_full = output.len() >= STEP_BYTES;
        Ok(shrunk(output))
    }

    /// Fails if the stream ends in its middle.
    pub(super) fn finish(&mut self) -> Result<(), DecodeError> {
        let is_whole = !self.has_begun
            || match &mut self.kind {
                Kind::Gzip(stream) => stream.try_finish().is_ok(),
                Kind::Deflate { has_ended, .. } | Kind::Brotli { has_ended, .. } => *has_ended,
                Kind::Zstd { is_whole, .. } => *is_whole,
                Kind::None => false,
            };
        if is_whole || !holds("truncated-coding") {
            Ok(())
        } else {
            Err(DecodeError::Truncated(self.coding()))
        }
    }
}

/// The stream takes a step's worth at a time, and gives the rest of it when it is flushed.
fn gzip(stream: &mut MultiGzDecoder<Vec<u8>>, input: &mut Bytes) -> Option<Vec<u8>> {
    let mut writes = 0;
    while !input.is_empty() && stream.get_ref().is_empty() {
        if writes == MAX_WRITES && holds("gzip-members") {
            return Some(Vec::new());
        }
        writes += 1;
        let taken = stream.write(input).ok()?;
        if taken == 0 {
            return None;
        }
        input.advance(taken);
    }
    if input.is_empty() {
        stream.flush().ok()?;
    }
    Some(std::mem::take(stream.get_mut()))
}

fn deflate(
    stream: &mut Option<Box<Decompress>>,
    start: &mut Vec<u8>,
    has_ended: &mut bool,
    input: &mut Bytes,
) -> Option<Vec<u8>> {
    let Some(stream) = stream else {
        start.extend_from_slice(&input.split_to(input.len().min(2 - start.len().min(2))));
        if let [first, second] = *start.as_slice() {
            let has_head = first & 0x0f == 8 && (u16::from(first) << 8 | u16::from(second)) % 31 == 0;
            let mut new = Box::new(Decompress::new(has_head));
            let mut output = Vec::with_capacity(STEP_BYTES);
            let status = new
                .decompress_vec(start, &mut output, FlushDecompress::None)
                .ok()?;
            if new.total_in() < 2 {
                return None;
            }
            *has_ended = status == Status::StreamEnd;
            *stream = Some(new);
            return Some(output);
        }
        return Some(Vec::new());
    };
    if *has_ended {
        // What follows an end belongs to nothing.
        return input.is_empty().then(Vec::new);
    }
    let mut output = Vec::with_capacity(STEP_BYTES);
    let before = stream.total_in();
    let status = stream
        .decompress_vec(input, &mut output, FlushDecompress::None)
        .ok()?;
    *has_ended = status == Status::StreamEnd;
    let taken = usize::try_from(stream.total_in() - before).ok()?;
    if taken == 0 && output.is_empty() && !input.is_empty() && !*has_ended {
        return None;
    }
    input.advance(taken);
    Some(output)
}

fn brotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    has_ended: &mut bool,
    input: &mut Bytes,
) -> Option<Vec<u8>> {
    if *has_ended {
        return input.is_empty().then(Vec::new);
    }
    let mut output = vec![0; STEP_BYTES];
    let (mut left, mut taken, mut room, mut given, mut total) = (input.len(), 0, output.len(), 0, 0);
    let result = BrotliDecompressStream(
        &mut left,
        &mut taken,
        input,
        &mut room,
        &mut given,
        &mut output,
        &mut total,
        state,
    );
    match result {
        BrotliResult::ResultFailure => return None,
        BrotliResult::ResultSuccess => *has_ended = true,
        BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
    }
    if taken == 0 && given == 0 && !input.is_empty() && !*has_ended {
        return None;
    }
    input.advance(taken);
    output.truncate(given);
    Some(output)
}

/// The window that the first byte of a stream announces (RFC 7932 §9.1).
fn brotli_window(first: u8) -> Option<usize> {
    let bits = match (first & 1, first >> 1 & 7, first >> 4 & 7) {
        (0, ..) => 16,
        (_, 0, 0) => 17,
        (_, 0, 1) => return None,
        (_, 0, n) => 8 + n,
        (_, n, _) => 17 + n,
    };
    Some(1 << bits)
}

fn zstd() -> Kind {
    let Some(mut context) = DCtx::try_create() else {
        return Kind::None;
    };
    if holds("zstd-window")
        && context
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
            .is_err()
    {
        return Kind::None;
    }
    Kind::Zstd {
        context: Box::new(context),
        is_whole: false,
    }
}

fn shrunk(output: Vec<u8>) -> Bytes {
    if output.len() < SMALL_OUTPUT {
        Bytes::copy_from_slice(&output)
    } else {
        Bytes::from(output)
    }
}
