//! The end-to-end tests in the emulated host.
//!
//! QEMU's processors fail now and then when they run guests of their own: the host dies or stands still, or a guest does.
//! Such a failure is no result of a test: what it took is run again in a fresh host, visibly and a bounded number of
//! times. What a sandbox does to its host, or our VMM to a guest, happens again. A test that fails where nothing broke has
//! failed.

use std::{
    collections::HashMap,
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    error::TaskError,
    host::Host,
    progress::Terminal,
    test::{Count, Shown},
};

/// Tests at once.
const THREADS: &str = "2";

/// Tests of one host: a failure takes no more than so many with it, and QEMU's buffer of translated code does not fill (70
/// fill it twice).
const GROUP: usize = 24;

/// How often a test is run when a failure of the host's takes its result.
const TRIES: u8 = 3;

/// A host is hung when it says nothing for so long; the slowest test takes half a minute on a quiet machine.
const HUNG: Duration = Duration::from_secs(300);

/// What the test program says of a test that takes a minute. So many say that the host stands still.
const SLOW: (&str, usize) = ("has been running for over 60 seconds", 4);

/// What tests say of a guest that the emulated processor broke: it stopped, or it never said a word.
const BROKEN_GUEST: [&str; 2] = [
    "the guest stopped: triple fault",
    "--- last lines of its console ---\n\n",
];

/// Runs the tests of these programs. Also returns how often something broke that is not of the tests.
pub(crate) fn run(
    terminal: &Terminal,
    programs: &[PathBuf],
    filter: Option<&str>,
) -> Result<(Count, u32), TaskError> {
    let mut host = Host::set_up(terminal)?;
    host.env.push((
        "CARGO_MANIFEST_DIR".into(),
        concat!(env!("CARGO_MANIFEST_DIR"), "/..").into(),
    ));
    host.patience = Some(HUNG);
    let (mut count, mut broken) = (Count::default(), 0);
    for program in programs {
        let mut left: Vec<Test> = names(program, filter)?.into_iter().map(Test::new).collect();
        while !left.is_empty() {
            let group: Vec<Test> = left.drain(..left.len().min(GROUP)).collect();
            let group_run = run_group(&host, program, &group)?;
            let (ended, again) = group_run.judge(group);
            count.add(&ended);
            if let Some(how) = &group_run.broken {
                broken += 1;
                let names: Vec<&str> = again.iter().map(|test| test.name.as_str()).collect();
                eprintln!(
                    "{how}\nThis is no result of a test. Once more: {}",
                    names.join(", ")
                );
            }
            left.splice(0..0, again);
        }
    }
    Ok((count, broken))
}

/// A test without a result yet.
#[derive(Debug, PartialEq)]
struct Test {
    name: String,
    tries_left: u8,
}

impl Test {
    fn new(name: String) -> Self {
        Self {
            name,
            tries_left: TRIES,
        }
    }
}

/// The tests of a program that a filter lets through.
fn names(program: &Path, filter: Option<&str>) -> Result<Vec<String>, TaskError> {
    let name = program.display().to_string();
    let output = Command::new(program)
        .args(["--list", "--format", "terse"])
        .args(filter)
        .output()
        .map_err(TaskError::start(&name))?;
    if !output.status.success() {
        return Err(TaskError::Tests { program: name });
    }
    let list = String::from_utf8_lossy(&output.stdout);
    let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(tests.map(str::to_owned).collect())
}

fn run_group(host: &Host, program: &Path, group: &[Test]) -> Result<Run, TaskError> {
    let mut command: Vec<OsString> = vec![program.into(), "--exact".into()];
    command.extend(group.iter().map(|test| OsString::from(&test.name)));
    command.extend(["--test-threads".into(), THREADS.into()]);
    let mut output = Watched::default();
    let ended = host.run_into(&command, &mut output);
    let text = String::from_utf8_lossy(&output.shown.0);
    let guest = BROKEN_GUEST.iter().find(|how| text.contains(**how));
    let (code, broken) = match (ended, guest) {
        (Err(error @ TaskError::HostDied { .. }), _) => (None, Some(error.to_string())),
        // Without QEMU, say, a fresh host is no better.
        (Err(error), _) => return Err(error),
        (Ok(code), Some(how)) => (
            Some(code),
            Some(format!("a guest's processor failed ({})", how.trim())),
        ),
        (Ok(code), None) => (Some(code), None),
    };
    Ok(Run {
        results: results(&text),
        code,
        broken,
    })
}

/// A group's run in one host.
struct Run {
    results: HashMap<String, Outcome>,
    /// The program's exit code, if it came to its end.
    code: Option<u8>,
    /// What broke that is not of the tests.
    broken: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Passed,
    Failed,
    Ignored,
}

impl Run {
    /// What ended, and what has to be run again.
    fn judge(&self, group: Vec<Test>) -> (Count, Vec<Test>) {
        let (mut count, mut again) = (Count::default(), Vec::new());
        for mut test in group {
            test.tries_left -= 1;
            match self.results.get(&test.name) {
                Some(Outcome::Passed) => count.passed += 1,
                Some(Outcome::Ignored) => count.ignored += 1,
                _ if self.broken.is_some() && test.tries_left > 0 => again.push(test),
                Some(Outcome::Failed) => count.failed += 1,
                // The program ended before it.
                None => count.broken += 1,
            }
        }
        // The program failed, and no test of it says why.
        if self.code.is_some_and(|code| code != 0) && count.failed + count.broken == 0 && again.is_empty() {
            count.broken += 1;
        }
        (count, again)
    }
}

/// Reads the lines `test NAME ... ok`.
fn results(output: &str) -> HashMap<String, Outcome> {
    let result = |line: &str| {
        let (before, after) = line.rsplit_once(" ... ")?;
        // Something without a line end may be in front of it.
        let name = before.split_once("test ")?.1.to_owned();
        let outcome = match after.split([',', ' ']).next()? {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            "ignored" => Outcome::Ignored,
            _ => return None,
        };
        Some((name, outcome))
    };
    output.lines().filter_map(result).collect()
}

/// Shows and keeps what is written until it says that the host stands still.
#[derive(Default)]
struct Watched {
    shown: Shown,
}

impl Write for Watched {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let length = self.shown.write(part)?;
        let (words, most) = SLOW;
        if String::from_utf8_lossy(&self.shown.0).matches(words).count() >= most {
            return Err(io::Error::other(format!("{most} tests took over a minute")));
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shown.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 4 tests\ntest a::one ... ok\ntest a::two has been running for over 60 seconds\n\
         test a::two ... FAILED\nnoise test three ... ignored, why\n\nfailures:\n    a::two\n";

    fn group() -> Vec<Test> {
        let names = ["a::one", "a::two", "three", "never_ended"];
        names.map(|name| Test::new(name.to_owned())).into()
    }

    fn run(broken: Option<&str>) -> Run {
        Run {
            results: results(OUTPUT),
            code: broken.is_none().then_some(101),
            broken: broken.map(str::to_owned),
        }
    }

    #[test]
    fn where_nothing_broke_every_result_counts() {
        let (count, again) = run(None).judge(group());
        let all = Count {
            passed: 1,
            failed: 1,
            ignored: 1,
            broken: 1,
        };
        assert_eq!((count, again), (all, vec![]));
    }

    #[test]
    fn program_that_fails_without_a_failed_test_is_no_success() {
        for (code, broken) in [(0, 0), (101, 1)] {
            let run = Run {
                results: results("test a::one ... ok\n"),
                code: Some(code),
                broken: None,
            };
            let (count, again) = run.judge(vec![Test::new("a::one".to_owned())]);
            assert_eq!((count.passed, count.broken, again), (1, broken, vec![]));
        }
    }

    #[test]
    fn what_a_broken_host_took_is_run_again_a_bounded_number_of_times() {
        let broken = run(Some("it died"));
        let mut tests = group();
        for tries_left in (1..TRIES).rev() {
            let (count, again) = broken.judge(tests);
            assert_eq!(count.failed + count.broken, 0);
            let expected = ["a::two", "never_ended"].map(|name| Test {
                name: name.to_owned(),
                tries_left,
            });
            assert_eq!(again, expected);
            tests = again;
        }
        let (count, again) = broken.judge(tests);
        assert_eq!((count.failed, count.broken, again), (1, 1, vec![]));
    }

    #[test]
    fn a_host_that_stands_still_is_noticed() {
        let mut watched = Watched::default();
        let line = format!("test a {}\n", SLOW.0);
        for _ in 1..SLOW.1 {
            watched.write_all(line.as_bytes()).expect("not yet");
        }
        assert!(watched.write_all(line.as_bytes()).is_err());
    }
}
