//! Development tasks of sandbox. Thin: the work is in `sandbox-artifacts`.

#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod demo;
mod emulated;
mod error;
mod fuzz;
mod host;
mod machine;
mod mutants;
mod progress;
mod test;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use sandbox_artifacts::{Kind, build::Builder};

use crate::{error::TaskError, progress::Terminal};

/// Development tasks of sandbox.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Sets everything up and shows the main job.
    Demo {
        /// In the emulated host, also where /dev/kvm could be used.
        #[arg(long)]
        emulated: bool,
        /// For the demo program itself.
        #[arg(trailing_var_arg = true)]
        arguments: Vec<OsString>,
    },
    /// Sets everything up and runs every test.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Runs the benchmarks, or the named one.
    Bench {
        /// `boot` or `proxy`.
        name: Option<String>,
        /// In the emulated host.
        #[arg(long)]
        emulated: bool,
    },
    /// Runs the fuzz targets, each for a while.
    Fuzz {
        /// Only targets whose name contains this.
        filter: Option<String>,
        /// For each target.
        #[arg(long, default_value_t = 30)]
        seconds: u32,
        /// Adds inputs that reach something new to the kept corpus.
        #[arg(long)]
        keep: bool,
    },
    /// Switches each named defence of the proxy off in turn; some test must fail then.
    Mutants {
        /// Only defences whose name contains this.
        filter: Option<String>,
        /// Writes down which test noticed each.
        #[arg(long)]
        keep: bool,
        /// Runs only the test that is written down.
        #[arg(long, conflicts_with = "keep")]
        quick: bool,
    },
    /// Builds all artefacts that are missing, or the named ones.
    Artifacts {
        /// Such as `agent` or `kernel-normal`.
        #[arg(value_parser = kind)]
        kinds: Vec<Kind>,
    },
    /// Builds the guest kernels that are missing.
    Kernel,
    /// Builds the base image and the layer template where missing.
    Image,
    /// Runs a command in an emulated host with hardware virtualisation; hands through its output and exit code.
    Host {
        /// Memory in MiB; half of the machine's, and at most 6144, by default.
        #[arg(long)]
        memory: Option<u64>,
        /// Virtual processors for the command, 1 to 7.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=host::MAX_CPUS))]
        cpus: u32,
        /// A directory that is writable inside, at the same path.
        #[arg(long)]
        out: Option<PathBuf>,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn kind(name: &str) -> Result<Kind, String> {
    let known = || Kind::ALL.map(Kind::name).join(", ");
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| format!("there are: {}", known()))
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode, TaskError> {
    let terminal = Terminal::new();
    let ensure = |kinds: &[Kind]| -> Result<ExitCode, TaskError> {
        Builder::new(&terminal)?.ensure_all(kinds)?;
        Ok(ExitCode::SUCCESS)
    };
    match task {
        Task::Artifacts { kinds } if kinds.is_empty() => ensure(&Kind::ALL),
        Task::Artifacts { kinds } => ensure(&kinds),
        Task::Kernel => ensure(&[Kind::KernelInterpreted, Kind::KernelNormal, Kind::KernelHost]),
        Task::Image => ensure(&[Kind::LayerTemplate, Kind::BaseImage]),
        Task::Host {
            memory,
            cpus,
            out,
            command,
        } => {
            let mut host = host::Host::set_up(&terminal)?;
            host.cpus = cpus;
            host.memory_mib = memory.unwrap_or(host.memory_mib);
            host.out = out;
            host.run(&command).map(ExitCode::from)
        }
        Task::Demo { emulated, arguments } => demo::run(&terminal, emulated, &arguments),
        Task::Test { filter } => test::run(&terminal, filter.as_deref()),
        Task::Fuzz {
            filter,
            seconds,
            keep,
        } => fuzz::run(&terminal, filter.as_deref(), seconds, keep),
        Task::Mutants { filter, keep, quick } => mutants::run(filter.as_deref(), keep, quick),
        Task::Bench { name, emulated } => bench::run(&terminal, name.as_deref(), emulated),
    }
}
