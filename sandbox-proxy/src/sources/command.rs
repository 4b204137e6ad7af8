//! A credential that a command of the host prints.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::{MAX_SECRET_BYTES, issue};

/// Protects requests from a helper that hangs, for instance on a password prompt.
const RUN_LIMIT: Duration = Duration::from_secs(30);

/// What a command of the host prints, as in `gh auth token`. Run for each request unless [`cached`](Self::cached).
#[derive(Debug)]
pub struct Command {
    program: OsString,
    arguments: Vec<OsString>,
    lifetime: Duration,
    cache: Mutex<Option<(Instant, Issued)>>,
}

/// How a command failed. Its output is never repeated: it may hold the secret.
#[derive(Debug, thiserror::Error)]
enum CommandFailed {
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
            cache: Mutex::default(),
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

    async fn run(&self) -> Result<Issued, CredentialError> {
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| CredentialError::Failed {
            source_name: self.describe(),
            cause,
        };
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.into()))?;
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
        let limit = u64::try_from(MAX_SECRET_BYTES + 1).unwrap_or(u64::MAX);
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(limit)
                .read_to_end(&mut text)
                .await
                .map_err(|error| failed(error.into()))?;
        }
        let status = child.wait().await.map_err(|error| failed(error.into()))?;
        if !status.success() {
            return Err(failed(CommandFailed::Status(status).into()));
        }
        issue(self.describe(), text)
    }
}

#[async_trait]
impl CredentialSource for Command {
    fn describe(&self) -> String {
        format!("command {}", self.program.display())
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        // Held while the command runs: requests that come together run it once.
        let mut cache = self.cache.lock().await;
        if let Some((at, issued)) = &*cache
            && at.elapsed() < self.lifetime
        {
            return Ok(issued.clone());
        }
        let issued = timeout(RUN_LIMIT, self.run()).await.unwrap_or_else(|_| {
            Err(CredentialError::Failed {
                source_name: self.describe(),
                cause: CommandFailed::TooSlow.into(),
            })
        })?;
        *cache = (!self.lifetime.is_zero()).then(|| (Instant::now(), issued.clone()));
        Ok(issued)
    }
}
