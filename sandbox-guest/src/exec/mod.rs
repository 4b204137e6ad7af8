//! Commands: one stream of the host for each, and the children of the agent.

mod prepare;
mod session;
mod spawn;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    time::Duration,
};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use sandbox_protocol::exec::ExitStatus;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{
    Guest,
    diagnostics::{Failed, say},
    signals::Group,
    transport::Listener,
};

/// Commands at once. Bounds the agent's descriptors and its memory: four descriptors and three windows each.
const MAX_COMMANDS: usize = 256;

/// Streams at once; those beyond [`MAX_COMMANDS`] are told that there are too many.
const MAX_STREAMS: usize = MAX_COMMANDS + 64;

/// Rest after a stream could not be accepted, mostly for want of descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts the host's streams for ever, and serves each in a task of its own.
pub(crate) async fn accept(guest: Rc<Guest>, listener: Listener) {
    let streams = Rc::new(Cell::new(0_usize));
    loop {
        match listener.accept().await {
            // Dropped: the host sees the end of the stream.
            Ok(_) if streams.get() >= MAX_STREAMS => {}
            Ok(stream) => {
                let (guest, streams) = (Rc::clone(&guest), Rc::clone(&streams));
                streams.set(streams.get() + 1);
                tokio::task::spawn_local(async move {
                    session::serve(&guest, stream).await;
                    streams.set(streams.get().saturating_sub(1));
                });
            }
            Err(error) => {
                say(&format!("cannot accept a command's stream: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// All processes that end as children of the agent: its commands, and whoever lost its own parent.
pub(crate) struct Children {
    inner: Rc<RefCell<Inner>>,
    spawner: RefCell<spawn::Spawner>,
    running: Rc<Cell<usize>>,
}

#[derive(Default)]
struct Inner {
    /// Commands whose leader has not been reaped.
    leaders: HashMap<Pid, (Rc<Group>, oneshot::Sender<ExitStatus>)>,
    /// Groups that outlive their leader, while somebody may still signal them.
    orphaned: Vec<Weak<Group>>,
}

/// The right to run one command.
pub(crate) struct Slot(Rc<Cell<usize>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Children {
    pub(crate) fn new() -> Self {
        let spawner = RefCell::new(spawn::Spawner::new());
        Self {
            inner: Rc::default(),
            spawner,
            running: Rc::default(),
        }
    }

    /// Starts reaping. Also outside a machine, whoever loses its parent falls to the agent.
    pub(crate) fn watch(&self) -> Result<(), Failed> {
        if std::process::id() != 1 {
            let own = rustix::process::getpid();
            rustix::process::set_child_subreaper(Some(own)).map_err(Failed::when("adopt orphans"))?;
        }
        let mut ended = signal(SignalKind::child()).map_err(Failed::when("watch for ended processes"))?;
        let inner = Rc::clone(&self.inner);
        tokio::task::spawn_local(async move {
            while ended.recv().await.is_some() {
                inner.borrow_mut().reap();
            }
        });
        Ok(())
    }

    fn slot(&self) -> Option<Slot> {
        let running = self.running.get();
        if running >= MAX_COMMANDS {
            return None;
        }
        self.running.set(running + 1);
        Some(Slot(Rc::clone(&self.running)))
    }

    /// Starts a process, and gives its group and where its end will be told.
    fn start(
        &self,
        plan: &spawn::Plan,
    ) -> Result<(Pid, Rc<Group>, oneshot::Receiver<ExitStatus>), spawn::SpawnFault> {
        let pid = self.spawner.borrow_mut().spawn(plan)?;
        let group = Rc::new(Group::led_by(pid));
        let (tell, told) = oneshot::channel();
        self.inner
            .borrow_mut()
            .leaders
            .insert(pid, (Rc::clone(&group), tell));
        Ok((pid, group, told))
    }
}

impl Inner {
    /// Takes every ended child. Each call ends when none is left; what ends later raises the signal again.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some((group, tell)) = self.leaders.remove(&pid) else {
                continue;
            };
            group.leader_reaped();
            self.orphaned.push(Rc::downgrade(&group));
            // Nobody listens if the host has dropped the stream.
            let _ = tell.send(exit_status(status));
        }
        self.orphaned.retain(|group| match group.upgrade() {
            Some(group) => {
                group.refresh();
                true
            }
            None => false,
        });
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        // Only asked for ended children, so one of the two holds.
        (None, None) => ExitStatus::Code(255),
    }
}
