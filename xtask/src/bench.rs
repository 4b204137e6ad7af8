//! `cargo xtask bench`: runs the benchmarks and says on which kind of host.

use std::{path::Path, process::ExitCode};

use sandbox_artifacts::{Kind, build::Builder};

use crate::{
    cargo::{cargo, compile},
    error::TaskError,
    host::Host,
    machine::HostKind,
    progress::Terminal,
};

/// The benchmarks there are; each writes `target/bench/NAME.json`.
const BENCHES: [&str; 4] = ["boot", "policy", "proxy", "scrub"];

/// Opens what a benchmark needs and nobody else does.
const FEATURES: [&str; 2] = ["--features", "bench-scrub"];

pub(crate) fn run(terminal: &Terminal, name: Option<&str>, emulated: bool) -> Result<ExitCode, TaskError> {
    let names: Vec<&str> = match name {
        None => BENCHES.to_vec(),
        Some(name) if BENCHES.contains(&name) => vec![name],
        Some(name) => {
            return Err(TaskError::NoSuchBench {
                name: name.into(),
                known: BENCHES.join(", "),
            });
        }
    };
    let kind = if emulated {
        HostKind::Emulated
    } else {
        HostKind::of_this_machine()
    };
    let runtime: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| *kind != Kind::KernelHost)
        .collect();
    Builder::new(terminal)?.ensure_all(&runtime)?;
    println!("Kind of host: {} ({}).", kind.name(), kind.expect());
    let mut all_well = true;
    for name in names {
        println!("\n# {name}");
        let code = if kind == HostKind::Emulated {
            in_emulated_host(terminal, name)?
        } else {
            here(name, kind)?
        };
        all_well &= code == 0;
    }
    Ok(if all_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn here(name: &str, kind: HostKind) -> Result<u8, TaskError> {
    let mut bench = cargo();
    bench
        .args(["bench", "--quiet", "--package", "sandbox", "--bench", name])
        .args(FEATURES)
        .env("SANDBOX_HOST_KIND", kind.name());
    let status = bench.status().map_err(TaskError::start("cargo"))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

fn in_emulated_host(terminal: &Terminal, name: &str) -> Result<u8, TaskError> {
    let mut what = vec![
        "bench",
        "--no-run",
        "--quiet",
        "--package",
        "sandbox",
        "--bench",
        name,
    ];
    what.extend(FEATURES);
    let program = compile(&what)?
        .into_iter()
        .find(|program| program.kind == "bench");
    let Some(program) = program else {
        return Err(TaskError::Cargo { what: what.join(" ") });
    };
    let results = Path::new("target/bench");
    std::fs::create_dir_all(results).map_err(TaskError::file("create", results))?;
    let mut host = Host::set_up(terminal)?;
    host.out = Some(results.to_owned());
    host.env
        .push(("SANDBOX_HOST_KIND".into(), HostKind::Emulated.name().into()));
    host.run(&[program.path.into_os_string(), "--bench".into()])
}
