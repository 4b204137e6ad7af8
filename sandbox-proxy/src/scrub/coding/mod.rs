//! Content codings (RFC 9110 §8.4): read as streams, so that what is inside can be searched, in bounded memory.
//!
//! Each step gives at most [`STEP_BYTES`] and takes no more of its input than it needs for them. What comes in waits
//! until what came out has been taken, so a few bytes that decode to gigabytes fill nothing.

mod readers;

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::defence::holds;
use readers::Reader;

/// What one step gives at most: bounds what a decompression bomb can fill.
pub(crate) const STEP_BYTES: usize = 64 << 10;
/// Codings one inside the other. Servers use one; each costs memory, and multiplies what a few bytes can decode to.
const MAX_CODINGS: usize = 2;
/// Steps without a result before others get their turn: a stream can be full of what decodes to nothing.
const MAX_IDLE_STEPS: usize = 32;
/// Memory that all decoders of a sandbox may take together, in [`MEMORY_UNIT`]s: 128 MiB. Each takes what its stream says
/// it needs, from 0.1 MiB for gzip to 16 MiB for brotli at its widest.
pub(crate) const MEMORY_UNITS: usize = 128 << 10;
const MEMORY_UNIT: usize = 1 << 10;

/// A content coding that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950, or RFC 1951 alone, which some servers send under the same name.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878, with the window of RFC 9659.
    Zstd,
}

/// Why a coded stream cannot be read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It is none of what its header said.
    #[error("upstream's {0:?} stream is broken")]
    Broken(Coding),
    /// It ends in its middle.
    #[error("upstream's {0:?} stream ends too early")]
    Truncated(Coding),
    /// Other streams of this sandbox take all memory there is for decoding.
    #[error("too many compressed responses of this sandbox are open at the same time")]
    Busy,
}

impl Coding {
    /// By its name in `Content-Encoding` and `Accept-Encoding`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("gzip") || is("x-gzip") {
            holds("scrub-gzip").then_some(Self::Gzip)
        } else if is("deflate") {
            holds("scrub-deflate").then_some(Self::Deflate)
        } else if is("br") {
            holds("scrub-br").then_some(Self::Brotli)
        } else if is("zstd") {
            holds("scrub-zstd").then_some(Self::Zstd)
        } else {
            None
        }
    }

    /// Those of a message by their names, in the order in which they were put on. `None` if one is unknown or they are too
    /// many.
    pub(crate) fn all<'a>(names: impl Iterator<Item = &'a str>) -> Option<Vec<Self>> {
        let mut codings = Vec::new();
        for name in names.filter(|name| !name.eq_ignore_ascii_case("identity")) {
            if codings.len() == MAX_CODINGS && holds("stacked-codings") {
                return None;
            }
            codings.push(Self::named(name)?);
        }
        Some(codings)
    }
}

/// Undoes the codings of one body.
pub(crate) struct Decoder {
    /// The one that was put on last is undone first.
    stages: Vec<Stage>,
    /// What came out is collected here until it is a whole block, if blocks are wanted.
    block: Option<BytesMut>,
}

struct Stage {
    reader: Reader,
    /// What the stage before gave.
    input: Bytes,
    budget: Arc<Semaphore>,
    memory: Option<OwnedSemaphorePermit>,
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Data(Bytes),
    /// Nothing comes before there is more input.
    Hungry,
    /// Nothing has come yet, and it is somebody else's turn.
    Yield,
}

impl Decoder {
    /// Undoes `codings`, given in the order in which they were put on. In `blocks`, everything but the end comes in
    /// pieces of [`STEP_BYTES`]: how far it was compressed, which tells what was near what, does not show.
    pub(crate) fn new(codings: &[Coding], budget: &Arc<Semaphore>, blocks: bool) -> Self {
        let stage = |coding: &Coding| Stage {
            reader: Reader::new(*coding),
            input: Bytes::new(),
            budget: Arc::clone(budget),
            memory: None,
        };
        Self {
            stages: codings.iter().rev().map(stage).collect(),
            block: (blocks && holds("decoded-blocks")).then(BytesMut::new),
        }
    }

    /// Takes what it needs of the input, and gives what comes of it.
    pub(crate) fn step(&mut self, input: &mut Bytes) -> Result<Step, DecodeError> {
        let mut idle_steps = 0;
        if !holds("decoded-size") {
            let mut all = BytesMut::new();
            while let Step::Data(data) = pull(&mut self.stages, input, &mut 0)? {
                all.extend_from_slice(&data);
            }
            return Ok(if all.is_empty() {
                Step::Hungry
            } else {
                Step::Data(all.freeze())
            });
        }
        loop {
            let step = pull(&mut self.stages, input, &mut idle_steps)?;
            match (step, &mut self.block) {
                (Step::Data(data), Some(block)) => {
                    block.extend_from_slice(&data);
                    if block.len() >= STEP_BYTES {
                        return Ok(Step::Data(block.split_to(STEP_BYTES).freeze()));
                    }
                }
                (step, _) => return Ok(step),
            }
        }
    }

    /// What is left when the input has ended and every step was taken.
    pub(crate) fn finish(&mut self) -> Result<Bytes, DecodeError> {
        for stage in &mut self.stages {
            stage.reader.finish()?;
        }
        Ok(self
            .block
            .as_mut()
            .map(|block| block.split().freeze())
            .unwrap_or_default())
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.stages.iter().map(|stage| stage.reader.coding()))
            .finish()
    }
}

/// Data of the last of these stages.
fn pull(stages: &mut [Stage], input: &mut Bytes, idle_steps: &mut usize) -> Result<Step, DecodeError> {
    let Some((last, before)) = stages.split_last_mut() else {
        let data = std::mem::take(input);
        return Ok(if data.is_empty() {
            Step::Hungry
        } else {
            Step::Data(data)
        });
    };
    loop {
        let source = if before.is_empty() {
            &mut *input
        } else {
            &mut last.input
        };
        let data = last.reader.step(source)?;
        let is_used_up = source.is_empty();
        last.take_memory()?;
        if !data.is_empty() {
            return Ok(Step::Data(data));
        }
        *idle_steps += 1;
        if *idle_steps > MAX_IDLE_STEPS {
            return Ok(Step::Yield);
        }
        if is_used_up {
            if before.is_empty() {
                return Ok(Step::Hungry);
            }
            match pull(before, input, idle_steps)? {
                Step::Data(data) => last.input = data,
                step => return Ok(step),
            }
        }
    }
}

impl Stage {
    /// Counts what the reader has taken by now.
    fn take_memory(&mut self) -> Result<(), DecodeError> {
        let units = self.reader.memory().div_ceil(MEMORY_UNIT);
        let taken = self.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(units.saturating_sub(taken)).unwrap_or(u32::MAX);
        if more == 0 || !holds("decoder-memory") {
            return Ok(());
        }
        let permit = Arc::clone(&self.budget)
            .try_acquire_many_owned(more)
            .map_err(|_| DecodeError::Busy)?;
        match &mut self.memory {
            Some(memory) => memory.merge(permit),
            None => self.memory = Some(permit),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
