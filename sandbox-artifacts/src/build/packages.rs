//! The Debian packages that building needs, installed where this user may.

use std::{path::Path, process::Command};

use crate::{
    ArtifactError, Kind,
    build::{Progress, step},
};

/// What each kind is built with.
pub(super) fn needed(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::KernelNormal | Kind::KernelInterpreted | Kind::KernelHost => &[
            "bc",
            "binutils",
            "bison",
            "flex",
            "gcc",
            "libc6-dev",
            "libelf-dev",
            "libssl-dev",
            "linux-source-6.12",
            "make",
            "patch",
            "xz-utils",
        ],
        Kind::Agent => &["erofs-utils", "gcc", "libc6-dev"],
        Kind::Helper => &["gcc", "libc6-dev"],
        Kind::BaseImage => &["erofs-utils", "mmdebstrap"],
        Kind::LayerTemplate => &["e2fsprogs"],
    }
}

/// Installs those of `packages` that are missing, as root or through `sudo` without a password.
///
/// # Errors
/// [`ArtifactError::Packages`] holds the one command to run where neither is possible.
pub fn ensure_installed(packages: &[&str], progress: &dyn Progress) -> Result<(), ArtifactError> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let command = format!("sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends {list}'");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(ArtifactError::Packages { command });
    }
    let Ok(mut update) = as_root("apt-get", "installing packages") else {
        return Err(ArtifactError::Packages { command });
    };
    let what = format!("installing Debian packages: {list}");
    progress.begin(&what);
    step::run("apt-get update", update.args(["-q", "update"]), progress)?;
    let mut install = as_root("apt-get", "installing packages")?;
    install.args([
        "-q",
        "install",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
    ]);
    step::run("apt-get install", install.args(&missing), progress)?;
    progress.done(&what);
    Ok(())
}

/// A command that runs `program` as root.
///
/// # Errors
/// [`ArtifactError::NeedsRoot`] when this user is not root and `sudo` wants a password.
pub(super) fn as_root(program: &str, what: &'static str) -> Result<Command, ArtifactError> {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("/usr/bin/env");
        command.arg("DEBIAN_FRONTEND=noninteractive");
        command
    } else {
        if step::output(Command::new("sudo").args(["-n", "true"])).is_none() {
            return Err(ArtifactError::NeedsRoot { what });
        }
        let mut command = Command::new("sudo");
        command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive"]);
        command
    };
    command.arg(program);
    Ok(command)
}

fn installed(package: &str) -> bool {
    let query = ["-W", "-f=${db:Status-Status}", package];
    step::output(Command::new("dpkg-query").args(query)).is_some_and(|status| status.trim() == "installed")
}
