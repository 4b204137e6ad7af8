//! Whether a log is what was written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::chain::{AuditKey, Head};
use super::log::names::Names;
use super::totals::Totals;
use super::walk::Walker;
use crate::defence::holds;

/// A log that is written meanwhile removes old files: so often it is read from the start.
const MOST_TRIES: usize = 5;

/// A log that is what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Number of the first record that is there; the ones before it were removed to make room, as the log says.
    pub first: u64,
    /// Its last record. Keep it elsewhere, and give it to the next check.
    pub head: Head,
    /// How many files it is in.
    pub files: usize,
    /// Sums over all attempts since the log was begun, also those in files that were removed.
    pub totals: Totals,
    /// Whether it was closed in order, or is still being written, was cut off at the end, or its program crashed.
    pub is_closed: bool,
    /// How many programs went away without closing it.
    pub crashes: u64,
    /// Bytes of a line at the end that is not finished: its program crashed, or is writing it now.
    pub torn_bytes: u64,
    /// Whether the log has a key, and its lines were checked with it.
    pub key: KeyCheck,
}

/// What was done about the key of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyCheck {
    /// The log has none: whoever can write the file can make it anew.
    None,
    /// It has one, which was not given: the same.
    NotGiven,
    /// Every line was made with it.
    Checked,
}

/// Why a log is not known to be what was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// There is none.
    #[error("there is no audit log at {}", path.display())]
    NotFound {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("the audit log {} cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error(transparent)]
    Tampered(#[from] Tampered),
    /// It has another key.
    #[error("the audit log was written with another key, named {log}")]
    WrongKey {
        /// What the log calls its key; see [`AuditKey::id`].
        log: String,
    },
    /// A key was given, and the log says that it has none.
    #[error("the audit log was written without a key: check it without one, or find out who removed it")]
    NotKeyed,
    /// The head is of a record in a file that was removed to make room.
    #[error("record {seq} was removed to make room: check against a later head")]
    HeadRemoved {
        /// The number of the head's record.
        seq: u64,
    },
}

/// Where a log is not what was written, and in which way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}, line {line}: {what} (record {seq}); the log is as written up to record {intact}", file.display())]
pub struct Tampered {
    /// The file.
    pub file: PathBuf,
    /// The line in it; the first is 1.
    pub line: u64,
    /// Number of the record that is or should be there.
    pub seq: u64,
    /// What was done.
    pub what: Tampering,
    /// Up to this record, the log is as it was written; 0 if not even the first is.
    pub intact: u64,
}

/// What was done to a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Tampering {
    /// The line is not what it was.
    #[error("the line was changed")]
    Changed,
    /// Lines are missing before this one.
    #[error("records {first} to {last} before the line were removed")]
    Removed {
        /// The first that is missing.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The line is not of the log.
    #[error("the line was inserted")]
    Inserted,
    /// The line fits, but was made without the key.
    #[error("the line was made by somebody without the key")]
    Forged,
    /// Lines at the start are missing that the log did not remove by itself.
    #[error("the start was removed")]
    StartRemoved,
    /// The log ends before the record of the head that was given.
    #[error("the end was removed")]
    Truncated,
    /// The record is another than the head that was given says.
    #[error("the record is not the one of the head")]
    Rewritten,
}

/// Checks every line of the log at this path (that of the file that is written), with those that were moved aside.
/// `head` is what an earlier check or the log itself gave: without one, records missing at the very end go unseen.
/// May be called while the log is written. Blocks; reads all there is in bounded memory.
///
/// # Errors
/// It is not what was written, or that cannot be known.
pub fn verify(path: &Path, key: Option<&AuditKey>, head: Option<&Head>) -> Result<Verified, VerifyError> {
    let mut tries = 1;
    loop {
        let result = verify_files(path, key, head);
        match result {
            // The oldest was removed since they were listed.
            Err(VerifyError::Io { source, .. }) if is_missing(&source) && tries < MOST_TRIES => tries += 1,
            result => return result,
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// All files of a log, oldest first.
pub(super) fn files_of(path: &Path) -> Result<Vec<PathBuf>, VerifyError> {
    names_of(path)?.existing().map_err(VerifyError::io(path))
}

fn names_of(path: &Path) -> Result<Names, VerifyError> {
    let not_found = || VerifyError::NotFound {
        path: path.to_owned(),
    };
    let names = Names::new(path).ok_or_else(not_found)?;
    match names.existing() {
        Ok(files) if files.is_empty() => Err(not_found()),
        Err(error) if is_missing(&error) => Err(not_found()),
        _ => Ok(names),
    }
}

fn verify_files(path: &Path, key: Option<&AuditKey>, head: Option<&Head>) -> Result<Verified, VerifyError> {
    let names = names_of(path)?;
    let mut walker = Walker::new(key);
    let mut found = None;
    let mut each = |at: Head| {
        if head.is_some_and(|head| head.seq == at.seq) {
            found = Some(at);
        }
    };
    let mut files = Vec::new();
    let mut walk = |walker: &mut Walker<'_>, path: PathBuf, file: File, is_last: bool| {
        let walked = walker.file(&path, file, is_last, &mut each);
        files.push(path);
        walked
    };
    let open = |path: &Path| File::open(path).map_err(VerifyError::io(path));
    let numbers = names.numbers().map_err(VerifyError::io(path))?;
    for number in &numbers {
        let aside = names.aside(*number);
        walk(&mut walker, aside.clone(), open(&aside)?, false)?;
    }
    let mut last = numbers.last().copied();
    loop {
        // In this order: what was open before the next one was not there yet is the next one, whatever becomes of its
        // name while it is read.
        let active = File::open(names.active());
        let next = last.map(|last| (last + 1, names.aside(last + 1)));
        if let Some((number, aside)) = next
            && aside.try_exists().map_err(VerifyError::io(&aside))?
        {
            walk(&mut walker, aside.clone(), open(&aside)?, false)?;
            last = Some(number);
            continue;
        }
        match active {
            Ok(file) => walk(&mut walker, path.to_owned(), file, true)?,
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(VerifyError::io(path)(error)),
        }
        break;
    }
    let (Some(first), Some(last), Some(file)) = (walker.first, walker.last, files.last()) else {
        return Err(VerifyError::NotFound {
            path: path.to_owned(),
        });
    };
    let tampered = |seq, what, intact| Tampered {
        file: file.clone(),
        line: 0,
        seq,
        what,
        intact,
    };
    if first > walker.removed.saturating_add(1) && holds("audit-start") {
        let mut tampered = tampered(first, Tampering::StartRemoved, 0);
        if let Some(file) = files.first() {
            (tampered.file, tampered.line) = (file.clone(), 1);
        }
        return Err(tampered.into());
    }
    match (head.filter(|_| holds("audit-head")), found) {
        (Some(head), Some(found)) if *head != found => {
            return Err(tampered(head.seq, Tampering::Rewritten, 0).into());
        }
        (Some(head), None) if head.seq > last.seq => {
            return Err(tampered(head.seq, Tampering::Truncated, last.seq).into());
        }
        (Some(head), None) if head.seq > 0 => return Err(VerifyError::HeadRemoved { seq: head.seq }),
        _ => {}
    }
    Ok(Verified {
        first,
        head: last,
        files: files.len(),
        totals: walker.totals,
        is_closed: walker.is_closed && walker.torn.is_none(),
        crashes: walker.crashes,
        torn_bytes: walker.torn.map_or(0, |torn| torn.bytes),
        key: match (walker.file_key, key) {
            (None, _) => KeyCheck::None,
            (Some(_), None) => KeyCheck::NotGiven,
            (Some(_), Some(_)) => KeyCheck::Checked,
        },
    })
}

impl VerifyError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}
