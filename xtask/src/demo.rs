//! `cargo xtask demo`: set-up, then the example `demo` where guests can run.

use std::{ffi::OsString, process::ExitCode};

use sandbox_artifacts::{Kind, build::Builder};

use crate::{
    cargo::{cargo, compile},
    error::TaskError,
    host::Host,
    machine::HostKind,
    progress::Terminal,
};

pub(crate) fn run(
    terminal: &Terminal,
    emulated: bool,
    arguments: &[OsString],
) -> Result<ExitCode, TaskError> {
    let kind = if emulated {
        HostKind::Emulated
    } else {
        HostKind::of_this_machine()
    };
    println!("This runs on {}.\n", kind.expect());
    let runtime: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| *kind != Kind::KernelHost)
        .collect();
    Builder::new(terminal)?.ensure_all(&runtime)?;
    if kind != HostKind::Emulated {
        let mut run = cargo();
        run.args(["run", "--quiet", "--example", "demo", "--"])
            .args(arguments);
        let status = run.status().map_err(TaskError::start("cargo"))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let programs = compile(&["build", "--quiet", "--example", "demo"])?;
    let demo = programs
        .into_iter()
        .find(|program| program.kind == "example" && program.name == "demo");
    let Some(demo) = demo else {
        return Err(TaskError::Cargo {
            what: "build --example demo".into(),
        });
    };
    let mut command = vec![demo.path.into_os_string()];
    command.extend(arguments.iter().cloned());
    Host::set_up(terminal)?.run(&command).map(ExitCode::from)
}
