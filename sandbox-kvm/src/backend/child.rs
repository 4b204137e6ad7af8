//! The VMM process as a child: killed and reaped by whoever drops it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox_core::SandboxId;

/// A running VMM process.
#[derive(Debug)]
pub(super) struct VmmProcess {
    child: Option<Child>,
    pid: u32,
}

/// Our ends of what connects us to it.
#[derive(Debug)]
pub(super) struct Connections {
    /// The control socket.
    pub control: OwnedFd,
    /// What it says on standard error; non-blocking.
    pub diagnostics: OwnedFd,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
}

impl VmmProcess {
    /// Starts `helper` with an empty environment and nothing but a control socket and a pipe. Its
    /// title tells whoever reads a process list which sandbox it is.
    pub(super) fn spawn(helper: &Path, sandbox: &SandboxId) -> std::io::Result<(Self, Connections)> {
        let flags = SocketFlags::CLOEXEC;
        let (control, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let (diagnostics, stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut command = Command::new(helper);
        command
            .arg0(format!("sandbox-vmm: {sandbox}"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(stderr));
        // Ctrl-C at a terminal is for the orchestrator, which then ends its machines in its own way.
        command.process_group(0);
        let child = command.spawn()?;
        let pid = child.id();
        let process = Self {
            child: Some(child),
            pid,
        };
        // `command` holds the child's ends: with them open here we would never see the end of its output.
        drop(command);
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(raw.ok_or(std::io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
        Ok((
            process,
            Connections {
                control,
                diagnostics,
                pidfd,
            },
        ))
    }

    /// Its process id; it stays ours until it is reaped.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Reaps it if it has ended.
    pub(super) fn try_reap(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Fails only if it has ended already.
        let _ = child.kill();
        if !matches!(child.try_wait(), Ok(Some(_))) {
            // The kernel takes a moment to tear a large guest down; nobody should have to wait for that here.
            let reaper = std::thread::Builder::new().name("reap-vmm".to_owned());
            let _ = reaper.spawn(move || child.wait());
        }
    }
}

/// Kills the process of `pidfd`, at once and for certain.
pub(super) fn kill(pidfd: impl AsFd) {
    // Fails only if it has ended already.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// How a process ended, for people.
pub(super) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    }
}
