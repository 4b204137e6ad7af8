//! The thread that writes a log.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::files::{Files, now};
use super::queue::{Lost, Waiting};
use super::{AuditLogError, Failure, Shared};
use crate::audit::chain::Note;

/// Between tries to write to a disk that does not take it.
const RETRY_TIME: Duration = Duration::from_millis(500);

pub(super) struct Writer {
    pub(super) files: Files,
    pub(super) shared: Arc<Shared>,
    pub(super) sync_every: Duration,
    /// Since when the log cannot be written, and why.
    pub(super) failing: Option<(u64, String)>,
    /// What is not yet told in the log.
    pub(super) lost: Lost,
}

impl Writer {
    /// Writes until the log is closed.
    pub(super) fn run(mut self) {
        let _end = End(Arc::clone(&self.shared));
        let mut waiting = Waiting::default();
        let mut synced = Instant::now();
        loop {
            let pause = self
                .files
                .is_dirty()
                .then(|| self.sync_every.saturating_sub(synced.elapsed()));
            self.shared.queue.take(&mut waiting, pause);
            self.lost.allowed = self.lost.allowed.saturating_add(waiting.lost.allowed);
            self.lost.denied = self.lost.denied.saturating_add(waiting.lost.denied);
            waiting.lost = Lost::default();
            let mut written = 0;
            while let Err(error) = self.write(&waiting, &mut written, &mut synced) {
                self.fail(&error);
                let answer = || Err(AuditLogError::from_failure(&error));
                waiting.flushes.drain(..).for_each(|done| _ = done.send(answer()));
                let (flushes, is_closing) = self.shared.queue.pause(RETRY_TIME);
                flushes.into_iter().for_each(|done| _ = done.send(answer()));
                if is_closing && waiting.is_closing {
                    self.give_up(waiting.events.get(written..).unwrap_or_default());
                    return;
                }
                waiting.is_closing |= is_closing;
            }
            waiting.events.clear();
            let head = self.files.head();
            self.shared.set_head(head);
            waiting.flushes.drain(..).for_each(|done| _ = done.send(Ok(head)));
            if waiting.is_closing {
                return;
            }
        }
    }

    /// Writes what waits and is not yet written, and syncs if it is time.
    fn write(&mut self, waiting: &Waiting, written: &mut usize, synced: &mut Instant) -> io::Result<()> {
        while let Some(left) = waiting.events.get(*written..).filter(|left| !left.is_empty()) {
            *written += self.files.write(left)?;
        }
        if self.lost.is_some() {
            self.files.note(&Note::Lost {
                time: now(),
                allowed: self.lost.allowed,
                denied: self.lost.denied,
            })?;
            let lost = std::mem::take(&mut self.lost);
            tracing::error!(
                lost.allowed,
                lost.denied,
                "records were lost: the audit log could not keep up"
            );
            self.shared.health.send_modify(|health| {
                health.lost = health
                    .lost
                    .saturating_add(lost.allowed)
                    .saturating_add(lost.denied);
            });
        }
        // Not before: on a disk that is nearly full there is always room for one more short line.
        if let Some((time, why)) = self.failing.clone() {
            let until = now();
            self.files.note(&Note::Failed { time, until, why })?;
            self.recover();
        }
        if waiting.is_closing {
            self.files.note(&Note::Stop { time: now() })?;
        }
        let hurries = waiting.is_closing || !waiting.flushes.is_empty();
        if self.files.is_dirty() && (hurries || synced.elapsed() >= self.sync_every) {
            self.files.sync()?;
            *synced = Instant::now();
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        if self.failing.is_some() {
            return;
        }
        tracing::error!(%error, "the audit log cannot be written");
        self.failing = Some((now(), error.to_string()));
        self.shared.is_failing.store(true, Relaxed);
        self.shared.health.send_modify(|health| {
            health.failure = Some(Failure {
                kind: error.kind(),
                message: error.to_string(),
            });
        });
    }

    fn recover(&mut self) {
        tracing::info!("the audit log can be written again");
        self.failing = None;
        self.shared.is_failing.store(false, Relaxed);
        self.shared.health.send_modify(|health| health.failure = None);
    }

    fn give_up(&mut self, left: &[Arc<sandbox_core::AuditEvent>]) {
        let mut lost = self.lost;
        left.iter().for_each(|event| lost.add(event));
        self.shared
            .queue
            .end()
            .events
            .iter()
            .for_each(|event| lost.add(event));
        tracing::error!(
            lost.allowed,
            lost.denied,
            "records were lost: the audit log was closed while it could not be written"
        );
    }
}

/// However the thread ends, nobody waits for it, and a log that must be kept lets nothing begin.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.is_failing.store(true, Relaxed);
        drop(self.0.queue.end());
    }
}
