//! What a crash leaves behind, and how the next writer goes on from there.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use sandbox_core::audit::AuditSink;
use sandbox_proxy::AuditLog;
use sandbox_proxy::audit::{VerifyError, verify};

use super::{Dir, event, ten};
use crate::support::{inner_half, told};

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
fn program_killed_while_it_writes_leaves_a_log_that_goes_on() {
    let dir = Dir::new();
    let mut goal = 500;
    for _ in 0..5 {
        let mut child = inner_half(module_path!(), "writes_until_it_is_killed", "", dir.log())
            .stdout(Stdio::null())
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
    // On a busy machine the writers leave more files than are kept without this.
    drop(AuditLog::builder(dir.log()).keep_all_files().open().unwrap());
    let verified = verify(&dir.log(), None, Some(&before.head)).unwrap();
    assert_eq!(verified.crashes, 5);
    assert!(verified.is_closed && verified.totals.allowed == before.totals.allowed);
}

/// The inner half of the test above: does nothing in a process of its own right.
#[test]
fn writes_until_it_is_killed() {
    let Some(path) = told() else {
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
