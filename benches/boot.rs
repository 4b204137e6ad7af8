//! Where a start's time goes: the VMM's own part beside the bare KVM calls it cannot avoid, and a cold boot to
//! the first answered command. Also what an idle sandbox costs.
//!
//! The kernel of the first comparison resets the machine by its first instructions, so a whole run from nothing
//! to the machine's end is the VMM's own part.

#[path = "support/bare_kvm.rs"]
mod bare_kvm;
#[path = "support/elf.rs"]
mod elf;
#[path = "support/report.rs"]
mod report;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use criterion::Criterion;
use report::Report;
use sandbox::artifacts::Artifacts;
use sandbox::core::backend::{Backend, MachineExit, MachineSpec};
use sandbox::{KvmBackend, Sandbox, Size};
use tokio::runtime::Runtime;

/// Guest memory in every case here.
const MEMORY: Size = Size::mib(256);

fn main() {
    println!("host: {:?} virtualisation", KvmBackend::virtualisation());
    let runtime = Runtime::new().expect("a runtime");
    let mut report = Report::new("boot");
    // Boots take seconds on slow hosts; criterion's least is ten samples.
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    first_instruction(&mut criterion, &runtime);
    cold_boot(&mut criterion, &runtime);
    criterion.final_summary();
    report.add_criterion("bare-kvm", "first-instruction", "time");
    report.add_criterion("ours", "first-instruction", "time");
    ratio(&mut report, "first-instruction", "bare-kvm");
    report.add_criterion("ours", "cold-boot", "time");
    runtime.block_on(idle(&mut report));
    report.finish();
}

fn ratio(report: &mut Report, case: &str, to: &str) {
    if let (Some(ours), Some(peer)) = (report.value("ours", case, "time"), report.value(to, case, "time")) {
        report.add("ours", case, "ratio", "x bare-kvm", ours / peer);
    }
}

/// From nothing to the end of a guest that resets the machine at once.
fn first_instruction(criterion: &mut Criterion, runtime: &Runtime) {
    let directory = tempfile::tempdir().expect("a directory");
    let kernel = directory.path().join("vmlinux");
    fs::write(&kernel, elf::executable(0x10_0000, elf::RESET)).expect("a kernel");
    let mut images = sandbox::kvm::images(&Artifacts::locate().unwrap_or_else(|e| panic!("{e}")));
    images.kernel_normal = kernel.clone();
    images.kernel_interpreted = kernel;
    let backend = KvmBackend::new(images);

    let mut group = criterion.benchmark_group("first-instruction");
    group.bench_function("bare-kvm", |bencher| {
        bencher.iter(|| bare_kvm::run(MEMORY.as_bytes(), elf::RESET).expect("bare KVM runs the guest"));
    });
    group.bench_function("ours", |bencher| {
        bencher.iter(|| {
            let exit = runtime.block_on(async {
                let machine = backend.start(spec()).await.unwrap_or_else(|e| panic!("{e}"));
                machine.wait().await
            });
            assert_eq!(exit, MachineExit::Shutdown);
        });
    });
    group.finish();
}

fn spec() -> MachineSpec {
    MachineSpec {
        id: "bench".parse().expect("a name"),
        memory: MEMORY.try_into().expect("possible memory"),
        cpus: sandbox::core::CpuCount::ONE,
        exports: Vec::new(),
    }
}

/// A directory whose `noop` is a static program that only ends.
fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let noop = directory.path().join("noop");
    fs::write(&noop, elf::executable(0x40_0000, elf::EXIT)).expect("a program");
    fs::set_permissions(&noop, fs::Permissions::from_mode(0o755)).expect("an executable");
    directory
}

/// From `launch()` to the first answered command.
fn cold_boot(criterion: &mut Criterion, runtime: &Runtime) {
    let workspace = workspace();
    criterion
        .benchmark_group("cold-boot")
        .bench_function("ours", |bencher| {
            bencher.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let started = Instant::now();
                    let sandbox = runtime.block_on(async {
                        let launched = Sandbox::builder()
                            .workspace(workspace.path())
                            .memory(MEMORY)
                            .launch()
                            .await;
                        let sandbox = launched.unwrap_or_else(|e| panic!("{e}"));
                        let status = sandbox
                            .command("./noop")
                            .status()
                            .await
                            .unwrap_or_else(|e| panic!("{e}"));
                        assert!(status.success());
                        sandbox
                    });
                    total += started.elapsed();
                    runtime.block_on(sandbox.kill());
                }
                total
            });
        });
}

/// Processor time and memory of a sandbox that has nothing to do.
async fn idle(report: &mut Report) {
    let workspace = workspace();
    let launched = Sandbox::builder()
        .workspace(workspace.path())
        .memory(MEMORY)
        .launch()
        .await;
    let sandbox = launched.unwrap_or_else(|e| panic!("{e}"));
    let vmm = vmm_process().expect("the VMM is a child of this process");
    // What the boot left to do is done.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, started) = (processor_seconds(vmm), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let used = processor_seconds(vmm) - before;
    report.add(
        "ours",
        "idle",
        "cpu",
        "% of a core",
        100.0 * used / started.elapsed().as_secs_f64(),
    );
    report.add("ours", "idle", "vmm memory", "KiB", vmm_memory(vmm));
    drop(sandbox);
}

fn vmm_process() -> Option<u32> {
    let own = std::process::id().to_string();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        let child = rest.split_whitespace().nth(1) == Some(&own) && name.contains("sandbox-vmm");
        child.then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

/// User and system time so far. `USER_HZ` is 100 on every Linux that this runs on.
fn processor_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Private memory of the VMM beyond its guest's, which is the one mapping as large as that.
fn vmm_memory(pid: u32) -> f64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut total, mut size) = (0.0, 0.0);
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let (name, value) = (
            fields.next(),
            fields.next().and_then(|value| value.parse::<f64>().ok()),
        );
        match (name, value) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Private_Clean:" | "Private_Dirty:"), Some(kib))
                if size < MEMORY.as_bytes() as f64 / 1024.0 =>
            {
                total += kib;
            }
            _ => {}
        }
    }
    total
}
