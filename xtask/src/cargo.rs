//! Compiles what a task runs, and learns from cargo where it is.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::error::TaskError;

/// A compiled program.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
}

/// `cargo`, as the one that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs `cargo ARGUMENTS --message-format=…` and returns the programs that it made.
pub(crate) fn compile(arguments: &[&str]) -> Result<Vec<Program>, TaskError> {
    let mut cargo = cargo();
    cargo
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = cargo.output().map_err(TaskError::start("cargo"))?;
    if !output.status.success() {
        return Err(TaskError::Cargo {
            what: arguments.join(" "),
        });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| program(&serde_json::from_str(line).ok()?))
        .collect())
}

fn program(message: &Value) -> Option<Program> {
    let target = message.get("target")?;
    Some(Program {
        path: message.get("executable")?.as_str()?.into(),
        name: target.get("name")?.as_str()?.into(),
        kind: target.get("kind")?.get(0)?.as_str()?.into(),
    })
}
