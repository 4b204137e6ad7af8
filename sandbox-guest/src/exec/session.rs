//! One exec stream: moves bytes between the host's stream and the command's pipes, as the protocol's state
//! machine allows, until all has been said. If the host leaves before, the command's group is killed.

use std::{cell::RefCell, future, io, os::fd::AsFd, rc::Rc, time::Duration};

use rustix::{
    fs::OFlags,
    pipe::{PipeFlags, pipe_with},
    process::Signal,
};
use sandbox_protocol::exec::{
    AgentEvent, AgentSide, Exit, ExitStatus, MAX_CHUNK, Output, Spawn, SpawnFailure, SpawnFailureKind, Stdin,
    Violation,
};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{Receiver, Sender},
    sync::oneshot,
    time::Instant,
};

use super::{Slot, prepare};
use crate::{Guest, diagnostics::say, signals::Group, transport::Stream};

/// Time between `SIGTERM` and `SIGKILL` for a command that has run too long.
const GRACE: Duration = Duration::from_secs(5);

/// How long the host may take to close a stream after its last message.
const GOODBYE: Duration = Duration::from_secs(5);

/// Longest time limit that is kept; the clock's arithmetic ends somewhere.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

thread_local! {
    /// Where bytes pass through on their way from a pipe or stream. One for all sessions: nothing waits in it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_CHUNK]);
}

/// Serves one stream to its end.
pub(super) async fn serve(guest: &Guest, stream: Stream) {
    let mut session = Session {
        guest,
        stream,
        side: AgentSide::new(),
        command: None,
    };
    match session.run().await {
        Ok(()) => session.finish().await,
        Err(Broken::Violation(violation)) => say(&format!("a command's stream is broken: {violation}")),
        // The host has left, which it may.
        Err(Broken::HostLeft) => {}
    }
}

struct Session<'a> {
    guest: &'a Guest,
    stream: Stream,
    side: AgentSide,
    command: Option<Command>,
}

struct Command {
    group: Rc<Group>,
    stdin: Option<Sender>,
    /// Bytes for standard input, at most a window, and how many of them were written.
    pending: Vec<u8>,
    written: usize,
    stdin_ends: bool,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
    exit: Option<oneshot::Receiver<ExitStatus>>,
    deadline: Deadline,
    /// Whether all was told, so that what the command left running may stay.
    told: bool,
    _slot: Slot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deadline {
    None,
    Terminate(Instant),
    Kill(Instant),
    Passed,
}

enum Broken {
    HostLeft,
    Violation(Violation),
}

enum Wake {
    StreamReadable,
    StreamWritable,
    Readable(Output),
    StdinWritable,
    Exited(ExitStatus),
    Deadline,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<(), Broken> {
        loop {
            self.flush()?;
            if self.side.is_complete() && self.side.outgoing().is_empty() {
                return Ok(());
            }
            match self.wake().await? {
                Wake::StreamReadable => self.take_requests()?,
                Wake::StreamWritable => {}
                Wake::Readable(output) => self.forward(output),
                Wake::StdinWritable => self.feed(),
                Wake::Exited(status) => self.exited(status),
                Wake::Deadline => self.deadline_passed(),
            }
        }
    }

    /// Waits for whatever the session's state lets happen next.
    async fn wake(&mut self) -> Result<Wake, Broken> {
        let Self {
            stream,
            side,
            command,
            ..
        } = self;
        let sending = !side.outgoing().is_empty();
        let Some(command) = command else {
            tokio::select! {
                ready = stream.readable() => ready?,
                ready = stream.writable(), if sending => {
                    ready?;
                    return Ok(Wake::StreamWritable);
                }
            }
            return Ok(Wake::StreamReadable);
        };
        let Command {
            stdin,
            stdout,
            stderr,
            exit,
            pending,
            deadline,
            ..
        } = command;
        let feeding = !pending.is_empty();
        let may = |output| side.output_room(output) > 0;
        tokio::select! {
            ready = stream.readable() => ready.map(|()| Wake::StreamReadable).map_err(Broken::from),
            ready = stream.writable(), if sending => ready.map(|()| Wake::StreamWritable).map_err(Broken::from),
            () = readable(stdout), if may(Output::Stdout) => Ok(Wake::Readable(Output::Stdout)),
            () = readable(stderr), if may(Output::Stderr) => Ok(Wake::Readable(Output::Stderr)),
            () = writable(stdin), if feeding => Ok(Wake::StdinWritable),
            status = ended(exit) => Ok(Wake::Exited(status)),
            () = deadline.wait() => Ok(Wake::Deadline),
        }
    }

    fn flush(&mut self) -> Result<(), Broken> {
        while !self.side.outgoing().is_empty() {
            match self.stream.try_write(self.side.outgoing()) {
                Ok(0) => return Err(Broken::HostLeft),
                Ok(count) => self.side.sent(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take_requests(&mut self) -> Result<(), Broken> {
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let read = self.stream.try_read(scratch);
            self.side.received(filled(scratch, &read));
            read
        });
        match read {
            Ok(0) => return Err(Broken::HostLeft),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(event) = self.side.next_event().map_err(Broken::Violation)? {
            self.handle(event);
        }
        Ok(())
    }

    fn handle(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::Spawn(spawn) => match self.start(&spawn) {
                Ok((pid, command)) => {
                    self.command = Some(command);
                    self.side.spawned(pid);
                }
                Err(failure) => self.side.spawn_failed(failure),
            },
            AgentEvent::Stdin(data) => match &mut self.command {
                Some(command) if command.stdin.is_some() => {
                    command.pending.extend_from_slice(&data);
                    self.feed();
                }
                _ => self.side.stdin_consumed(data.len()),
            },
            AgentEvent::StdinClose => {
                if let Some(command) = &mut self.command {
                    command.stdin_ends = true;
                    self.feed();
                }
            }
            AgentEvent::Signal(number) => {
                if let Some(command) = &self.command {
                    command.group.signal_number(number);
                }
            }
            AgentEvent::OutputRoom(_) => {}
        }
    }

    fn start(&self, spawn: &Spawn) -> Result<(u32, Command), SpawnFailure> {
        let surroundings = self.guest.surroundings.borrow().clone().ok_or_else(|| {
            prepare::refusal(
                SpawnFailureKind::NotReady,
                "the guest has not been configured yet",
            )
        })?;
        let slot = self.guest.children.slot().ok_or_else(|| {
            prepare::refusal(
                SpawnFailureKind::Exhausted,
                "too many commands run at once; try later",
            )
        })?;
        let exhausted = |error: io::Error| SpawnFailure {
            kind: SpawnFailureKind::Exhausted,
            errno: error.raw_os_error(),
            message: format!("standard streams: {error}"),
        };
        let (child_in, stdin) = match spawn.stdin {
            Stdin::Null => (std::fs::File::open("/dev/null").map_err(exhausted)?.into(), None),
            Stdin::Pipe => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| exhausted(e.into()))?;
                rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK).map_err(|e| exhausted(e.into()))?;
                (
                    read,
                    Some(Sender::from_owned_fd_unchecked(write).map_err(exhausted)?),
                )
            }
        };
        let (stdout, child_out) = output_pipe().map_err(exhausted)?;
        let (stderr, child_err) = output_pipe().map_err(exhausted)?;
        let stdio = [child_in.as_fd(), child_out.as_fd(), child_err.as_fd()];
        let mut plan = prepare::plan(&self.guest.options, &surroundings, spawn, stdio)?;
        let mut started = self.guest.children.start(&plan);
        if let Err(fault) = &started
            && prepare::with_shell(&mut plan, fault)
        {
            started = self.guest.children.start(&plan);
        }
        let (pid, group, exit) = started.map_err(|fault| prepare::explain(&plan, spawn, &fault))?;
        let limit = spawn
            .timeout_ms
            .map(|limit| Duration::from_millis(limit).min(MAX_TIMEOUT));
        let command = Command {
            group,
            stdin,
            pending: Vec::new(),
            written: 0,
            stdin_ends: false,
            stdout: Some(stdout),
            stderr: Some(stderr),
            exit: Some(exit),
            deadline: limit.map_or(Deadline::None, |limit| {
                Deadline::Terminate(Instant::now() + limit)
            }),
            told: false,
            _slot: slot,
        };
        Ok((pid.as_raw_pid().unsigned_abs(), command))
    }

    /// Writes what the command takes of its standard input.
    fn feed(&mut self) {
        let Some(command) = &mut self.command else { return };
        let Some(stdin) = &command.stdin else { return };
        while let Some(rest) = command
            .pending
            .get(command.written..)
            .filter(|rest| !rest.is_empty())
        {
            match stdin.try_write(rest) {
                Ok(count) => {
                    command.written += count;
                    self.side.stdin_consumed(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Nobody reads any more; the rest is dropped.
                    self.side.stdin_gone();
                    command.stdin_ends = true;
                    break;
                }
            }
        }
        command.pending = Vec::new();
        command.written = 0;
        if command.stdin_ends {
            command.stdin = None;
        }
    }

    /// Sends what there is of an output, as far as there is room.
    fn forward(&mut self, output: Output) {
        let Some(command) = &mut self.command else { return };
        let pipe = match output {
            Output::Stdout => &mut command.stdout,
            Output::Stderr => &mut command.stderr,
        };
        let Some(source) = pipe else { return };
        let room = self.side.output_room(output);
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let read = source.try_read(scratch.get_mut(..room).unwrap_or_default());
            self.side.write_output(output, filled(scratch, &read));
            read
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(count) if count > 0 => {}
            // The end; a pipe that cannot be read has ended too.
            _ => {
                *pipe = None;
                self.side.close_output(output);
            }
        }
    }

    fn exited(&mut self, status: ExitStatus) {
        let Some(command) = &mut self.command else { return };
        command.exit = None;
        let timed_out = matches!(command.deadline, Deadline::Kill(_) | Deadline::Passed);
        self.side.exited(Exit { status, timed_out });
    }

    fn deadline_passed(&mut self) {
        let Some(command) = &mut self.command else { return };
        command.deadline = match command.deadline {
            Deadline::Terminate(_) => {
                command.group.signal(Signal::TERM);
                Deadline::Kill(Instant::now() + GRACE)
            }
            _ => {
                command.group.signal(Signal::KILL);
                Deadline::Passed
            }
        };
    }

    /// Lets the host read all before the stream is gone: a stream closed with unread bytes is reset.
    async fn finish(&mut self) {
        if let Some(command) = &mut self.command {
            command.told = true;
        }
        self.command = None;
        let drained = async {
            self.stream.shutdown().await?;
            loop {
                self.stream.readable().await?;
                match SCRATCH.with_borrow_mut(|scratch| self.stream.try_read(scratch)) {
                    Ok(0) => return Ok(()),
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                }
            }
        };
        // Whatever happens now, everything was said.
        let _: Result<io::Result<()>, _> = tokio::time::timeout(GOODBYE, drained).await;
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        let late = matches!(self.deadline, Deadline::Kill(_) | Deadline::Passed);
        if !self.told || late {
            self.group.signal(Signal::KILL);
        }
    }
}

impl Deadline {
    async fn wait(&self) {
        match self {
            Self::Terminate(when) | Self::Kill(when) => tokio::time::sleep_until(*when).await,
            Self::None | Self::Passed => future::pending().await,
        }
    }
}

impl From<io::Error> for Broken {
    /// A stream's only errors are ways of its other end to be gone.
    fn from(_: io::Error) -> Self {
        Self::HostLeft
    }
}

/// The bytes that a read has put into `buffer`.
fn filled<'b>(buffer: &'b [u8], read: &io::Result<usize>) -> &'b [u8] {
    let count = read.as_ref().map_or(0, |count| *count);
    buffer.get(..count).unwrap_or_default()
}

/// Our end of a pipe for an output, and the command's.
fn output_pipe() -> io::Result<(Receiver, std::os::fd::OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Ours only: the command's end is another open file, and blocks as programs expect.
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((Receiver::from_owned_fd_unchecked(read)?, write))
}

/// Errors are left for the read that follows to meet.
async fn readable(pipe: &Option<Receiver>) {
    match pipe {
        Some(pipe) => drop(pipe.readable().await),
        None => future::pending().await,
    }
}

/// Errors are left for the write that follows to meet.
async fn writable(pipe: &Option<Sender>) {
    match pipe {
        Some(pipe) => drop(pipe.writable().await),
        None => future::pending().await,
    }
}

async fn ended(exit: &mut Option<oneshot::Receiver<ExitStatus>>) -> ExitStatus {
    match exit {
        Some(exit) => match exit.await {
            Ok(status) => status,
            // The agent itself is ending.
            Err(_) => future::pending().await,
        },
        None => future::pending().await,
    }
}
