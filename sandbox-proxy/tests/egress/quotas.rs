//! What [`Limits`] says of bytes, rates, and what one host may have: it holds, and the client is told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use sandbox_core::audit::AuditDecision;
use sandbox_proxy::{Limits, Rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// Two names for one upstream, and limits.
async fn limited(upstream: &Upstream, limits: Limits) -> Running {
    Running::start(|builder| {
        let rules = ["api.test", "other.test"]
            .iter()
            .fold(Rules::new(), |rules, name| {
                rules.allow(&format!("{} special-ranges", upstream.at(name)))
            });
        with_credential(allowed(builder, upstream), upstream)
            .policy(Arc::new(rules))
            .resolve("other.test".parse().unwrap(), vec![LOCAL])
            .limits(limits)
    })
    .await
}

#[tokio::test]
async fn bytes_of_a_sandbox_are_used_up_once_and_for_all() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = limited(&upstream, Limits::new().bytes(1 << 20)).await;
    let at = upstream.at("api.test");
    let (mut client, mut open) = (running.h1(&at).await, running.h2(&at).await);
    let ask = |path: &str| {
        let request = Request::get(path).header("host", &at);
        request.body(Full::<Bytes>::default()).unwrap()
    };
    let big = client.send_request(ask("/big")).await.unwrap();
    let (status, body) = (big.status(), big.into_body().collect().await);
    assert_eq!(status, StatusCode::OK);
    assert!(body.is_err(), "what is not whole does not end well");
    let again = Request::get(format!("https://{at}/"))
        .body(Full::default())
        .unwrap();
    let refused = send2(&mut open, again).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(refused.headers()["x-should-retry"], "false");
    assert!(
        text(&refused).contains("has used up its 1048576 bytes"),
        "{}",
        text(&refused)
    );
    let refused = running.connect(&upstream.at("other.test")).await.unwrap_err();
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("used up"),
        "{refused}"
    );
    let event = running
        .events
        .wait(|event| event.rule == "limit: bytes of the sandbox")
        .await;
    assert_eq!(event.decision, AuditDecision::Denied);
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn record_says_that_a_response_broke_off_since_the_bytes_were_used_up() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = limited(&upstream, Limits::new().bytes(1 << 20)).await;
        let at = upstream.at("api.test");
        let request = Request::get("/big").header("host", &at);
        let mut client = running.h1(&at).await;
        let big = client
            .send_request(request.body(Full::<Bytes>::default()).unwrap())
            .await;
        assert!(big.unwrap().into_body().collect().await.is_err());
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/big"))
            .await;
        assert!(event.outcome.contains("quota"), "{protocol}: {event:?}");
    }
}

#[tokio::test]
async fn bytes_of_a_tunnel_count_too_and_only_for_its_host() {
    let upstream = Upstream::plain().await;
    let at = upstream.address;
    let other = Upstream::plain().await;
    let running = Running::start(|builder| {
        let rules = Rules::new()
            .allow(&format!("one.test:{} special-ranges", at.port()))
            .allow(&format!("two.test:{} special-ranges", other.port()));
        builder
            .policy(Arc::new(rules))
            .resolve("one.test".parse().unwrap(), vec![LOCAL])
            .resolve("two.test".parse().unwrap(), vec![LOCAL])
            .limits(Limits::new().bytes_per_host(1 << 20))
    })
    .await;
    let one = format!("one.test:{}", at.port());
    let mut tunnel = running.connect(&one).await.unwrap();
    tunnel
        .write_all(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut got = Vec::new();
    let _ = tunnel.read_to_end(&mut got).await;
    assert!((1 << 19..2 << 20).contains(&got.len()), "{}", got.len());
    let refused = running.connect(&one).await.unwrap_err();
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("for this host"),
        "{refused}"
    );
    let event = running.events.wait(|event| event.host == "one.test").await;
    assert!(event.outcome.contains("quota"), "{event:?}");
    assert!(
        running
            .connect(&format!("two.test:{}", other.port()))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn requests_to_a_host_are_limited_and_the_client_is_told_when_to_come_again() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let hour = Duration::from_secs(3600);
    let running = limited(&upstream, Limits::new().requests_per_host(3, hour)).await;
    let at = upstream.at("api.test");
    for _ in 0..3 {
        assert_eq!(running.get(&at, "/").await.status(), StatusCode::OK);
    }
    let refused = running.get(&at, "/").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=3600).contains(&seconds), "{seconds}");
    assert!(!refused.headers().contains_key("x-should-retry"));
    let event = running.events.wait(|event| event.status == Some(429)).await;
    assert_eq!(event.decision, AuditDecision::Denied);
    assert_eq!(upstream.seen().len(), 3);
    // Tunnels that are not read count as one each.
    let other = upstream.at("other.test");
    for _ in 0..3 {
        running.connect(&other).await.unwrap();
    }
    let refused = running.connect(&other).await.unwrap_err();
    assert!(
        refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after: "),
        "{refused}"
    );
}

#[tokio::test]
async fn requests_may_be_limited_for_any_time() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = limited(&upstream, Limits::new().requests_per_host(1, Duration::MAX)).await;
    let at = upstream.at("api.test");
    assert_eq!(running.get(&at, "/").await.status(), StatusCode::OK);
    let refused = running.get(&at, "/").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds = refused.headers()["retry-after"].to_str().unwrap().parse::<u64>();
    let year = 365 * 24 * 3600;
    assert!((year - 3600..=year).contains(&seconds.unwrap()), "{refused:?}");
}

#[tokio::test]
async fn connections_to_one_host_leave_places_for_others() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = limited(&upstream, Limits::new().connections_per_host(2)).await;
    let (one, other) = (upstream.at("other.test"), upstream.at("api.test"));
    let mut open = vec![
        running.connect(&one).await.unwrap(),
        running.connect(&one).await.unwrap(),
    ];
    let refused = running.connect(&one).await.unwrap_err();
    assert!(
        refused.starts_with("HTTP/1.1 503") && refused.contains("connection_limit_reached"),
        "{refused}"
    );
    assert_eq!(running.get(&other, "/").await.status(), StatusCode::OK);
    open.pop();
    // Its end must have reached the proxy.
    for _ in 0..100 {
        if let Ok(tunnel) = running.connect(&one).await {
            open.push(tunnel);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(open.len(), 2);
}

#[tokio::test]
async fn limited_rate_loses_nothing() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = limited(&upstream, Limits::new().bytes_per_second(16 << 20)).await;
    let answer = running.get(&upstream.at("api.test"), "/big").await;
    assert_eq!(answer.body().len(), 8 << 20);
}
