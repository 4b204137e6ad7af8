//! The files of a log that is written: opened after whatever happened to the program before, written so that a line is
//! there whole or not at all, moved aside when full, removed when there are too many.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use sandbox_core::audit::AuditEvent;

use super::AuditLogError;
use super::names::Names;
use crate::audit::chain::{AuditKey, Body, Chain, FORMAT, Head, Note, presentable};
use crate::audit::text::shown;
use crate::audit::totals::Totals;
use crate::audit::verify::VerifyError;
use crate::audit::walk::Walker;
use crate::defence::holds;

/// How much is written at once: bounds what is encoded in vain when the disk is full.
const CHUNK_BYTES: usize = 256 << 10;
/// Nobody else reads what was attempted.
const MODE: u32 = 0o600;

#[derive(Debug)]
pub(super) struct Files {
    names: Names,
    /// `None` between moving one file aside and beginning the next.
    active: Option<File>,
    /// Bytes of the active file that are whole lines. What stands behind them is left of a write that failed.
    length: u64,
    has_rest: bool,
    number: u64,
    aside: VecDeque<u64>,
    max_bytes: u64,
    max_aside: Option<usize>,
    chain: Chain,
    totals: Totals,
    /// Whether something was written since the last sync.
    is_dirty: bool,
    _lock: Lock,
}

/// What was found at the end of a log.
struct Found {
    number: u64,
    head: Head,
    totals: Totals,
    length: u64,
    is_closed: bool,
    torn: Option<crate::audit::walk::Torn>,
}

impl Files {
    /// Opens the log, goes on where it ended, and says in it what was found.
    pub(super) fn open(
        names: Names,
        key: Option<Arc<AuditKey>>,
        max_bytes: u64,
        max_aside: Option<usize>,
    ) -> Result<Self, AuditLogError> {
        let io = AuditLogError::io(names.active());
        let lock = lock(&names)?;
        let aside: VecDeque<u64> = names.numbers().map_err(&io)?.into();
        let mut active = match options().append(true).read(true).open(names.active()) {
            Ok(file) if file.metadata().map_err(&io)?.is_file() => Some(file),
            Ok(_) => return Err(io(io::Error::other("it is no file"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io(error)),
        };
        if let Some(file) = &active {
            restrict(file).map_err(&io)?;
        }
        let mut found = match &active {
            Some(_) => examine(names.active(), key.as_deref())?,
            None => None,
        };
        if found.is_none() {
            // Nothing in it, or the start of its first line: the program ended while it began the file.
            if let Some(file) = active.take() {
                drop(file);
                std::fs::remove_file(names.active()).map_err(&io)?;
            }
            if let Some(number) = aside.back() {
                found = examine(&names.aside(*number), key.as_deref())?;
            }
        }
        let last_number = aside.back().copied().unwrap_or(0);
        let mut files = Self {
            number: match &found {
                Some(found) if active.is_some() => found.number,
                _ => last_number,
            },
            active,
            length: found.as_ref().map_or(0, |found| found.length),
            has_rest: found.as_ref().is_some_and(|found| found.torn.is_some()),
            chain: Chain {
                head: found.as_ref().map_or(Head::NONE, |found| found.head),
                key,
            },
            totals: found.as_ref().map_or(Totals::default(), |found| found.totals),
            names,
            aside,
            max_bytes,
            max_aside,
            is_dirty: false,
            _lock: lock,
        };
        let io = AuditLogError::io(files.names.active());
        files.ensure_open().map_err(&io)?;
        let torn = found.as_ref().and_then(|found| found.torn.clone());
        let start = Note::Start {
            time: now(),
            in_order: found.is_none_or(|found| found.is_closed),
            torn_bytes: torn.as_ref().map_or(0, |torn| torn.bytes),
            torn: torn.map(|torn| shown(&torn.shown).into_owned()),
        };
        files.note(&start).map_err(&io)?;
        files.sync().map_err(&io)?;
        Ok(files)
    }

    pub(super) fn head(&self) -> Head {
        self.chain.head
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Writes the first of these events, and says how many.
    pub(super) fn write(&mut self, events: &[Arc<AuditEvent>]) -> io::Result<usize> {
        self.rotate_if_full()?;
        self.ensure_open()?;
        let room = self.max_bytes.saturating_sub(self.length);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let (mut chain, mut totals) = (self.chain.clone(), self.totals);
        let (mut buffer, mut count) = (Vec::with_capacity(room.min(CHUNK_BYTES) + 4096), 0);
        for event in events {
            chain.append(&mut buffer, &*presentable(event))?;
            totals.add(event);
            count += 1;
            if buffer.len() >= room {
                break;
            }
        }
        self.put(&buffer)?;
        (self.chain, self.totals) = (chain, totals);
        Ok(count)
    }

    /// Writes what the log says about itself.
    pub(super) fn note(&mut self, note: &Note) -> io::Result<()> {
        self.ensure_open()?;
        let mut chain = self.chain.clone();
        let mut buffer = Vec::new();
        chain.append(&mut buffer, note)?;
        self.put(&buffer)?;
        self.chain = chain;
        if let Note::Lost { allowed, denied, .. } = note {
            self.totals.add_lost(*allowed, *denied);
        }
        Ok(())
    }

    /// Makes what was written survive a loss of power.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = &self.active {
            file.sync_data()?;
        }
        self.is_dirty = false;
        Ok(())
    }

    /// All of these bytes, or none.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.cut()?;
        let Some(file) = &mut self.active else {
            return Err(io::Error::other("no file is open"));
        };
        let written = file.write_all(bytes);
        if let Err(error) = written {
            self.has_rest = true;
            // Otherwise it is cut off before the next write.
            let _ = self.cut();
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.is_dirty = true;
        Ok(())
    }

    /// Cuts off what is left of a line that was not finished.
    fn cut(&mut self) -> io::Result<()> {
        if self.has_rest
            && holds("audit-torn-line")
            && let Some(file) = &self.active
        {
            file.set_len(self.length)?;
        }
        self.has_rest = false;
        Ok(())
    }

    fn rotate_if_full(&mut self) -> io::Result<()> {
        if self.active.is_none() || self.length < self.max_bytes {
            return Ok(());
        }
        self.sync()?;
        let aside = self.names.aside(self.number);
        if aside.try_exists()? {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is in the way", aside.display()),
            ));
        }
        std::fs::rename(self.names.active(), &aside)?;
        self.active = None;
        self.aside.push_back(self.number);
        Ok(())
    }

    /// Begins a file where there is none.
    fn ensure_open(&mut self) -> io::Result<()> {
        if self.active.is_none() {
            let file = options()
                .append(true)
                .create_new(true)
                .open(self.names.active())?;
            let begun = restrict(&file).and_then(|()| self.begin(file));
            if begun.is_err() {
                self.active = None;
                let _ = std::fs::remove_file(self.names.active());
            }
            begun?;
        }
        self.remove_oldest()
    }

    fn begin(&mut self, file: File) -> io::Result<()> {
        (self.active, self.length, self.has_rest) = (Some(file), 0, false);
        let note = Note::File {
            time: now(),
            format: FORMAT,
            file: self.number + 1,
            key: self.chain.key.as_ref().map(|key| key.id().to_owned()),
            totals: self.totals,
        };
        let mut chain = self.chain.clone();
        let mut buffer = Vec::new();
        chain.append(&mut buffer, &note)?;
        self.put(&buffer)?;
        self.sync()?;
        // The name, too, is there after a loss of power.
        File::open(self.names.directory())?.sync_all()?;
        self.chain = chain;
        self.number += 1;
        Ok(())
    }

    /// Removes the oldest files while there are too many, each after the log says so.
    fn remove_oldest(&mut self) -> io::Result<()> {
        let Some(max_aside) = self.max_aside else {
            return Ok(());
        };
        while self.aside.len() > max_aside && holds("audit-bounded-files") {
            let Some(oldest) = self.aside.front().copied() else {
                break;
            };
            let next = match self.aside.get(1) {
                Some(next) => self.names.aside(*next),
                None => self.names.active().to_owned(),
            };
            // Of a file that somebody else took away or changed, verifying tells.
            let last = first_seq(&next).map_or(0, |first| first.saturating_sub(1));
            let mut chain = self.chain.clone();
            let mut buffer = Vec::new();
            let note = Note::Removed {
                time: now(),
                file: oldest,
                last,
            };
            chain.append(&mut buffer, &note)?;
            self.put(&buffer)?;
            self.chain = chain;
            self.sync()?;
            match std::fs::remove_file(self.names.aside(oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.aside.pop_front();
        }
        Ok(())
    }
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Never through a link that somebody put there.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.mode(MODE).custom_flags(flags.bits().cast_signed());
    options
}

/// Whatever the umask, or whoever made the file.
fn restrict(file: &File) -> io::Result<()> {
    if holds("audit-private-file") {
        file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
    }
    Ok(())
}

/// Held by the one that writes.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Not by closing the file alone: a child that this process is just starting holds it, too, until it runs another
        // program.
        let _ = self.0.unlock();
    }
}

fn lock(names: &Names) -> Result<Lock, AuditLogError> {
    let path = names.lock();
    let io = AuditLogError::io(&path);
    let file = options().write(true).create(true).open(&path).map_err(&io)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) if holds("audit-one-writer") => Err(AuditLogError::Locked {
            path: names.active().to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(io(error)),
        _ => Ok(Lock(file)),
    }
}

/// Checks a file and finds its end. `None` if it has no whole line.
fn examine(path: &Path, key: Option<&AuditKey>) -> Result<Option<Found>, AuditLogError> {
    let mut walker = Walker::new(key);
    let file = File::open(path).map_err(AuditLogError::io(path))?;
    match walker.file(path, file, true, &mut |_| {}) {
        Ok(()) => {}
        Err(VerifyError::Io { source, .. }) => return Err(AuditLogError::io(path)(source)),
        Err(error @ (VerifyError::WrongKey { .. } | VerifyError::NotKeyed)) => {
            return Err(AuditLogError::OtherKey(error));
        }
        Err(error) => return Err(AuditLogError::Damaged(error)),
    }
    let Some(head) = walker.last else {
        return Ok(None);
    };
    // The other way round, the walker says so.
    if let (Some(id), None) = (&walker.file_key, key) {
        return Err(AuditLogError::KeyNeeded {
            log: shown(id).into_owned(),
        });
    }
    let all = path.metadata().map_err(AuditLogError::io(path))?.len();
    let torn = walker.torn;
    Ok(Some(Found {
        number: walker.file,
        head,
        totals: walker.totals,
        length: all.saturating_sub(torn.as_ref().map_or(0, |torn| torn.bytes)),
        is_closed: walker.is_closed && torn.is_none(),
        torn,
    }))
}

/// The number of a file's first record.
fn first_seq(path: &Path) -> Option<u64> {
    use std::io::{BufRead, BufReader, Read};

    let mut line = Vec::new();
    let bound = crate::audit::chain::MAX_LINE_BYTES as u64;
    let file = BufReader::new(File::open(path).ok()?);
    file.take(bound).read_until(b'\n', &mut line).ok()?;
    let link = crate::audit::chain::Link::parse(line.trim_ascii_end(), None)?;
    matches!(Body::parse(line.trim_ascii_end()), Body::Note(Note::File { .. })).then_some(link.seq)
}
