//! A running command: drives the host's side of an exec stream and offers its ends as ordinary readers and
//! writers.
//!
//! Hostile: everything the stream gives; [`HostSide`] turns what breaks the rules into a violation. One task
//! per command owns the stream; the ends share its state under a lock that is never held across an await.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::backend::{Machine, MachineExit};
use sandbox_core::command::{CommandSpec, ExitStatus, Input, Output, Process, Stdin, User};
use sandbox_core::sandbox::ExecError;
use sandbox_core::stream::BoxStream;
use sandbox_protocol::exec::{self as wire, HostEvent, HostSide, SpawnFailureKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Notify;

use crate::sandbox::why_lost;

/// What the guest may take beyond a command's own time limit to end it and say so. The agent keeps the limit; this is
/// for a guest that does not.
const TIMEOUT_GRACE: Duration = Duration::from_secs(60);

/// Bytes read from the stream at once: a whole chunk of output with the message around it.
const READ_BYTES: usize = wire::MAX_CHUNK + 1024;

/// Asks the agent at the other end of `stream` for a command, and returns when it runs.
pub(crate) async fn spawn(
    stream: BoxStream,
    command: CommandSpec,
    machine: Weak<dyn Machine>,
) -> Result<Box<dyn Process>, ExecError> {
    let stdin_piped = command.stdin == Stdin::Piped;
    let limit = command.timeout.map(|limit| limit.saturating_add(TIMEOUT_GRACE));
    let program = command.program.to_string_lossy().into_owned();
    let cwd = command.cwd.clone();
    let side = HostSide::new(to_wire(command)?).map_err(|_| ExecError::InvalidCommand {
        why: "arguments and environment are longer than 2 MiB",
    })?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State::new(side)),
        changed: Notify::new(),
    });
    let driver = Driver {
        task: tokio::spawn(drive_within(limit, stream, Arc::clone(&shared), machine)),
    };
    match shared.wait_for(|state| state.started.take()).await {
        Started::Running(pid) => Ok(Box::new(Running {
            pid,
            stdin: stdin_piped.then(|| Box::new(InputEnd(Arc::clone(&shared))) as Input),
            stdout: Some(OutputEnd::new(&shared, wire::Output::Stdout)),
            stderr: Some(OutputEnd::new(&shared, wire::Output::Stderr)),
            shared,
            _driver: driver,
        })),
        Started::Failed(failure) => Err(spawn_error(failure, program, cwd)),
        Started::Lost(why) => Err(why.into()),
    }
}

fn to_wire(command: CommandSpec) -> Result<wire::Spawn, ExecError> {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = |text: std::ffi::OsString| {
        let bytes = text.into_vec();
        if bytes.contains(&0) {
            return Err(ExecError::InvalidCommand {
                why: "a NUL byte in the command",
            });
        }
        Ok(sandbox_protocol::ByteString::from(bytes))
    };
    if command.program.is_empty() {
        return Err(ExecError::InvalidCommand {
            why: "the program's name is empty",
        });
    }
    let mut spawn = wire::Spawn::new(Vec::<Vec<u8>>::new());
    spawn.argv = std::iter::once(command.program)
        .chain(command.args)
        .map(bytes)
        .collect::<Result<_, _>>()?;
    if command.env_clear {
        spawn.env.push(wire::EnvChange::Clear);
    }
    for (name, value) in command.env {
        if name.is_empty() || name.as_encoded_bytes().contains(&b'=') {
            return Err(ExecError::InvalidCommand {
                why: "an environment name that is empty or has a '='",
            });
        }
        spawn.env.push(match value {
            Some(value) => wire::EnvChange::Set(bytes(name)?, bytes(value)?),
            None => wire::EnvChange::Unset(bytes(name)?),
        });
    }
    spawn.cwd = command.cwd.map(|cwd| bytes(cwd.into_os_string())).transpose()?;
    spawn.user = match command.user {
        User::Agent => wire::User::Agent,
        User::Root => wire::User::Root,
        User::Ids { uid, gid } => wire::User::Ids { uid, gid },
    };
    spawn.timeout_ms = command
        .timeout
        .map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
    spawn.stdin = match command.stdin {
        Stdin::Null => wire::Stdin::Null,
        Stdin::Piped => wire::Stdin::Pipe,
    };
    Ok(spawn)
}

fn spawn_error(failure: wire::SpawnFailure, program: String, cwd: Option<std::path::PathBuf>) -> ExecError {
    match failure.kind {
        SpawnFailureKind::NotFound => ExecError::NotFound { program },
        SpawnFailureKind::PermissionDenied => ExecError::PermissionDenied { program },
        SpawnFailureKind::BadCwd => ExecError::BadWorkingDirectory {
            cwd: cwd.unwrap_or_default(),
        },
        SpawnFailureKind::ArgumentsTooLong => ExecError::InvalidCommand {
            why: "arguments and environment are longer than the guest takes",
        },
        _ => ExecError::SpawnFailed {
            message: failure.message.escape_debug().to_string(),
            errno: failure.errno.unwrap_or(0),
        },
    }
}

/// Ends the command by closing its stream: the agent then kills the process group.
struct Driver {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    state: Mutex<State>,
    /// Something for the driver to send, or something for a waiter to see.
    changed: Notify,
}

struct State {
    side: HostSide,
    stdout: Buffer,
    stderr: Buffer,
    stdin_waker: Option<Waker>,
    started: Option<Started>,
    exit: Option<wire::Exit>,
    lost: Option<Lost>,
}

#[derive(Default)]
struct Buffer {
    /// At most [`wire::WINDOW`] bytes: the window is credited as they are read.
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were read.
    read: usize,
    ended: bool,
    /// Nobody will read: drop what comes.
    discard: bool,
    waker: Option<Waker>,
}

impl Buffer {
    /// Adds small pieces to the last one: a guest that sends single bytes would else cost us many times the window.
    fn push(&mut self, data: Vec<u8>) {
        match self.chunks.back_mut() {
            Some(last) if last.len() + data.len() <= wire::MAX_CHUNK => last.extend_from_slice(&data),
            _ => self.chunks.push_back(data),
        }
    }
}

enum Started {
    Running(u32),
    Failed(wire::SpawnFailure),
    Lost(Lost),
}

/// Why the stream is no more.
#[derive(Debug, Clone)]
enum Lost {
    Violation(String),
    Stream(String),
}

impl From<Lost> for ExecError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Violation(why) => Self::Protocol { why },
            Lost::Stream(why) => Self::SandboxEnded { why },
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state usable: every change to it is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

impl State {
    fn new(side: HostSide) -> Self {
        Self {
            side,
            stdout: Buffer::default(),
            stderr: Buffer::default(),
            stdin_waker: None,
            started: None,
            exit: None,
            lost: None,
        }
    }

    fn buffer(&mut self, output: wire::Output) -> &mut Buffer {
        match output {
            wire::Output::Stdout => &mut self.stdout,
            wire::Output::Stderr => &mut self.stderr,
        }
    }

    /// What was sent makes room for more input.
    fn sent(&mut self, count: usize) {
        self.side.sent(count);
        wake(&mut self.stdin_waker);
    }

    fn received(&mut self, read: io::Result<usize>, buffer: &[u8]) -> Result<(), Lost> {
        match read {
            Ok(0) => Err(self.side.end_of_stream().err().map_or_else(
                || Lost::Stream("its stream ended".into()),
                |early| Lost::Stream(format!("its {early}")),
            )),
            Ok(count) => {
                self.side.received(buffer.get(..count).unwrap_or_default());
                self.take_events()
                    .map_err(|violation| Lost::Violation(violation.to_string()))
            }
            Err(error) => Err(Lost::Stream(error.to_string())),
        }
    }

    fn take_events(&mut self) -> Result<(), wire::Violation> {
        while let Some(event) = self.side.next_event()? {
            match event {
                HostEvent::Spawned { pid } => self.started = Some(Started::Running(pid)),
                HostEvent::SpawnFailed(failure) => self.started = Some(Started::Failed(failure)),
                HostEvent::Output { output, data } => {
                    let len = data.len();
                    let buffer = self.buffer(output);
                    if buffer.discard {
                        self.side.consumed(output, len);
                    } else {
                        buffer.push(data);
                        wake(&mut buffer.waker);
                    }
                }
                HostEvent::OutputClosed(output) => {
                    let buffer = self.buffer(output);
                    buffer.ended = true;
                    wake(&mut buffer.waker);
                }
                HostEvent::StdinRoom | HostEvent::StdinGone => wake(&mut self.stdin_waker),
                HostEvent::Exited(exit) => self.exit = Some(exit),
            }
        }
        Ok(())
    }

    fn discard(&mut self, output: wire::Output) {
        let buffer = self.buffer(output);
        buffer.discard = true;
        let held = buffer.chunks.iter().map(Vec::len).sum::<usize>() - buffer.read;
        buffer.chunks.clear();
        buffer.read = 0;
        self.side.consumed(output, held);
    }

    fn lose(&mut self, why: Lost) {
        if self.started.is_none() && self.exit.is_none() {
            self.started = Some(Started::Lost(why.clone()));
        }
        self.lost = Some(why);
        self.stdout.ended = true;
        self.stderr.ended = true;
        wake(&mut self.stdout.waker);
        wake(&mut self.stderr.waker);
        wake(&mut self.stdin_waker);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Drives the command, and gives it up where the guest does not keep its time limit.
async fn drive_within(
    limit: Option<Duration>,
    stream: BoxStream,
    shared: Arc<Shared>,
    machine: Weak<dyn Machine>,
) {
    let driven = drive(stream, Arc::clone(&shared), machine);
    let Some(limit) = limit else {
        return driven.await;
    };
    if tokio::time::timeout(limit, driven).await.is_err() {
        tracing::debug!("a guest did not end a command at its time limit");
        let why = "the guest did not end the command at its time limit";
        shared.lock().lose(Lost::Violation(why.into()));
        shared.changed.notify_waiters();
    }
}

/// Carries bytes between the stream and the state until everything was said, or the stream breaks. Reads and
/// writes at the same time: two peers that only wrote would wait for each other for ever.
async fn drive(stream: BoxStream, shared: Arc<Shared>, machine: Weak<dyn Machine>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut buffer = vec![0; READ_BYTES];
    let lost = loop {
        let mut changed = std::pin::pin!(shared.changed.notified());
        changed.as_mut().enable();
        let outgoing = {
            let state = shared.lock();
            let all = state.side.outgoing();
            all.get(..all.len().min(wire::MAX_CHUNK))
                .unwrap_or_default()
                .to_vec()
        };
        if outgoing.is_empty() && shared.lock().side.is_complete() {
            break None;
        }
        let outcome = tokio::select! {
            written = writer.write(&outgoing), if !outgoing.is_empty() => match written {
                Ok(count) => { shared.lock().sent(count); continue }
                Err(error) => Err(Lost::Stream(error.to_string())),
            },
            read = reader.read(&mut buffer) => shared.lock().received(read, &buffer),
            () = changed => continue,
        };
        shared.changed.notify_waiters();
        if let Err(lost) = outcome {
            break Some(lost);
        }
    };
    if let Some(mut lost) = lost {
        tracing::debug!(?lost, "a command's stream was lost");
        if let Lost::Stream(why) = lost {
            lost = Lost::Stream(match machine.upgrade() {
                Some(machine) => why_lost(machine.as_ref(), why).await,
                // The sandbox's handle was dropped. A command that is held on to must not hold the machine.
                None => MachineExit::Killed.to_string(),
            });
        }
        shared.lock().lose(lost);
    }
    shared.changed.notify_waiters();
}

struct Running {
    pid: u32,
    stdin: Option<Input>,
    stdout: Option<OutputEnd>,
    stderr: Option<OutputEnd>,
    shared: Arc<Shared>,
    _driver: Driver,
}

#[async_trait]
impl Process for Running {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn take_stdin(&mut self) -> Option<Input> {
        self.stdin.take()
    }

    fn take_stdout(&mut self) -> Option<Output> {
        self.stdout.take().map(|end| Box::new(end) as Output)
    }

    fn take_stderr(&mut self) -> Option<Output> {
        self.stderr.take().map(|end| Box::new(end) as Output)
    }

    async fn signal(&self, signal: u8) -> Result<(), ExecError> {
        if !(1..=64).contains(&signal) {
            return Err(ExecError::InvalidCommand {
                why: "signals are numbered 1 to 64",
            });
        }
        let mut state = self.shared.lock();
        if let Some(lost) = &state.lost {
            return Err(lost.clone().into());
        }
        state.side.signal(i32::from(signal));
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn wait(&mut self) -> Result<ExitStatus, ExecError> {
        // As std and tokio do: a child that reads to the end of its input must see that end.
        self.stdin.take();
        self.stdout.take();
        self.stderr.take();
        let exit = self
            .shared
            .wait_for(|state| match (state.exit, &state.lost) {
                (Some(exit), _) => Some(Ok(exit)),
                (None, Some(lost)) => Some(Err(ExecError::from(lost.clone()))),
                (None, None) => None,
            })
            .await?;
        let small = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        Ok(match exit.status {
            _ if exit.timed_out => ExitStatus::TimedOut,
            wire::ExitStatus::Code(code) => ExitStatus::Code(small(code)),
            wire::ExitStatus::Signal(signal) => ExitStatus::Signal(small(signal)),
        })
    }
}

/// Reads one output. Dropped, what comes is discarded, so that the command is not blocked by it.
struct OutputEnd {
    shared: Arc<Shared>,
    output: wire::Output,
}

impl OutputEnd {
    fn new(shared: &Arc<Shared>, output: wire::Output) -> Self {
        Self {
            shared: Arc::clone(shared),
            output,
        }
    }
}

impl Drop for OutputEnd {
    fn drop(&mut self) {
        self.shared.lock().discard(self.output);
        self.shared.changed.notify_waiters();
    }
}

impl AsyncRead for OutputEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let mut taken = 0;
        let buffer = state.buffer(self.output);
        while let Some(chunk) = buffer.chunks.front() {
            let rest = chunk.get(buffer.read..).unwrap_or_default();
            let count = rest.len().min(to.remaining());
            to.put_slice(rest.get(..count).unwrap_or_default());
            taken += count;
            buffer.read += count;
            if buffer.read < chunk.len() {
                break;
            }
            buffer.chunks.pop_front();
            buffer.read = 0;
        }
        if taken == 0 {
            if buffer.ended {
                return match &state.lost {
                    Some(lost) => Poll::Ready(Err(io::Error::other(ExecError::from(lost.clone())))),
                    None => Poll::Ready(Ok(())),
                };
            }
            buffer.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.side.consumed(self.output, taken);
        let to_send = !state.side.outgoing().is_empty();
        drop(state);
        if to_send {
            self.shared.changed.notify_waiters();
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes the input. Shut down or dropped, the command sees its end.
struct InputEnd(Arc<Shared>);

impl Drop for InputEnd {
    fn drop(&mut self) {
        self.0.lock().side.close_stdin();
        self.0.changed.notify_waiters();
    }
}

impl AsyncWrite for InputEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.lost.is_some() || !state.side.stdin_open() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = state.side.write_stdin(data);
        if taken == 0 && !data.is_empty() {
            state.stdin_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        self.0.changed.notify_waiters();
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().side.close_stdin();
        self.0.changed.notify_waiters();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use sandbox_protocol::frame;

    use sandbox_core::backend::MachineError;

    use super::*;

    #[test]
    fn output_in_single_bytes_costs_no_more_than_output_in_chunks() {
        let mut state = State::new(HostSide::new(wire::Spawn::new(["yes"])).unwrap());
        let mut bytes = frame::encode(&wire::Reply::Spawned { pid: 7 }).unwrap();
        for _ in 0..wire::WINDOW {
            let reply = wire::Reply::Output {
                output: wire::Output::Stdout,
                data: vec![b'y'].into(),
            };
            frame::encode_into(&reply, &mut bytes).unwrap();
        }
        for piece in bytes.chunks(READ_BYTES) {
            assert!(state.received(Ok(piece.len()), piece).is_ok());
        }
        let held: usize = state.stdout.chunks.iter().map(Vec::len).sum();
        assert_eq!(held, wire::WINDOW as usize);
        assert!(
            state.stdout.chunks.len() <= 8,
            "{} pieces",
            state.stdout.chunks.len()
        );
    }

    /// A machine that has ended, or never does.
    #[derive(Debug)]
    struct Ended(Option<MachineExit>);

    #[async_trait]
    impl Machine for Ended {
        async fn connect(&self, _: u32) -> Result<BoxStream, MachineError> {
            std::future::pending().await
        }

        async fn accept(&self) -> Result<(u32, BoxStream), MachineError> {
            std::future::pending().await
        }

        async fn wait(&self) -> MachineExit {
            match &self.0 {
                Some(exit) => exit.clone(),
                None => std::future::pending().await,
            }
        }

        async fn kill(&self) {}
    }

    /// How a command ends whose guest does this with its stream.
    async fn lost(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        machine: Weak<dyn Machine>,
    ) -> Lost {
        let side = HostSide::new(wire::Spawn::new(["sleep"])).unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(side)),
            changed: Notify::new(),
        });
        let limit = Some(Duration::from_millis(20));
        drive_within(limit, Box::new(stream), Arc::clone(&shared), machine).await;
        match shared.lock().started.take() {
            Some(Started::Lost(lost)) => lost,
            _ => panic!("it is not lost"),
        }
    }

    #[tokio::test]
    async fn a_guest_that_ignores_a_time_limit_is_not_waited_for() {
        let (ours, _theirs) = tokio::io::duplex(64 << 10);
        let machine: Arc<dyn Machine> = Arc::new(Ended(None));
        let watched = async {
            tokio::task::yield_now().await;
            Arc::strong_count(&machine)
        };
        let (lost, owners) = tokio::join!(lost(ours, Arc::downgrade(&machine)), watched);
        assert!(matches!(lost, Lost::Violation(_)));
        assert_eq!(owners, 1, "a command that runs holds no machine");
    }

    #[tokio::test]
    async fn a_stream_that_breaks_with_its_machine_says_how_the_machine_ended() {
        let why = "triple fault".to_owned();
        let exit = MachineExit::GuestFault { why };
        let machine: Arc<dyn Machine> = Arc::new(Ended(Some(exit.clone())));
        let kept = Arc::downgrade(&machine);
        // Nor does whoever runs a command keep the machine when its owner has dropped it.
        for (owner, exit) in [(Some(machine), exit), (None, MachineExit::Killed)] {
            let (ours, _) = tokio::io::duplex(64 << 10);
            let lost = lost(ours, kept.clone()).await;
            assert!(
                matches!(&lost, Lost::Stream(why) if *why == exit.to_string()),
                "{lost:?}"
            );
            drop(owner);
        }
    }
}
