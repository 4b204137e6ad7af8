//! One run for all who wait: a source that takes a process, a thread or a descriptor of the host takes one, however
//! many requests a guest makes.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::credential::{CredentialError, Issued};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// What a source gave last, and the right to ask it again.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Held while the source is asked.
    last: Mutex<Option<Run>>,
}

/// How the source was asked last.
#[derive(Debug)]
struct Run {
    started: Instant,
    ended: Instant,
    result: Result<Issued, Failure>,
}

/// An error that several requests get.
#[derive(Debug, Clone)]
enum Failure {
    NotFound,
    Malformed(&'static str),
    Ended,
    Failed(Arc<dyn std::error::Error + Send + Sync>),
}

impl Shared {
    /// What `run` gives, or what it gave another request: since this one asked, or not longer than `lifetime` ago.
    ///
    /// Whoever goes away while its run goes on leaves the next one to the others.
    pub(super) async fn fetch(
        &self,
        lifetime: Duration,
        run: impl Future<Output = Result<Issued, CredentialError>>,
        describe: impl Fn() -> String,
    ) -> Result<Issued, CredentialError> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        let earlier = last.take_if(|run| {
            let is_kept = run.result.is_ok() && run.ended.elapsed() < lifetime;
            // What another request ran while this one waited is as fresh as a run of its own.
            is_kept || run.started >= asked
        });
        let run = match earlier {
            Some(earlier) => earlier,
            None => {
                let started = Instant::now();
                let result = run.await.map_err(Failure::from);
                let ended = Instant::now();
                Run {
                    started,
                    ended,
                    result,
                }
            }
        };
        let result = run.result.clone();
        *last = Some(run);
        result.map_err(|failure| failure.of(describe()))
    }
}

impl From<CredentialError> for Failure {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::NotFound { .. } => Self::NotFound,
            CredentialError::Malformed { why, .. } => Self::Malformed(why),
            CredentialError::Ended { .. } => Self::Ended,
            CredentialError::Failed { cause, .. } => Self::Failed(cause.into()),
        }
    }
}

impl Failure {
    fn of(self, source_name: String) -> CredentialError {
        match self {
            Self::NotFound => CredentialError::NotFound { source_name },
            Self::Malformed(why) => CredentialError::Malformed { source_name, why },
            Self::Ended => CredentialError::Ended { source_name },
            Self::Failed(cause) => CredentialError::Failed {
                source_name,
                cause: Box::new(cause),
            },
        }
    }
}
