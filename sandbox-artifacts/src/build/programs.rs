//! Agent and helper: static programs, compiled with the hash of their sources inside.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    ArtifactError, Kind,
    build::{Builder, step},
};

/// Static against glibc. Build scripts and macros are not touched, since the target is named.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Empty directories of the agent's disk: mount points, since the disk is read-only.
const AGENT_DIRECTORIES: &[&str] = &[
    "dev", "proc", "sys", "run", "tmp", "base", "layer", "root-new", "exports", "old-root",
];

/// See the base image.
const TIMESTAMP: &str = "1735689600";
const UUID: &str = "5ab0c5a4-0000-4000-8000-006167656e74";

/// Compiles PID 1 and packs it as a disk.
pub(super) fn agent(builder: &Builder<'_>, folder: &Path) -> Result<(), ArtifactError> {
    let program = compile(builder, Kind::Agent, "sandbox-guest", "sandbox-agent", &[])?;
    let root = folder.join("root");
    for directory in AGENT_DIRECTORIES {
        let path = root.join(directory);
        fs::create_dir_all(&path).map_err(ArtifactError::io("create", &path))?;
    }
    install(&program, &root.join(crate::AGENT_PROGRAM))?;
    // As a file too, for backends that run it as a process.
    install(&program, &folder.join(crate::AGENT_PROGRAM))?;
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.env("PATH", super::base::ADMIN_PATH);
    mkfs.args(["--quiet", "--all-root", "-T", TIMESTAMP, "-U", UUID]);
    mkfs.arg(folder.join(Kind::Agent.file_name())).arg(&root);
    step::run("mkfs.erofs", &mut mkfs, builder.progress)?;
    fs::remove_dir_all(&root).map_err(ArtifactError::io("remove", &root))
}

/// Compiles the VMM helper.
pub(super) fn helper(builder: &Builder<'_>, folder: &Path) -> Result<(), ArtifactError> {
    let program = compile(
        builder,
        Kind::Helper,
        "sandbox-kvm",
        "sandbox-vmm-kvm",
        &["--no-default-features"],
    )?;
    install(&program, &folder.join(Kind::Helper.file_name()))
}

fn compile(
    builder: &Builder<'_>,
    kind: Kind,
    package: &str,
    program: &str,
    options: &[&str],
) -> Result<PathBuf, ArtifactError> {
    let target = builder.cache.join("target");
    // Set by rustup and cargo for whom runs us; else the one in the path.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&builder.source);
    cargo.args([
        "build",
        "--locked",
        "--profile",
        "artifact",
        "--target",
        TARGET,
        "--package",
        package,
    ]);
    cargo
        .args(["--bin", program])
        .args(options)
        .arg("--target-dir")
        .arg(&target);
    for inherited in [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
    ] {
        cargo.env_remove(inherited);
    }
    cargo
        .env("RUSTFLAGS", FLAGS)
        .env("SANDBOX_BUILD_HASH", kind.recipe());
    step::run(&format!("compiling {program}"), &mut cargo, builder.progress)?;
    let program = target.join(TARGET).join("artifact").join(program);
    let file = fs::read(&program).map_err(ArtifactError::io("read", &program))?;
    if !is_static(&file) {
        return Err(ArtifactError::NotStatic { path: program });
    }
    // Cargo may believe an older file to be the newest, for instance after a change of the clock.
    if !contains(&file, kind.recipe().as_bytes()) {
        return Err(ArtifactError::Stale { kind, target });
    }
    Ok(program)
}

fn install(from: &Path, to: &Path) -> Result<(), ArtifactError> {
    fs::copy(from, to).map_err(ArtifactError::io("write", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(ArtifactError::io("write", to))
}

/// A program header of this type names the dynamic linker (System V ABI, "Program Header").
const PT_INTERP: u32 = 3;

fn is_static(file: &[u8]) -> bool {
    header_types(file).is_some_and(|types| !types.is_empty() && !types.contains(&PT_INTERP))
}

fn contains(file: &[u8], wanted: &[u8]) -> bool {
    file.windows(wanted.len()).any(|part| part == wanted)
}

/// The types of all program headers of a 64-bit little-endian ELF file; `None` when it is none.
fn header_types(file: &[u8]) -> Option<Vec<u32>> {
    let number = |at: usize, length: usize| {
        let bytes = file.get(at..at.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let at = |index: u64| usize::try_from(table.checked_add(index * size)?).ok();
    (0..count)
        .map(|index| u32::try_from(number(at(index)?, 4)?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        let this_test = std::env::current_exe().expect("path of this test");
        assert!(!is_static(&fs::read(this_test).expect("this test")));
    }

    #[test]
    fn a_program_of_other_sources_is_told_by_what_it_lacks() {
        assert!(contains(b"...b3ecd970...", b"b3ecd970"));
        assert!(!contains(b"...ca3633f2...", b"b3ecd970"));
        assert!(!contains(b"b3", b"b3ecd970"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert_eq!(header_types(b"#!/bin/sh\nexit 0\n"), None);
        assert_eq!(header_types(b"\x7fELF\x02\x01"), None);
    }
}
