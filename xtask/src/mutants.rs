//! `cargo xtask mutants`: switches each named defence of the proxy off in turn, and sees that some test then fails.
//!
//! The tests are compiled once, with the feature `mutants`; which defence does not hold is said by a variable. Which test
//! notices is kept in `sandbox-proxy/mutants.txt`, so that it can be run alone; where it no longer does, all are run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use crate::{
    cargo::{Program, compile},
    error::TaskError,
};

/// The crates whose defences have names, from the root of the project; the first has the feature and the list.
const CRATES: [&str; 2] = ["sandbox-proxy", "sandbox-core"];

/// How a defence is asked for in the source: `holds("NAME")`.
const ASKS: &str = "holds(\"";

/// Lines of defence, test program and test, beside the crate's source.
const KEPT: &str = "mutants.txt";

/// Tests that take longer than this with a defence off have noticed.
const NOTICED: Duration = Duration::from_secs(300);

/// How often a running test program is looked after.
const LOOK: Duration = Duration::from_millis(20);

/// A test that notices: its program's name and its own.
type Witness = (String, String);

/// Runs the mutants whose name contains `filter`, or all. Where the kept test does not notice, all tests are run, which
/// takes a minute each, and with `keep`, which one noticed is written down. With `quick`, that is a failure at once, and
/// several run at a time.
pub(crate) fn run(filter: Option<&str>, keep: bool, quick: bool) -> Result<ExitCode, TaskError> {
    let project = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut all = BTreeSet::new();
    for name in CRATES {
        all.append(&mut defences(&project.join(name).join("src"))?);
    }
    let [first, second] = CRATES;
    let root = project.join(first);
    let names: Vec<&String> = all
        .iter()
        .filter(|name| filter.is_none_or(|part| name.contains(part)))
        .collect();
    if names.is_empty() {
        eprintln!("no defence has such a name");
        return Ok(ExitCode::FAILURE);
    }
    let programs = compile(&[
        "test",
        "--package",
        first,
        "--package",
        second,
        "--features",
        &format!("{first}/mutants"),
        "--no-run",
        "--quiet",
        "--lib",
        "--tests",
    ])?;
    let path = root.join(KEPT);
    let mut kept = witnesses(&fs::read_to_string(&path).unwrap_or_default());
    kept.retain(|name, _| all.contains(name));
    let tests = Tests {
        programs,
        directory: root,
        passing: Mutex::default(),
    };
    // Whoever runs all tests needs the processors alone; one test mostly waits.
    let workers = if quick {
        thread::available_parallelism().map_or(1, usize::from) + 1
    } else {
        1
    };
    let (next, kept_before) = (AtomicUsize::new(0), &kept);
    let work = || -> Result<Vec<(&str, Option<Witness>)>, TaskError> {
        let mut done = Vec::new();
        while let Some(name) = names.get(next.fetch_add(1, Relaxed)) {
            let noticed = match kept_before.get(*name) {
                Some(witness) if tests.notice(witness, name)? => Some(witness.clone()),
                _ if quick => None,
                _ => tests.search(name)?,
            };
            let shown = noticed.as_ref().map_or("NO TEST NOTICED", |(_, test)| test);
            println!("{name:<32} {shown}");
            done.push((name.as_str(), noticed));
        }
        Ok(done)
    };
    let done = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(ScopedJoinHandle::join);
        done.map(|done| done.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut survivors = Vec::new();
    for (name, noticed) in done.into_iter().flatten() {
        match noticed {
            Some(witness) => drop(kept.insert(name.to_owned(), witness)),
            None => survivors.push(name),
        }
    }
    if keep {
        let lines: String = kept
            .iter()
            .map(|(name, (program, test))| format!("{name} {program} {test}\n"))
            .collect();
        fs::write(&path, lines).map_err(TaskError::file("write", &path))?;
    }
    println!(
        "{} defences switched off, {} noticed",
        names.len(),
        names.len() - survivors.len()
    );
    if !survivors.is_empty() {
        println!("no test notices {}", survivors.join(", "));
    }
    if quick && !survivors.is_empty() {
        println!("`cargo xtask mutants --keep NAME` looks for one that does among all tests");
    }
    Ok(if survivors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is kept of earlier runs, by defence.
fn witnesses(text: &str) -> BTreeMap<String, Witness> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?, (words.next()?, words.next()?)))
        })
        .collect()
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

/// The tests that there are, run where they expect to be.
struct Tests {
    programs: Vec<Program>,
    directory: PathBuf,
    /// Those that were seen to pass with all defences in force.
    passing: Mutex<BTreeSet<Witness>>,
}

impl Tests {
    /// Whether this test fails with the defence off, and passes with it in force: else it says nothing about it.
    fn notice(&self, witness: &Witness, off: &str) -> Result<bool, TaskError> {
        let (program, test) = witness;
        let Some(program) = self.programs.iter().find(|other| other.name == *program) else {
            return Ok(false);
        };
        let alone = ["--exact", test.as_str()];
        if self.failed(program, &alone, off)?.is_none() {
            return Ok(false);
        }
        let passing = || self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        if passing().contains(witness) {
            return Ok(true);
        }
        let passes = self.failed(program, &alone, "")?.is_none();
        if passes {
            passing().insert(witness.clone());
        }
        Ok(passes)
    }

    /// Runs all tests with the defence off until one has failed that passes with it in force.
    fn search(&self, off: &str) -> Result<Option<Witness>, TaskError> {
        for program in &self.programs {
            for test in self.failed(program, &[], off)?.unwrap_or_default() {
                let witness = (program.name.clone(), test);
                if self.notice(&witness, off)? {
                    return Ok(Some(witness));
                }
            }
        }
        Ok(None)
    }

    /// The tests that failed, or `None` where none did. Empty where the program said nothing in time.
    fn failed(
        &self,
        program: &Program,
        arguments: &[&str],
        off: &str,
    ) -> Result<Option<Vec<String>>, TaskError> {
        let shown = program.path.display().to_string();
        let mut child = Command::new(&program.path)
            .args(arguments)
            .current_dir(&self.directory)
            .env("CARGO_MANIFEST_DIR", &self.directory)
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
        match wait(&mut child).map_err(TaskError::start(&shown))? {
            // A test that is no more there has not passed.
            Some(true) => {
                let text = reader.join().unwrap_or_default();
                Ok(text.contains(" 0 passed").then(Vec::new))
            }
            Some(false) => Ok(Some(failures(&reader.join().unwrap_or_default()))),
            // Programs that its tests started may hold the pipe still.
            None => Ok(Some(Vec::new())),
        }
    }
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

/// The names in lines `test NAME ... FAILED`.
fn failures(output: &str) -> Vec<String> {
    let lines = output.lines();
    lines
        .filter_map(|line| {
            Some(
                line.strip_prefix("test ")?
                    .strip_suffix(" ... FAILED")?
                    .to_owned(),
            )
        })
        .collect()
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
    fn failed_tests_are_named() {
        let output = "test a ... ok\ntest b::c ... FAILED\ntest d ... FAILED\n";
        assert_eq!(failures(output), ["b::c", "d"]);
        assert_eq!(failures("test a ... ok\n"), [""; 0]);
    }

    #[test]
    fn kept_witnesses_are_read() {
        let kept = witnesses("one lib a::b\nbroken\n");
        assert_eq!(kept.len(), 1);
        assert_eq!(kept["one"], ("lib".to_owned(), "a::b".to_owned()));
    }
}
