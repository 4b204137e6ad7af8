//! The record of one attempt while it goes on. It is written when its last part is dropped, however that comes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use http::StatusCode;
use sandbox_core::SandboxId;
use sandbox_core::audit::{AuditDecision, AuditEvent};

use super::Hub;

/// Bounds what a guest can write into the log with one request.
const MAX_TEXT_BYTES: usize = 1024;

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
    host: String,
    port: u16,
    method: Option<String>,
    path: Option<String>,
    decision: AuditDecision,
    rule: String,
    credential: Option<String>,
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
                host: String::new(),
                port: 0,
                method: None,
                path: None,
                decision: AuditDecision::Denied,
                rule: String::new(),
                credential: None,
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

    pub(crate) fn request(&self, method: &str, path: Option<&str>) {
        self.tell(|told| {
            told.method = Some(shown(method));
            told.path = path.map(shown);
        });
    }

    pub(crate) fn allowed(&self, rule: &str) {
        self.tell(|told| {
            told.decision = AuditDecision::Allowed;
            rule.clone_into(&mut told.rule);
        });
    }

    pub(crate) fn denied(&self, rule: &str, outcome: &str) {
        self.tell(|told| {
            told.decision = AuditDecision::Denied;
            if !rule.is_empty() {
                rule.clone_into(&mut told.rule);
            }
            told.outcome = shown(outcome);
        });
    }

    pub(crate) fn credential(&self, service: &str) {
        self.tell(|told| told.credential = Some(service.to_owned()));
    }

    pub(crate) fn status(&self, status: StatusCode) {
        self.tell(|told| told.status = Some(status.as_u16()));
    }

    /// How it ended; the first telling stays, as it is the cause.
    pub(crate) fn outcome(&self, outcome: &str) {
        self.tell(|told| {
            if told.outcome.is_empty() {
                told.outcome = shown(outcome);
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

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if *self.silent.get_mut() {
            return;
        }
        let told = self.told.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.hub.record(AuditEvent {
            time: self.time,
            sandbox: self.sandbox.clone(),
            host: std::mem::take(&mut told.host),
            port: told.port,
            method: told.method.take(),
            path: told.path.take(),
            decision: told.decision,
            rule: std::mem::take(&mut told.rule),
            credential: told.credential.take(),
            status: told.status,
            bytes_out: *self.bytes_out.get_mut(),
            bytes_in: *self.bytes_in.get_mut(),
            duration: self.started.elapsed(),
            outcome: std::mem::take(&mut told.outcome),
            attempts: 1,
        });
    }
}

/// Text from outside in a bounded form that no terminal and no line-based tool trips over.
fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_TEXT_BYTES));
    for c in text.chars() {
        if out.len() >= MAX_TEXT_BYTES {
            out.push('…');
            break;
        }
        if c.is_ascii_graphic() || c == ' ' {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    out
}
