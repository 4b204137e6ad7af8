//! `cargo xtask bench`: runs the benchmarks and says on which kind of host.

mod chart;
mod rivals;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

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

/// Where results go.
const RESULTS: &str = "target/bench";

/// The picture of the proxy's figures that the README shows, and one that lacks a subject.
const PICTURE: &str = "docs/images/proxy.svg";
const PARTIAL_PICTURE: &str = "target/bench/proxy.svg";

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
            here(terminal, name, kind)?
        };
        all_well &= code == 0;
    }
    Ok(if all_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn here(terminal: &Terminal, name: &str, kind: HostKind) -> Result<u8, TaskError> {
    let results = std::env::current_dir()
        .map_err(TaskError::file("find", "."))?
        .join(RESULTS);
    let mut bench = cargo();
    bench
        .args(["bench", "--quiet", "--package", "sandbox", "--bench", name])
        .env("SANDBOX_HOST_KIND", kind.name())
        .env("SANDBOX_BENCH_DIR", &results);
    if name == "scrub" {
        bench.args(FEATURES);
    }
    if name == "proxy" {
        bench.envs(rivals::set_up(terminal));
    }
    let status = bench.status().map_err(TaskError::start("cargo"))?;
    if name == "proxy" && status.success() {
        picture(&results.join("proxy.json"))?;
    }
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

/// Draws what was measured.
fn picture(rows: &Path) -> Result<(), TaskError> {
    let text = std::fs::read(rows).map_err(TaskError::file("read", rows))?;
    let rows = serde_json::from_slice(&text).unwrap_or_default();
    let path = PathBuf::from(if chart::is_complete(&rows) {
        PICTURE
    } else {
        PARTIAL_PICTURE
    });
    if let (Some(svg), Some(directory)) = (chart::draw(&rows), path.parent()) {
        std::fs::create_dir_all(directory).map_err(TaskError::file("create", directory))?;
        std::fs::write(&path, svg).map_err(TaskError::file("write", &path))?;
        println!("drawn as {}", path.display());
    }
    Ok(())
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
    let results = Path::new(RESULTS);
    std::fs::create_dir_all(results).map_err(TaskError::file("create", results))?;
    let mut host = Host::set_up(terminal)?;
    host.out = Some(results.to_owned());
    host.env
        .push(("SANDBOX_HOST_KIND".into(), HostKind::Emulated.name().into()));
    host.run(&[program.path.into_os_string(), "--bench".into()])
}
