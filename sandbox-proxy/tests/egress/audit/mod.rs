//! The audit log: what it holds of each attempt, what it shows when somebody lays hands on it, and what it never holds.

mod crash;
mod files;
mod records;
mod report;
mod secrets;
mod sinks;
mod tampering;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandbox_core::audit::{AuditDecision, AuditEvent, AuditKind, AuditSink};
use sandbox_proxy::audit::{Head, Tampering, VerifyError, report, verify};
use sandbox_proxy::{AuditKey, AuditLog};
use tempfile::TempDir;

/// A place for a log.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("audit.jsonl")
    }

    fn read(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap()
    }

    /// All lines but those that the log writes about itself.
    fn events(&self) -> Vec<serde_json::Value> {
        let lines = self.read();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line.get("log").is_none()).collect()
    }
}

fn event(host: &str) -> Arc<AuditEvent> {
    Arc::new(AuditEvent {
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_249_812),
        sandbox: "one".parse().unwrap(),
        kind: AuditKind::Request,
        host: host.to_owned(),
        port: 443,
        method: Some("GET".to_owned()),
        path: Some("/".to_owned()),
        decision: AuditDecision::Allowed,
        rule: "allow it".to_owned(),
        credential: None,
        credential_reason: None,
        status: Some(200),
        bytes_out: 1,
        bytes_in: 2,
        duration: Duration::from_millis(3),
        outcome: String::new(),
        attempts: 1,
    })
}

fn denied(host: &str) -> Arc<AuditEvent> {
    Arc::new(AuditEvent {
        decision: AuditDecision::Denied,
        ..AuditEvent::clone(&event(host))
    })
}

fn key() -> AuditKey {
    AuditKey::new(b"a key of the orchestrator's own, kept elsewhere").unwrap()
}

/// A log of ten attempts, closed in order.
fn ten(dir: &Dir, key: Option<AuditKey>) -> Head {
    let mut builder = AuditLog::builder(dir.log());
    if let Some(key) = key {
        builder = builder.key(key);
    }
    let log = builder.open().unwrap();
    for index in 0..10 {
        log.record(&event(&format!("n{index}.test")));
    }
    log.flush().unwrap();
    drop(log);
    verify(&dir.log(), None, None).unwrap().head
}

/// The report of an intact log.
fn page(dir: &Dir, key: Option<&AuditKey>) -> String {
    let mut page = Vec::new();
    report(&dir.log(), key, None, &mut page).unwrap().unwrap();
    String::from_utf8(page).unwrap()
}

/// A log of ten attempts that somebody has laid hands on.
fn tampered(change: impl FnOnce(&mut Vec<String>)) -> Dir {
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), change);
    dir
}

/// Another host in the record of the attempt at `n4.test`.
fn other_host(lines: &mut [String]) {
    lines[6] = lines[6].replace("n4.test", "evil.test");
}

fn tamper(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut lines: Vec<_> = std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    change(&mut lines);
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}

/// What was done, in which line, to the record of which number, and how many before are intact.
fn found(path: &Path, key: Option<&AuditKey>, head: Option<&Head>) -> (Tampering, u64, u64, u64) {
    match verify(path, key, head) {
        Err(VerifyError::Tampered(found)) => (found.what, found.line, found.seq, found.intact),
        other => panic!("{other:?}"),
    }
}
