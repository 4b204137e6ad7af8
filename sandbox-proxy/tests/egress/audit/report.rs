//! The report: one page for people, whatever is in the log.

use sandbox_core::audit::AuditSink;
use sandbox_proxy::AuditLog;
use sandbox_proxy::audit::report;

use super::{Dir, denied, event, key, other_host, page, tampered, ten};

#[test]
fn report_needs_nothing_else_and_lets_nothing_run() {
    let dir = Dir::new();
    ten(&dir, Some(key()));
    let page = page(&dir, Some(&key()));
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
    let dir = tampered(|lines| other_host(lines));
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
    let page = page(&dir, None);
    assert!(page.len() < 1 << 20, "{}", page.len());
    assert!(page.contains("<b>6,000</b>") && page.contains("reached.test:443"));
    assert!(page.contains("(other hosts that were denied)"));
}
