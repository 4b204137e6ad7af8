//! The report: one page for people, whatever is in the log.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::audit::{AuditEvent, AuditSink};
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

/// What stands between tags.
fn words(html: &str) -> Vec<&str> {
    let texts = html.split('<').filter_map(|part| part.split_once('>'));
    texts
        .map(|(_, text)| text.trim())
        .filter(|text| !text.is_empty())
        .collect()
}

/// Attempts at two hosts, an hour apart.
fn two_hosts() -> Dir {
    let dir = Dir::new();
    let log = AuditLog::open(dir.log()).unwrap();
    let of = |event: &Arc<AuditEvent>, change: &dyn Fn(&mut AuditEvent)| {
        let mut event = AuditEvent::clone(event);
        change(&mut event);
        log.record(&Arc::new(event));
    };
    of(&event("one.test"), &|event| {
        (event.bytes_out, event.bytes_in) = (100, 700)
    });
    of(&event("one.test"), &|event| {
        event.outcome = "it broke off".to_owned()
    });
    of(&denied("one.test"), &|event| {
        (event.attempts, event.bytes_out, event.bytes_in) = (6, 0, 0);
    });
    of(&event("two.test"), &|event| {
        event.time += Duration::from_secs(3600);
        (event.bytes_out, event.bytes_in) = (3, 4);
    });
    log.flush().unwrap();
    dir
}

#[test]
fn report_sums_up_each_host() {
    let page = page(&two_hosts(), None);
    let hosts = page.split_once("<h2>Hosts</h2>").unwrap().1;
    let hosts = hosts.split_once("</section>").unwrap().0;
    let rows: Vec<_> = hosts.split("<tr class=").skip(1).map(words).collect();
    // Host, attempts, allowed, denied, failed, sent, received; then rule and time.
    let [one, two] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert_eq!(one[..7], ["one.test:443", "8", "2", "6", "1", "101 B", "702 B"]);
    assert_eq!(two[..7], ["two.test:443", "1", "1", "0", "0", "3 B", "4 B"]);
    assert!(one.contains(&"allow it"), "{one:?}");
    assert!(one.last().unwrap() < two.last().unwrap(), "{rows:?}");
    let cards = words(page.split_once("class=\"cards\"").unwrap().1);
    assert_eq!(
        cards[..12],
        [
            "9",
            "attempts",
            "3",
            "allowed",
            "6",
            "denied",
            "1",
            "allowed, then failed",
            "104 B",
            "sent",
            "706 B",
            "received"
        ]
    );
}

#[test]
fn timeline_shows_when_how_much_was_allowed_and_denied() {
    let page = page(&two_hosts(), None);
    let svg = page.split_once("<div class=\"timeline\"><svg").unwrap().1;
    let svg = svg.split_once("</svg>").unwrap().0;
    let bars: Vec<_> = svg.split("<g>").skip(1).collect();
    let number = |rect: &str, name: &str| -> f64 {
        let (_, rest) = rect.split_once(&format!(" {name}=\"")).unwrap();
        rest.split_once('"').unwrap().0.parse().unwrap()
    };
    let [first, second] = &bars[..] else {
        panic!("{bars:?}");
    };
    for (bar, said) in [
        (first, " UTC: 2 allowed, 6 denied</title>"),
        (second, " UTC: 1 allowed, 0 denied</title>"),
    ] {
        assert!(bar.contains(said), "{said} {bar}");
    }
    let rects: Vec<_> = first.split("<rect ").skip(1).collect();
    let [allowed, denied] = &rects[..] else {
        panic!("{first}");
    };
    assert!(allowed.starts_with("class=\"allowed\"") && denied.starts_with("class=\"denied\""));
    // As high as it is much, one upon the other, side by side in the order of time and within the picture.
    let close = |a: f64, b: f64| (a - b).abs() < 0.3;
    assert!(
        close(number(denied, "height"), 3.0 * number(allowed, "height")),
        "{first}"
    );
    assert!(close(
        number(denied, "y") + number(denied, "height"),
        number(allowed, "y")
    ));
    assert!(close(number(allowed, "x"), number(denied, "x")));
    let later = second.split("<rect ").nth(1).unwrap();
    assert!(number(later, "x") >= number(allowed, "x") + number(allowed, "width"));
    assert!(number(later, "x") + number(later, "width") <= 1200.0 && number(denied, "y") >= 0.0);
    assert!(close(2.0 * number(later, "height"), number(allowed, "height")));
    let marks = svg.matches("<line class=\"grid\"").count();
    assert_eq!(marks, 3);
}
