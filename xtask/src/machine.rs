//! What kind of host this is: it decides where guests run and what to expect.

use std::{fs, path::Path};

/// How guests can run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostKind {
    /// The processor runs guests.
    Hardware,
    /// `/dev/kvm` is there, but ring 0 of a guest is interpreted.
    Interpreted,
    /// No usable `/dev/kvm`: guests run in the emulated host.
    Emulated,
}

impl HostKind {
    /// Looks at this machine.
    pub(crate) fn of_this_machine() -> Self {
        let usable = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .unwrap_or_default();
        let hardware = flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm");
        match (usable, hardware && !Path::new("/sys/module/kvm_pvm").exists()) {
            (true, true) => Self::Hardware,
            (true, false) => Self::Interpreted,
            (false, _) => Self::Emulated,
        }
    }

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Interpreted => "interpreted",
            Self::Emulated => "emulated",
        }
    }

    /// What to expect, for people.
    pub(crate) fn expect(self) -> &'static str {
        match self {
            Self::Hardware => "hardware virtualisation: guests run at the processor's speed",
            Self::Interpreted => {
                "an interpreted /dev/kvm: a guest's kernel runs at a few million instructions per second, so a start \
                 and each new program are slow (the README has figures), and programs compute at full speed"
            }
            Self::Emulated => {
                "an emulated host (QEMU without acceleration): a guest starts in seconds (the README has figures), \
                 and programs compute several times slower than elsewhere"
            }
        }
    }
}

/// Memory of this machine in MiB; a small machine when it cannot be read.
pub(crate) fn memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    total
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(2048, |kib| kib / 1024)
}
