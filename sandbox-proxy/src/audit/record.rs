//! The record of one attempt while it goes on. It is written when its last part is dropped, however that comes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use http::StatusCode;
use sandbox_core::SandboxId;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditKind};

use super::Hub;
use super::text::{MAX_TEXT_BYTES, show};

/// Bytes of a text that are kept while an attempt goes on: more than are shown in the end, so that a secret is found
/// that begins within those. Bounds memory under many requests with long paths.
const KEPT_BYTES: usize = 4 * MAX_TEXT_BYTES;

#[derive(Debug)]
pub(crate) struct Record {
    hub: Arc<Hub>,
    sandbox: SandboxId,
    time: SystemTime,
    started: Instant,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    silent: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    kind: AuditKind,
    host: String,
    port: u16,
    method: Option<String>,
    path: Option<String>,
    decision: AuditDecision,
    rule: String,
    credential: Option<String>,
    credential_reason: Option<String>,
    status: Option<u16>,
    outcome: String,
}

impl Record {
    /// A record of an attempt that starts now; denied until [`allowed`](Self::allowed).
    pub(crate) fn start(hub: &Arc<Hub>, sandbox: &SandboxId) -> Arc<Self> {
        Arc::new(Self {
            hub: Arc::clone(hub),
            sandbox: sandbox.clone(),
            time: SystemTime::now(),
            started: Instant::now(),
            bytes_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            told: Mutex::new(Told {
                kind: AuditKind::Stream,
                host: String::new(),
                port: 0,
                method: None,
                path: None,
                decision: AuditDecision::Denied,
                rule: String::new(),
                credential: None,
                credential_reason: None,
                status: None,
                outcome: String::new(),
            }),
        })
    }

    pub(crate) fn target(&self, host: String, port: u16) {
        self.tell(|told| {
            told.host = host;
            told.port = port;
        });
    }

    /// A request, or the opening of a tunnel.
    pub(crate) fn request(&self, method: &str, path: Option<&str>) {
        let (method, path) = (self.kept(method), path.map(|path| self.kept(path)));
        self.tell(|told| {
            told.kind = if method == "CONNECT" {
                AuditKind::Tunnel
            } else {
                AuditKind::Request
            };
            told.method = Some(method);
            told.path = path;
        });
    }

    /// A question of this record type (RFC 1035 §3.2.2) for a name.
    pub(crate) fn lookup(&self, name: &str, record_type: &str) {
        let (name, record_type) = (self.kept(name), self.kept(record_type));
        self.tell(|told| {
            told.kind = AuditKind::Lookup;
            told.host = name;
            told.method = Some(record_type);
        });
    }

    pub(crate) fn allowed(&self, rule: &str) {
        self.tell(|told| {
            told.decision = AuditDecision::Allowed;
            rule.clone_into(&mut told.rule);
        });
    }

    pub(crate) fn denied(&self, rule: &str, outcome: &str) {
        let outcome = self.kept(outcome);
        self.tell(|told| {
            told.decision = AuditDecision::Denied;
            if !rule.is_empty() {
                rule.clone_into(&mut told.rule);
            }
            told.outcome = outcome;
        });
    }

    pub(crate) fn credential(&self, service: &str) {
        self.tell(|told| told.credential = Some(service.to_owned()));
    }

    /// Why there is a credential or none.
    pub(crate) fn credential_reason(&self, reason: &str) {
        let reason = self.kept(reason);
        self.tell(|told| told.credential_reason = Some(reason));
    }

    pub(crate) fn status(&self, status: StatusCode) {
        self.tell(|told| told.status = Some(status.as_u16()));
    }

    /// How it ended; the first telling stays, as it is the cause.
    pub(crate) fn outcome(&self, outcome: &str) {
        let outcome = self.kept(outcome);
        self.tell(|told| {
            if told.outcome.is_empty() {
                told.outcome = outcome;
            }
        });
    }

    pub(crate) fn add_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn add_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// Writes nothing: the requests inside have records of their own.
    pub(crate) fn silence(&self) {
        self.silent.store(true, Relaxed);
    }

    /// As much of a text as is kept. Of a longer one, no end of a secret that begins within it is cut off.
    fn kept(&self, text: &str) -> String {
        if text.len() <= KEPT_BYTES {
            return text.to_owned();
        }
        let mut whole = text.to_owned();
        self.hub.scrub(&mut whole);
        whole.truncate(whole.floor_char_boundary(KEPT_BYTES));
        whole
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if *self.silent.get_mut() || !self.hub.is_heard() {
            return;
        }
        let told = self.told.get_mut().unwrap_or_else(PoisonError::into_inner);
        let texts = [&mut told.host, &mut told.rule, &mut told.outcome].into_iter();
        let options = [
            &mut told.method,
            &mut told.path,
            &mut told.credential,
            &mut told.credential_reason,
        ]
        .into_iter();
        for text in texts.chain(options.filter_map(Option::as_mut)) {
            // First, since nothing is found in what is escaped or cut off.
            self.hub.scrub(text);
            show(text);
        }
        self.hub.record(AuditEvent {
            time: self.time,
            sandbox: self.sandbox.clone(),
            kind: told.kind,
            host: std::mem::take(&mut told.host),
            port: told.port,
            method: told.method.take(),
            path: told.path.take(),
            decision: told.decision,
            rule: std::mem::take(&mut told.rule),
            credential: told.credential.take(),
            credential_reason: told.credential_reason.take(),
            status: told.status,
            bytes_out: *self.bytes_out.get_mut(),
            bytes_in: *self.bytes_in.get_mut(),
            duration: self.started.elapsed(),
            outcome: std::mem::take(&mut told.outcome),
            attempts: 1,
        });
    }
}
