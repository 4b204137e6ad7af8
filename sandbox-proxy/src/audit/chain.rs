//! What ties the lines of a log together: each carries its number and the SHA-256 of the line before it, and, in a log
//! with a key, an HMAC of itself.
//!
//! `{"seq":17,"prev":"<hash of line 16>", … ,"mac":"<HMAC-SHA-256 of the line up to this comma>"}`. Whoever changes a
//! line must change all that follow; with a key, whoever does not have it cannot do that either. Hashes are of the
//! line without its line end, so `sed -n 16p audit.jsonl | tr -d '\n' | sha256sum` gives the `prev` of line 17.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::{digest, hmac};
use sandbox_core::audit::AuditEvent;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::text::shown;
use super::totals::Totals;
use crate::defence::holds;
use crate::encoding::hex;

/// Longest line that is read: several times what is ever written. Bounds memory before a hostile file.
pub(super) const MAX_LINE_BYTES: usize = 64 << 10;
/// Shortest secret that makes a key: the strength of the hash.
const MIN_KEY_BYTES: usize = 32;
/// What stands before and after the HMAC at the end of a line.
const MAC_BEFORE: &[u8] = b",\"mac\":\"";
const MAC_AFTER: &[u8] = b"\"}";
/// HMAC-SHA-256 in hexadecimal.
const MAC_DIGITS: usize = 64;

type Hash = [u8; 32];

/// Where a log stands: the number and hash of its last record. Kept elsewhere, it shows later whether the log still
/// holds all it held then. Its text form is `17:6bb1…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Head {
    /// Number of the record; the first is 1, and 0 stands for none.
    pub seq: u64,
    /// SHA-256 of its line.
    pub hash: [u8; 32],
}

/// A text that is no [`Head`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no head of an audit log: give its number, a colon, and 64 hexadecimal digits")]
pub struct InvalidHead;

/// The secret of a log whose lines cannot be made by others. The orchestrator keeps it, away from the log.
#[derive(Clone)]
pub struct AuditKey {
    key: hmac::Key,
    id: String,
}

/// A secret too short for an [`AuditKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key of an audit log needs {MIN_KEY_BYTES} bytes or more, such as `openssl rand -hex 32` gives")]
pub struct InvalidAuditKey;

/// The end of a log, to which lines are added.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    pub(super) head: Head,
    pub(super) key: Option<Arc<AuditKey>>,
}

/// How a line is tied to the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) prev: Hash,
    pub(super) hash: Hash,
    pub(super) mac: Mac,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mac {
    Missing,
    Good,
    Bad,
    /// There is one, and no key to check it with.
    Unchecked,
}

/// What a line says.
#[derive(Debug)]
pub(super) enum Body {
    Event(Box<AuditEvent>),
    Note(Note),
    /// Something of a later version.
    Unknown,
}

/// What a log says about itself. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "log", rename_all = "kebab-case")]
pub(super) enum Note {
    /// The first line of each file.
    File {
        time: u64,
        /// Version of the format.
        format: u32,
        /// Number of the file; the first is 1.
        file: u64,
        /// Which key the log has.
        key: Option<String>,
        /// Of all files before this one.
        totals: Totals,
    },
    /// A program opened the log.
    Start {
        time: u64,
        /// Whether the program before it closed it.
        in_order: bool,
        /// How many bytes of a line that was never finished were cut off, and the first of them.
        torn_bytes: u64,
        torn: Option<String>,
    },
    /// It was closed in order.
    Stop { time: u64 },
    /// The oldest file is about to be removed to make room; its last record has this number.
    Removed { time: u64, file: u64, last: u64 },
    /// So many records could not be kept.
    Lost { time: u64, allowed: u64, denied: u64 },
    /// From then until now the log could not be written.
    Failed { time: u64, until: u64, why: String },
}

/// Version of the format.
pub(super) const FORMAT: u32 = 1;

impl Head {
    /// That of a log without records.
    pub(super) const NONE: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// Whether this line comes next.
    pub(super) fn is_followed_by(&self, link: &Link) -> bool {
        self.seq.checked_add(1) == Some(link.seq) && link.prev == self.hash
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, hex(&self.hash))
    }
}

impl FromStr for Head {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let (seq, hash) = text.trim().split_once(':').ok_or(InvalidHead)?;
        let seq = seq.parse().map_err(|_| InvalidHead)?;
        let hash = unhex(hash.as_bytes()).ok_or(InvalidHead)?;
        Ok(Self { seq, hash })
    }
}

impl AuditKey {
    /// The key made from this secret, of 32 bytes or more.
    ///
    /// # Errors
    /// The secret is too short.
    pub fn new(secret: &[u8]) -> Result<Self, InvalidAuditKey> {
        if secret.len() < MIN_KEY_BYTES {
            return Err(InvalidAuditKey);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let name = hmac::sign(&key, b"name of the key of an audit log");
        let id = hex(&name.as_ref()[..8]);
        Ok(Self { key, id })
    }

    /// What it is called in the log: tells one key from another, and nothing about either.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditKey({})", self.id)
    }
}

impl Chain {
    /// Adds a line that says this to `to`.
    pub(super) fn append(&mut self, to: &mut Vec<u8>, body: &impl Serialize) -> std::io::Result<()> {
        let start = to.len();
        let appended = self.try_append(to, body);
        if appended.is_err() {
            to.truncate(start);
        }
        appended
    }

    fn try_append(&mut self, to: &mut Vec<u8>, body: &impl Serialize) -> std::io::Result<()> {
        let start = to.len();
        let seq = self.head.seq.saturating_add(1);
        write!(to, "{{\"seq\":{seq},\"prev\":\"")?;
        to.extend_from_slice(hex(&self.head.hash).as_bytes());
        to.push(b'"');
        let opening = to.len();
        serde_json::to_writer(&mut *to, body)?;
        // The brace that opens the body.
        if let Some(brace) = to.get_mut(opening) {
            *brace = b',';
        }
        if let Some(key) = &self.key {
            to.pop();
            let mac = hmac::sign(&key.key, to.get(start..).unwrap_or_default());
            to.extend_from_slice(MAC_BEFORE);
            to.extend_from_slice(hex(mac.as_ref()).as_bytes());
            to.extend_from_slice(MAC_AFTER);
        }
        let hash = sha256(to.get(start..).unwrap_or_default());
        to.push(b'\n');
        self.head = Head { seq, hash };
        Ok(())
    }
}

impl Link {
    /// How this line, without its line end, is tied to others. `None` for what is no line of a log.
    pub(super) fn parse(line: &[u8], key: Option<&AuditKey>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            seq: u64,
            #[serde(borrow)]
            prev: Cow<'a, str>,
        }
        let envelope: Envelope<'_> = serde_json::from_slice(line).ok()?;
        Some(Self {
            seq: envelope.seq,
            prev: unhex(envelope.prev.as_bytes())?,
            hash: sha256(line),
            mac: mac_of(line, key),
        })
    }
}

fn mac_of(line: &[u8], key: Option<&AuditKey>) -> Mac {
    let split = || {
        let (rest, after) = line.split_at_checked(line.len().checked_sub(MAC_AFTER.len())?)?;
        let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(MAC_DIGITS)?)?;
        let (signed, before) = rest.split_at_checked(rest.len().checked_sub(MAC_BEFORE.len())?)?;
        (before == MAC_BEFORE && after == MAC_AFTER).then_some((signed, unhex(digits)?))
    };
    match (split(), key) {
        (None, _) => Mac::Missing,
        (Some(_), None) => Mac::Unchecked,
        (Some((signed, mac)), Some(key)) if hmac::verify(&key.key, signed, &mac).is_ok() => Mac::Good,
        (Some(_), Some(_)) if !holds("audit-keyed-chain") => Mac::Good,
        (Some(_), Some(_)) => Mac::Bad,
    }
}

impl Body {
    /// What a line says.
    pub(super) fn parse(line: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            log: Option<IgnoredAny>,
        }
        let is_note = serde_json::from_slice::<Kind>(line).is_ok_and(|kind| kind.log.is_some());
        if is_note {
            return serde_json::from_slice(line).map_or(Self::Unknown, Self::Note);
        }
        serde_json::from_slice(line).map_or(Self::Unknown, |event| Self::Event(Box::new(event)))
    }
}

/// An event with nothing in it that may not be in a log, wherever it comes from.
pub(super) fn presentable(event: &AuditEvent) -> Cow<'_, AuditEvent> {
    let texts = [&event.host, &event.rule, &event.outcome].into_iter();
    let options = [
        &event.method,
        &event.path,
        &event.credential,
        &event.credential_reason,
    ]
    .into_iter();
    let mut all = texts.chain(options.flatten());
    if all.all(|text| matches!(shown(text), Cow::Borrowed(_))) {
        return Cow::Borrowed(event);
    }
    let owned = |text: &String| shown(text).into_owned();
    Cow::Owned(AuditEvent {
        host: owned(&event.host),
        method: event.method.as_ref().map(owned),
        path: event.path.as_ref().map(owned),
        rule: owned(&event.rule),
        credential: event.credential.as_ref().map(owned),
        credential_reason: event.credential_reason.as_ref().map(owned),
        outcome: owned(&event.outcome),
        ..event.clone()
    })
}

fn sha256(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

fn unhex(digits: &[u8]) -> Option<Hash> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut hash = [0; 32];
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        if let [high, low] = *pair {
            *byte = value(high)? << 4 | value(low)?;
        }
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_read_back_from_its_text() {
        let mut chain = Chain {
            head: Head::NONE,
            key: None,
        };
        chain.append(&mut Vec::new(), &Note::Stop { time: 1 }).unwrap();
        assert_eq!(chain.head.to_string().parse(), Ok(chain.head));
        for bad in ["", "1", "1:", "x:00", &format!("1:{}", "A".repeat(64))] {
            assert_eq!(bad.parse::<Head>(), Err(InvalidHead));
        }
    }

    #[test]
    fn lines_follow_each_other_and_a_key_signs_them() {
        let key = Arc::new(AuditKey::new(&[7; 32]).unwrap());
        let mut chain = Chain {
            head: Head::NONE,
            key: Some(Arc::clone(&key)),
        };
        let mut lines = Vec::new();
        for time in 0..3 {
            chain.append(&mut lines, &Note::Stop { time }).unwrap();
        }
        let mut last = Head::NONE;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let link = Link::parse(line, Some(&key)).unwrap();
            assert!(last.is_followed_by(&link) && link.mac == Mac::Good);
            let other = AuditKey::new(&[8; 32]).unwrap();
            assert_eq!(Link::parse(line, Some(&other)).unwrap().mac, Mac::Bad);
            last = Head {
                seq: link.seq,
                hash: link.hash,
            };
        }
        assert_eq!(last, chain.head);
    }

    #[test]
    fn key_tells_nothing_and_short_ones_are_refused() {
        assert!(AuditKey::new(&[0; 31]).is_err());
        let key = AuditKey::new(b"0123456789abcdef0123456789abcdef").unwrap();
        assert!(!format!("{key:?}").contains("0123"), "{key:?}");
    }
}
