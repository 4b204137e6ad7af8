//! What orchestrator and VMM process say to each other: small messages, each with its descriptors, over one
//! SEQPACKET socket pair. Lengths and counts are bounded by whoever receives.
//!
//! The VMM process speaks first, with [`FromVmm::Hello`]; then comes one [`ToVmm::Start`]. When the orchestrator's
//! end closes, the process ends at once.

mod channel;

use serde::{Deserialize, Serialize};

pub use channel::{Channel, ChannelError, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES};

/// Changes when a message changes its meaning. Both sides come from one source tree, so other versions are refused.
pub const VERSION: u16 = 1;

/// Most directories of one machine, given at its start.
pub const MAX_EXPORTS: usize = 64;
/// Most disks of one machine.
pub const MAX_DISKS: usize = 4;

/// From the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToVmm {
    /// Build and run the machine. Once. Descriptors, in this order: the hypervisor's device, the kernel, the console
    /// pipe, one per disk, `/proc/PID/fd` of the VMM process (only if there are exports), one per export.
    Start(StartConfig),
    /// Call a guest port; one descriptor: the VMM's end of the stream. Answered by [`FromVmm::Dialled`].
    Dial {
        /// The caller's own number for the call.
        id: u64,
        /// The guest's port.
        port: u32,
    },
}

/// What the machine is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartConfig {
    /// Guest memory in bytes, whole MiB.
    pub memory: u64,
    /// Processors.
    pub cpus: u8,
    /// Kernel options; where the devices are is appended.
    pub options: String,
    /// Host ports that the guest may dial.
    pub ports: Vec<u32>,
    /// Disks, in the order the guest names them.
    pub disks: Vec<DiskConfig>,
    /// Exported directories, in the order of their numbers.
    pub exports: Vec<ExportConfig>,
    /// User and group inside the guest that the files of the orchestrator's user belong to.
    pub guest_user: (u32, u32),
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// What the guest can ask for; at most 20 bytes.
    pub name: String,
    /// Whether the guest may write.
    pub writable: bool,
}

/// One exported directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportConfig {
    /// Whether the guest may change anything.
    pub writable: bool,
}

/// From the VMM process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromVmm {
    /// The first message.
    Hello {
        /// [`VERSION`] of the sender.
        version: u16,
        /// Hash of the sources it was built from.
        build: String,
    },
    /// The processors run from now on. Nothing that the guest causes is told before this.
    Started,
    /// They do not, and the process ends.
    StartFailed(StartFault),
    /// The guest opened a stream; one descriptor: the orchestrator's end.
    Accepted {
        /// The port the guest dialled.
        port: u32,
    },
    /// How a call ended.
    Dialled {
        /// The caller's number.
        id: u64,
        /// How.
        outcome: DialOutcome,
    },
    /// Something the owner of the machine should hear of; the machine goes on.
    Notice(Notice),
    /// The machine has ended, and so does the process.
    Ended(End),
}

/// Why the machine did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFault {
    /// The hypervisor lacks this.
    Lacks(String),
    /// The hypervisor refused.
    Hypervisor(String),
    /// The configuration cannot be built.
    Config(String),
    /// The host lacks memory, descriptors or threads.
    Host(String),
}

/// How a call to the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DialOutcome {
    /// The guest took it.
    Connected,
    /// Nothing listens there.
    Refused,
    /// Too many streams are open.
    TooManyStreams,
}

/// News of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The guest broke a device.
    DeviceFailed {
        /// The device's name.
        device: String,
        /// How.
        why: String,
    },
    /// The host has no room for what the guest writes to a disk; the guest sees I/O errors.
    DiskFull {
        /// The disk's name.
        disk: String,
    },
    /// The host failed to read or write a disk's file.
    DiskError {
        /// The disk's name.
        disk: String,
        /// What the system said.
        errno: i32,
    },
}

/// How the machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The guest shut down or reset.
    Reset,
    /// A processor cannot go on.
    Stuck(String),
    /// The hypervisor failed.
    Failed(String),
}
