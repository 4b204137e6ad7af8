//! The files of a log: how many and how long, whose they are, and a disk that is full.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::audit::AuditSink;
use sandbox_proxy::audit::{AuditLogError, Head, Tampering, VerifyError, verify};
use sandbox_proxy::{AuditLog, Rules};

use super::{Dir, denied, event, found};
use crate::support::{Running, Upstream, assert_passes, inner_half, told};

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
    // What is over the limit fails, and does not kill.
    let limits = "trap '' XFSZ; ulimit -S -f 64";
    assert_passes(inner_half(module_path!(), "full_disk", limits, ""));
}

/// The inner half of the test above: does nothing in a process of its own right.
#[tokio::test]
async fn full_disk() {
    if told().is_none() {
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
    let get = || running.plain_get(at, "Connection: close\r\n");
    assert!(get().await.starts_with("HTTP/1.1 200"));
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
    let answer = get().await;
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
    assert!(get().await.starts_with("HTTP/1.1 200"));
    drop(running);
    let verified = verify(&dir.log(), None, None).unwrap();
    assert_eq!(verified.totals.denied, 20_000 + 1);
    assert!(verified.totals.lost > 10_000 && verified.totals.lost < 20_000);
    assert!(dir.read().contains("\"log\":\"failed\""));
}
