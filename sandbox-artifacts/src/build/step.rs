//! Runs the programs that build: their output goes to the progress line, and its end into the error.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
};

use crate::{ArtifactError, build::Progress};

/// Lines of output kept for an error message.
const TAIL_LINES: usize = 30;

/// A program that writes without line ends must not fill our memory.
const LINE_LIMIT: u64 = 64 << 10;

/// Runs `command` to its end.
///
/// # Errors
/// [`ArtifactError::Step`] when it cannot start or does not succeed.
pub(super) fn run(step: &str, command: &mut Command, progress: &dyn Progress) -> Result<(), ArtifactError> {
    let failed = |status: String, tail: String| ArtifactError::Step {
        step: step.into(),
        status,
        tail,
    };
    let program = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe().map_err(|error| failed(error.to_string(), String::new()))?;
    let errors = writer
        .try_clone()
        .map_err(|error| failed(error.to_string(), String::new()))?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("{program}: {error}"), String::new()))?;
    // Our copies of the writing end, or reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        progress.line(&line);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child
        .wait()
        .map_err(|error| failed(error.to_string(), String::new()))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(status.to_string(), Vec::from(tail).join("\n")))
}

/// What a program prints, if it succeeds.
pub(super) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
