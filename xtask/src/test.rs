//! `cargo xtask test`: every test, where it can run, and a count of what ran where at the end.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use sandbox_artifacts::{
    Kind,
    build::{Builder, ensure_installed},
};

use crate::{
    cargo::{cargo, compile},
    error::TaskError,
    host::Host,
    machine::HostKind,
    progress::Terminal,
};

/// The tests that run directly also where guests are slow: those in modules, or with names, that begin so.
const CORE: &str = "core";

/// Programs that tests run on this machine, as peers of the proxy, as its keychain, and in sandboxes that are processes.
const PEERS: [&str; 15] = [
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
    "python3",
    "python3-botocore",
    "python3-requests",
    "python3-venv",
];

/// Makes the environment of peers that are Python packages, and Node. The tests run it, too, and find it done.
const PEER_PACKAGES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../sandbox-proxy/tests/egress/clients/set_up.sh"
);

/// Tests at once in the emulated host.
const THREADS_EMULATED: &str = "2";

/// The emulated host is hung when its tests write nothing for so long; the slowest takes half a minute on a quiet
/// machine.
const HUNG_EMULATED: Duration = Duration::from_secs(600);

/// What tests say of a guest that the emulated processor broke, see [`emulated`]: it stopped, or it never said a word.
const BROKEN_GUEST: [&str; 2] = [
    "the guest stopped: triple fault",
    "--- last lines of its console ---\n\n",
];

/// Tests of one group in one place.
#[derive(Debug, Default, PartialEq)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Programs that ended without a result line, or could not be run.
    broken: u64,
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
    if kind != HostKind::Hardware {
        rows.push((
            "end-to-end, all",
            "the emulated host",
            emulated(terminal, &end_to_end, filter)?,
        ));
    }
    Ok(report(&rows))
}

/// A failure is told by the tests that need them, with its cause.
fn peer_packages() -> Result<(), TaskError> {
    println!("Clients for the proxy, in an environment of their own:");
    let status = Command::new("sh")
        .arg(PEER_PACKAGES)
        .status()
        .map_err(TaskError::start("sh"))?;
    if !status.success() {
        eprintln!("{PEER_PACKAGES} failed");
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
    compile(&["build", "--package", "sandbox", "--examples", "--quiet"])?;
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

fn emulated(terminal: &Terminal, programs: &[PathBuf], filter: Option<&str>) -> Result<Count, TaskError> {
    let mut counts = Vec::new();
    for program in programs {
        let mut host = Host::set_up(terminal)?;
        host.env.push((
            "CARGO_MANIFEST_DIR".into(),
            concat!(env!("CARGO_MANIFEST_DIR"), "/..").into(),
        ));
        let mut command: Vec<OsString> = vec![program.into()];
        command.extend(filter.map(OsString::from));
        command.extend(["--test-threads".into(), THREADS_EMULATED.into()]);
        host.patience = Some(HUNG_EMULATED);
        let (mut output, mut ended) = run_emulated(&host, &command);
        // Emulated processors that run in parallel fail now and then when they run guests of their own: the host dies,
        // or a guest's. What a sandbox does to its host, or our VMM to a guest, would happen again.
        let mut passed_before = 0;
        if let Err(error @ TaskError::HostDied { .. }) = &ended {
            eprintln!("{error}\nThe host failed, not a test: once more, from the beginning.");
            (output, ended) = run_emulated(&host, &command);
        } else if let Some(how) = BROKEN_GUEST.iter().find(|how| output.contains(**how)) {
            let failed = failed(&output);
            eprintln!(
                "A guest's processor failed ({}). Once more: {}",
                how.trim(),
                failed.join(", ")
            );
            passed_before = parse(&output).passed;
            let mut again: Vec<OsString> = vec![program.into(), "--exact".into()];
            again.extend(failed.iter().map(OsString::from));
            again.extend(["--test-threads".into(), THREADS_EMULATED.into()]);
            (output, ended) = run_emulated(&host, &again);
            // All of them, and nothing else.
            let count = parse(&output);
            if count.passed + count.failed != failed.len() as u64 {
                eprintln!("Not all of them could be run again.");
                passed_before = 0;
                ended = ended.map(|code| code.max(1));
            }
        }
        let mut count = parse(&output);
        count.passed += passed_before;
        match ended {
            Ok(0) => {}
            Ok(_) if count.failed > 0 => {}
            Ok(_) => count.broken += 1,
            Err(error) => {
                eprintln!("{error}");
                count.broken += 1;
            }
        }
        counts.push(count);
    }
    Ok(sum(counts))
}

/// The names of the tests that failed.
fn failed(output: &str) -> Vec<String> {
    let lines = output.lines().filter_map(|line| line.strip_suffix(" ... FAILED"));
    // Something without a line end may be in front of it.
    lines
        .filter_map(|line| Some(line.split_once("test ")?.1.to_owned()))
        .collect()
}

fn run_emulated(host: &Host, command: &[OsString]) -> (String, Result<u8, TaskError>) {
    let mut output = Shown(Vec::new());
    let ended = host.run_into(command, &mut output);
    (String::from_utf8_lossy(&output.0).into_owned(), ended)
}

/// Runs a test program, shows its output and counts its results.
fn counted(test: &mut Command) -> Result<(Count, bool), TaskError> {
    let program = test.get_program().to_string_lossy().into_owned();
    test.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = test.spawn().map_err(TaskError::start(&program))?;
    let mut output = Shown(Vec::new());
    if let Some(mut from) = child.stdout.take() {
        io::copy(&mut from, &mut output).map_err(TaskError::start(&program))?;
    }
    let status = child.wait().map_err(TaskError::start(&program))?;
    Ok((parse(&String::from_utf8_lossy(&output.0)), status.success()))
}

/// Shows what is written and keeps it.
struct Shown(Vec<u8>);

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
    counts.into_iter().fold(Count::default(), |sum, count| Count {
        passed: sum.passed + count.passed,
        failed: sum.failed + count.failed,
        ignored: sum.ignored + count.ignored,
        broken: sum.broken + count.broken,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_known_by_name() {
        let output = "running 3 tests\ntest a::one ... ok\ntest a::two ... FAILED\nnoise test three ... FAILED\n\nfailures:\n    a::two\n";
        assert_eq!(failed(output), ["a::two", "three"]);
    }

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
