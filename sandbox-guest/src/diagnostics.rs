//! What the agent has to say when it cannot say it to the host, and its one kind of error.

use std::{fs::OpenOptions, io, io::Write};

use sandbox_protocol::control::Failure;

/// Longest line the kernel's log takes whole.
const MAX_LINE: usize = 900;

/// A step that failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub(crate) struct Failed {
    what: String,
    source: io::Error,
}

impl Failed {
    /// For `map_err`: `what` completes "cannot …".
    pub(crate) fn when<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self {
            what: what.into(),
            source: source.into(),
        }
    }

    /// For what no system call refused.
    pub(crate) fn because(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            source: io::Error::other(why.into()),
        }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self {
            what: failed.what,
            errno: failed.source.raw_os_error(),
            message: failed.source.to_string(),
        }
    }
}

/// One line to the kernel's log, which reaches the machine's console, or else to standard error.
pub(crate) fn say(line: &str) {
    let line: String = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_LINE)
        .collect();
    // In one call each: the kernel's log makes a record of every write.
    let record = format!("<2>sandbox-agent: {line}\n");
    let written = std::process::id() == 1
        && OpenOptions::new()
            .write(true)
            .open("/dev/kmsg")
            .and_then(|mut log| log.write_all(record.as_bytes()))
            .is_ok();
    if !written {
        // Nobody is left to tell if this fails too.
        let _ = io::stderr().write_all(format!("sandbox-agent: {line}\n").as_bytes());
    }
}
