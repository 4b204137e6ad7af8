//! Reads a log line by line and checks each against the one before it. Bounded memory, whatever the file holds.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::chain::{AuditKey, Body, Head, Link, MAX_LINE_BYTES, Mac, Note};
use super::totals::Totals;
use super::verify::{Tampered, Tampering, VerifyError};
use crate::defence::holds;

/// Lines after a wrong one that are looked at to tell what was done.
const LOOK_AHEAD: usize = 64;
/// Of an unfinished line, how much is kept to be shown.
const TORN_SHOWN: usize = 512;

/// Follows a log through its files, oldest first.
#[derive(Debug, Default)]
pub(super) struct Walker<'k> {
    pub(super) key: Option<&'k AuditKey>,
    /// The number of the first line.
    pub(super) first: Option<u64>,
    /// The last line that was fine, and the one before it.
    pub(super) last: Option<Head>,
    before: Option<Head>,
    /// Where the last one stands.
    at: (PathBuf, u64),
    pub(super) totals: Totals,
    /// Number of the file read last, and which key its first line names.
    pub(super) file: u64,
    pub(super) file_key: Option<String>,
    /// The last record of files that were removed to make room.
    pub(super) removed: u64,
    /// Whether the last line says that the log was closed.
    pub(super) is_closed: bool,
    /// How often a program went away without closing the log.
    pub(super) crashes: u64,
    /// An unfinished line at the very end.
    pub(super) torn: Option<Torn>,
}

/// A line without an end.
#[derive(Debug, Clone)]
pub(super) struct Torn {
    pub(super) bytes: u64,
    pub(super) shown: String,
}

impl<'k> Walker<'k> {
    pub(super) fn new(key: Option<&'k AuditKey>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    /// Goes through one file. In the last file of a log, the end of a line may be missing.
    pub(super) fn file(
        &mut self,
        path: &Path,
        file: File,
        is_last: bool,
        each: &mut dyn FnMut(Head),
    ) -> Result<(), VerifyError> {
        let mut lines = Lines::new(file);
        let mut line = Vec::new();
        loop {
            let got = lines.next(&mut line).map_err(VerifyError::io(path))?;
            match got {
                Got::End => return Ok(()),
                Got::Torn if is_last => {
                    let shown = line.get(..TORN_SHOWN).unwrap_or(&line);
                    self.torn = Some(Torn {
                        bytes: line.len() as u64,
                        shown: String::from_utf8_lossy(shown).into_owned(),
                    });
                    return Ok(());
                }
                Got::Line | Got::Torn | Got::TooLong => {}
            }
            let link = match got {
                Got::Line => Link::parse(&line, self.key),
                _ => None,
            };
            let body = Body::parse(&line);
            let link = match link {
                Some(link) if self.accepts(&link, &body)? => link,
                _ => return Err(self.diagnose(path, &mut lines, link)),
            };
            let head = Head {
                seq: link.seq,
                hash: link.hash,
            };
            self.first.get_or_insert(link.seq);
            self.before = self.last.replace(head);
            if self.at.0 != path {
                path.clone_into(&mut self.at.0);
            }
            self.at.1 = lines.number;
            self.take(&body);
            each(head);
        }
    }

    /// Whether this line comes next.
    fn accepts(&self, link: &Link, body: &Body) -> Result<bool, VerifyError> {
        let follows = match &self.last {
            Some(last) => last.is_followed_by(link) || !holds("audit-chain"),
            // The first line of what is there: of a log whose older files were removed, it is taken as it is.
            None => {
                let is_first = link.seq == 1 && link.prev == Head::NONE.hash;
                matches!(body, Body::Note(Note::File { .. })) && (is_first || link.seq > 1)
            }
        };
        let (Some(key), true) = (self.key, follows) else {
            return Ok(follows);
        };
        if link.mac == Mac::Good {
            return Ok(true);
        }
        match body {
            Body::Note(Note::File { key: None, .. }) if self.last.is_none() => Err(VerifyError::NotKeyed),
            Body::Note(Note::File { key: Some(id), .. }) if self.last.is_none() && id != key.id() => {
                Err(VerifyError::WrongKey { log: shown_id(id) })
            }
            _ => Ok(!holds("audit-keyed-log")),
        }
    }

    fn take(&mut self, body: &Body) {
        self.is_closed = false;
        match body {
            Body::Event(event) => self.totals.add(event),
            Body::Note(Note::File {
                file, key, totals, ..
            }) => {
                self.file = *file;
                self.file_key.clone_from(key);
                if self.before.is_none() {
                    self.totals = *totals;
                }
            }
            Body::Note(Note::Start { in_order, .. }) => self.crashes += u64::from(!in_order),
            Body::Note(Note::Stop { .. }) => self.is_closed = true,
            Body::Note(Note::Removed { last, .. }) => self.removed = self.removed.max(*last),
            Body::Note(Note::Lost { allowed, denied, .. }) => self.totals.add_lost(*allowed, *denied),
            Body::Note(Note::Failed { .. }) | Body::Unknown => {}
        }
    }

    /// What was done to a log whose next line is not the one that should come.
    fn diagnose(&self, path: &Path, lines: &mut Lines, link: Option<Link>) -> VerifyError {
        let number = lines.number;
        let here = |seq: u64, what: Tampering| Tampered {
            file: path.to_owned(),
            line: number,
            seq,
            what,
            intact: self.last.map_or(0, |last| last.seq),
        };
        let Some(last) = self.last else {
            return here(link.map_or(1, |link| link.seq), Tampering::StartRemoved).into();
        };
        let there = |what: Tampering| Tampered {
            file: self.at.0.clone(),
            line: self.at.1,
            seq: last.seq,
            what,
            intact: last.seq - 1,
        };
        let expected = last.seq.saturating_add(1);
        let following = self.following(lines);
        if following.iter().flatten().any(|next| last.is_followed_by(next)) {
            return here(expected, Tampering::Inserted).into();
        }
        let next = following.first().copied().flatten();
        let tampered = match link {
            None => here(expected, Tampering::Changed),
            Some(link) if last.is_followed_by(&link) => here(link.seq, Tampering::Forged),
            Some(link) if link.seq > expected => here(
                link.seq,
                Tampering::Removed {
                    first: expected,
                    last: link.seq - 1,
                },
            ),
            Some(link) if link.seq == expected => {
                // Either this line names another hash than it did, or the line before it has another.
                let goes_on = next.filter(|next| Some(next.seq) == link.seq.checked_add(1));
                let is_vouched = goes_on.is_none_or(|next| next.prev == link.hash);
                if link.mac == Mac::Bad || !is_vouched {
                    here(link.seq, Tampering::Changed)
                } else {
                    there(Tampering::Changed)
                }
            }
            // Of lines with the same number, the real one is that from which the log goes on.
            Some(link) => {
                let others: Vec<_> = std::iter::once(Some(link)).chain(following).collect();
                let is_real = |pair: &[Option<Link>]| {
                    let [Some(this), Some(next)] = pair else {
                        return false;
                    };
                    let head = Head {
                        seq: this.seq,
                        hash: this.hash,
                    };
                    this.seq == last.seq
                        && self.before.is_some_and(|before| before.is_followed_by(this))
                        && head.is_followed_by(next)
                };
                if others.windows(2).any(is_real) {
                    there(Tampering::Inserted)
                } else {
                    here(link.seq, Tampering::Inserted)
                }
            }
        };
        tampered.into()
    }

    fn following(&self, lines: &mut Lines) -> Vec<Option<Link>> {
        let mut following = Vec::new();
        let mut line = Vec::new();
        while following.len() < LOOK_AHEAD {
            match lines.next(&mut line) {
                Ok(Got::Line) => following.push(Link::parse(&line, self.key)),
                Ok(Got::TooLong) => following.push(None),
                Ok(Got::Torn | Got::End) | Err(_) => break,
            }
        }
        following
    }
}

fn shown_id(id: &str) -> String {
    super::text::shown(id).into_owned()
}

/// Lines of bounded length.
struct Lines {
    reader: BufReader<File>,
    /// Of the line read last; the first is 1.
    number: u64,
}

enum Got {
    Line,
    /// Longer than any line of a log. It was skipped.
    TooLong,
    /// The last bytes, without a line end.
    Torn,
    End,
}

impl Lines {
    fn new(file: File) -> Self {
        Self {
            reader: BufReader::with_capacity(64 << 10, file),
            number: 0,
        }
    }

    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Got> {
        line.clear();
        let bound = if holds("audit-line-bound") {
            MAX_LINE_BYTES as u64
        } else {
            u64::MAX - 1
        };
        (&mut self.reader).take(bound + 1).read_until(b'\n', line)?;
        if line.is_empty() {
            return Ok(Got::End);
        }
        self.number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(Got::Line);
        }
        if line.len() as u64 <= bound {
            return Ok(Got::Torn);
        }
        line.clear();
        loop {
            let buffer = self.reader.fill_buf()?;
            let end = memchr::memchr(b'\n', buffer);
            let (length, is_over) = match end {
                Some(end) => (end + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(length);
            if is_over {
                return Ok(Got::TooLong);
            }
        }
    }
}

/// What each whole line of a file says, in its place or not.
pub(super) fn each_line(path: &Path, each: &mut dyn FnMut(Body)) -> io::Result<()> {
    let mut lines = Lines::new(File::open(path)?);
    let mut line = Vec::new();
    loop {
        match lines.next(&mut line)? {
            Got::Line => each(Body::parse(&line)),
            Got::TooLong => each(Body::Unknown),
            Got::Torn | Got::End => return Ok(()),
        }
    }
}
