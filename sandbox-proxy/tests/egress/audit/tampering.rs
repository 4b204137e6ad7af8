//! What somebody has done to a log, found by reading it; what nobody has touched is intact.

use sandbox_core::audit::AuditSink;
use sandbox_proxy::audit::{AuditLogError, KeyCheck, Tampering, VerifyError, verify};
use sandbox_proxy::{AuditKey, AuditLog};

use super::{Dir, event, found, key, other_host, tamper, tampered, ten};

/// The number of the record of the attempt at `n4.test`: after the two notes at the start, counted from 1.
const FOURTH: u64 = 7;

/// What is [`found`] where that record is.
fn at_fourth(what: Tampering) -> (Tampering, u64, u64, u64) {
    (what, 7, FOURTH, FOURTH - 1)
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
    let dir = tampered(|lines| other_host(lines));
    assert_eq!(found(&dir.log(), None, None), at_fourth(Tampering::Changed));
    let dir = tampered(|lines| lines[6] = "no JSON at all".to_owned());
    assert_eq!(found(&dir.log(), None, None), at_fourth(Tampering::Changed));
    let dir = tampered(|lines| lines[6] = "x".repeat(1 << 20));
    assert_eq!(found(&dir.log(), None, None), at_fourth(Tampering::Changed));
    // Longer than any line of a log, whatever it holds.
    let dir = tampered(|lines| {
        let last = lines.last_mut().unwrap();
        *last = last.replace('}', &format!(",\"more\":\"{}\"}}", "x".repeat(100_000)));
    });
    assert_eq!(found(&dir.log(), None, None).0, Tampering::Changed);
    // What comes before it is broken off, not what comes after.
    let dir = tampered(|lines| {
        let prev = lines[6].find("\"prev\":\"").unwrap() + 8;
        lines[6].replace_range(prev..prev + 64, &"0".repeat(64));
    });
    assert_eq!(found(&dir.log(), None, None), at_fourth(Tampering::Changed));
}

#[test]
fn removed_lines_are_found() {
    let dir = tampered(|lines| drop(lines.drain(6..9)));
    let removed = Tampering::Removed { first: 7, last: 9 };
    assert_eq!(found(&dir.log(), None, None), (removed, 7, 10, 6));
    let dir = tampered(|lines| drop(lines.remove(0)));
    assert_eq!(found(&dir.log(), None, None), (Tampering::StartRemoved, 1, 2, 0));
}

#[test]
fn inserted_lines_are_found() {
    for count in [1, 3] {
        let dir = tampered(|lines| {
            let forged = lines[6].replace("n4.test", "evil.test");
            (0..count).for_each(|_| lines.insert(6, forged.clone()));
        });
        // It fits as well as the real one, which is known by the line after it.
        assert_eq!(
            found(&dir.log(), None, None),
            at_fourth(Tampering::Inserted),
            "{count}"
        );
    }
    let dir = tampered(|lines| lines.insert(6, "{}".to_owned()));
    assert_eq!(found(&dir.log(), None, None), at_fourth(Tampering::Inserted));
    let dir = tampered(|lines| lines.swap(6, 7));
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
        other_host(lines);
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
        at_fourth(Tampering::Forged)
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
fn damaged_log_is_not_written_on() {
    let dir = tampered(|lines| other_host(lines));
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
