//! Kernels from Debian's `linux-source-6.12`, with the configurations and patches of `guest/kernel/`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::{
    ArtifactError, Kind,
    build::{Builder, step},
};

/// Where the Debian package puts its sources.
const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// The directory inside.
const SOURCE_ROOT: &str = "linux-source-6.12";

/// Parts that no configuration of ours compiles or reads; leaving them out halves the unpacking.
const LEFT_OUT: &[&str] = &["tools/testing", "tools/perf", "drivers/gpu/drm/amd/include"];

/// The version of the installed source package, part of what identifies a kernel.
pub(super) fn source_version() -> Result<String, ArtifactError> {
    let query = ["-W", "-f=${Version}", "linux-source-6.12"];
    step::output(Command::new("dpkg-query").args(query)).ok_or_else(|| ArtifactError::Packages {
        command: "sudo apt-get install -y linux-source-6.12".into(),
    })
}

/// Builds the plain ELF `vmlinux` of one configuration.
pub(super) fn build(
    builder: &Builder<'_>,
    folder: &Path,
    flavour: &str,
    patches: &[&str],
) -> Result<(), ArtifactError> {
    let recipe = builder.source.join("guest/kernel");
    let config = recipe.join(format!("{flavour}.config"));
    let work = folder.join("work");
    fs::create_dir(&work).map_err(ArtifactError::io("create", &work))?;

    builder.progress.line("unpacking the kernel's sources");
    let mut unpack = Command::new("tar");
    unpack
        .arg("--directory")
        .arg(&work)
        .args(["--extract", "--xz", "--file", SOURCE]);
    unpack.args(
        LEFT_OUT
            .iter()
            .map(|part| format!("--exclude={SOURCE_ROOT}/{part}")),
    );
    step::run("unpacking the kernel's sources", &mut unpack, builder.progress)?;
    let source = work.join(SOURCE_ROOT);
    for patch in patches {
        let mut apply = Command::new("patch");
        apply
            .arg("--directory")
            .arg(&source)
            .args(["--strip=1", "--fuzz=0", "--input"])
            .arg(recipe.join(patch));
        step::run(&format!("applying {patch}"), &mut apply, builder.progress)?;
    }

    fs::copy(&config, source.join(".config")).map_err(ArtifactError::io("read", &config))?;
    step::run(
        "configuring the kernel",
        make(&source).arg("olddefconfig"),
        builder.progress,
    )?;
    check_options(&config, &source.join(".config"))?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut compile = make(&source);
    compile.arg(format!("--jobs={jobs}")).arg("vmlinux");
    step::run("compiling the kernel", &mut compile, builder.progress)?;

    let mut strip = Command::new("strip");
    strip
        .arg("--strip-all")
        .arg("-o")
        .arg(folder.join(Kind::KernelNormal.file_name()))
        .arg(source.join("vmlinux"));
    step::run("strip", &mut strip, builder.progress)?;
    fs::remove_dir_all(&work).map_err(ArtifactError::io("remove", &work))
}

fn make(source: &PathBuf) -> Command {
    let mut make = Command::new("make");
    make.arg("--directory").arg(source);
    // Equal sources give equal kernels, whoever builds them, where and when.
    make.env("KBUILD_BUILD_USER", "sandbox")
        .env("KBUILD_BUILD_HOST", "sandbox");
    make.env("KBUILD_BUILD_TIMESTAMP", "Wed Jan  1 00:00:00 UTC 2025")
        .env("KBUILD_BUILD_VERSION", "1");
    // Cargo's job server would be taken for make's own.
    make.env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env_remove("CARGO_MAKEFLAGS")
        .env("LC_ALL", "C");
    make
}

/// An option that is unknown, or lacks what it depends on, silently disappears: find it here and not in a guest.
fn check_options(wanted: &Path, given: &Path) -> Result<(), ArtifactError> {
    let read = |path: &Path| fs::read_to_string(path).map_err(ArtifactError::io("read", path));
    let (wanted_text, given) = (read(wanted)?, read(given)?);
    let lost = lost_options(&wanted_text, &given);
    if lost.is_empty() {
        return Ok(());
    }
    Err(ArtifactError::KernelOptions {
        config: wanted.display().to_string(),
        lost: lost.join(", "),
    })
}

fn lost_options<'a>(wanted: &'a str, given: &str) -> Vec<&'a str> {
    let on = |name: &str| {
        given
            .lines()
            .any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')))
    };
    let lost = |line: &&str| match line
        .strip_prefix("# ")
        .and_then(|line| line.strip_suffix(" is not set"))
    {
        Some(name) => on(name),
        None => line.starts_with("CONFIG_") && !given.lines().any(|other| other == *line),
    };
    wanted.lines().filter(lost).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_did_not_survive_are_named() {
        let wanted = "# a comment\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let given = "CONFIG_A=y\nCONFIG_C=y\nCONFIG_DD=y\n";
        assert_eq!(
            lost_options(wanted, given),
            ["CONFIG_B=y", "# CONFIG_C is not set"]
        );
    }
}
