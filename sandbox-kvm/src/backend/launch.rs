//! One launch: open everything and meanwhile start the VMM process, shake hands, hand over. Dropped at any point, it
//! leaves no process and no file.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use sandbox_core::backend::{Access, BackendError, MachineExit, MachineSpec, Virtualisation, ports};
use sandbox_vmm::control::{
    Channel, ChannelError, DiskConfig, ExportConfig, FromVmm, StartConfig, StartFault, ToVmm,
};
use tokio::io::unix::AsyncFd;

use super::child::{self, VmmProcess};
use super::console::{CONSOLE_BYTES, DIAGNOSTIC_BYTES, Tail};
use super::machine::{Driver, KvmMachine, Output, Tails};
use super::{KvmImages, MAKE_ARTEFACTS, images};

/// How long the VMM process may take to say hello, and then to start: it does nothing but a few system calls, so a
/// helper that takes longer is no helper of ours.
const PATIENCE: Duration = Duration::from_secs(60);
const WATCH: &str = "watch the VMM process";
/// User and group of the unprivileged user inside, whom the host user's files belong to.
const GUEST_USER: (u32, u32) = (1000, 1000);

/// Everything a machine is made of, opened.
struct Parts {
    hypervisor: File,
    kernel: File,
    /// Agent, base, private layer: the order the guest names them in.
    disks: [File; 3],
}

impl Parts {
    /// Opens all files; may wait for a disk.
    fn prepare(
        images: &KvmImages,
        virtualisation: Virtualisation,
        layers: &Path,
    ) -> Result<Self, BackendError> {
        let hypervisor = images::open_hypervisor()?;
        let kernel = match virtualisation {
            Virtualisation::Interpreted => &images.kernel_interpreted,
            Virtualisation::Hardware | Virtualisation::None => &images.kernel_normal,
        };
        let kernel = images::open(kernel)?;
        let disks = [
            images::open(&images.agent)?,
            images::open(&images.base)?,
            images::private_layer(&images.layer_template, layers)?,
        ];
        Ok(Self {
            hypervisor,
            kernel,
            disks,
        })
    }
}

/// Starts a machine.
pub(super) async fn launch(
    images: &Arc<KvmImages>,
    layers: &Path,
    virtualisation: Virtualisation,
    spec: MachineSpec,
    options: String,
) -> Result<KvmMachine, BackendError> {
    // Opening may wait for a disk, and a process takes a moment to come up: both at once, and on threads that may
    // wait. Should this future be dropped meanwhile, so are their results.
    let preparing = {
        let (images, layers) = (images.clone(), layers.to_owned());
        blocking(move || Parts::prepare(&images, virtualisation, &layers))
    };
    let spawning = {
        let (images, id) = (images.clone(), spec.id.clone());
        blocking(move || {
            VmmProcess::spawn(&images.helper, &id)
                .map_err(|cause| images::missing_or(&images.helper, "start the VMM process", cause))
        })
    };
    // From here on, dropping `process` kills it.
    let (process, connections) = spawning.await?;

    let (console, console_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|errno| failed("make a pipe", errno.into()))?;
    let tails = Tails {
        console: Arc::new(Mutex::new(Tail::new(CONSOLE_BYTES))),
        diagnostics: Arc::new(Mutex::new(Tail::new(DIAGNOSTIC_BYTES))),
    };
    // SAFETY: the channel owns its socket, keeps it for life, and is dropped only with the registration.
    let channel = unsafe { AsyncFd::register(Channel::new(connections.control)) };
    let channel = Arc::new(channel.map_err(|cause| failed(WATCH, cause.into()))?);
    let mut driver = Driver {
        process,
        channel: channel.clone(),
        console: Output::new(watch(console)?, tails.console.clone()),
        diagnostics: Output::new(watch(connections.diagnostics)?, tails.diagnostics.clone()),
        pidfd: Arc::new(watch(connections.pidfd)?),
        tails,
    };

    let hello = message(&mut driver).await?;
    check_hello(hello, images)?;
    let parts = preparing.await?;

    let config = StartConfig {
        memory: spec.memory.get().as_bytes(),
        cpus: spec.cpus.get(),
        options,
        ports: vec![ports::CONTROL, ports::EGRESS, ports::DNS, ports::DNS_DATAGRAMS],
        disks: [("agent", false), ("base", false), ("layer", true)]
            .map(|(name, writable)| DiskConfig {
                name: name.to_owned(),
                writable,
            })
            .into(),
        exports: spec
            .exports
            .iter()
            .map(|export| ExportConfig {
                writable: export.access == Access::ReadWrite,
            })
            .collect(),
        guest_user: GUEST_USER,
    };
    let own_descriptors = descriptors_of(driver.process.pid(), !spec.exports.is_empty())?;
    let mut descriptors: Vec<BorrowedFd<'_>> = vec![
        parts.hypervisor.as_fd(),
        parts.kernel.as_fd(),
        console_writer.as_fd(),
    ];
    descriptors.extend(parts.disks.iter().map(|disk| disk.as_fd()));
    descriptors.extend(own_descriptors.iter().map(|fd| fd.as_fd()));
    descriptors.extend(spec.exports.iter().map(|export| export.directory.as_fd()));
    channel
        .get_ref()
        .send(&ToVmm::Start(config), &descriptors, false)
        .map_err(|error| failed("hand the machine's parts over", std::io::Error::other(error)))?;
    drop(descriptors);
    // With our copy open, the console would never end.
    drop(console_writer);

    match message(&mut driver).await? {
        (FromVmm::Started, _) => {}
        (FromVmm::StartFailed(fault), _) => return Err(start_error(fault, &driver.tails)),
        _ => {
            return Err(did_not_start(
                "it speaks of its guest before it has started".into(),
                &driver.tails,
            ));
        }
    }
    Ok(KvmMachine::run(driver))
}

/// Runs `work` on a thread that may wait. It begins at once, whenever its result is asked for.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> impl Future<Output = Result<T, BackendError>> {
    let task = tokio::task::spawn_blocking(work);
    async {
        task.await
            .map_err(|error| failed("prepare a machine", std::io::Error::other(error)))?
    }
}

/// Registers a descriptor of ours with the runtime.
fn watch(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, BackendError> {
    // SAFETY: an owned descriptor stays open and the same until it is dropped, which only the registration can do.
    unsafe { AsyncFd::register(fd) }.map_err(|cause| failed(WATCH, cause.into()))
}

/// The next message, while diagnostics are kept from filling up; an error if the process ends instead.
async fn message(driver: &mut Driver) -> Result<(FromVmm, Vec<OwnedFd>), BackendError> {
    let tails = driver.tails.clone();
    let received = tokio::time::timeout(PATIENCE, driver.receive()).await;
    match received {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(ChannelError::Closed)) => {
            let why = match tokio::time::timeout(PATIENCE, driver.reap()).await {
                Ok(status) => status.map_or_else(|error| error.to_string(), child::describe),
                Err(_) => "it closed its control socket".to_owned(),
            };
            driver.drain_outputs();
            Err(did_not_start(why, &tails))
        }
        Ok(Err(error)) => Err(did_not_start(error.to_string(), &tails)),
        Err(_) => Err(did_not_start(
            format!("it said nothing for {} s", PATIENCE.as_secs()),
            &tails,
        )),
    }
}

fn check_hello((message, _): (FromVmm, Vec<OwnedFd>), images: &KvmImages) -> Result<(), BackendError> {
    let other_build = |found: String, expected: String| BackendError::OtherBuild {
        path: images.helper.clone(),
        found,
        expected,
        command: MAKE_ARTEFACTS,
    };
    match message {
        FromVmm::Hello { version, .. } if version != sandbox_vmm::control::VERSION => Err(other_build(
            format!("protocol {version}"),
            format!("protocol {}", sandbox_vmm::control::VERSION),
        )),
        FromVmm::Hello { build, .. } => match &images.helper_build {
            Some(expected) if *expected != build => Err(other_build(build, expected.clone())),
            _ => Ok(()),
        },
        _ => Err(other_build("of another protocol".into(), "this protocol".into())),
    }
}

/// The process's directory of descriptors, by which its file server re-opens files it has vetted. It cannot open it
/// itself: it opens no path.
fn descriptors_of(pid: u32, wanted: bool) -> Result<Option<OwnedFd>, BackendError> {
    if !wanted {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty())
        .map(Some)
        .map_err(|errno| failed("open the VMM process's descriptors in /proc", errno.into()))
}

fn start_error(fault: StartFault, tails: &Tails) -> BackendError {
    match fault {
        StartFault::Lacks(what) => BackendError::HypervisorLacks { what },
        StartFault::Hypervisor(why) | StartFault::Config(why) | StartFault::Host(why) => {
            did_not_start(why, tails)
        }
    }
}

fn did_not_start(why: String, tails: &Tails) -> BackendError {
    let said = tails
        .diagnostics
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .escaped();
    let why = if said.is_empty() {
        why
    } else {
        format!("{why}; it said: {}", said.trim_end())
    };
    let console = tails
        .console
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .escaped();
    BackendError::DidNotStart {
        exit: MachineExit::MonitorDied { why },
        console,
    }
}

pub(super) fn failed(doing: &'static str, cause: std::io::Error) -> BackendError {
    BackendError::Io { doing, cause }
}
