//! `cargo xtask mutants`: switches each named defence of the proxy off in turn, and sees that some test then fails.
//!
//! The tests are compiled once, with the feature `mutants`; which defence does not hold is said by a variable.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{cargo::compile, error::TaskError};

/// The crate whose defences have names, from the root of the project.
const CRATE: &str = "sandbox-proxy";

/// How a defence is asked for in the source: `holds("NAME")`.
const ASKS: &str = "holds(\"";

/// Tests that take longer than this with a defence off have noticed.
const NOTICED: Duration = Duration::from_secs(300);

/// How often a running test program is looked after.
const LOOK: Duration = Duration::from_millis(20);

/// What became of a run of all tests.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Every test passed.
    Passed,
    /// The first test that failed, or how its program ended.
    Failed(String),
}

/// Runs the mutants whose name contains `filter`, or all.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode, TaskError> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(CRATE);
    let names: Vec<String> = defences(&root.join("src"))?
        .into_iter()
        .filter(|name| filter.is_none_or(|part| name.contains(part)))
        .collect();
    if names.is_empty() {
        eprintln!("no defence has such a name");
        return Ok(ExitCode::FAILURE);
    }
    let programs: Vec<PathBuf> = compile(&[
        "test",
        "--package",
        CRATE,
        "--features",
        "mutants",
        "--no-run",
        "--quiet",
        "--lib",
        "--tests",
    ])?
    .into_iter()
    .map(|program| program.path)
    .collect();

    // What fails with every defence in force says nothing about any of them.
    if let Outcome::Failed(test) = tests(&programs, &root, "")? {
        eprintln!("{test} fails although every defence is in force: mend it first");
        return Ok(ExitCode::FAILURE);
    }
    let mut survivors = 0;
    for (number, name) in names.iter().enumerate() {
        let noticed = match tests(&programs, &root, name)? {
            Outcome::Failed(test) => test,
            Outcome::Passed => {
                survivors += 1;
                "NO TEST NOTICED".to_owned()
            }
        };
        println!("{:>3}/{} {name:<32} {noticed}", number + 1, names.len());
    }
    println!(
        "{} defences switched off, {survivors} without a test that notices",
        names.len()
    );
    Ok(if survivors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The names of all defences that the source below `directory` asks for.
fn defences(directory: &Path) -> Result<BTreeSet<String>, TaskError> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(TaskError::file("read", directory))? {
        let path = entry.map_err(TaskError::file("read", directory))?.path();
        if path.is_dir() {
            names.append(&mut defences(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).map_err(TaskError::file("read", &path))?;
            names.extend(asked_for(&source).map(str::to_owned));
        }
    }
    Ok(names)
}

/// The names in one file, but for those in comments.
fn asked_for(source: &str) -> impl Iterator<Item = &str> {
    source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split(ASKS).skip(1))
        .filter_map(|rest| rest.split_once('"').map(|(name, _)| name))
}

/// Runs all test programs, the next one only where the one before passed.
fn tests(programs: &[PathBuf], directory: &Path, off: &str) -> Result<Outcome, TaskError> {
    for program in programs {
        let shown = program.display().to_string();
        let mut child = Command::new(program)
            .current_dir(directory)
            .env("CARGO_MANIFEST_DIR", directory)
            .env("SANDBOX_MUTANT", off)
            // What makes a mutant fail is no regression to keep.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(TaskError::start(&shown))?;
        let output = child.stdout.take();
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            // What was read until an error is what there is to say.
            let _ = output.map(|mut output| output.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        let passed = wait(&mut child).map_err(TaskError::start(&shown))?;
        if passed == Some(true) {
            continue;
        }
        let text = if passed.is_some() {
            reader.join().unwrap_or_default()
        } else {
            // Programs that its tests started may hold the pipe still.
            "it took too long".to_owned()
        };
        return Ok(Outcome::Failed(first_failure(&text).unwrap_or(text)));
    }
    Ok(Outcome::Passed)
}

/// Whether a program ended well; `None` where it had to be ended.
fn wait(child: &mut Child) -> io::Result<Option<bool>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if begun.elapsed() > NOTICED {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// The name in the first line `test NAME ... FAILED`.
fn first_failure(output: &str) -> Option<String> {
    let mut lines = output.lines();
    lines.find_map(|line| {
        Some(
            line.strip_prefix("test ")?
                .strip_suffix(" ... FAILED")?
                .to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_code_and_not_in_comments() {
        let source = "// holds(\"no\")\nif a && defence::holds(\"one\") || !holds(\"two\") {}\n";
        assert_eq!(asked_for(source).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn first_failed_test_is_named() {
        let output = "test a ... ok\ntest b::c ... FAILED\ntest d ... FAILED\n";
        assert_eq!(first_failure(output).as_deref(), Some("b::c"));
        assert_eq!(first_failure("test a ... ok\n"), None);
    }
}
