//! One run for all who wait: a source that takes a process, a thread or a descriptor of the host takes one, however
//! many requests a guest makes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandbox_core::credential::{CredentialError, Issued};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use crate::defence;

/// What a source gave last, and the right to ask it again.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Held while the source is asked.
    last: Arc<Mutex<Option<Run>>>,
}

/// How long what a source gave serves later requests, too.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Keep {
    /// For so long, if it does not end before.
    pub(super) lifetime: Duration,
    /// Until it ends, if that is known.
    pub(super) to_its_end: bool,
    /// So long before its end it is no longer kept.
    pub(super) margin: Duration,
    /// For so long a failure is.
    pub(super) failure: Duration,
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
    /// What `run` gives, or what it gave another request: since this one asked, or as long ago as `keep` says.
    ///
    /// Whoever goes away while its run goes on leaves the next one to the others.
    pub(super) async fn fetch(
        &self,
        keep: Keep,
        run: impl Future<Output = Result<Issued, CredentialError>>,
        describe: impl Fn() -> String,
    ) -> Result<Issued, CredentialError> {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(result) = earlier(&mut last, asked, keep) {
            return result.map_err(|failure| failure.of(describe()));
        }
        let result = run_into(&mut last, run).await;
        result.map_err(|failure| failure.of(describe()))
    }

    /// The same for a run that goes on to its end when who asked for it has gone: others wait for that end. For what
    /// cannot be broken off (a thread of the host), or must not be (a token that is used up).
    pub(super) async fn fetch_whole<F>(
        &self,
        keep: Keep,
        run: impl FnOnce() -> F,
        describe: impl Fn() -> String,
    ) -> Result<Issued, CredentialError>
    where
        F: Future<Output = Result<Issued, CredentialError>> + Send + 'static,
    {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(result) = earlier(&mut last, asked, keep) {
            return result.map_err(|failure| failure.of(describe()));
        }
        let run = run();
        let task = tokio::spawn(async move { run_into(&mut last, run).await });
        match task.await {
            Ok(result) => result.map_err(|failure| failure.of(describe())),
            Err(error) => Err(CredentialError::Failed {
                source_name: describe(),
                cause: error.into(),
            }),
        }
    }
}

/// The cause of this type, of a source that failed.
pub(super) fn cause<E: std::error::Error + 'static>(error: &CredentialError) -> Option<&E> {
    let CredentialError::Failed { cause, .. } = error else {
        return None;
    };
    // Requests that waited share it.
    let shared = cause.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>();
    cause
        .downcast_ref()
        .or_else(|| shared.and_then(|cause| cause.downcast_ref()))
}

/// What an earlier run gave, if that will do.
fn earlier(
    last: &mut OwnedMutexGuard<Option<Run>>,
    asked: Instant,
    keep: Keep,
) -> Option<Result<Issued, Failure>> {
    let run = last.as_ref()?;
    let is_kept = match &run.result {
        Ok(issued) => {
            let is_wanted =
                run.ended.elapsed() < keep.lifetime || (keep.to_its_end && issued.expires.is_some());
            let is_good = issued.outlasts(SystemTime::now(), keep.margin);
            is_wanted && (is_good || !defence::holds("kept-credentials-end"))
        }
        Err(_) => run.ended.elapsed() < keep.failure,
    };
    // What another request ran while this one waited is as fresh as a run of its own.
    let is_fresh = run.started >= asked && defence::holds("source-single-flight");
    if is_kept || is_fresh {
        return Some(run.result.clone());
    }
    // Wiped.
    **last = None;
    None
}

async fn run_into(
    last: &mut OwnedMutexGuard<Option<Run>>,
    run: impl Future<Output = Result<Issued, CredentialError>>,
) -> Result<Issued, Failure> {
    let started = Instant::now();
    let result = run.await.map_err(Failure::from);
    **last = Some(Run {
        started,
        ended: Instant::now(),
        result: result.clone(),
    });
    result
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
