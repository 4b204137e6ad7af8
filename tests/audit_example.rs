//! The program that reads audit logs, run as a reader would run it.

// Clippy takes helpers of an integration test for ordinary code.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandbox::core::audit::{AuditDecision, AuditEvent, AuditKind, AuditSink};
use sandbox::{AuditKey, AuditLog};

const KEY: &str = "a key of the orchestrator's own, kept elsewhere";

/// Runs the example with these arguments, and with the key where one is given.
fn example(arguments: &[&str], key: Option<&str>) -> Output {
    let deps = std::env::current_exe().unwrap();
    let program = deps.parent().unwrap().with_file_name("examples").join("audit");
    assert!(
        program.exists(),
        "{} is missing: run `cargo build --package sandbox-proxy --examples`",
        program.display()
    );
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_remove("AUDIT_KEY")
        .envs(key.map(|key| ("AUDIT_KEY", key)));
    command.output().unwrap()
}

/// A log with a key, of one attempt that was allowed and one that was denied.
fn log(directory: &Path) -> PathBuf {
    let path = directory.join("audit.jsonl");
    let key = AuditKey::new(KEY.as_bytes()).unwrap();
    let log = AuditLog::builder(&path).key(key).open().unwrap();
    for (host, decision) in [
        ("good.test", AuditDecision::Allowed),
        ("bad.test", AuditDecision::Denied),
    ] {
        log.record(&Arc::new(AuditEvent {
            time: SystemTime::now(),
            sandbox: "one".parse().unwrap(),
            kind: AuditKind::Tunnel,
            host: host.to_owned(),
            port: 443,
            method: Some("CONNECT".to_owned()),
            path: None,
            decision,
            rule: "a rule".to_owned(),
            credential: None,
            credential_reason: None,
            status: None,
            bytes_out: 1,
            bytes_in: 2,
            duration: Duration::from_millis(3),
            outcome: String::new(),
            attempts: 1,
        }));
    }
    log.flush().unwrap();
    path
}

#[test]
fn core_audit_log_is_verified_against_its_key_and_its_head() {
    let directory = tempfile::tempdir().unwrap();
    let path = log(directory.path());
    let file = path.to_str().unwrap();
    let output = example(&["verify", file], Some(KEY));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.starts_with("as it was written: records 1 to ")
            && said.contains("in 1 file(s); 1 allowed, 1 denied, 0 lost"),
        "{said}"
    );
    let head = said.trim_end().rsplit_once("\nhead ").unwrap().1;
    let with_head = |file: &str| example(&["verify", file, "--head", head], Some(KEY));
    assert_eq!(with_head(file).status.code(), Some(0));
    assert_eq!(
        example(
            &["verify", file],
            Some("another key that is no shorter than it must be")
        )
        .status
        .code(),
        Some(1)
    );

    let text = std::fs::read_to_string(&path).unwrap();
    let (kept, _last) = text.trim_end().rsplit_once('\n').unwrap();
    std::fs::write(&path, format!("{kept}\n")).unwrap();
    assert_eq!(example(&["verify", file], Some(KEY)).status.code(), Some(0));
    let output = with_head(file);
    assert_eq!(output.status.code(), Some(1), "its end is cut off: {output:?}");
    std::fs::write(&path, text.replace("bad.test", "good.test")).unwrap();
    let output = example(&["verify", file], Some(KEY));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("line"),
        "{output:?}"
    );
}

#[test]
fn core_audit_report_is_a_page_on_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = log(directory.path());
    let output = example(&["report", path.to_str().unwrap()], Some(KEY));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(
        page.starts_with("<!") && page.trim_end().ends_with("</html>"),
        "{page}"
    );
    assert!(
        page.contains("good.test:443") && page.contains("bad.test:443"),
        "{page}"
    );
}

#[test]
fn core_audit_says_what_it_cannot_read_and_how_it_is_used() {
    for (arguments, said) in [
        (&[][..], "usage: audit verify FILE"),
        (&["show", "x"], "usage: audit verify FILE"),
        (&["report", "/nowhere/audit.jsonl"], "audit.jsonl"),
        (&["verify", "x", "--head", "none"], "audit: "),
    ] {
        let output = example(arguments, None);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(said),
            "{arguments:?} {errors}"
        );
    }
}
