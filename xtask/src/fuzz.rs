//! `cargo xtask fuzz`: builds the fuzz targets with libFuzzer's instruments and runs each for a while.
//!
//! A stable compiler has all it takes but the address sanitizer, which code without `unsafe` does not need.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use sandbox_artifacts::build::ensure_installed;

use crate::{cargo::cargo, error::TaskError, progress::Terminal};

/// What `cargo fuzz --sanitizer none` asks of the compiler: counters at edges, and what comparisons compare.
const INSTRUMENTS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Largest input: large enough for every limit that is checked, small enough for thousands of runs a second.
const MAX_INPUT_BYTES: u32 = 20 << 10;

/// A run that takes longer has found something.
const INPUT_SECONDS: u32 = 20;

/// Memory of a target that has found something.
const MEMORY_MIB: u32 = 1024;

/// Runs the targets whose name contains `filter`, or all, each for `seconds`. With `keep`, inputs that reach code
/// that no kept one reaches are added to `fuzz/corpus`.
pub(crate) fn run(
    terminal: &Terminal,
    filter: Option<&str>,
    seconds: u32,
    keep: bool,
) -> Result<ExitCode, TaskError> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let fuzz = root.join("fuzz");
    let work = root.join("target/fuzz");
    let targets: Vec<String> = targets(&fuzz.join("fuzz_targets"))?
        .into_iter()
        .filter(|target| filter.is_none_or(|part| target.contains(part)))
        .collect();
    if targets.is_empty() {
        eprintln!("no fuzz target has such a name");
        return Ok(ExitCode::FAILURE);
    }
    // libFuzzer is C++.
    ensure_installed(&["g++"], terminal)?;
    build(&fuzz, &work)?;

    let mut failed = Vec::new();
    for target in &targets {
        println!("fuzzing {target} for {seconds} s");
        let kept = fuzz.join("corpus").join(target);
        let found = work.join("corpus").join(target);
        let artifacts = work.join("artifacts").join(target);
        for directory in [&kept, &found, &artifacts] {
            fs::create_dir_all(directory).map_err(TaskError::file("create", directory))?;
        }
        let program = work.join(triple()).join("release").join(target);
        let mut artifact_prefix = OsString::from("-artifact_prefix=");
        artifact_prefix.push(artifacts.join(""));
        let mut fuzzer = Command::new(&program);
        fuzzer
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_INPUT_BYTES}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .args(["-verbosity=0", "-print_final_stats=1"])
            .arg(artifact_prefix)
            .args([&found, &kept]);
        let shown = program.display().to_string();
        let output = fuzzer.output().map_err(TaskError::start(&shown))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            eprintln!(
                "{said}\n{target} failed; what made it fail is in {}",
                artifacts.display()
            );
            failed.push(target.as_str());
            continue;
        }
        let runs = said
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        println!("  {} inputs, nothing found", runs.map_or("?", str::trim));
        if keep {
            let mut merge = Command::new(&program);
            // The fewest that reach the most. How often each reaches it would make ten times as many worth keeping.
            merge
                .args(["-set_cover_merge=1", "-use_counters=0", "-verbosity=0"])
                .args([&kept, &found]);
            merge.output().map_err(TaskError::start(&shown))?;
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// The targets' names: those of their files.
fn targets(directory: &Path) -> Result<Vec<String>, TaskError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(TaskError::file("read", directory))? {
        let path: PathBuf = entry.map_err(TaskError::file("read", directory))?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn build(fuzz: &Path, work: &Path) -> Result<(), TaskError> {
    let mut build = cargo();
    build
        .args(["build", "--release", "--locked", "--quiet"])
        // Named, so that the instruments are for the targets and not for build scripts.
        .args(["--target", triple()])
        .arg("--target-dir")
        .arg(work)
        .arg("--manifest-path")
        .arg(fuzz.join("Cargo.toml"))
        .env("RUSTFLAGS", INSTRUMENTS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if build.status().map_err(TaskError::start("cargo"))?.success() {
        return Ok(());
    }
    Err(TaskError::Cargo {
        what: "build of the fuzz targets".to_owned(),
    })
}

/// The platform that we were built for, which is the one that we run on.
const fn triple() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "aarch64-unknown-linux-gnu"
    } else {
        "x86_64-unknown-linux-gnu"
    }
}
