//! The record of one attempt while it goes on. It is written when its last part is dropped, however that comes.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use http::{Method, StatusCode};
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditKind};

use super::Hub;
use super::text::{MAX_TEXT_BYTES, show};
use crate::defence::holds;
use crate::services::Explanation;

/// Bytes of a text that are kept while an attempt goes on: more than are shown in the end, so that a secret is found
/// that begins within those. Bounds memory under many requests with long paths.
const KEPT_BYTES: usize = 4 * MAX_TEXT_BYTES;

#[derive(Debug)]
pub(crate) struct Record {
    hub: Arc<Hub>,
    time: SystemTime,
    started: Instant,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    silent: AtomicBool,
    told: Mutex<Told>,
}

/// Texts that many attempts have are shared with them: there is a record for each request, and most say the same.
#[derive(Debug)]
struct Told {
    kind: AuditKind,
    host: Option<Arc<str>>,
    port: u16,
    method: Option<Cow<'static, str>>,
    path: Option<String>,
    decision: AuditDecision,
    rule: Option<Arc<str>>,
    credential: Option<Arc<str>>,
    credential_reason: Option<Explanation>,
    status: Option<u16>,
    outcome: String,
}

impl Record {
    /// A record of an attempt that starts now; denied until [`allowed`](Self::allowed).
    pub(crate) fn start(hub: &Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            hub: Arc::clone(hub),
            time: SystemTime::now(),
            started: Instant::now(),
            bytes_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            told: Mutex::new(Told {
                kind: AuditKind::Stream,
                host: None,
                port: 0,
                method: None,
                path: None,
                decision: AuditDecision::Denied,
                rule: None,
                credential: None,
                credential_reason: None,
                status: None,
                outcome: String::new(),
            }),
        })
    }

    pub(crate) fn target(&self, host: &Arc<str>, port: u16) {
        self.tell(|told| {
            told.host = Some(Arc::clone(host));
            told.port = port;
        });
    }

    /// A request, or the opening of a tunnel.
    pub(crate) fn request(&self, method: &Method, path: Option<&str>) {
        let path = path.map(|path| self.kept(path));
        let kind = if method == Method::CONNECT {
            AuditKind::Tunnel
        } else {
            AuditKind::Request
        };
        let method = match *method {
            Method::CONNECT => "CONNECT".into(),
            Method::DELETE => "DELETE".into(),
            Method::GET => "GET".into(),
            Method::HEAD => "HEAD".into(),
            Method::PATCH => "PATCH".into(),
            Method::POST => "POST".into(),
            Method::PUT => "PUT".into(),
            _ => self.kept(method.as_str()).into(),
        };
        self.tell(|told| {
            told.kind = kind;
            told.method = Some(method);
            told.path = path;
        });
    }

    /// A question of this record type (RFC 1035 §3.2.2) for a name.
    pub(crate) fn lookup(&self, name: &str, record_type: &str) {
        let (name, record_type) = (self.kept(name), self.kept(record_type));
        self.tell(|told| {
            told.kind = AuditKind::Lookup;
            told.host = Some(name.into());
            told.method = Some(record_type.into());
        });
    }

    pub(crate) fn allowed(&self, rule: &Arc<str>) {
        self.tell(|told| {
            told.decision = AuditDecision::Allowed;
            told.rule = Some(Arc::clone(rule));
        });
    }

    pub(crate) fn denied(&self, rule: &str, outcome: &str) {
        let outcome = self.kept(outcome);
        self.tell(|told| {
            told.decision = AuditDecision::Denied;
            if !rule.is_empty() {
                told.rule = Some(rule.into());
            }
            told.outcome = outcome;
        });
    }

    pub(crate) fn credential(&self, service: &Arc<str>) {
        self.tell(|told| told.credential = Some(Arc::clone(service)));
    }

    /// Why there is a credential or none.
    pub(crate) fn credential_reason(&self, mut reason: Explanation) {
        if let Some(cause) = reason.cause_mut() {
            *cause = self.kept(cause);
        }
        if holds("credential-reason") {
            self.tell(|told| told.credential_reason = Some(reason));
        }
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

    pub(crate) fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Relaxed)
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
        let hub = &self.hub;
        let shown = |mut text: String| {
            // First, since nothing is found in what is escaped or cut off.
            hub.scrub(&mut text);
            show(&mut text);
            text
        };
        let shared = |text: Option<Arc<str>>| text.map(|text| shown(text.as_ref().to_owned()));
        let event = AuditEvent {
            time: self.time,
            sandbox: hub.sandbox().clone(),
            kind: told.kind,
            host: shared(told.host.take()).unwrap_or_default(),
            port: told.port,
            method: told.method.take().map(|method| shown(method.into_owned())),
            path: told.path.take().map(shown),
            decision: told.decision,
            rule: shared(told.rule.take()).unwrap_or_default(),
            credential: shared(told.credential.take()),
            credential_reason: told.credential_reason.take().map(|why| shown(why.to_string())),
            status: told.status,
            bytes_out: *self.bytes_out.get_mut(),
            bytes_in: *self.bytes_in.get_mut(),
            duration: self.started.elapsed(),
            outcome: shown(std::mem::take(&mut told.outcome)),
            attempts: 1,
        };
        self.hub.record(event);
    }
}
