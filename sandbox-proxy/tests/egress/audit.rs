//! The audit log: what it holds of each attempt, what it shows when somebody lays hands on it, and what it never holds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditKind, AuditSink};
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_proxy::audit::{AuditLogError, Head, KeyCheck, Tampering, VerifyError, report, verify};
use sandbox_proxy::{AuditKey, AuditLog, Proxy, Rules, Service};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::support::{
    Running, SECRET, Upstream, allowed, holds_secret, read_all, send, text, with_credential,
};

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

/// The number of the record of the attempt at `n4.test`: after the two notes at the start, counted from 1.
const FOURTH: u64 = 7;

fn tamper(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut lines: Vec<_> = std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    change(&mut lines);
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}

fn found(path: &Path, key: Option<&AuditKey>, head: Option<&Head>) -> (Tampering, u64, u64, u64) {
    match verify(path, key, head) {
        Err(VerifyError::Tampered(found)) => (found.what, found.line, found.seq, found.intact),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_attempt_is_a_record_with_all_that_is_known_of_it() {
    let dir = Dir::new();
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let log = AuditLog::open(dir.log()).unwrap();
    let running = Running::start(|builder| {
        with_credential(allowed(builder, &upstream), &upstream).audit(Arc::new(log.clone()))
    })
    .await;
    let mut client = running.h1(&at).await;
    let request = Request::post("/upload?secret=1").header("host", at.as_str());
    let request = request.body(Full::from(Bytes::from_static(b"12345"))).unwrap();
    let response = send(&mut client, request).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(running.connect("denied.test:443").await.is_err());
    running.raw("\u{1}\u{2}nonsense\r\n\r\n").await;
    running
        .events
        .wait(|event| event.path.as_deref() == Some("/upload"))
        .await;
    running.events.wait(|event| event.kind == AuditKind::Stream).await;
    log.flush().unwrap();
    let events = dir.events();
    let of = |what: &str| events.iter().find(|event| event["kind"] == what).unwrap();
    let request = of("request");
    assert_eq!(
        (&request["sandbox"], &request["host"], &request["port"]),
        (&"one".into(), &"api.test".into(), &upstream.port().into())
    );
    assert_eq!(
        (&request["method"], &request["path"], &request["status"]),
        (&"POST".into(), &"/upload".into(), &200.into())
    );
    assert_eq!(
        (&request["decision"], &request["credential"]),
        (&"allowed".into(), &"api".into())
    );
    assert!(
        request["rule"].as_str().unwrap().contains("api.test"),
        "{request}"
    );
    assert_eq!(request["bytes_out"], 5);
    assert_eq!(request["bytes_in"], response.body().len());
    assert!(request["time"].as_u64().unwrap() > 1_700_000_000_000 && request["duration"].is_u64());
    let tunnel = of("tunnel");
    assert_eq!(
        (
            &tunnel["decision"],
            &tunnel["host"],
            &tunnel["method"],
            &tunnel["status"]
        ),
        (
            &"denied".into(),
            &"denied.test".into(),
            &"CONNECT".into(),
            &403.into()
        )
    );
    assert!(of("stream")["outcome"].as_str().unwrap().contains("malformed"));
    assert_eq!(events.len(), 3, "{events:#?}");
}

#[tokio::test]
async fn log_has_a_record_of_every_denial_also_where_others_are_told_a_count() {
    let dir = Dir::new();
    let log = AuditLog::open(dir.log()).unwrap();
    let events = Arc::<crate::support::Events>::default();
    let proxy = Proxy::builder("one".parse().unwrap())
        .audit(Arc::new(log.clone()))
        .audit(events.clone())
        .build()
        .unwrap();
    let mut live = proxy.subscribe();
    for _ in 0..400 {
        let (mut near, far) = tokio::io::duplex(4096);
        let serving = tokio::spawn(proxy.serve(Box::new(far)));
        near.write_all(b"CONNECT denied.test:443 HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        assert!(read_all(&mut near).await.starts_with("HTTP/1.1 403"));
        drop(near);
        serving.await.unwrap();
    }
    drop(proxy);
    log.flush().unwrap();
    let records = dir.events();
    assert_eq!(records.len(), 400);
    assert!(records.iter().all(|record| record["attempts"] == 1));
    let told = events.all();
    assert!(told.len() < 400);
    assert_eq!(told.iter().map(|event| event.attempts).sum::<u64>(), 400);
    let first = live.recv().await.unwrap();
    assert_eq!(
        (first.decision, first.host.as_str(), first.rule.is_empty()),
        (AuditDecision::Denied, "denied.test", false)
    );
}

#[tokio::test]
async fn slow_subscriber_is_told_how_many_events_it_lost() {
    let upstream = Upstream::plain().await;
    let at = upstream.address;
    let running = Running::start(|builder| {
        builder.policy(Arc::new(
            Rules::new().allow(&format!("http://{at} special-ranges")),
        ))
    })
    .await;
    let mut live = running.proxy.subscribe();
    let request = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    for index in 1..=1100 {
        let mut stream = running.dial().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await;
        if index % 100 == 0 {
            while running.events.all().len() < index {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    use tokio::sync::broadcast::error::RecvError;
    assert!(matches!(live.recv().await, Err(RecvError::Lagged(lost)) if lost == 1100 - 1024));
    assert_eq!(live.recv().await.unwrap().decision, AuditDecision::Allowed);
}

#[test]
fn log_that_nobody_touched_is_intact() {
    let dir = Dir::new();
    let head = ten(&dir, None);
    let verified = verify(&dir.log(), None, Some(&head)).unwrap();
    assert_eq!((verified.first, verified.head, verified.files), (1, head, 1));
    assert_eq!((verified.totals.allowed, verified.totals.bytes_in), (10, 20));
    assert!(verified.is_closed && verified.crashes == 0 && verified.torn_bytes == 0);
    assert_eq!(verified.key, KeyCheck::None);
    // By other means, too.
    let script = "sed -n 6p \"$0\" | tr -d '\\n' | sha256sum";
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(dir.log())
        .output()
        .unwrap();
    let hash = String::from_utf8(output.stdout).unwrap();
    let seventh: serde_json::Value = serde_json::from_str(dir.read().lines().nth(6).unwrap()).unwrap();
    assert_eq!(seventh["prev"].as_str().unwrap(), hash.split(' ').next().unwrap());
}

#[test]
fn changed_line_is_found() {
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| {
        lines[6] = lines[6].replace("n4.test", "evil.test")
    });
    assert_eq!(
        found(&dir.log(), None, None),
        (Tampering::Changed, 7, FOURTH, FOURTH - 1)
    );
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| lines[6] = "no JSON at all".to_owned());
    assert_eq!(
        found(&dir.log(), None, None),
        (Tampering::Changed, 7, FOURTH, FOURTH - 1)
    );
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| lines[6] = "x".repeat(1 << 20));
    assert_eq!(
        found(&dir.log(), None, None),
        (Tampering::Changed, 7, FOURTH, FOURTH - 1)
    );
    // Longer than any line of a log, whatever it holds.
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| {
        let last = lines.last_mut().unwrap();
        *last = last.replace('}', &format!(",\"more\":\"{}\"}}", "x".repeat(100_000)));
    });
    assert_eq!(found(&dir.log(), None, None).0, Tampering::Changed);
    // What comes before it is broken off, not what comes after.
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| {
        let prev = lines[6].find("\"prev\":\"").unwrap() + 8;
        lines[6].replace_range(prev..prev + 64, &"0".repeat(64));
    });
    assert_eq!(
        found(&dir.log(), None, None),
        (Tampering::Changed, 7, FOURTH, FOURTH - 1)
    );
}

#[test]
fn removed_lines_are_found() {
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| drop(lines.drain(6..9)));
    let removed = Tampering::Removed { first: 7, last: 9 };
    assert_eq!(found(&dir.log(), None, None), (removed, 7, 10, 6));
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| drop(lines.remove(0)));
    assert_eq!(found(&dir.log(), None, None), (Tampering::StartRemoved, 1, 2, 0));
}

#[test]
fn inserted_lines_are_found() {
    for count in [1, 3] {
        let dir = Dir::new();
        ten(&dir, None);
        tamper(&dir.log(), |lines| {
            let forged = lines[6].replace("n4.test", "evil.test");
            (0..count).for_each(|_| lines.insert(6, forged.clone()));
        });
        // It fits as well as the real one, which is known by the line after it.
        assert_eq!(
            found(&dir.log(), None, None),
            (Tampering::Inserted, 7, FOURTH, FOURTH - 1),
            "{count}"
        );
    }
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| lines.insert(6, "{}".to_owned()));
    assert_eq!(
        found(&dir.log(), None, None),
        (Tampering::Inserted, 7, FOURTH, FOURTH - 1)
    );
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| lines.swap(6, 7));
    assert!(verify(&dir.log(), None, None).is_err());
}

#[test]
fn missing_end_is_found_by_the_head_kept_elsewhere() {
    let dir = Dir::new();
    let head = ten(&dir, None);
    tamper(&dir.log(), |lines| lines.truncate(8));
    let verified = verify(&dir.log(), None, None).unwrap();
    assert!(!verified.is_closed, "it does not look closed");
    assert_eq!(found(&dir.log(), None, Some(&head)).0, Tampering::Truncated);
    // Somebody who writes the end anew ends up with another head.
    drop(AuditLog::open(dir.log()).unwrap());
    assert_eq!(verify(&dir.log(), None, None).unwrap().crashes, 1);
    let short = head
        .to_string()
        .replacen(&head.seq.to_string(), "9", 1)
        .parse()
        .unwrap();
    assert_eq!(found(&dir.log(), None, Some(&short)).0, Tampering::Rewritten);
}

#[test]
fn log_made_anew_without_the_key_is_found() {
    let dir = Dir::new();
    let head = ten(&dir, Some(key()));
    let verified = verify(&dir.log(), Some(&key()), Some(&head)).unwrap();
    assert_eq!(verified.key, KeyCheck::Checked);
    assert_eq!(verify(&dir.log(), None, None).unwrap().key, KeyCheck::NotGiven);
    assert!(!dir.read().contains("orchestrator's own"));
    // All lines from the changed one on get new numbers and hashes, as somebody with the file can do.
    tamper(&dir.log(), |lines| {
        lines[6] = lines[6].replace("n4.test", "evil.test");
        for index in 7..lines.len() {
            let prev = sha256(&lines[index - 1]);
            let at = lines[index].find("\"prev\":\"").unwrap() + 8;
            lines[index].replace_range(at..at + 64, &prev);
        }
    });
    assert!(
        verify(&dir.log(), None, None).is_ok(),
        "the chain alone cannot tell"
    );
    assert_eq!(
        found(&dir.log(), Some(&key()), None),
        (Tampering::Forged, 7, FOURTH, FOURTH - 1)
    );
    let other = AuditKey::new(&[9; 32]).unwrap();
    assert!(matches!(
        verify(&dir.log(), Some(&other), None),
        Err(VerifyError::WrongKey { log }) if log == key().id()
    ));
    // The last line, too, which no other vouches for.
    let dir = Dir::new();
    ten(&dir, Some(key()));
    tamper(&dir.log(), |lines| {
        let last = lines.last_mut().unwrap();
        *last = last.replace("\"time\":1", "\"time\":2");
    });
    assert_eq!(found(&dir.log(), Some(&key()), None).0, Tampering::Forged);
    // Nor does it help to take the key out.
    let dir = Dir::new();
    ten(&dir, None);
    assert!(matches!(
        verify(&dir.log(), Some(&key()), None),
        Err(VerifyError::NotKeyed)
    ));
}

fn sha256(line: &str) -> String {
    let script = "printf %s \"$0\" | sha256sum";
    let output = std::process::Command::new("sh")
        .args(["-c", script, line])
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn line_that_a_crash_left_unfinished_is_cut_off_and_told() {
    for torn in ["{\"seq\":14,\"prev\":\"\u{1b}[31m", "\0\0\0\0", "{"] {
        let dir = Dir::new();
        ten(&dir, None);
        let mut file = std::fs::File::options().append(true).open(dir.log()).unwrap();
        file.write_all(torn.as_bytes()).unwrap();
        let verified = verify(&dir.log(), None, None).unwrap();
        assert_eq!(
            (verified.torn_bytes, verified.is_closed),
            (torn.len() as u64, false)
        );
        let log = AuditLog::open(dir.log()).unwrap();
        log.record(&event("after.test"));
        drop(log);
        let verified = verify(&dir.log(), None, None).unwrap();
        assert_eq!(
            (verified.torn_bytes, verified.is_closed, verified.crashes),
            (0, true, 1)
        );
        assert_eq!(verified.totals.allowed, 11);
        let text = dir.read();
        assert!(text.contains(&format!("\"torn_bytes\":{}", torn.len())) && !text.contains(['\u{1b}', '\0']));
        assert!(text.contains("after.test"));
    }
}

#[test]
fn start_of_a_file_that_a_crash_left_is_begun_again() {
    let dir = Dir::new();
    std::fs::write(dir.log(), "{\"seq\":1,").unwrap();
    ten(&dir, None);
    assert!(verify(&dir.log(), None, None).unwrap().is_closed);
    // The same after others were moved aside: the chain goes on.
    let head = verify(&dir.log(), None, None).unwrap().head;
    std::fs::rename(dir.log(), dir.0.path().join("audit.000001.jsonl")).unwrap();
    std::fs::write(dir.log(), "").unwrap();
    drop(AuditLog::open(dir.log()).unwrap());
    let verified = verify(&dir.log(), None, Some(&head)).unwrap();
    assert_eq!((verified.files, verified.totals.allowed), (2, 10));
}

#[test]
fn damaged_log_is_not_written_on() {
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| {
        lines[6] = lines[6].replace("n4.test", "evil.test")
    });
    let before = dir.read();
    assert!(matches!(
        AuditLog::open(dir.log()),
        Err(AuditLogError::Damaged(_))
    ));
    assert_eq!(dir.read(), before);
    let dir = Dir::new();
    ten(&dir, Some(key()));
    assert!(matches!(
        AuditLog::open(dir.log()),
        Err(AuditLogError::KeyNeeded { .. })
    ));
    let other = AuditKey::new(&[9; 32]).unwrap();
    let opened = AuditLog::builder(dir.log()).key(other).open();
    assert!(matches!(opened, Err(AuditLogError::OtherKey(_))));
}

#[test]
fn program_killed_while_it_writes_leaves_a_log_that_goes_on() {
    let dir = Dir::new();
    let this = std::env::current_exe().unwrap();
    let mut goal = 500;
    for _ in 0..5 {
        let mut child = std::process::Command::new(&this)
            .args(["--exact", "audit::writes_until_it_is_killed", "--nocapture"])
            .env("AUDIT_TEST_LOG", dir.log())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Read while it is written and moved aside, it is as it was written every time.
        loop {
            match verify(&dir.log(), None, None) {
                // Beyond what the writer before left, however late it was killed: this one has begun.
                Ok(log) if log.totals.allowed > goal => break,
                Ok(_) | Err(VerifyError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(child.try_wait().unwrap().is_none(), "the writer ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        goal = verify(&dir.log(), None, None).unwrap().totals.allowed + 500;
    }
    let before = verify(&dir.log(), None, None).unwrap();
    assert!(before.files > 1, "{before:?}");
    drop(AuditLog::open(dir.log()).unwrap());
    let verified = verify(&dir.log(), None, Some(&before.head)).unwrap();
    assert_eq!(verified.crashes, 5);
    assert!(verified.is_closed && verified.totals.allowed == before.totals.allowed);
}

/// The inner half of the test above: does nothing in a process of its own right.
#[test]
fn writes_until_it_is_killed() {
    let Some(path) = std::env::var_os("AUDIT_TEST_LOG") else {
        return;
    };
    let builder = AuditLog::builder(path).max_file_bytes(64 << 10).keep_all_files();
    let log = builder.open().unwrap();
    loop {
        for _ in 0..20 {
            log.record(&event("written.test"));
        }
        // Slower than somebody else can read it.
        std::thread::sleep(Duration::from_millis(4));
    }
}

#[test]
fn full_files_are_moved_aside_and_the_oldest_removed() {
    let dir = Dir::new();
    let log = AuditLog::builder(dir.log())
        .max_file_bytes(16 << 10)
        .max_files(3)
        .open()
        .unwrap();
    for index in 0..1000 {
        log.record(&event(&format!("n{index}.test")));
        if index % 20 == 0 {
            log.flush().unwrap();
        }
    }
    drop(log);
    let verified = verify(&dir.log(), None, None).unwrap();
    assert_eq!(verified.files, 3);
    assert!(verified.first > 1 && verified.is_closed);
    assert_eq!(verified.totals.allowed, 1000, "what was removed is still counted");
    let size: u64 = std::fs::read_dir(dir.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size < 3 * (20 << 10), "{size}");
    // One more that is missing was not removed by the log.
    let oldest = std::fs::read_dir(dir.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let oldest = oldest
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .min()
        .unwrap();
    let kept = std::fs::read(&oldest).unwrap();
    std::fs::remove_file(&oldest).unwrap();
    assert_eq!(found(&dir.log(), None, None).0, Tampering::StartRemoved);
    std::fs::write(&oldest, kept).unwrap();
    // Goes on after a stop, in the same file, with the same bounds.
    let builder = AuditLog::builder(dir.log()).max_file_bytes(16 << 10).max_files(2);
    drop(builder.open().unwrap());
    let verified = verify(&dir.log(), None, None).unwrap();
    assert_eq!((verified.files, verified.totals.allowed), (2, 1000));
    assert!(matches!(
        verify(
            &dir.log(),
            None,
            Some(&Head {
                seq: 1,
                hash: [0; 32]
            })
        ),
        Err(VerifyError::HeadRemoved { seq: 1 })
    ));
}

#[test]
fn file_in_the_middle_that_is_missing_is_found() {
    let dir = Dir::new();
    let builder = AuditLog::builder(dir.log())
        .max_file_bytes(16 << 10)
        .keep_all_files();
    let log = builder.open().unwrap();
    for _ in 0..500 {
        log.record(&event("many.test"));
    }
    log.flush().unwrap();
    drop(log);
    assert!(verify(&dir.log(), None, None).unwrap().files > 3);
    std::fs::remove_file(dir.0.path().join("audit.000002.jsonl")).unwrap();
    assert!(matches!(
        found(&dir.log(), None, None).0,
        Tampering::Removed { .. }
    ));
}

#[test]
fn log_has_one_writer_and_no_other_reader() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    std::fs::write(dir.log(), "").unwrap();
    std::fs::set_permissions(dir.log(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let log = AuditLog::open(dir.log()).unwrap();
    assert!(matches!(
        AuditLog::open(dir.log()),
        Err(AuditLogError::Locked { .. })
    ));
    let mode = std::fs::metadata(dir.log()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(log);
    // One that somebody opened to others is closed to them again.
    std::fs::set_permissions(dir.log(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let log = AuditLog::open(dir.log()).unwrap();
    let mode = std::fs::metadata(dir.log()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (clone, path) = (log.clone(), dir.log());
    drop(log);
    assert!(AuditLog::open(&path).is_err(), "a clone is the same log");
    drop(clone);
    // A link that leads elsewhere is not followed.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    assert!(matches!(AuditLog::open(&path), Err(AuditLogError::Io { .. })));
}

#[test]
fn full_disk_in_a_process_that_may_write_little() {
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh")
        // What is over the limit fails, and does not kill.
        .args([
            "-c",
            "trap '' XFSZ; ulimit -S -f 64; exec \"$0\" --exact audit::full_disk --nocapture",
        ])
        .arg(this)
        .env("AUDIT_TEST_FULL", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The inner half of the test above: does nothing in a process of its own right.
#[tokio::test]
async fn full_disk() {
    if std::env::var_os("AUDIT_TEST_FULL").is_none() {
        return;
    }
    let dir = Dir::new();
    let log = AuditLog::builder(dir.log()).required().open().unwrap();
    let mut health = log.health();
    let upstream = Upstream::plain().await;
    let at = upstream.address;
    let running = Running::start(|builder| {
        let rules = Rules::new().allow(&format!("http://{at} special-ranges"));
        builder.policy(Arc::new(rules)).audit(Arc::new(log.clone()))
    })
    .await;
    let request = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    assert!(running.raw(&request).await.starts_with("HTTP/1.1 200"));
    for _ in 0..1000 {
        log.record(&event(&"x".repeat(500)));
    }
    let is_full = |health: &sandbox_proxy::audit::Health| health.failure.is_some();
    let failure = health.wait_for(is_full).await.unwrap().failure.clone().unwrap();
    assert_eq!(failure.kind, std::io::ErrorKind::FileTooLarge);
    assert!(matches!(log.flush(), Err(AuditLogError::Io { .. })));
    let verified = verify(&dir.log(), None, None).unwrap();
    assert_eq!(verified.torn_bytes, 0, "no line is half there");
    // Nothing is allowed meanwhile, and the answer says why.
    let answer = running.raw(&request).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("audit log"),
        "{answer}"
    );
    assert_eq!(upstream.seen().len(), 1);
    // More than there is room for is counted.
    for _ in 0..20_000 {
        log.record(&denied("many.test"));
    }
    rustix::process::setrlimit(
        rustix::process::Resource::Fsize,
        rustix::process::Rlimit {
            current: None,
            maximum: None,
        },
    )
    .unwrap();
    let is_well_again = health.wait_for(|health| health.failure.is_none() && health.lost > 0);
    let waited = tokio::time::timeout(Duration::from_secs(30), is_well_again).await;
    drop(waited.expect("the log is not well again").unwrap());
    log.flush().unwrap();
    assert!(running.raw(&request).await.starts_with("HTTP/1.1 200"));
    drop(running);
    let verified = verify(&dir.log(), None, None).unwrap();
    assert_eq!(verified.totals.denied, 20_000 + 1);
    assert!(verified.totals.lost > 10_000 && verified.totals.lost < 20_000);
    assert!(dir.read().contains("\"log\":\"failed\""));
}

#[tokio::test]
async fn no_text_of_a_guest_breaks_a_line_a_terminal_or_the_report() {
    let dir = Dir::new();
    let log = AuditLog::open(dir.log()).unwrap();
    let hostile = [
        "a\r\n{\"seq\":1}\n",
        "\u{1b}[2J\u{7}\u{9b}31m",
        "\u{202e}\u{2066}\u{2028}\u{2029}\u{85}",
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "\"><svg onload=alert(1)>&lt;' style='x",
        "</style></title></textarea><!--",
        "\",\"mac\":\"00\"}",
    ];
    for text in hostile {
        let text = text.to_owned();
        log.record(&Arc::new(AuditEvent {
            host: text.clone(),
            method: Some(text.clone()),
            path: Some(text.clone()),
            rule: text.clone(),
            credential: Some(text.clone()),
            credential_reason: Some(text.clone()),
            outcome: text.repeat(100_000 / text.len()),
            ..AuditEvent::clone(&denied(""))
        }));
    }
    log.flush().unwrap();
    drop(log);
    let text = dir.read();
    assert!(
        text.bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\n')
    );
    assert_eq!(dir.events().len(), hostile.len());
    assert!(text.lines().all(|line| line.len() < 16 << 10));
    assert!(verify(&dir.log(), None, None).is_ok());
    let mut page = Vec::new();
    report(&dir.log(), None, None, &mut page).unwrap().unwrap();
    let page = String::from_utf8(page).unwrap();
    for bad in [
        "<script",
        "<img",
        "onload=alert(1)>",
        "<!--",
        "\u{1b}",
        "\u{202e}",
        "\u{2028}",
    ] {
        assert!(!page.contains(bad), "{bad:?}");
    }
    assert_eq!(page.matches("</style>").count(), 1);
    assert_eq!(
        page.matches("</title></head>").count() + page.matches("</title>\n<style>").count(),
        1
    );
}

#[test]
fn report_needs_nothing_else_and_lets_nothing_run() {
    let dir = Dir::new();
    ten(&dir, Some(key()));
    let mut page = Vec::new();
    report(&dir.log(), Some(&key()), None, &mut page)
        .unwrap()
        .unwrap();
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("default-src 'none'; style-src 'sha256-"));
    for bad in [
        "<script", "http://", "https://", "url(", "@import", "style=\"", "href=", "src=\"",
    ] {
        assert!(!page.contains(bad), "{bad}");
    }
    for host in 0..10 {
        assert!(page.contains(&format!("n{host}.test:443")));
    }
    assert!(page.contains("The log is as it was written") && page.contains("made with the key"));
}

#[test]
fn report_of_a_log_that_was_tampered_with_says_so_first() {
    let dir = Dir::new();
    ten(&dir, None);
    tamper(&dir.log(), |lines| {
        lines[6] = lines[6].replace("n4.test", "evil.test")
    });
    let mut page = Vec::new();
    assert!(report(&dir.log(), None, None, &mut page).unwrap().is_err());
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("not known to be what was written") && page.contains("line 7"));
    assert!(page.contains("evil.test"), "what is there is shown all the same");
    // Whatever it is made of.
    for junk in [
        &b"\0\xff\n{}\n[]\n\n"[..],
        b"{\"log\":1}\n",
        b"",
        b"{\"seq\":1e99}\n",
    ] {
        std::fs::write(dir.log(), junk).unwrap();
        let _ = report(&dir.log(), None, None, Vec::new());
    }
}

#[test]
fn report_of_very_many_hosts_stays_small_and_counts_all() {
    let dir = Dir::new();
    let log = AuditLog::open(dir.log()).unwrap();
    for index in 0..6000 {
        log.record(&denied(&format!("n{index}.test")));
        if index % 1000 == 0 {
            log.flush().unwrap();
        }
    }
    log.record(&event("reached.test"));
    log.flush().unwrap();
    let mut page = Vec::new();
    report(&dir.log(), None, None, &mut page).unwrap().unwrap();
    assert!(page.len() < 1 << 20, "{}", page.len());
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("<b>6,000</b>") && page.contains("reached.test:443"));
    assert!(page.contains("(other hosts that were denied)"));
}

#[tokio::test]
async fn secret_does_not_get_into_the_log_by_any_way() {
    /// Fails with the secret in what it says, after it gave it once.
    #[derive(Debug)]
    struct Telling(std::sync::atomic::AtomicBool);
    #[async_trait]
    impl CredentialSource for Telling {
        fn describe(&self) -> String {
            format!("store with {SECRET}")
        }
        async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
            if self.0.swap(true, std::sync::atomic::Ordering::Relaxed) {
                return Err(CredentialError::NotFound {
                    source_name: self.describe(),
                });
            }
            Ok(Issued::token(SECRET))
        }
    }
    let dir = Dir::new();
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let plain = Upstream::plain().await;
    let at = upstream.at("api.test");
    let log = AuditLog::open(dir.log()).unwrap();
    let running = Running::start(|builder| {
        let rules = Rules::new()
            .allow(&format!("{at} special-ranges"))
            .allow(&format!("http://{} special-ranges", plain.address));
        allowed(builder, &upstream)
            .policy(Arc::new(rules))
            .credential(
                Service::custom("api").header(&at, "x-api-key"),
                Arc::new(Telling(Default::default())),
            )
            .audit(Arc::new(log.clone()))
    })
    .await;
    let mut live = running.proxy.subscribe();
    assert_eq!(running.get(&at, "/echo").await.status(), StatusCode::OK);
    // From now on the secret has gone out, and a host may have told it to the guest.
    let percent: String = SECRET.bytes().map(|b| format!("%{b:02X}")).collect();
    let name = SECRET.replace(['/', '+', '_'], "-");
    for path in [
        format!("/{SECRET}"),
        format!("/{percent}?{SECRET}"),
        format!("/{}{SECRET}", "x".repeat(1010)),
        format!("/{}{SECRET}", "x".repeat(4080)),
    ] {
        let response = running.get(&at, &path).await;
        assert!(!holds_secret(&text(&response)), "{path}");
    }
    let to = plain.address;
    for head in [
        format!("GET http://{to}/{SECRET} HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://{SECRET}@{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://user:{SECRET}@{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {SECRET}\r\n"),
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\n{SECRET}: 1\r\n"),
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\nx: {SECRET}\u{1}\r\n"),
        format!("{SECRET} http://{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("sk-test-4f9Zq http://{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://{name}.test/ HTTP/1.1\r\nHost: {name}.test\r\n"),
        format!("GET {SECRET} HTTP/1.1\r\nHost: {to}\r\n"),
        format!("CONNECT {SECRET}:443 HTTP/1.1\r\nHost: {SECRET}:443\r\n"),
        format!("CONNECT {SECRET}@api.test:443 HTTP/1.1\r\n"),
        format!("CONNECT api.test:{SECRET} HTTP/1.1\r\n"),
        format!("GET http://{to}/ {SECRET}\r\nHost: {to}\r\n"),
    ] {
        running.raw(format!("{head}Connection: close\r\n\r\n")).await;
    }
    // As a server name.
    let _ = running
        .tls(&at, &format!("{}.test", name.to_lowercase()), &["http/1.1"])
        .await;
    // Attempts are recorded when they end, which the client does not see.
    drop(running);
    let mut seen = Vec::new();
    while let Ok(Ok(event)) = tokio::time::timeout(Duration::from_secs(2), live.recv()).await {
        seen.push(event);
    }
    assert!(seen.len() >= 15, "{}", seen.len());
    let reasons: Vec<_> = seen.iter().map(|event| event.outcome.as_str()).collect();
    assert!(
        reasons.iter().any(|reason| reason.contains("store with ****")),
        "{reasons:?}"
    );
    log.flush().unwrap();
    let mut page = Vec::new();
    report(&dir.log(), None, None, &mut page).unwrap().unwrap();
    for (what, text) in [
        ("log", dir.read()),
        ("page", String::from_utf8(page).unwrap()),
        ("events", format!("{seen:?}")),
    ] {
        assert!(!holds_secret(&text), "{what}: {text}");
        // No part that was cut at its end, either.
        assert!(!text.contains("sk-test-4f9Zq/x7"), "{what}: {text}");
    }
}

#[tokio::test]
async fn nothing_is_allowed_while_a_sink_is_not_ready() {
    #[derive(Debug, Default)]
    struct Sink(std::sync::atomic::AtomicBool);
    impl AuditSink for Sink {
        fn record(&self, _event: &Arc<AuditEvent>) {}
        fn is_ready(&self) -> bool {
            !self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let sink = Arc::<Sink>::default();
    let running =
        Running::start(|builder| with_credential(allowed(builder, &upstream), &upstream).audit(sink.clone()))
            .await;
    let mut client = running.h1(&at).await;
    let request = || {
        Request::get("/")
            .header("host", at.as_str())
            .body(Full::default())
            .unwrap()
    };
    assert_eq!(send(&mut client, request()).await.status(), StatusCode::OK);
    sink.0.store(true, std::sync::atomic::Ordering::Relaxed);
    let seen = upstream.seen().len();
    let refused = send(&mut client, request()).await;
    assert_eq!(
        refused.status(),
        StatusCode::SERVICE_UNAVAILABLE,
        "in a tunnel that was open before"
    );
    assert!(
        running
            .connect(&at)
            .await
            .unwrap_err()
            .starts_with("HTTP/1.1 503")
    );
    assert_eq!(upstream.seen().len(), seen);
    let event = running
        .events
        .wait(|event| event.decision == AuditDecision::Denied)
        .await;
    assert_eq!(event.rule, "the audit log fails");
    sink.0.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(running.connect(&at).await.is_ok());
}

#[tokio::test]
async fn sink_that_panics_takes_nothing_along() {
    #[derive(Debug)]
    struct Panics;
    impl AuditSink for Panics {
        fn record(&self, _event: &Arc<AuditEvent>) {
            panic!("a sink of the user's");
        }
    }
    let dir = Dir::new();
    let log = AuditLog::open(dir.log()).unwrap();
    let running =
        Running::start(|builder| builder.audit(Arc::new(Panics)).audit(Arc::new(log.clone()))).await;
    assert!(running.connect("denied.test:443").await.is_err());
    assert!(running.connect("denied.test:443").await.is_err());
    running.events.wait(|event| event.host == "denied.test").await;
    log.flush().unwrap();
    assert!(!dir.events().is_empty());
}
