//! What a backend implements: starting a machine, and its streams. Nothing above this line is written per
//! backend.
//!
//! A machine runs the guest agent, which dials [`ports::CONTROL`] once it is up, takes commands on
//! [`ports::EXEC`], sends what wants out of the sandbox to [`ports::EGRESS`] and asks for names at [`ports::DNS`]. A backend
//! only carries these streams.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::id::SandboxId;
use crate::path::GuestPath;
use crate::size::{CpuCount, MemorySize};
use crate::stream::BoxStream;

/// Stream ports between host and guest.
pub mod ports {
    /// Guest to host, once: the agent's control stream.
    pub const CONTROL: u32 = 1024;
    /// Host to guest: one stream per command.
    pub const EXEC: u32 = 1025;
    /// Guest to host: one stream per outgoing connection.
    pub const EGRESS: u32 = 3128;
    /// Guest to host: a stream of DNS messages.
    pub const DNS: u32 = 53;
    /// Guest to host: the same, of messages that come and go in datagrams.
    pub const DNS_DATAGRAMS: u32 = 54;
}

/// Starts machines.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// Name in logs and errors, for instance `kvm`.
    fn name(&self) -> &'static str;

    /// Whether machines can be started here, and what they will be like. Starts nothing.
    async fn probe(&self) -> Result<Capabilities, BackendError>;

    /// Starts a machine and returns when its processors run; the agent may still be on its way. Dropping the
    /// future leaves nothing behind.
    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, BackendError>;

    /// Starts a machine from a snapshot that [`Machine::snapshot`] made.
    async fn restore(&self, _spec: MachineSpec, _from: Snapshot) -> Result<Arc<dyn Machine>, BackendError> {
        Err(BackendError::Unsupported { what: "restore" })
    }
}

/// What a backend's machines are like on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What the processor offers, for people and benchmarks.
    pub virtualisation: Virtualisation,
    /// Whether [`Machine::snapshot`] and [`Backend::restore`] work.
    pub snapshots: bool,
    /// Whether the guest is behind a hypervisor. A backend without one isolates less.
    pub own_kernel: bool,
}

impl Capabilities {
    /// With an own kernel and without snapshots.
    pub fn new(virtualisation: Virtualisation) -> Self {
        Self {
            virtualisation,
            snapshots: false,
            own_kernel: true,
        }
    }

    /// The same for guests that share the host's kernel.
    pub fn sharing_the_kernel(self) -> Self {
        Self {
            own_kernel: false,
            ..self
        }
    }
}

/// How guest code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Virtualisation {
    /// By the processor's own means (Intel VT-x, AMD-V, Arm).
    Hardware,
    /// Guest kernel code is interpreted: correct, and slow to boot.
    Interpreted,
    /// Not at all: ordinary processes.
    None,
}

/// What a machine is to be.
#[derive(Debug)]
pub struct MachineSpec {
    /// The sandbox's name.
    pub id: SandboxId,
    /// Guest memory.
    pub memory: MemorySize,
    /// Virtual processors.
    pub cpus: CpuCount,
    /// Directories the guest may use, in the order of their index on the wire.
    pub exports: Vec<Export>,
}

/// A directory of the host that the guest may use.
#[derive(Debug)]
pub struct Export {
    /// The directory, opened and vetted. A backend serves what is beneath it and nothing else.
    pub directory: OwnedFd,
    /// Where the guest sees it.
    pub guest_path: GuestPath,
    /// Whether the guest may change it. Enforced on the host.
    pub access: Access,
}

/// What the guest may do with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// A started machine. Dropping the last handle ends it.
#[async_trait]
pub trait Machine: Send + Sync + fmt::Debug {
    /// Opens a stream to a port of the guest.
    async fn connect(&self, port: u32) -> Result<BoxStream, MachineError>;

    /// The next stream that the guest opened, with its port. Cancel safe.
    async fn accept(&self) -> Result<(u32, BoxStream), MachineError>;

    /// Waits until the machine has ended. Any number of callers; cancel safe.
    async fn wait(&self) -> MachineExit;

    /// Ends it at once and waits until nothing of it is left.
    async fn kill(&self);

    /// The last lines of the guest's console, control characters escaped; empty where there is none.
    fn console_tail(&self) -> String {
        String::new()
    }

    /// The next thing about the running machine that its owner should hear of; waits for ever where there is
    /// none. One caller; cancel safe.
    async fn notice(&self) -> Notice {
        std::future::pending().await
    }

    /// Stops its processors.
    async fn pause(&self) -> Result<(), MachineError> {
        Err(MachineError::Unsupported { what: "pause" })
    }

    /// Lets its processors run again.
    async fn resume(&self) -> Result<(), MachineError> {
        Err(MachineError::Unsupported { what: "resume" })
    }

    /// Writes its state, memory included.
    async fn snapshot(&self) -> Result<Snapshot, MachineError> {
        Err(MachineError::Unsupported { what: "snapshot" })
    }
}

/// A machine's state on disk; what is inside is the backend's affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The directory that holds it.
    pub directory: PathBuf,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineExit {
    /// The guest shut down or rebooted.
    Shutdown,
    /// We ended it.
    Killed,
    /// The guest's processor or kernel stopped in a way that is no clean end.
    GuestFault {
        /// What was seen.
        why: String,
    },
    /// The process that runs the machine died.
    MonitorDied {
        /// How, for instance `signal 9`, with what it said last.
        why: String,
    },
}

impl fmt::Display for MachineExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest shut down"),
            Self::Killed => f.write_str("it was killed on request"),
            Self::GuestFault { why } => write!(f, "the guest stopped: {why}"),
            Self::MonitorDied { why } => write!(f, "the VMM process died: {why}"),
        }
    }
}

/// Something about a running machine that its owner should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The host's disk is full: the guest's writes to its private layer fail until there is room.
    LayerOutOfSpace,
    /// A device failed, by the host's or the guest's fault; the machine goes on without it.
    DeviceFailed {
        /// The device, for instance `vsock`.
        device: String,
        /// The cause, control characters escaped.
        why: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LayerOutOfSpace => f.write_str(
                "the host's disk is full: writes to the sandbox's private layer fail until there is room",
            ),
            Self::DeviceFailed { device, why } => write!(f, "device {device} failed: {why}"),
        }
    }
}

/// Why a running machine did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// It has ended.
    #[error("the machine has ended: {0}")]
    Ended(MachineExit),
    /// Nothing in the guest takes streams on that port.
    #[error("the guest refuses streams on port {port}")]
    Refused {
        /// The port.
        port: u32,
    },
    /// The guest has too many streams open.
    #[error("the guest has {limit} streams open, which is the limit: close some")]
    TooManyStreams {
        /// The limit.
        limit: usize,
    },
    /// This backend cannot do that.
    #[error("this backend has no {what}")]
    Unsupported {
        /// What was asked.
        what: &'static str,
    },
    /// The host failed.
    #[error("the host failed to carry a stream")]
    Io(#[from] std::io::Error),
}

/// Why no machine was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The host has no device for this hypervisor.
    #[error(
        "{device} does not exist: enable virtualisation in the firmware and load the kernel module, \
             or use the emulated host (cargo xtask host)"
    )]
    NoDevice {
        /// The device, for instance `/dev/kvm`.
        device: &'static str,
    },
    /// The device is there, and this user may not open it.
    #[error(
        "no permission to open {device}: add this user to the group {group:?} \
             (sudo usermod -aG {group} \"$USER\"), then log in again"
    )]
    NoPermission {
        /// The device.
        device: &'static str,
        /// The group that may open it.
        group: String,
    },
    /// The hypervisor lacks something that is needed.
    #[error("the hypervisor lacks {what}")]
    HypervisorLacks {
        /// What is missing.
        what: String,
    },
    /// A file that machines are made of is missing.
    #[error("{} is missing: run `{command}`", path.display())]
    ArtefactMissing {
        /// The file.
        path: PathBuf,
        /// The command that makes it.
        command: &'static str,
    },
    /// A file that machines are made of is of another build than this program.
    #[error("{} is of build {found}, this program needs {expected}: run `{command}`", path.display())]
    OtherBuild {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What is needed.
        expected: String,
        /// The command that makes the right one.
        command: &'static str,
    },
    /// The host has no room left.
    #[error("no space left in {}: free some, or set another directory", directory.display())]
    DiskFull {
        /// Where.
        directory: PathBuf,
    },
    /// The machine ended before its processors ran.
    #[error("the machine did not start: {exit}")]
    DidNotStart {
        /// How it ended.
        exit: MachineExit,
        /// Last console lines, escaped.
        console: String,
    },
    /// This backend cannot do that.
    #[error("this backend has no {what}")]
    Unsupported {
        /// What was asked.
        what: &'static str,
    },
    /// The host failed in another way.
    #[error("the host failed to {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
}
