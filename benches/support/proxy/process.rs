//! Processes: where they run, what they may open, and what they use, from `/proc`.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::Result;

/// The processor of load and upstream.
pub const LOAD_CPU: usize = 0;
/// That of the subject, if there are two.
pub fn subject_cpu() -> usize {
    static CPU: OnceLock<usize> = OnceLock::new();
    // Asked before this process is kept on one.
    *CPU.get_or_init(|| usize::from(std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1)))
}

/// Descriptors that the case with most tunnels needs in one process.
const DESCRIPTORS: u64 = 65536;

/// Where this process may run.
pub struct Placement(CpuSet);

impl Placement {
    /// Keeps this process on one processor until [`undo`](Self::undo).
    pub fn on(cpu: usize) -> Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one)?;
        Ok(Self(before))
    }

    /// Lets it run where it could before.
    pub fn undo(self) -> Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }
}

/// How many files this process and those that it starts may open.
pub fn descriptors() -> u64 {
    getrlimit(Resource::Nofile)
        .current
        .unwrap_or(DESCRIPTORS)
        .min(1 << 20)
}

/// Lets them open many.
pub fn raise_descriptors() {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(u64::MAX);
    // Root may have more than was given; others get what they can.
    for wanted in [DESCRIPTORS.max(most.min(1 << 20)), most] {
        let limit = Rlimit {
            current: Some(wanted),
            maximum: Some(wanted),
        };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}

/// Processor time that a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before may hold anything, also blanks.
    let (_, rest) = stat.rsplit_once(')').ok_or("no name in stat")?;
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of a process that is in use, in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    Ok(size.ok_or("no VmRSS in status")?)
}
