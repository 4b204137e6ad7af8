//! The audit log: a file of JSON lines that shows when it was tampered with, whole after a crash, bounded on disk.
//!
//! The proxy hands events over and goes on; a thread writes them. See `docs/audit.md` for what it says and promises.

mod files;
pub(crate) mod names;
mod queue;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sandbox_core::audit::{AuditEvent, AuditSink};
use tokio::sync::watch;

use super::chain::{AuditKey, Head};
use super::verify::VerifyError;
use crate::defence::holds;
use files::Files;
use names::Names;
use queue::Queue;
use writer::Writer;

/// One of a log's files, and how many there are, unless the builder says otherwise: a gibibyte together.
const MAX_FILE_BYTES: u64 = 32 << 20;
const MAX_FILES: usize = 32;
/// Smallest file: below it, most of a log would be its own notes.
const MIN_FILE_BYTES: u64 = 16 << 10;
/// How much a loss of power may take along.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// A log of every attempt, one line of JSON each, for one sandbox or many. Cheap to clone; all clones are one log, which
/// is closed when the last is dropped (that waits until everything is written).
///
/// Each line carries the hash of the line before it, so that [`verify`](super::verify()) sees what was changed,
/// removed or inserted; with a [key](AuditLogBuilder::key), also by somebody who makes all later lines anew.
/// A line that a crash left unfinished is cut off when the log is opened again, and the log says so.
#[derive(Clone)]
pub struct AuditLog {
    inner: Arc<Inner>,
}

/// Opens an [`AuditLog`].
#[derive(Debug, Clone)]
pub struct AuditLogBuilder {
    path: PathBuf,
    key: Option<Arc<AuditKey>>,
    max_file_bytes: u64,
    max_files: Option<usize>,
    sync_every: Duration,
    is_required: bool,
}

/// How a log is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Why it cannot be written now, if so. It is tried again all the time.
    pub failure: Option<Failure>,
    /// Records that found no room while it could not be written, or not fast enough. The log has their number.
    pub lost: u64,
}

/// Why a log cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// What kind of error, such as [`io::ErrorKind::StorageFull`].
    pub kind: io::ErrorKind,
    /// In the words of the system.
    pub message: String,
}

/// A log that cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditLogError {
    /// The path names no file.
    #[error("{} cannot be an audit log: give the path of a file, in UTF-8", path.display())]
    Path {
        /// What was given.
        path: PathBuf,
    },
    /// Another program, or another log in this one, has it open.
    #[error("the audit log {} is in use: give each program a log of its own, or share one by cloning it", path.display())]
    Locked {
        /// The log.
        path: PathBuf,
    },
    /// It is not what was written. Nothing was changed: find out why, move all its files away, and open it again.
    #[error("the audit log is not as it was written: look into it, then move its files away to begin anew")]
    Damaged(#[source] VerifyError),
    /// It was begun with a key, and none was given.
    #[error("the audit log has a key, named {log}: open it with that, or begin another log")]
    KeyNeeded {
        /// What the log calls its key; see [`AuditKey::id`].
        log: String,
    },
    /// It was begun with another key, or without one.
    #[error("the audit log does not have this key: open it with its own, or begin another log")]
    OtherKey(#[source] VerifyError),
    /// The file system failed.
    #[error("the audit log {} cannot be opened or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is closed.
    #[error("the audit log is closed")]
    Closed,
}

struct Inner {
    shared: Arc<Shared>,
    path: PathBuf,
    is_required: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    queue: Queue,
    is_failing: AtomicBool,
    health: watch::Sender<Health>,
    head: Mutex<Head>,
}

impl AuditLog {
    /// The log at this path, for instance `audit.jsonl`; begun if it is not there, else continued. 32 files of 32
    /// MiB; see [`builder`](Self::builder) for more. Reads the newest file through, which may take some tenths of a
    /// second.
    ///
    /// # Errors
    /// It cannot be written, or is not what was written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, AuditLogError> {
        Self::builder(path).open()
    }

    /// For a log with a key, of another size, or without which nothing must be allowed.
    pub fn builder(path: impl AsRef<Path>) -> AuditLogBuilder {
        AuditLogBuilder {
            path: path.as_ref().to_owned(),
            key: None,
            max_file_bytes: MAX_FILE_BYTES,
            max_files: Some(MAX_FILES),
            sync_every: SYNC_EVERY,
            is_required: false,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Its last record that is written. Kept elsewhere, it shows later whether the end was cut off.
    pub fn head(&self) -> Head {
        *self
            .inner
            .shared
            .head
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything recorded so far is written and synced, and says where the log then stands. Blocks: in
    /// async code, call it by `spawn_blocking`.
    ///
    /// # Errors
    /// The log cannot be written now. What was recorded waits, and is written as soon as it can be.
    pub fn flush(&self) -> Result<Head, AuditLogError> {
        let (done, wait) = sync_channel(1);
        self.inner.shared.queue.flush(done);
        let result = wait.recv().unwrap_or(Err(AuditLogError::Closed));
        result.map_err(|error| match error {
            AuditLogError::Io { source, .. } => AuditLogError::io(&self.inner.path)(source),
            error => error,
        })
    }

    /// How it is doing, and every change of that: a disk that is full, and one that no longer is.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.shared.health.subscribe()
    }
}

impl AuditLogBuilder {
    /// Makes each line one that only this key's holder can make. A log keeps its key for all its life.
    #[must_use]
    pub fn key(mut self, key: AuditKey) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// A file of so many bytes or a little more is moved aside, and another begun; 32 MiB at first, at least 16 KiB.
    #[must_use]
    pub fn max_file_bytes(self, max_file_bytes: u64) -> Self {
        Self {
            max_file_bytes: max_file_bytes.max(MIN_FILE_BYTES),
            ..self
        }
    }

    /// How many files there are, with the one that is written; at least two, 32 at first. Beyond it the oldest is
    /// removed, which the log says. A sandbox that makes very many attempts can so push out what it did before: where
    /// that matters, [keep all](Self::keep_all_files).
    #[must_use]
    pub fn max_files(self, max_files: usize) -> Self {
        Self {
            max_files: Some(max_files.max(2)),
            ..self
        }
    }

    /// Removes no file. You do, or the disk is full one day: think of [`required`](Self::required).
    #[must_use]
    pub fn keep_all_files(self) -> Self {
        Self {
            max_files: None,
            ..self
        }
    }

    /// How often what was written is synced to disk, so that a loss of power takes no more along than this; one second
    /// at first. A crash of the program alone takes at most the last few milliseconds.
    #[must_use]
    pub fn sync_every(self, sync_every: Duration) -> Self {
        Self { sync_every, ..self }
    }

    /// Denies every attempt while the log cannot be written or does not keep up. Without, attempts go on; those that
    /// find no room in memory are counted, and the count is written as soon as it can be.
    #[must_use]
    pub fn required(self) -> Self {
        Self {
            is_required: true,
            ..self
        }
    }

    /// Opens the log, and starts the thread that writes it.
    ///
    /// # Errors
    /// See [`AuditLog::open`].
    pub fn open(self) -> Result<AuditLog, AuditLogError> {
        let path = self.path;
        let names = Names::new(&path).ok_or_else(|| AuditLogError::Path { path: path.clone() })?;
        let max_aside = self.max_files.map(|files| files.saturating_sub(1));
        let files = Files::open(names, self.key, self.max_file_bytes, max_aside)?;
        let shared = Arc::new(Shared {
            queue: Queue::default(),
            is_failing: AtomicBool::new(false),
            health: watch::Sender::default(),
            head: Mutex::new(files.head()),
        });
        let writer = Writer {
            files,
            shared: Arc::clone(&shared),
            sync_every: self.sync_every,
            failing: None,
            lost: queue::Lost::default(),
        };
        let thread = std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || writer.run())
            .map_err(AuditLogError::io(&path))?;
        Ok(AuditLog {
            inner: Arc::new(Inner {
                shared,
                path,
                is_required: self.is_required,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }
}

impl AuditSink for AuditLog {
    fn record(&self, event: &Arc<AuditEvent>) {
        self.inner.shared.queue.push(event);
    }

    fn takes_every_attempt(&self) -> bool {
        true
    }

    fn is_ready(&self) -> bool {
        let shared = &self.inner.shared;
        let is_well = !shared.is_failing.load(Relaxed) && !shared.queue.is_behind.load(Relaxed);
        is_well || !self.inner.is_required || !holds("audit-required")
    }
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditLog({})", self.inner.path.display())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.queue.close();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes the audit log panicked");
        }
    }
}

impl Shared {
    fn set_head(&self, head: Head) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = head;
    }
}

impl AuditLogError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }

    /// An error can be told once; this tells it again.
    fn from_failure(error: &io::Error) -> Self {
        Self::Io {
            path: PathBuf::new(),
            source: io::Error::new(error.kind(), error.to_string()),
        }
    }
}
