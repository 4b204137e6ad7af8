//! The line itself is the `vm-superio` crate's; here are its interrupt and its bounded sink.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_superio::{Serial, Trigger, serial::NoEvents};

use crate::hypervisor::IrqLine;

/// Output held back to be written in one call. A line of the kernel fits; more would delay the last words of a guest.
const LINE_BYTES: usize = 256;

/// A serial line, used under a lock by the vCPU threads.
pub struct SerialConsole {
    line: Serial<Edge, NoEvents, Sink>,
}

impl std::fmt::Debug for SerialConsole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialConsole")
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

impl SerialConsole {
    /// A line that interrupts through `irq` and writes to `pipe`, which must be non-blocking; to nowhere without one.
    pub fn new(irq: Arc<dyn IrqLine>, pipe: Option<OwnedFd>) -> Self {
        let sink = Sink {
            pipe,
            held: Vec::with_capacity(LINE_BYTES),
            dropped: 0,
        };
        Self {
            line: Serial::new(Edge(irq), sink),
        }
    }

    /// The guest reads a register, `0..8`.
    pub fn read(&mut self, register: u8) -> u8 {
        self.line.read(register)
    }

    /// The guest writes a register, `0..8`.
    pub fn write(&mut self, register: u8, value: u8) {
        // The sink does not fail, and a lost interrupt is the guest's to time out on.
        let _ = self.line.write(register, value);
    }

    /// Writes out what is held back.
    pub fn flush(&mut self) {
        self.line.writer_mut().send();
    }

    /// Bytes lost to a slow reader.
    pub fn dropped(&self) -> u64 {
        self.line.writer().dropped
    }
}

struct Edge(Arc<dyn IrqLine>);

impl Trigger for Edge {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse();
        Ok(())
    }
}

struct Sink {
    pipe: Option<OwnedFd>,
    held: Vec<u8>,
    dropped: u64,
}

impl Sink {
    fn send(&mut self) {
        let Some(pipe) = &self.pipe else {
            return self.held.clear();
        };
        let sent = rustix::io::write(pipe, &self.held).unwrap_or(0);
        self.dropped += (self.held.len() - sent) as u64;
        self.held.clear();
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            self.held.push(byte);
            if byte == b'\n' || self.held.len() >= LINE_BYTES {
                self.send();
            }
        }
        Ok(bytes.len())
    }

    /// Called after every byte by the line; a line at a time is enough for us.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoIrq;
    impl IrqLine for NoIrq {
        fn pulse(&self) {}
    }

    #[test]
    fn a_reader_that_never_reads_loses_output_and_blocks_nobody() {
        let (_reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut console = SerialConsole::new(Arc::new(NoIrq), Some(writer));
        for _ in 0..200_000 {
            console.write(0, b'x');
        }
        console.flush();
        assert!(console.dropped() > 0);
    }

    #[test]
    fn a_line_arrives_whole_and_the_rest_on_flush() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut console = SerialConsole::new(Arc::new(NoIrq), Some(writer));
        for &byte in b"one\ntw" {
            console.write(0, byte);
        }
        let mut bytes = [0; 16];
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 4);
        console.flush();
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 2);
    }
}
