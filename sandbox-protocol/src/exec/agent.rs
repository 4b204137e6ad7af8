//! The agent's side of an exec stream. Its peer is the trusted host, and is checked all the same: what
//! speaks to a real agent may be a test, or another implementation.

use super::{
    Exit, MAX_CHUNK, Output, ReceiveWindow, Reply, Request, SendWindow, Spawn, SpawnFailure, Stdin,
    Violation, outbox::Outbox, outputs::Outputs,
};
use crate::frame::Decoder;

/// Longest error text sent; with the rest of its message it stays far below the frame limit.
const MAX_ERROR_TEXT: usize = 4096;

/// The agent's state of one command. Bytes in by [`received`](Self::received), events out by
/// [`next_event`](Self::next_event), bytes out by [`outgoing`](Self::outgoing) and [`sent`](Self::sent).
#[derive(Debug)]
pub struct AgentSide {
    decoder: Decoder<Request>,
    outbox: Outbox,
    phase: Phase,
    stdin: ReceiveWindow,
    stdin_open: bool,
    stdin_gone: bool,
    outputs: Outputs<SendWindow>,
    exited: bool,
}

/// What the host asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentEvent {
    /// Run this. Answer with [`AgentSide::spawned`] or [`AgentSide::spawn_failed`].
    Spawn(Box<Spawn>),
    /// Bytes for standard input. Say [`AgentSide::stdin_consumed`] once they are written.
    Stdin(Vec<u8>),
    /// End of standard input.
    StdinClose,
    /// A signal for the process group.
    Signal(i32),
    /// An output has room again.
    OutputRoom(Output),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Starting,
    Started,
    Failed,
}

impl AgentSide {
    /// The start of a stream.
    pub fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            outbox: Outbox::default(),
            phase: Phase::Waiting,
            stdin: ReceiveWindow::new(),
            stdin_open: false,
            stdin_gone: false,
            outputs: Outputs::new(SendWindow::new),
            exited: false,
        }
    }

    /// Takes bytes that the stream gave. Call [`next_event`](Self::next_event) until it gives `None` before
    /// the next bytes.
    pub fn received(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next thing the host asked for, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// A [`Violation`]: kill the command and drop the stream.
    pub fn next_event(&mut self) -> Result<Option<AgentEvent>, Violation> {
        match self.decoder.next()? {
            Some(request) => self.accept(request).map(Some),
            None => Ok(None),
        }
    }

    /// Says that the command runs.
    pub fn spawned(&mut self, pid: u32) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Started;
            self.outbox.push(&Reply::Spawned { pid });
        }
    }

    /// Says that the command does not run.
    pub fn spawn_failed(&mut self, mut failure: SpawnFailure) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Failed;
            let end = failure.message.floor_char_boundary(MAX_ERROR_TEXT);
            failure.message.truncate(end);
            self.outbox.push(&Reply::SpawnFailed(failure));
        }
    }

    /// Bytes of an output that may be sent now, at most [`MAX_CHUNK`].
    pub fn output_room(&self, output: Output) -> usize {
        let channel = self.outputs.get(output);
        if self.phase == Phase::Started && channel.open {
            channel.window.room().min(MAX_CHUNK)
        } else {
            0
        }
    }

    /// Sends as much of `data` as [`output_room`](Self::output_room) allows, and says how much.
    pub fn write_output(&mut self, output: Output, data: &[u8]) -> usize {
        let wanted = data.len().min(self.output_room(output));
        let taken = self.outputs.get_mut(output).window.take(wanted);
        match data.get(..taken) {
            Some(data) if taken > 0 => self.outbox.push(&Reply::Output {
                output,
                data: data.into(),
            }),
            _ => {}
        }
        taken
    }

    /// Says that an output has ended.
    pub fn close_output(&mut self, output: Output) {
        if self.phase == Phase::Started && std::mem::replace(&mut self.outputs.get_mut(output).open, false) {
            self.outbox.push(&Reply::OutputClose(output));
        }
    }

    /// Whether an output has not been closed.
    pub fn output_open(&self, output: Output) -> bool {
        self.outputs.get(output).open
    }

    /// Says that `len` bytes of standard input were written to the command, or dropped.
    pub fn stdin_consumed(&mut self, len: usize) {
        let credit = self.stdin.consume(len);
        if let Some(bytes) = credit.filter(|_| self.stdin_open && !self.is_complete()) {
            self.outbox.push(&Reply::Credit { bytes });
        }
    }

    /// Says that the command no longer reads its standard input.
    pub fn stdin_gone(&mut self) {
        if self.stdin_open && !self.is_complete() && !std::mem::replace(&mut self.stdin_gone, true) {
            self.outbox.push(&Reply::StdinGone);
        }
    }

    /// Says how the command ended. Its output may still follow.
    pub fn exited(&mut self, exit: Exit) {
        if self.phase == Phase::Started && !std::mem::replace(&mut self.exited, true) {
            self.outbox.push(&Reply::Exited(exit));
        }
    }

    /// Whether everything was said: write what is [`outgoing`](Self::outgoing) and end the stream.
    pub fn is_complete(&self) -> bool {
        match self.phase {
            Phase::Waiting | Phase::Starting => false,
            Phase::Started => self.exited && self.outputs.ended(),
            Phase::Failed => true,
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

    fn accept(&mut self, request: Request) -> Result<AgentEvent, Violation> {
        let message = request.name();
        let wrong = |when| Err(Violation::OutOfOrder { message, when });
        let first = matches!(request, Request::Spawn(_));
        match self.phase {
            Phase::Waiting if !first => return wrong("before `Spawn`"),
            Phase::Starting | Phase::Started | Phase::Failed if first => return wrong("twice"),
            _ => {}
        }
        Ok(match request {
            Request::Spawn(spawn) => {
                self.phase = Phase::Starting;
                self.stdin_open = spawn.stdin == Stdin::Pipe;
                AgentEvent::Spawn(spawn)
            }
            Request::Stdin(data) => {
                if !self.stdin_open {
                    return wrong("to a closed standard input");
                }
                if data.len() > MAX_CHUNK {
                    return wrong("with too much data in one message");
                }
                self.stdin.receive(data.len())?;
                AgentEvent::Stdin(data.into_vec())
            }
            Request::StdinClose => {
                if !std::mem::replace(&mut self.stdin_open, false) {
                    return wrong("to a closed standard input");
                }
                AgentEvent::StdinClose
            }
            Request::Signal(number) => AgentEvent::Signal(number),
            Request::Credit { output, bytes } => {
                self.outputs.get_mut(output).window.credit(bytes)?;
                AgentEvent::OutputRoom(output)
            }
        })
    }
}

impl Default for AgentSide {
    fn default() -> Self {
        Self::new()
    }
}

impl Request {
    fn name(&self) -> &'static str {
        match self {
            Self::Spawn(_) => "`Spawn`",
            Self::Stdin(_) => "`Stdin`",
            Self::StdinClose => "`StdinClose`",
            Self::Signal(_) => "`Signal`",
            Self::Credit { .. } => "`Credit`",
        }
    }
}
