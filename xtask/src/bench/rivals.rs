//! The proxies that ours is measured against: installed or built where missing. One that cannot be had is left out, and
//! said so.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sandbox_artifacts::{
    build::{Progress as _, ensure_installed},
    cache_directory,
};

use crate::{cargo::compile, error::TaskError, progress::Terminal};

/// Debian's squid, of the flavour that intercepts TLS.
const SQUID: &str = "/usr/sbin/squid";
const SQUID_PACKAGE: &str = "squid-openssl";

/// What pip installs.
const MITMPROXY: &str = "benches/rivals/mitmproxy/requirements.txt";

/// Its own workspace: what it depends on is no dependency of ours.
const HUDSUCKER: &str = "benches/rivals/hudsucker/Cargo.toml";

/// Programs that place and start processes.
const TOOLS: [&str; 1] = ["util-linux"];

/// Variables that tell the benchmark where each program is.
pub(super) fn set_up(terminal: &Terminal) -> Vec<(&'static str, PathBuf)> {
    let rivals = [
        ("squid", "SANDBOX_BENCH_SQUID", squid(terminal)),
        ("mitmproxy", "SANDBOX_BENCH_MITMDUMP", mitmdump(terminal)),
        ("hudsucker", "SANDBOX_BENCH_HUDSUCKER", hudsucker()),
    ];
    let mut found = Vec::new();
    for (name, variable, program) in rivals {
        match program {
            Ok(program) => found.push((variable, program)),
            Err(error) => println!("{name} is missing, and left out: {error}"),
        }
    }
    found
}

fn squid(terminal: &Terminal) -> Result<PathBuf, TaskError> {
    ensure_installed(&TOOLS, terminal)?;
    let is_new = !Path::new(SQUID).exists();
    if is_new {
        ensure_installed(&[SQUID_PACKAGE], terminal)?;
        println!(
            "{SQUID_PACKAGE} was installed, and may have started a proxy on port 3128: \
             `systemctl disable --now squid` ends that"
        );
    }
    let version = output(Command::new(SQUID).arg("-v"))?;
    if !version.contains("--with-openssl") {
        return Err(TaskError::Rival {
            why: format!(
                "{SQUID} is not of the package {SQUID_PACKAGE}, which takes its place if you install it"
            ),
        });
    }
    Ok(SQUID.into())
}

fn mitmdump(terminal: &Terminal) -> Result<PathBuf, TaskError> {
    let wanted = std::fs::read_to_string(MITMPROXY).map_err(TaskError::file("read", MITMPROXY))?;
    let name = wanted.trim().replace("==", "-");
    let directory = cache_directory()?.join("bench").join(&name);
    let program = directory.join("bin/mitmdump");
    if output(Command::new(&program).arg("--version")).is_ok() {
        return Ok(program);
    }
    terminal.begin(&format!("installing {name}"));
    let make = |directory: &Path| {
        output(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(directory),
        )
    };
    if make(&directory).is_err() {
        // Debian has the module that makes them in a package of its own.
        ensure_installed(&["python3", "python3-venv"], terminal)?;
        make(&directory)?;
    }
    let pip = directory.join("bin/pip");
    output(Command::new(pip).args(["install", "--quiet", "--requirement", MITMPROXY]))?;
    output(Command::new(&program).arg("--version"))?;
    terminal.done(&format!("installed {name}"));
    Ok(program)
}

fn hudsucker() -> Result<PathBuf, TaskError> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target"));
    let target = target.to_string_lossy();
    let what = [
        "build",
        "--release",
        "--quiet",
        "--locked",
        "--manifest-path",
        HUDSUCKER,
        "--target-dir",
        &target,
    ];
    let programs = compile(&what)?;
    let program = programs.into_iter().find(|program| program.kind == "bin");
    program
        .map(|program| program.path)
        .ok_or_else(|| TaskError::Cargo { what: what.join(" ") })
}

/// What a program printed, if it succeeded.
fn output(command: &mut Command) -> Result<String, TaskError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(TaskError::start(&program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(TaskError::Rival {
        why: format!(
            "{program} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    })
}
