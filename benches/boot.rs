//! Where a start's time goes: the VMM's own part beside the bare KVM calls it cannot avoid, and a cold boot to
//! the first answered command. Also what an idle sandbox costs.
//!
//! The kernel of the first comparison speaks by its first instructions and then resets the machine: the time until it
//! is heard is the VMM's own part of a start, the time until the VMM process is gone that of a whole run.

#[path = "support/bare_kvm.rs"]
mod bare_kvm;
#[path = "support/elf.rs"]
mod elf;
#[path = "support/report.rs"]
mod report;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::Criterion;
use report::Report;
use sandbox::artifacts::Artifacts;
use sandbox::core::backend::{Backend, MachineExit, MachineSpec};
use sandbox::{KvmBackend, Sandbox, Size};
use tokio::runtime::Runtime;

/// Guest memory in every case here.
const MEMORY: Size = Size::mib(256);
/// Size of the kernel that speaks at once: as much as the real one loads.
const KERNEL_BYTES: usize = 16 << 20;

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
    for case in ["first-instruction", "start-to-end"] {
        report.add_criterion("bare-kvm", case, "time");
        report.add_criterion("ours", case, "time");
        ratio(&mut report, case, "bare-kvm");
    }
    report.add_criterion("ours", "cold-boot", "time");
    runtime.block_on(idle(&mut report));
    report.finish();
}

fn ratio(report: &mut Report, case: &str, to: &str) {
    if let (Some(ours), Some(peer)) = (report.value("ours", case, "time"), report.value(to, case, "time")) {
        report.add("ours", case, "ratio", "x bare-kvm", ours / peer);
    }
}

/// From nothing to the first word of a guest that then resets the machine at once, and to the end of its VMM process.
fn first_instruction(criterion: &mut Criterion, runtime: &Runtime) {
    let directory = tempfile::tempdir().expect("a directory");
    let kernel = directory.path().join("vmlinux");
    let mut code = elf::SPEAK_AND_RESET.to_vec();
    code.resize(KERNEL_BYTES, 0xcc);
    fs::write(&kernel, elf::executable(0x10_0000, &code)).expect("a kernel");
    let mut images = sandbox::kvm::images(&Artifacts::locate().unwrap_or_else(|e| panic!("{e}")));
    images.kernel_normal = kernel.clone();
    images.kernel_interpreted = kernel;
    let backend = KvmBackend::new(images);

    let mut group = criterion.benchmark_group("first-instruction");
    group.bench_function("bare-kvm", |bencher| {
        bencher.iter_custom(|times| {
            let run =
                |_| bare_kvm::run(MEMORY.as_bytes(), elf::SPEAK_AND_RESET).expect("bare KVM runs the guest");
            (0..times).map(run).sum()
        });
    });
    group.bench_function("ours", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| run_ours(runtime, &backend).0).sum());
    });
    group.finish();
    let mut group = criterion.benchmark_group("start-to-end");
    group.bench_function("bare-kvm", |bencher| {
        bencher.iter(|| {
            bare_kvm::run(MEMORY.as_bytes(), elf::SPEAK_AND_RESET).expect("bare KVM runs the guest")
        });
    });
    group.bench_function("ours", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| run_ours(runtime, &backend).1).sum());
    });
    group.finish();
}

/// How long until the guest spoke, and until all was over.
fn run_ours(runtime: &Runtime, backend: &KvmBackend) -> (Duration, Duration) {
    let started = Instant::now();
    let machine = runtime
        .block_on(backend.start(spec()))
        .unwrap_or_else(|e| panic!("{e}"));
    // The runtime's own threads listen; a pause as short as possible leaves them the processors.
    while machine.console_tail().is_empty() {
        std::thread::sleep(Duration::from_micros(10));
    }
    let spoke = started.elapsed();
    assert_eq!(runtime.block_on(machine.wait()), MachineExit::Shutdown);
    (spoke, started.elapsed())
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

async fn launch(workspace: &Path) -> Sandbox {
    let launched = Sandbox::builder()
        .workspace(workspace)
        .memory(MEMORY)
        .launch()
        .await;
    launched.unwrap_or_else(|e| panic!("{e}"))
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
                        let sandbox = launch(workspace.path()).await;
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
    let sandbox = launch(workspace.path()).await;
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

/// Private memory of the VMM beyond its guest's, in KiB. The guest's is the one run of adjacent mappings that is exactly as
/// large as it.
fn vmm_memory(pid: u32) -> f64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let Some(name) = fields.next() else { continue };
        if let Some((start, end)) = name.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            mappings.push(Mapping {
                start: address(start),
                end: address(end),
                private: 0.0,
            });
        } else if let ("Private_Clean:" | "Private_Dirty:", Some(mapping)) = (name, mappings.last_mut()) {
            mapping.private += fields
                .next()
                .and_then(|kib| kib.parse::<f64>().ok())
                .unwrap_or(0.0);
        }
    }
    let guest = mappings.iter().find_map(|first| {
        let end = first.start + MEMORY.as_bytes();
        let within = |mapping: &&Mapping| first.start <= mapping.start && mapping.end <= end;
        let size: u64 = mappings
            .iter()
            .filter(within)
            .map(|mapping| mapping.end - mapping.start)
            .sum();
        (size == MEMORY.as_bytes()).then_some(first.start..end)
    });
    let guest = guest.expect("the guest's memory is mapped");
    let own = mappings.iter().filter(|mapping| !guest.contains(&mapping.start));
    own.map(|mapping| mapping.private).sum()
}

struct Mapping {
    start: u64,
    end: u64,
    /// KiB.
    private: f64,
}
