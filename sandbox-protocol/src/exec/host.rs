//! The host's side of an exec stream. Its peer is hostile: whatever it sends ends in an event, or in a
//! [`Violation`] after which the stream is to be dropped.

use super::{
    Exit, MAX_CHUNK, Output, ReceiveWindow, Reply, Request, SendWindow, Spawn, SpawnFailure, Violation,
    outbox::Outbox, outputs::Outputs,
};
use crate::frame::{Decoder, EncodeError};

/// Bytes that may wait to be sent before no more standard input is taken. Credit alone does not bound them: a hostile
/// agent that reads nothing can credit input that it never received.
const MAX_UNSENT: usize = 2 * super::WINDOW as usize;

/// The host's state of one command. Bytes in by [`received`](Self::received), events out by
/// [`next_event`](Self::next_event), bytes out by [`outgoing`](Self::outgoing) and [`sent`](Self::sent).
#[derive(Debug)]
pub struct HostSide {
    decoder: Decoder<Reply>,
    outbox: Outbox,
    phase: Phase,
    stdin: SendWindow,
    stdin_open: bool,
    outputs: Outputs<ReceiveWindow>,
    exited: bool,
}

/// What the guest's side did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// The command runs, under this process id of the guest.
    Spawned {
        /// Process id in the guest.
        pid: u32,
    },
    /// The command did not start. Nothing follows.
    SpawnFailed(SpawnFailure),
    /// Bytes of an output. Say [`HostSide::consumed`] once they are dealt with.
    Output {
        /// Which output.
        output: Output,
        /// The bytes, at least one.
        data: Vec<u8>,
    },
    /// An output has ended.
    OutputClosed(Output),
    /// Standard input has room again.
    StdinRoom,
    /// The command no longer reads its standard input.
    StdinGone,
    /// The command has ended; output may still follow.
    Exited(Exit),
}

/// Why a command cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// Arguments and environment are too long together.
    #[error("command line and environment are too long: {0}")]
    TooLong(EncodeError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Started,
    Failed,
}

impl HostSide {
    /// Begins with the request for a command in [`outgoing`](Self::outgoing).
    ///
    /// # Errors
    /// [`SpawnError::TooLong`] if it fits no frame.
    pub fn new(spawn: Spawn) -> Result<Self, SpawnError> {
        let stdin_open = spawn.stdin == super::Stdin::Pipe;
        let mut outbox = Outbox::default();
        outbox
            .try_push(&Request::Spawn(Box::new(spawn)))
            .map_err(SpawnError::TooLong)?;
        Ok(Self {
            decoder: Decoder::new(),
            outbox,
            phase: Phase::Starting,
            stdin: SendWindow::new(),
            stdin_open,
            outputs: Outputs::new(ReceiveWindow::new),
            exited: false,
        })
    }

    /// Takes bytes that the stream gave. Call [`next_event`](Self::next_event) until it gives `None` before
    /// the next bytes, so that no more than one frame is held.
    pub fn received(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next thing the agent said, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// A [`Violation`]: drop the stream.
    pub fn next_event(&mut self) -> Result<Option<HostEvent>, Violation> {
        match self.decoder.next()? {
            Some(reply) => self.accept(reply).map(Some),
            None => Ok(None),
        }
    }

    /// To be called when the stream has ended.
    ///
    /// # Errors
    /// A [`Violation`] if the command's end was not told whole.
    pub fn end_of_stream(&self) -> Result<(), Violation> {
        self.decoder.finish()?;
        match self.phase {
            Phase::Starting => Err(Violation::Ended {
                when: "before the command started",
            }),
            Phase::Started if !self.exited => Err(Violation::Ended {
                when: "before the command ended",
            }),
            Phase::Started if !self.is_complete() => Err(Violation::Ended {
                when: "before the end of the command's output",
            }),
            _ => Ok(()),
        }
    }

    /// Whether nothing more can come: the exit and the ends of both outputs were seen, or the start failed.
    pub fn is_complete(&self) -> bool {
        match self.phase {
            Phase::Starting => false,
            Phase::Started => self.exited && self.outputs.ended(),
            Phase::Failed => true,
        }
    }

    /// Bytes of standard input that [`write_stdin`](Self::write_stdin) would take now. Grows with
    /// [`HostEvent::StdinRoom`] and with [`sent`](Self::sent).
    pub fn stdin_room(&self) -> usize {
        if self.stdin_open {
            self.stdin.room().min(self.unsent_room())
        } else {
            0
        }
    }

    fn unsent_room(&self) -> usize {
        MAX_UNSENT.saturating_sub(self.outbox.pending().len())
    }

    /// Whether standard input may still be written, now or after a [`HostEvent::StdinRoom`].
    pub fn stdin_open(&self) -> bool {
        self.stdin_open
    }

    /// Sends as much of `data` as there is room for, and says how much.
    pub fn write_stdin(&mut self, data: &[u8]) -> usize {
        if !self.stdin_open {
            return 0;
        }
        let taken = self.stdin.take(data.len().min(self.unsent_room()));
        for chunk in data.get(..taken).unwrap_or_default().chunks(MAX_CHUNK) {
            self.outbox.push(&Request::Stdin(chunk.into()));
        }
        taken
    }

    /// Ends standard input, after what was written.
    pub fn close_stdin(&mut self) {
        if std::mem::replace(&mut self.stdin_open, false) {
            self.outbox.push(&Request::StdinClose);
        }
    }

    /// Sends a signal, by its Linux number, to the command's process group. Without effect after the end.
    pub fn signal(&mut self, number: i32) {
        if !self.is_complete() {
            self.outbox.push(&Request::Signal(number));
        }
    }

    /// Says that `len` bytes of an output were dealt with, so that the agent may send more.
    pub fn consumed(&mut self, output: Output, len: usize) {
        let channel = self.outputs.get_mut(output);
        let credit = channel.window.consume(len);
        if let Some(bytes) = credit.filter(|_| channel.open) {
            self.outbox.push(&Request::Credit { output, bytes });
        }
    }

    /// Bytes to write to the stream.
    pub fn outgoing(&self) -> &[u8] {
        self.outbox.pending()
    }

    /// Says that the first `count` bytes of [`outgoing`](Self::outgoing) were written.
    pub fn sent(&mut self, count: usize) {
        self.outbox.sent(count);
    }

    fn accept(&mut self, reply: Reply) -> Result<HostEvent, Violation> {
        let message = reply.name();
        let wrong = |when| Err(Violation::OutOfOrder { message, when });
        let starts = matches!(reply, Reply::Spawned { .. } | Reply::SpawnFailed(_));
        match self.phase {
            Phase::Starting if !starts => return wrong("before the command started"),
            Phase::Started if starts => return wrong("after the command started"),
            Phase::Failed => return wrong("after a failed start"),
            Phase::Started if self.is_complete() => return wrong("after the end"),
            _ => {}
        }
        Ok(match reply {
            Reply::Spawned { pid } => {
                self.phase = Phase::Started;
                HostEvent::Spawned { pid }
            }
            Reply::SpawnFailed(failure) => {
                self.phase = Phase::Failed;
                self.stdin_open = false;
                HostEvent::SpawnFailed(failure)
            }
            Reply::Output { output, data } => {
                let channel = self.outputs.get_mut(output);
                if !channel.open {
                    return wrong("after that output's end");
                }
                channel.window.receive(data.len())?;
                HostEvent::Output {
                    output,
                    data: data.into_vec(),
                }
            }
            Reply::OutputClose(output) => {
                if !std::mem::replace(&mut self.outputs.get_mut(output).open, false) {
                    return wrong("twice");
                }
                HostEvent::OutputClosed(output)
            }
            Reply::Credit { bytes } => {
                self.stdin.credit(bytes)?;
                HostEvent::StdinRoom
            }
            Reply::StdinGone => {
                self.stdin_open = false;
                HostEvent::StdinGone
            }
            Reply::Exited(exit) => {
                if std::mem::replace(&mut self.exited, true) {
                    return wrong("twice");
                }
                HostEvent::Exited(exit)
            }
        })
    }
}

impl Reply {
    fn name(&self) -> &'static str {
        match self {
            Self::Spawned { .. } => "`Spawned`",
            Self::SpawnFailed(_) => "`SpawnFailed`",
            Self::Output { .. } => "`Output`",
            Self::OutputClose(_) => "`OutputClose`",
            Self::Credit { .. } => "`Credit`",
            Self::StdinGone => "`StdinGone`",
            Self::Exited(_) => "`Exited`",
        }
    }
}
