//! From a start message and its descriptors to a machine that is ready to run.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Reporter, host_fault, short};
use crate::control::{Channel, MAX_DISKS, MAX_EXPORTS, Notice, StartConfig, StartFault};
use crate::devices::blk::{BlockDevice, DiskAccess, DiskTrouble};
use crate::devices::fs::{FsDevice, Tag};
use crate::devices::rng::EntropyDevice;
use crate::devices::virtio::VirtioDevice;
use crate::devices::vsock::{HostDials, VsockDevice};
use crate::fs::{Access, IdMap, Limits, SelfFds, Server};
use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::machine::{Machine, MachineConfig, MachineError, Ready};

/// The guest's stream address. Every guest has the same; who it is, its control socket says.
const GUEST_CID: u32 = 3;
/// The file system's tag, by which the agent mounts it.
const FS_TAG: &str = "sandbox";
/// Threads that serve files: one waits for the disk while the other answers from the cache.
const FS_THREADS: usize = 2;

/// Builds the machine, up to its first instruction.
pub(super) fn start<H: Hypervisor>(
    config: StartConfig,
    descriptors: Vec<OwnedFd>,
    channel: &Arc<Channel>,
) -> Result<(HostDials, Ready), StartFault> {
    if config.disks.len() > MAX_DISKS || config.exports.len() > MAX_EXPORTS {
        return Err(StartFault::Config("too many disks or exports".into()));
    }
    let mut descriptors = Descriptors(descriptors.into_iter());
    let hypervisor =
        H::open(Some(descriptors.take("the hypervisor")?)).map_err(|error| hypervisor_fault(&error))?;
    let kernel = File::from(descriptors.take("the kernel")?);
    let console = descriptors.take("the console")?;

    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &config.disks {
        let file = descriptors.take("a disk")?;
        let access = if disk.writable {
            DiskAccess::ReadWrite
        } else {
            DiskAccess::ReadOnly
        };
        let (reporter, name) = (Reporter(channel.clone()), disk.name.clone());
        let on_trouble = Box::new(move |trouble| {
            let disk = name.clone();
            reporter.notice(match trouble {
                DiskTrouble::OutOfSpace => Notice::DiskFull { disk },
                DiskTrouble::Io(errno) => Notice::DiskError { disk, errno },
            });
        });
        let device =
            BlockDevice::new(file, access, &disk.name, on_trouble).map_err(|error| host_fault(&error))?;
        devices.push(Box::new(device));
    }
    devices.push(Box::new(EntropyDevice::new()));
    let vsock = VsockDevice::new(
        GUEST_CID,
        config.ports.clone(),
        Box::new(Reporter(channel.clone())),
    )
    .map_err(|error| host_fault(&error))?;
    let dials = vsock.dials();
    devices.push(Box::new(vsock));
    if !config.exports.is_empty() {
        devices.push(Box::new(file_system(&config, &mut descriptors)?));
    }

    let machine = MachineConfig {
        memory: config.memory,
        cpus: config.cpus,
        kernel,
        options: config.options,
        console: Some(console),
        devices,
    };
    let observer = Arc::new(Reporter(channel.clone()));
    let ready = Machine::build(&hypervisor, machine, observer)
        .and_then(Machine::prepare)
        .map_err(|error| match error {
            MachineError::Hypervisor(error) => hypervisor_fault(&error),
            MachineError::Layout(_) | MachineError::Boot(_) => StartFault::Config(short(&error.to_string())),
            MachineError::Memory(_) | MachineError::Host(_) => host_fault(&error),
        })?;
    Ok((dials, ready))
}

fn file_system(config: &StartConfig, descriptors: &mut Descriptors) -> Result<FsDevice, StartFault> {
    let self_fds = SelfFds::from_descriptor(descriptors.take("this process's descriptors")?)
        .map_err(|error| host_fault(&error))?;
    let (uid, gid) = config.guest_user;
    let server = Server::new(
        self_fds,
        IdMap::of_this_process(uid, gid),
        Limits::of_this_process(),
    );
    for export in &config.exports {
        let access = if export.writable {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        };
        server
            .add_export(descriptors.take("an export")?, access)
            .map_err(|error| host_fault(&error))?;
    }
    let tag = Tag::new(FS_TAG).map_err(|error| host_fault(&error))?;
    FsDevice::new(tag, Arc::new(server), FS_THREADS).map_err(|error| host_fault(&error))
}

fn hypervisor_fault(error: &HypervisorError) -> StartFault {
    match error {
        HypervisorError::Lacks(what) => StartFault::Lacks(short(what)),
        HypervisorError::Call { .. } => StartFault::Hypervisor(short(&error.to_string())),
    }
}

/// The descriptors of the message, in their order.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn take(&mut self, what: &str) -> Result<OwnedFd, StartFault> {
        self.0
            .next()
            .ok_or_else(|| StartFault::Config(format!("the descriptor of {what} is missing")))
    }
}
