//! The backend and its real VMM process, with "kernels" of a few instructions: nothing but `/dev/kvm` is needed, and
//! tests that need it end early where it cannot be opened (the emulated host runs them).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sandbox_core::backend::{Backend, BackendError, Machine, MachineError, MachineExit, MachineSpec};
use sandbox_core::{CpuCount, Size};
use sandbox_kvm::{KvmBackend, KvmImages};
use sandbox_vmm::control::{Channel, FromVmm, ToVmm};

const HELPER: &str = env!("CARGO_BIN_EXE_sandbox-vmm-kvm");

/// `mov al, 0xfe; out 0x64, al; jmp $`: asks the keyboard controller for a reset.
const RESETS: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// `jmp $`: runs for ever.
const LOOPS: &[u8] = &[0xeb, 0xfe];
/// `ud2` without an interrupt table: a triple fault.
const FAULTS: &[u8] = &[0x0f, 0x0b];
/// `mov dx, 0x3f8; mov al, 'X'; out dx, al; mov al, 10; out dx, al`, then reset.
const PRINTS: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'X', 0xee, 0xb0, 10, 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe,
];

struct Host {
    directory: tempfile::TempDir,
    images: KvmImages,
}

impl Host {
    fn new(code: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("kernel"), elf(code)).unwrap();
        for image in ["agent", "base", "layer"] {
            File::create(path(image)).unwrap().write_all(&[0; 4096]).unwrap();
        }
        let images = KvmImages {
            kernel_normal: path("kernel"),
            kernel_interpreted: path("kernel"),
            agent: path("agent"),
            base: path("base"),
            layer_template: path("layer"),
            helper: PathBuf::from(HELPER),
            helper_build: None,
        };
        Self { directory, images }
    }

    async fn start(&self) -> Result<Arc<dyn Machine>, BackendError> {
        let backend = KvmBackend::new(self.images.clone()).layer_directory(self.directory.path());
        let spec = MachineSpec {
            id: "test".parse().unwrap(),
            memory: Size::mib(64).try_into().unwrap(),
            cpus: CpuCount::ONE,
            exports: Vec::new(),
        };
        backend.start(spec).await
    }
}

/// A 64-bit ELF file whose only segment is `code`, loaded and entered at 16 MiB.
fn elf(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 16 << 20;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [120, ENTRY, ENTRY, code.len() as u64, code.len() as u64, 16] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

fn kvm() -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        eprintln!("no /dev/kvm here: run this in the emulated host");
    }
    there
}

fn processes_of(helper: &Path) -> usize {
    let is_ours = |entry: fs::DirEntry| {
        // Zombies have no executable any more, so this also shows that they are reaped or about to be.
        fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == helper)
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| fs::read_to_string(entry.path().join("stat")).is_ok())
        .map(is_ours)
        .filter(|ours| *ours)
        .count()
}

#[tokio::test]
async fn a_guest_that_resets_ends_cleanly() {
    if !kvm() {
        return;
    }
    let machine = Host::new(RESETS).start().await.unwrap();
    assert_eq!(machine.wait().await, MachineExit::Shutdown);
    assert!(matches!(
        machine.connect(1025).await,
        Err(MachineError::Ended(MachineExit::Shutdown))
    ));
    assert!(matches!(
        machine.accept().await,
        Err(MachineError::Ended(MachineExit::Shutdown))
    ));
}

#[tokio::test]
async fn a_triple_fault_is_the_guests() {
    if !kvm() {
        return;
    }
    let machine = Host::new(FAULTS).start().await.unwrap();
    assert!(matches!(machine.wait().await, MachineExit::GuestFault { .. }));
}

#[tokio::test]
async fn console_output_is_kept() {
    if !kvm() {
        return;
    }
    let machine = Host::new(PRINTS).start().await.unwrap();
    machine.wait().await;
    assert_eq!(machine.console_tail(), "X\n");
}

#[tokio::test]
async fn kill_ends_it_and_says_so() {
    if !kvm() {
        return;
    }
    let machine = Host::new(LOOPS).start().await.unwrap();
    machine.kill().await;
    assert_eq!(machine.wait().await, MachineExit::Killed);
}

#[tokio::test]
async fn a_dropped_machine_or_launch_leaves_no_process_and_no_file() {
    if !kvm() {
        return;
    }
    let mut host = Host::new(LOOPS);
    // A binary of its own name, so that other tests' processes do not count.
    let helper = host.directory.path().join("helper");
    fs::copy(HELPER, &helper).unwrap();
    host.images.helper.clone_from(&helper);
    let files = fs::read_dir(host.directory.path()).unwrap().count();

    drop(host.start().await.unwrap());
    for patience in [0u64, 1, 2, 5, 10, 20, 40] {
        let _ = tokio::time::timeout(Duration::from_millis(patience), host.start()).await;
    }
    for _ in 0..200 {
        if processes_of(&helper) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(processes_of(&helper), 0);
    assert_eq!(fs::read_dir(host.directory.path()).unwrap().count(), files);
}

#[tokio::test]
async fn a_helper_of_another_build_is_refused() {
    if !kvm() {
        return;
    }
    let mut host = Host::new(LOOPS);
    host.images.helper_build = Some("0123abcd".to_owned());
    let error = host.start().await.unwrap_err();
    assert!(
        matches!(&error, BackendError::OtherBuild { expected, .. } if expected == "0123abcd"),
        "{error}"
    );
    assert!(error.to_string().contains("cargo xtask artifacts"));
}

#[tokio::test]
async fn a_missing_helper_or_kernel_names_the_command() {
    if !kvm() {
        return;
    }
    let mut host = Host::new(LOOPS);
    host.images.helper = PathBuf::from("/nonexistent/helper");
    assert!(matches!(
        host.start().await,
        Err(BackendError::ArtefactMissing { .. })
    ));
    let host = Host::new(LOOPS);
    fs::remove_file(host.directory.path().join("kernel")).unwrap();
    assert!(matches!(
        host.start().await,
        Err(BackendError::ArtefactMissing { .. })
    ));
}

#[tokio::test]
async fn a_helper_that_is_none_and_a_kernel_that_is_none_are_typed_errors() {
    if !kvm() {
        return;
    }
    let mut host = Host::new(LOOPS);
    host.images.helper = PathBuf::from("/bin/false");
    assert!(matches!(
        host.start().await,
        Err(BackendError::DidNotStart { .. })
    ));
    let host = Host::new(LOOPS);
    fs::write(host.directory.path().join("kernel"), b"not an ELF file").unwrap();
    let error = host.start().await.unwrap_err();
    assert!(error.to_string().contains("ELF"), "{error}");
}

/// The helper as the backend starts it, without a backend.
fn helper() -> (std::process::Child, Channel) {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let child = Command::new(HELPER)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (child, Channel::new(ours))
}

#[test]
fn the_vmm_process_ends_when_its_orchestrator_goes() {
    let (mut child, channel) = helper();
    assert!(matches!(
        channel.receive::<FromVmm>(true).unwrap().0,
        FromVmm::Hello { .. }
    ));
    drop(channel);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_message_out_of_turn_ends_the_vmm_process() {
    let (mut child, channel) = helper();
    channel.receive::<FromVmm>(true).unwrap();
    channel.send(&ToVmm::Dial { id: 1, port: 1 }, &[], true).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn the_vmm_process_keeps_no_descriptor_and_no_environment() {
    let stray: OwnedFd = File::open("/dev/null").unwrap().into();
    // Without close-on-exec, as a careless embedder's descriptors are.
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let (mut child, channel) = helper();
    channel.receive::<FromVmm>(true).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    // Readable for root only: the process cannot be traced.
    if let Ok(open) = fs::read_dir(proc.join("fd")) {
        let open: Vec<_> = open
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .collect();
        assert_eq!(
            open.iter().filter(|path| path.starts_with("/dev/null")).count(),
            2,
            "{open:?}"
        );
        assert!(fs::read(proc.join("environ")).unwrap().is_empty());
    }
    drop(channel);
    child.wait().unwrap();
}
