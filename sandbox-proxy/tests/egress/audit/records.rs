//! What is recorded of each attempt, and what those are told who listen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditKind, AuditSink};
use sandbox_proxy::audit::verify;
use sandbox_proxy::{AuditLog, Proxy, Rules};

use super::{Dir, denied, page};
use crate::support::{Running, Upstream, allowed, is_denied, send, with_credential};

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
        is_denied(&proxy, "denied.test:443").await;
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
    for index in 1..=1100 {
        running.plain_get(at, "Connection: close\r\n").await;
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
    let page = page(&dir, None);
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
