//! `cargo xtask test`: every test, where it can run, and a count of what ran where at the end.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use sandbox_artifacts::{
    Kind,
    build::{Builder, ensure_installed},
};

use crate::{
    cargo::{cargo, compile},
    emulated,
    error::TaskError,
    machine::HostKind,
    progress::Terminal,
};

/// The tests that run directly also where guests are slow: those in modules, or with names, that begin so.
const CORE: &str = "core";

/// Programs that tests run on this machine, as peers of the proxy, as its keychain, and in sandboxes that are processes.
const PEERS: [&str; 16] = [
    "bind9-dnsutils",
    "curl",
    "dbus-daemon",
    "default-jdk-headless",
    "dropbear-bin",
    "git",
    "gnome-keyring",
    "libsecret-tools",
    "microsocks",
    "openssh-client",
    "openssl",
    "postgresql",
    "python3",
    "python3-botocore",
    "python3-requests",
    "python3-venv",
];

/// Make the environment of peers that are Python packages, and Node; and the test suite for WebSockets. The tests run
/// them, too, and find it done.
const PEER_PACKAGES: [&str; 2] = [
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../sandbox-proxy/tests/egress/clients/set_up.sh"
    ),
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../sandbox-proxy/tests/egress/conformance/set_up.sh"
    ),
];

/// Tests of one group in one place.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// Programs that ended without a result line, or could not be run; tests that never ended.
    pub(crate) broken: u64,
}

impl Count {
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.broken += other.broken;
    }
}

pub(crate) fn run(terminal: &Terminal, filter: Option<&str>) -> Result<ExitCode, TaskError> {
    let kind = HostKind::of_this_machine();
    println!("This machine: {}.", kind.expect());
    ensure_installed(&PEERS, terminal)?;
    peer_packages()?;
    Builder::new(terminal)?.ensure_all(&Kind::ALL)?;

    let mut rows = vec![
        ("unit tests", "this machine", units(filter)?),
        ("doc tests", "this machine", docs(filter)?),
    ];
    let end_to_end = end_to_end_programs()?;
    let one_at_a_time = kind == HostKind::Interpreted;
    match kind {
        HostKind::Hardware => rows.push((
            "end-to-end, all",
            "this machine",
            here(&end_to_end, filter, one_at_a_time)?,
        )),
        // A filter of the user's replaces ours: what they ask for runs where they ask.
        HostKind::Interpreted => rows.push((
            "end-to-end, core",
            "this machine's interpreted /dev/kvm",
            here(&end_to_end, Some(filter.unwrap_or(CORE)), one_at_a_time)?,
        )),
        HostKind::Emulated => {}
    }
    let mut broken = 0;
    if kind != HostKind::Hardware {
        let count;
        (count, broken) = emulated::run(terminal, &end_to_end, filter)?;
        rows.push(("end-to-end, all", "the emulated host", count));
    }
    let code = report(&rows);
    if broken > 0 {
        println!(
            "Failures of the emulated host, or of a guest's processor in it, whose tests were run again: {broken}"
        );
    }
    Ok(code)
}

/// A failure is told by the tests that need them, with its cause.
fn peer_packages() -> Result<(), TaskError> {
    println!("Peers of the proxy, in environments of their own:");
    for script in PEER_PACKAGES {
        let status = Command::new("sh")
            .arg(script)
            .status()
            .map_err(TaskError::start("sh"))?;
        if !status.success() {
            eprintln!("{script} failed");
        }
    }
    Ok(())
}

fn report(rows: &[(&str, &str, Count)]) -> ExitCode {
    println!("\nWhat ran where:");
    println!(
        "{:<18} {:<38} {:>6} {:>6} {:>7}",
        "tests", "on", "passed", "failed", "ignored"
    );
    for (what, place, count) in rows {
        let (passed, failed) = (count.passed, count.failed + count.broken);
        println!(
            "{what:<18} {place:<38} {passed:>6} {failed:>6} {:>7}",
            count.ignored
        );
    }
    let passed: u64 = rows.iter().map(|(_, _, count)| count.passed).sum();
    let failed: u64 = rows.iter().map(|(_, _, count)| count.failed + count.broken).sum();
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn units(filter: Option<&str>) -> Result<Count, TaskError> {
    let mut test = cargo();
    // What is not of the root package's `tests/`: those are the end-to-end tests.
    test.args([
        "test",
        "--workspace",
        "--lib",
        "--bins",
        "--examples",
        "--no-fail-fast",
    ]);
    let inner = cargo_test(test, filter)?;
    let mut test = cargo();
    test.args([
        "test",
        "--workspace",
        "--exclude",
        "sandbox",
        "--test",
        "*",
        "--no-fail-fast",
    ]);
    Ok(sum([inner, cargo_test(test, filter)?]))
}

fn docs(filter: Option<&str>) -> Result<Count, TaskError> {
    let mut test = cargo();
    test.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
    cargo_test(test, filter)
}

fn cargo_test(mut test: Command, filter: Option<&str>) -> Result<Count, TaskError> {
    test.args(filter);
    let (mut count, success) = counted(&mut test)?;
    // A failure that is in no result line: it did not compile, or a program died.
    if !success && count.failed == 0 && count.broken == 0 {
        count.broken = 1;
    }
    Ok(count)
}

fn end_to_end_programs() -> Result<Vec<PathBuf>, TaskError> {
    // Tests run them, and find them beside themselves.
    compile(&[
        "build",
        "--package",
        "sandbox",
        "--package",
        "sandbox-proxy",
        "--examples",
        "--quiet",
    ])?;
    let programs = compile(&[
        "test",
        "--package",
        "sandbox",
        "--test",
        "*",
        "--no-run",
        "--quiet",
    ])?;
    Ok(programs
        .into_iter()
        .filter(|program| program.kind == "test")
        .map(|program| program.path)
        .collect())
}

fn here(programs: &[PathBuf], filter: Option<&str>, one_at_a_time: bool) -> Result<Count, TaskError> {
    let mut counts = Vec::new();
    for program in programs {
        let mut test = Command::new(program);
        test.args(filter)
            .env("CARGO_MANIFEST_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if one_at_a_time {
            test.args(["--test-threads", "1"]);
        }
        let (mut count, success) = counted(&mut test)?;
        if !success && count.failed == 0 {
            count.broken += 1;
        }
        counts.push(count);
    }
    Ok(sum(counts))
}

/// Runs a test program, shows its output and counts its results.
fn counted(test: &mut Command) -> Result<(Count, bool), TaskError> {
    let program = test.get_program().to_string_lossy().into_owned();
    test.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = test.spawn().map_err(TaskError::start(&program))?;
    let mut output = Shown::default();
    if let Some(mut from) = child.stdout.take() {
        io::copy(&mut from, &mut output).map_err(TaskError::start(&program))?;
    }
    let status = child.wait().map_err(TaskError::start(&program))?;
    Ok((parse(&String::from_utf8_lossy(&output.0)), status.success()))
}

/// Shows what is written and keeps it.
#[derive(Default)]
pub(crate) struct Shown(pub(crate) Vec<u8>);

impl Write for Shown {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        io::stdout().write_all(part)?;
        self.0.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse(output: &str) -> Count {
    let mut count = Count::default();
    let (mut begun, mut ended) = (0_u64, 0_u64);
    for line in output.lines() {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            begun += 1;
        }
        // Something without a line end may be in front of it.
        let Some((_, result)) = line.split_once("test result: ") else {
            continue;
        };
        ended += 1;
        let number = |what: &str| -> u64 {
            let mut parts = result.split([';', '.']).map(str::trim);
            parts
                .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
                .unwrap_or(0)
        };
        count.passed += number("passed");
        count.failed += number("failed");
        count.ignored += number("ignored");
    }
    count.broken = begun.saturating_sub(ended);
    count
}

fn sum(counts: impl IntoIterator<Item = Count>) -> Count {
    let mut sum = Count::default();
    counts.into_iter().for_each(|count| sum.add(&count));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_are_added() {
        let output = "running 2 tests\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
             running 4 tests\n\
             test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.1s\n";
        assert_eq!(
            parse(output),
            Count {
                passed: 3,
                failed: 2,
                ignored: 1,
                broken: 0
            }
        );
    }

    #[test]
    fn a_program_that_dies_counts_as_failed() {
        let output = "running 2 tests\ntest a ... ok\n";
        assert_eq!(
            parse(output),
            Count {
                broken: 1,
                ..Count::default()
            }
        );
    }

    #[test]
    fn when_nothing_ran_nothing_is_well() {
        let code = report(&[("unit tests", "here", Count::default())]);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
    }
}
