//! A running machine: one task that listens to its VMM process, and handles that ask it for things.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sandbox_core::BoxStream;
use sandbox_core::backend::{Machine, MachineError, MachineExit, Notice};
use sandbox_vmm::control::{self, Channel, ChannelError, DialOutcome, End, FromVmm, ToVmm};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::child::{self, VmmProcess};
use super::console::Tail;
use super::stream::GuestStream;

/// Streams the guest opened that nobody has accepted yet; more are closed, so a guest cannot use up descriptors.
const MAX_UNACCEPTED: usize = 256;
/// Notices nobody has read yet; more are lost.
const MAX_NOTICES: usize = 64;
/// Notices logged per machine: a guest that breaks a device over and over must not fill the host's log.
const MAX_LOGGED: usize = 100;
/// Calls to the guest under way; also the VMM's own limit on streams.
const MAX_STREAMS: usize = 1024;
/// Bytes of console or diagnostics taken at once.
const READ_BYTES: usize = 4096;
/// Reads per turn, so that a guest that prints for ever does not keep the task.
const READS_PER_TURN: usize = 16;
/// How the kernel begins its last words.
const PANIC: &str = "Kernel panic";

/// The last output, shared with whoever asks.
#[derive(Debug, Clone)]
pub(super) struct Tails {
    pub console: Arc<Mutex<Tail>>,
    pub diagnostics: Arc<Mutex<Tail>>,
}

/// A pipe that the process writes to, and the tail of what it wrote.
#[derive(Debug)]
pub(super) struct Output {
    /// `None` once the other end is closed: it would be ready for ever.
    pipe: Option<AsyncFd<OwnedFd>>,
    tail: Arc<Mutex<Tail>>,
}

impl Output {
    /// Takes over a non-blocking pipe.
    pub(super) fn new(pipe: AsyncFd<OwnedFd>, tail: Arc<Mutex<Tail>>) -> Self {
        Self {
            pipe: Some(pipe),
            tail,
        }
    }

    /// Waits for output and takes a bounded part of it. Cancel safe.
    async fn take_some(&mut self) -> std::io::Result<()> {
        let Some(pipe) = &self.pipe else {
            return std::future::pending().await;
        };
        let mut ready = pipe.readable().await?;
        match read_some(ready.get_inner(), &self.tail) {
            Left::Some => {}
            Left::Nothing => ready.clear_ready(),
            Left::Closed => self.pipe = None,
        }
        Ok(())
    }

    /// Takes a last bounded part, without waiting.
    fn drain(&mut self) {
        if let Some(pipe) = &self.pipe {
            read_some(pipe.get_ref(), &self.tail);
        }
    }
}

/// What a turn of reading left behind.
enum Left {
    Some,
    Nothing,
    Closed,
}

fn read_some(pipe: &OwnedFd, tail: &Mutex<Tail>) -> Left {
    let mut bytes = [0; READ_BYTES];
    for _ in 0..READS_PER_TURN {
        match rustix::io::read(pipe, &mut bytes) {
            Ok(0) => return Left::Closed,
            Ok(read) => lock(tail).push(bytes.get(..read).unwrap_or(&[])),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Left::Nothing,
            Err(_) => return Left::Closed,
        }
    }
    Left::Some
}

/// What listens to a VMM process. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Driver {
    pub process: VmmProcess,
    pub channel: Arc<AsyncFd<Channel>>,
    pub console: Output,
    pub diagnostics: Output,
    pub pidfd: Arc<AsyncFd<OwnedFd>>,
    pub tails: Tails,
}

/// A handle to a running machine.
#[derive(Debug)]
pub(super) struct KvmMachine {
    channel: Arc<AsyncFd<Channel>>,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    console: Arc<Mutex<Tail>>,
    calls: Calls,
    next_call: AtomicU64,
    accepted: tokio::sync::Mutex<mpsc::Receiver<(u32, OwnedFd)>>,
    notices: tokio::sync::Mutex<mpsc::Receiver<Notice>>,
    exit: watch::Receiver<Option<MachineExit>>,
    killed: Arc<AtomicBool>,
    driver: AbortHandle,
}

type Calls = Arc<Mutex<HashMap<u64, oneshot::Sender<DialOutcome>>>>;

impl KvmMachine {
    /// Listens to the process from now on.
    pub(super) fn run(driver: Driver) -> Self {
        let calls: Calls = Arc::default();
        let killed = Arc::new(AtomicBool::new(false));
        let (to_accept, accepted) = mpsc::channel(MAX_UNACCEPTED);
        let (to_notices, notices) = mpsc::channel(MAX_NOTICES);
        let (to_exit, exit) = watch::channel(None);
        let channel = driver.channel.clone();
        let pidfd = driver.pidfd.clone();
        let console = driver.tails.console.clone();
        let listener = Listener {
            calls: calls.clone(),
            accepted: to_accept,
            notices: to_notices,
            noticed: 0,
            killed: killed.clone(),
            ended: None,
        };
        let task = tokio::spawn(driver.listen(listener, to_exit));
        Self {
            channel,
            pidfd,
            console,
            calls,
            next_call: AtomicU64::new(0),
            accepted: tokio::sync::Mutex::new(accepted),
            notices: tokio::sync::Mutex::new(notices),
            exit,
            killed,
            driver: task.abort_handle(),
        }
    }

    fn ended(&self) -> Option<MachineExit> {
        self.exit.borrow().clone()
    }

    async fn call(&self, port: u32, theirs: OwnedFd) -> Result<DialOutcome, MachineError> {
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        {
            let mut calls = lock(&self.calls);
            if calls.len() >= MAX_STREAMS {
                return Err(MachineError::TooManyStreams { limit: MAX_STREAMS });
            }
            calls.insert(id, answer);
        }
        // Forgets the call also when this future is dropped.
        let _forget = Forget {
            calls: &self.calls,
            id,
        };
        let message = ToVmm::Dial { id, port };
        loop {
            match self.channel.get_ref().send(&message, &[theirs.as_fd()], false) {
                Ok(()) => break,
                Err(ChannelError::NotReady) => self.channel.writable().await?.clear_ready(),
                Err(ChannelError::Closed) => return Err(MachineError::Ended(self.wait().await)),
                Err(error) => return Err(MachineError::Io(std::io::Error::other(error))),
            }
        }
        drop(theirs);
        match answered.await {
            Ok(outcome) => Ok(outcome),
            // The listener is gone, and with it the machine.
            Err(_) => Err(MachineError::Ended(self.wait().await)),
        }
    }
}

#[async_trait]
impl Machine for KvmMachine {
    async fn connect(&self, port: u32) -> Result<BoxStream, MachineError> {
        if let Some(exit) = self.ended() {
            return Err(MachineError::Ended(exit));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (ours, theirs) = pair.map_err(|errno| MachineError::Io(errno.into()))?;
        match self.call(port, theirs).await? {
            DialOutcome::Connected => stream(ours),
            DialOutcome::Refused => Err(MachineError::Refused { port }),
            DialOutcome::TooManyStreams => Err(MachineError::TooManyStreams { limit: MAX_STREAMS }),
        }
    }

    async fn accept(&self) -> Result<(u32, BoxStream), MachineError> {
        let next = self.accepted.lock().await.recv().await;
        match next {
            Some((port, socket)) => Ok((port, stream(socket)?)),
            None => Err(MachineError::Ended(self.wait().await)),
        }
    }

    async fn wait(&self) -> MachineExit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(MachineExit::Killed),
            // The listener went without a word: its runtime is shutting down, and has killed the process.
            Err(_) => MachineExit::Killed,
        }
    }

    async fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        child::kill(self.pidfd.get_ref());
        self.wait().await;
    }

    fn console_tail(&self) -> String {
        lock(&self.console).escaped()
    }

    async fn notice(&self) -> Notice {
        match self.notices.lock().await.recv().await {
            Some(notice) => notice,
            None => std::future::pending().await,
        }
    }
}

impl Drop for KvmMachine {
    fn drop(&mut self) {
        if self.ended().is_none() {
            child::kill(self.pidfd.get_ref());
        }
        // Dropped with its task, the driver reaps the process.
        self.driver.abort();
    }
}

/// Where a driver's findings go.
struct Listener {
    calls: Calls,
    accepted: mpsc::Sender<(u32, OwnedFd)>,
    notices: mpsc::Sender<Notice>,
    /// Notices logged.
    noticed: usize,
    killed: Arc<AtomicBool>,
    ended: Option<End>,
}

impl Listener {
    fn message(&mut self, message: FromVmm, descriptors: Vec<OwnedFd>) -> Result<(), ChannelError> {
        match message {
            FromVmm::Accepted { port } => {
                let socket = descriptors.into_iter().next();
                let socket = socket.ok_or(ChannelError::Malformed("a stream without a socket"))?;
                if self.accepted.try_send((port, socket)).is_err() {
                    tracing::debug!(
                        port,
                        "a stream of the guest is dropped: too many wait to be accepted"
                    );
                }
            }
            FromVmm::Dialled { id, outcome } => {
                if let Some(call) = lock(&self.calls).remove(&id) {
                    // Nobody waits any more; the stream closes by itself.
                    let _ = call.send(outcome);
                }
            }
            FromVmm::Notice(notice) => self.notice(notice),
            FromVmm::Ended(end) => self.ended = Some(end),
            FromVmm::Hello { .. } | FromVmm::Started | FromVmm::StartFailed(_) => {
                return Err(ChannelError::Malformed("a message of the start while running"));
            }
        }
        Ok(())
    }

    fn notice(&mut self, notice: control::Notice) {
        let notice = match notice {
            control::Notice::DeviceFailed { device, why } => Notice::DeviceFailed {
                device: escape(&device),
                why: escape(&why),
            },
            control::Notice::DiskFull { .. } => Notice::LayerOutOfSpace,
            control::Notice::DiskError { disk, errno } => Notice::DeviceFailed {
                device: format!("blk {}", escape(&disk)),
                why: format!(
                    "the host's file failed: {}",
                    std::io::Error::from_raw_os_error(errno)
                ),
            },
        };
        if self.noticed < MAX_LOGGED {
            self.noticed += 1;
            tracing::warn!(%notice, "notice of a machine");
        }
        if self.notices.try_send(notice).is_err() {
            tracing::debug!("a notice is dropped: too many wait to be read");
        }
    }
}

impl Driver {
    /// The next message of the process, while its other output is kept from filling up.
    pub(super) async fn receive(&mut self) -> Result<(FromVmm, Vec<OwnedFd>), ChannelError> {
        loop {
            tokio::select! {
                ready = self.channel.readable() => {
                    let mut ready = ready?;
                    match self.channel.get_ref().receive(false) {
                        Err(ChannelError::NotReady) => ready.clear_ready(),
                        other => return other,
                    }
                }
                done = self.console.take_some() => done?,
                done = self.diagnostics.take_some() => done?,
            }
        }
    }

    /// Takes what the process wrote last.
    pub(super) fn drain_outputs(&mut self) {
        self.console.drain();
        self.diagnostics.drain();
    }

    /// Waits for the end of the process and reaps it.
    pub(super) async fn reap(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            if let Some(status) = self.process.try_reap()? {
                return Ok(status);
            }
            ready.clear_ready();
        }
    }

    /// Listens until the process has ended, and says how the machine did.
    async fn listen(mut self, mut listener: Listener, exit: watch::Sender<Option<MachineExit>>) {
        let mut fault = None;
        // After the end was told nothing more is of interest.
        while fault.is_none() && listener.ended.is_none() {
            match self.receive().await {
                Ok((message, descriptors)) => fault = listener.message(message, descriptors).err(),
                Err(error) => fault = Some(error),
            }
        }
        match &fault {
            Some(ChannelError::Closed) | None => {}
            Some(error) => tracing::error!(%error, "the VMM process is ended"),
        }
        // A process that said its machine has ended, closed its socket or broke the protocol has nothing left to do. It
        // is not trusted to go by itself; if it is already ending, this does not change how.
        child::kill(self.pidfd.get_ref());
        let status = self.reap().await;
        self.drain_outputs();
        let end = self.verdict(&listener, status, fault);
        tracing::debug!(%end, "a machine has ended");
        exit.send_replace(Some(end));
        // Waiting calls see this and then ask for the verdict, which is there.
        lock(&listener.calls).clear();
    }

    fn verdict(
        &self,
        listener: &Listener,
        status: std::io::Result<ExitStatus>,
        fault: Option<ChannelError>,
    ) -> MachineExit {
        if listener.killed.load(Ordering::SeqCst) {
            return MachineExit::Killed;
        }
        match &listener.ended {
            Some(End::Reset) => match panic_line(&lock(&self.tails.console).escaped()) {
                Some(why) => MachineExit::GuestFault { why },
                None => MachineExit::Shutdown,
            },
            Some(End::Stuck(why)) => MachineExit::GuestFault { why: escape(why) },
            Some(End::Failed(why)) => MachineExit::MonitorDied { why: escape(why) },
            None => {
                let mut why = status.map_or_else(|error| error.to_string(), child::describe);
                if let Some(ChannelError::Malformed(what)) = fault {
                    why = format!("it broke the control protocol: {what}");
                }
                let said = lock(&self.tails.diagnostics).escaped();
                if !said.is_empty() {
                    why = format!("{why}; it said: {}", said.trim_end());
                }
                MachineExit::MonitorDied { why }
            }
        }
    }
}

/// Removes a call that nobody waits for any more.
struct Forget<'a> {
    calls: &'a Calls,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.calls).remove(&self.id);
    }
}

/// The kernel's last words, if it panicked: its reset looks like a clean one.
fn panic_line(console: &str) -> Option<String> {
    console
        .lines()
        .rev()
        .find(|line| line.contains(PANIC))
        .map(|line| line.trim().to_owned())
}

fn stream(socket: OwnedFd) -> Result<BoxStream, MachineError> {
    Ok(Box::new(GuestStream::new(socket)?))
}

fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|character| character.escape_debug())
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    /// A machine whose process stays until it is killed, and the process's end of a control socket.
    fn machine() -> (KvmMachine, Channel, OwnedFd) {
        // With its standard input open, it waits for ever.
        let (process, connections) =
            VmmProcess::spawn(Path::new("/bin/cat"), &"test".parse().unwrap()).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let tail = || Arc::new(Mutex::new(Tail::new(64)));
        let tails = Tails {
            console: tail(),
            diagnostics: tail(),
        };
        // SAFETY: channel and descriptor own what they refer to until the registration drops them.
        let (channel, pidfd) = unsafe {
            (
                AsyncFd::register(Channel::new(ours)).unwrap(),
                AsyncFd::register(connections.pidfd).unwrap(),
            )
        };
        let nothing = |tail: &Arc<Mutex<Tail>>| Output {
            pipe: None,
            tail: tail.clone(),
        };
        let driver = Driver {
            process,
            channel: Arc::new(channel),
            console: nothing(&tails.console),
            diagnostics: nothing(&tails.diagnostics),
            pidfd: Arc::new(pidfd),
            tails,
        };
        (KvmMachine::run(driver), Channel::new(theirs), connections.control)
    }

    #[tokio::test]
    async fn a_process_that_says_its_machine_ended_and_stays_is_killed() {
        for closes in [true, false] {
            let (machine, vmm, _stdin) = machine();
            vmm.send(&FromVmm::Ended(End::Reset), &[], true).unwrap();
            let open = (!closes).then_some(vmm);
            let exit = tokio::time::timeout(Duration::from_secs(20), machine.wait()).await;
            assert!(matches!(exit, Ok(MachineExit::Shutdown)), "{exit:?}");
            drop(open);
        }
    }
}
