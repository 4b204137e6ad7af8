//! A backend of somebody else: the agent as an ordinary process in Linux namespaces, for machines without any
//! hypervisor.
//!
//! It shows how little a backend is: start something that runs the agent, and carry streams. It also shows what
//! a hypervisor is for: the guest shares the host's kernel and sees the host's files. Its network is its own
//! and empty, so that the proxy is the only way out here too.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::backend::{
    Backend, BackendError, Capabilities, Machine, MachineError, MachineExit, MachineSpec, Virtualisation,
    ports,
};
use sandbox_core::stream::BoxStream;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Starts agents as processes.
#[derive(Debug)]
pub struct ProcessBackend {
    agent: PathBuf,
}

impl ProcessBackend {
    /// With the agent's executable, which speaks the same protocol over Unix sockets when asked to.
    pub fn new(agent: impl Into<PathBuf>) -> Self {
        Self { agent: agent.into() }
    }
}

#[async_trait]
impl Backend for ProcessBackend {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn probe(&self) -> Result<Capabilities, BackendError> {
        if !self.agent.is_file() {
            let command = "cargo xtask artifacts";
            return Err(BackendError::ArtefactMissing {
                path: self.agent.clone(),
                command,
            });
        }
        Ok(Capabilities::new(Virtualisation::None).sharing_the_kernel())
    }

    async fn start(&self, _spec: MachineSpec) -> Result<Arc<dyn Machine>, BackendError> {
        self.probe().await?;
        let failed = |doing| move |cause| BackendError::Io { doing, cause };
        let sockets = tempfile::tempdir().map_err(failed("make a directory for sockets"))?;
        let listen = |port| UnixListener::bind(sockets.path().join(format!("host-{port}.sock")));
        let control = listen(ports::CONTROL).map_err(failed("listen for the agent"))?;
        let egress = listen(ports::EGRESS).map_err(failed("listen for egress"))?;
        // A network of its own, without any device but loopback; its own process ids, so that the kernel ends
        // all of them with the first.
        let agent = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--",
                // A new network's loopback is down at first.
                "sh",
                "-c",
                "ip link set lo up && exec \"$0\" \"$@\"",
            ])
            .arg(&self.agent)
            .arg("--unix")
            .arg(sockets.path())
            .arg("--no-setup")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed("start the agent"))?;
        let (exit, ended) = watch::channel(None);
        let (kill, killed) = watch::channel(false);
        tokio::spawn(supervise(agent, killed, exit));
        Ok(Arc::new(ProcessMachine {
            sockets,
            control,
            egress,
            ended,
            kill,
        }))
    }
}

/// Owns the process until it has ended, by itself or because nobody holds its machine any more.
async fn supervise(
    mut agent: Child,
    mut killed: watch::Receiver<bool>,
    exit: watch::Sender<Option<MachineExit>>,
) {
    let how = tokio::select! {
        status = agent.wait() => match status {
            Ok(status) if status.success() => MachineExit::Shutdown,
            Ok(status) => MachineExit::MonitorDied { why: status.to_string() },
            Err(error) => MachineExit::MonitorDied { why: error.to_string() },
        },
        // Said, or the sender is gone with the machine.
        _ = killed.changed() => {
            // Fails only when the process has ended already.
            let _ = agent.kill().await;
            MachineExit::Killed
        }
    };
    // Nobody may be waiting any more.
    let _ = exit.send(Some(how));
}

struct ProcessMachine {
    sockets: TempDir,
    control: UnixListener,
    egress: UnixListener,
    ended: watch::Receiver<Option<MachineExit>>,
    kill: watch::Sender<bool>,
}

impl fmt::Debug for ProcessMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessMachine")
            .field("sockets", &self.sockets.path())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Machine for ProcessMachine {
    async fn connect(&self, port: u32) -> Result<BoxStream, MachineError> {
        if let Some(exit) = self.ended.borrow().clone() {
            return Err(MachineError::Ended(exit));
        }
        match UnixStream::connect(self.sockets.path().join(format!("guest-{port}.sock"))).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(MachineError::Refused { port })
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn accept(&self) -> Result<(u32, BoxStream), MachineError> {
        tokio::select! {
            stream = self.control.accept() => Ok((ports::CONTROL, Box::new(stream?.0))),
            stream = self.egress.accept() => Ok((ports::EGRESS, Box::new(stream?.0))),
            exit = self.wait() => Err(MachineError::Ended(exit)),
        }
    }

    async fn wait(&self) -> MachineExit {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            _ => MachineExit::MonitorDied {
                why: "its supervisor is gone".into(),
            },
        }
    }

    async fn kill(&self) {
        // The receiver is gone once the process has ended.
        let _ = self.kill.send(true);
        self.wait().await;
    }
}
