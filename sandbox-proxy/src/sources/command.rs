//! A credential that a command of the host prints.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::shared::{Keep, Shared};
use super::{MAX_SECRET_BYTES, issue};
use crate::defence;

/// Protects requests from a helper that hangs, for instance on a password prompt.
const RUN_LIMIT: Duration = Duration::from_secs(30);

/// What a command of the host prints, as in `gh auth token`.
///
/// Its output is kept for no time at first: a request gets what the command prints after the request came, so a
/// rotated credential acts at once. Requests that wait at the same time, of one sandbox or of all that have this
/// source, share a run; the command never runs twice at a time. With [`cached`](Self::cached) its output serves
/// later requests, too.
#[derive(Debug)]
pub struct Command {
    program: OsString,
    arguments: Vec<OsString>,
    lifetime: Duration,
    shared: Shared,
}

/// How a command failed. Its output is never repeated: it may hold the secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandFailed {
    #[error("it could not be run")]
    Run(#[from] std::io::Error),
    #[error("it ended with {0}")]
    Status(std::process::ExitStatus),
    #[error("it did not end within 30 s")]
    TooSlow,
}

impl Command {
    /// The program to run, without a shell. Its input is empty and its error output is thrown away.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            lifetime: Duration::ZERO,
            shared: Shared::default(),
        }
    }

    /// Its arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Keeps the output that long. A rotated credential takes up to that long to act.
    #[must_use]
    pub fn cached(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    fn failed(&self, cause: impl std::error::Error + Send + Sync + 'static) -> CredentialError {
        CredentialError::Failed {
            source_name: self.describe(),
            cause: Box::new(cause),
        }
    }
}

/// What a program prints, up to one byte more than `limit`.
pub(super) async fn output(
    program: &OsStr,
    arguments: &[OsString],
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, CommandFailed> {
    let run = async {
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut text = Zeroizing::new(Vec::with_capacity(limit.saturating_add(1)));
        let bound = u64::try_from(limit.saturating_add(1)).unwrap_or(u64::MAX);
        if let Some(stdout) = child.stdout.take() {
            stdout.take(bound).read_to_end(&mut text).await?;
        }
        let status = child.wait().await?;
        // One that prints on is ended by that.
        if !status.success() && text.len() <= limit {
            return Err(CommandFailed::Status(status));
        }
        Ok(text)
    };
    if !defence::holds("command-time-limit") {
        return run.await;
    }
    timeout(RUN_LIMIT, run)
        .await
        .unwrap_or(Err(CommandFailed::TooSlow))
}

#[async_trait]
impl CredentialSource for Command {
    fn describe(&self) -> String {
        format!("command {}", self.program.display())
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let run = async {
            let text = output(&self.program, &self.arguments, MAX_SECRET_BYTES).await;
            issue(self.describe(), text.map_err(|error| self.failed(error))?)
        };
        let keep = Keep {
            lifetime: self.lifetime,
            ..Keep::default()
        };
        self.shared.fetch(keep, run, || self.describe()).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::super::tests::fetch;
    use super::*;

    /// A command that prints what is in `value`, notes its run in `runs`, and ends when `go` is there.
    fn slow(directory: &Path) -> Arc<Command> {
        std::fs::write(directory.join("value"), "old").unwrap();
        let script = "cd \"$1\"; cat value; echo run >> runs; until test -e go; do sleep 0.01; done; exit $(cat status)";
        std::fs::write(directory.join("status"), "0").unwrap();
        Arc::new(Command::new("sh").args([
            "-c".as_ref(),
            script.as_ref(),
            "x".as_ref(),
            directory.as_os_str(),
        ]))
    }

    fn runs(directory: &Path) -> usize {
        std::fs::read_to_string(directory.join("runs")).map_or(0, |runs| runs.lines().count())
    }

    async fn burst(source: &Arc<Command>, directory: &Path) -> Vec<Result<String, CredentialError>> {
        let ask = || {
            let source = Arc::clone(source);
            tokio::spawn(async move { fetch(&*source).await })
        };
        let first = ask();
        while runs(directory) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::write(directory.join("value"), "new").unwrap();
        let others: Vec<_> = (0..50).map(|_| ask()).collect();
        // They have asked once they wait for the first.
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::fs::write(directory.join("go"), "").unwrap();
        let mut results = vec![first.await.unwrap()];
        for other in others {
            results.push(other.await.unwrap());
        }
        results
    }

    #[tokio::test]
    async fn requests_that_wait_share_a_run_that_began_after_they_came() {
        let directory = tempfile::tempdir().unwrap();
        let source = slow(directory.path());
        let results = burst(&source, directory.path()).await;
        assert_eq!(runs(directory.path()), 2);
        let values: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(values[0], "old");
        assert!(values[1..].iter().all(|value| value == "new"), "{values:?}");
        assert_eq!(fetch(&*source).await.unwrap(), "new");
        assert_eq!(runs(directory.path()), 3, "kept for no time");
    }

    #[tokio::test]
    async fn requests_that_wait_share_a_failure_too() {
        let directory = tempfile::tempdir().unwrap();
        let source = slow(directory.path());
        std::fs::write(directory.path().join("status"), "3").unwrap();
        let results = burst(&source, directory.path()).await;
        assert_eq!(runs(directory.path()), 2);
        for result in results {
            let error = result.unwrap_err();
            assert!(matches!(error, CredentialError::Failed { .. }), "{error:?}");
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("exit status: 3"), "{cause}");
        }
    }

    #[tokio::test]
    async fn request_that_goes_away_leaves_the_run_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let source = slow(directory.path());
        let asked = timeout(Duration::from_millis(50), fetch(&*source)).await;
        assert!(asked.is_err());
        std::fs::write(directory.path().join("go"), "").unwrap();
        assert_eq!(fetch(&*source).await.unwrap(), "old");
    }

    #[tokio::test(start_paused = true)]
    async fn command_that_hangs_is_given_up() {
        // The clock stands while something runs and jumps when all wait.
        let error = fetch(&Command::new("sleep").args(["3"])).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("did not end"), "{cause}");
    }
}
