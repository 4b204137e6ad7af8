//! Keys of a day, region and service, and what they sign.

use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};
use sandbox_core::credential::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::encoding::hex;

pub(super) const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// The end of every scope.
pub(super) const TERMINATOR: &str = "aws4_request";

/// For when, which region and which service a signature is good.
#[derive(Debug)]
pub(super) struct Scope {
    /// `YYYYMMDD'T'HHMMSS'Z'`, in UTC.
    time: String,
    text: String,
    region: String,
    service: String,
}

/// A derived key, good for one scope.
#[derive(Debug)]
pub(super) struct Key(hmac::Key);

impl Scope {
    pub(super) fn new(now: SystemTime, region: &str, service: &str) -> Self {
        let now = OffsetDateTime::from(now);
        let (hour, minute, second) = now.to_hms();
        let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
        Self {
            time: format!("{day}T{hour:02}{minute:02}{second:02}Z"),
            text: format!("{day}/{region}/{service}/{TERMINATOR}"),
            region: region.to_owned(),
            service: service.to_owned(),
        }
    }

    pub(super) fn time(&self) -> &str {
        &self.time
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn key(&self, secret: &SecretString) -> Key {
        let first = Zeroizing::new(["AWS4", secret.expose_secret()].concat());
        let day = self.time.split('T').next().unwrap_or_default();
        let start = hmac::Key::new(hmac::HMAC_SHA256, first.as_bytes());
        let parts = [day, &self.region, &self.service, TERMINATOR];
        Key(parts.iter().fold(start, |key, part| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
        }))
    }

    /// What is signed for a whole request.
    pub(super) fn text_to_sign(&self, canonical: &[u8]) -> String {
        format!("{ALGORITHM}\n{}\n{}\n{}", self.time, self.text, sha256(canonical))
    }

    /// What is signed for a chunk: of the kind `what`, after another signature, with these hashes.
    pub(super) fn chunk_to_sign(&self, what: &str, previous: &str, hashes: &[&str]) -> String {
        let (time, text) = (&self.time, &self.text);
        format!(
            "{ALGORITHM}-{what}\n{time}\n{text}\n{previous}\n{}",
            hashes.join("\n")
        )
    }
}

impl Key {
    pub(super) fn sign(&self, text: &str) -> String {
        hex(hmac::sign(&self.0, text.as_bytes()).as_ref())
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}
