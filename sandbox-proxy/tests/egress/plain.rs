//! Plain HTTP through the proxy.

use std::sync::Arc;

use sandbox_core::audit::AuditDecision;
use sandbox_proxy::{Rules, Service, sources};

use crate::support::*;

#[tokio::test]
async fn absolute_target_is_fetched_in_origin_form() {
    let upstream = Upstream::plain().await;
    let running = Running::plain(&upstream).await;
    let at = upstream.at("API.test");
    let answer = running
        .raw(format!(
            "POST http://{at}/body?x=1 HTTP/1.1\r\nHost: {at}\r\nProxy-Authorization: Basic eA==\r\n\
             Proxy-Connection: keep-alive\r\nConnection: x-drop\r\nX-Drop: 1\r\nX-Keep: 1\r\nContent-Length: 5\r\n\r\nhello"
        ))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    let seen = upstream.last();
    assert_eq!(seen.target, "/body?x=1");
    assert_eq!(seen.headers["host"], upstream.at("api.test"));
    assert_eq!(seen.headers["x-keep"], "1");
    for gone in ["x-drop", "proxy-authorization", "proxy-connection", "connection"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    let event = running.events.wait(|event| event.host == "api.test").await;
    assert_eq!(event.path.as_deref(), Some("/body"));
    assert_eq!(
        (event.decision, event.status),
        (AuditDecision::Allowed, Some(200))
    );
    assert_eq!((event.bytes_out, event.bytes_in), (5, 5));
}

#[tokio::test]
async fn host_that_differs_from_the_target_is_refused() {
    let upstream = Upstream::plain().await;
    let running = Running::plain(&upstream).await;
    let at = upstream.at("api.test");
    for host in [
        "Host: evil.test\r\n".to_owned(),
        "Host: api.test\r\n".to_owned(),
        format!("Host: {at}\r\nHost: {at}\r\n"),
        format!("Host: {at}\r\nhost: evil.test\r\n"),
        format!("Host: user@{at}\r\n"),
        format!("Host: {at}, evil.test\r\n"),
    ] {
        let answer = running
            .raw(format!("GET http://{at}/ HTTP/1.1\r\n{host}\r\n"))
            .await;
        let refused = answer.starts_with("HTTP/1.1 421") || answer.starts_with("HTTP/1.1 400");
        assert!(refused, "{host:?} {answer}");
    }
    let answer = running
        .raw(format!("GET http://user:pw@{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn credential_never_goes_over_plain_http_unless_allowed() {
    let upstream = Upstream::plain().await;
    let at = upstream.at("api.test");
    for allowed_plain in [false, true] {
        let running = Running::start(|builder| {
            let rule = format!("{at} special-ranges");
            let service = Service::custom("api").header(&at, "x-api-key");
            let service = if allowed_plain {
                service.plain_http_allowed()
            } else {
                service
            };
            builder
                .policy(Arc::new(Rules::new().allow(&rule)))
                .resolve("api.test".parse().unwrap(), vec![LOCAL])
                .credential(service, Arc::new(sources::Static::new(SECRET)))
        })
        .await;
        let answer = running
            .raw(format!("GET http://{at}/echo HTTP/1.1\r\nHost: {at}\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(!holds_secret(&answer));
        let sent = upstream
            .last()
            .headers
            .get("x-api-key")
            .map(|value| value.to_str().unwrap() == SECRET);
        assert_eq!(sent, allowed_plain.then_some(true));
    }
}

#[tokio::test]
async fn connections_to_upstream_are_used_again() {
    let upstream = Upstream::plain().await;
    let running = Running::plain(&upstream).await;
    let at = upstream.at("api.test");
    for _ in 0..5 {
        let answer = running.plain_get(&at, "").await;
        assert!(answer.ends_with("ok"), "{answer}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn malformed_requests_are_answered_and_recorded() {
    for head in [
        "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".to_owned(),
        "GET http://a.test/ HTTP/1.1\r\nBad Header: 1\r\n\r\n".to_owned(),
        "GET http://a.test/ HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n".to_owned(),
        "GET http://a.test/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
        "GET http://a.test/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n".to_owned(),
        "GET http://a.test/ HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n".to_owned(),
        format!(
            "GET http://a.test/ HTTP/1.1\r\nA: {}\r\n\r\n",
            "x".repeat(70 << 10)
        ),
        format!("GET http://a.test/ HTTP/1.1\r\n{}\r\n", "A: 1\r\n".repeat(500)),
    ] {
        // Each its own, since denials of a kind are told together.
        let running = Running::start(|builder| builder.policy(Arc::new(Rules::new()))).await;
        let answer = running.raw(&head).await;
        let shown = head.get(..60).unwrap_or(&head);
        // Who begins TLS would not understand it.
        let is_tls = head.starts_with('\x16') && answer.is_empty();
        assert!(is_tls || answer.starts_with("HTTP/1.1 4"), "{shown:?} {answer}");
        let event = running.events.wait(|_| true).await;
        assert_eq!(event.decision, AuditDecision::Denied, "{shown:?} {event:?}");
    }
    let running = Running::start(|builder| builder.policy(Arc::new(Rules::new()))).await;
    let origin = running.raw("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(
        origin.starts_with("HTTP/1.1 400") && origin.contains("this is a proxy"),
        "{origin}"
    );
}

#[tokio::test]
async fn tunnel_to_port_80_is_read_as_http() {
    let upstream = Upstream::plain().await;
    let proxy = leads_to(upstream.address).await;
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("http://api.test special-ranges")))
            .upstream_proxy(proxy)
    })
    .await;
    let mut tunnel = running.connect("api.test:80").await.unwrap();
    let request = b"GET /x HTTP/1.1\r\nHost: api.test\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut tunnel, request)
        .await
        .unwrap();
    assert!(read_all(&mut tunnel).await.ends_with("ok"));
    assert_eq!(upstream.last().target, "/x");
    let fronted = b"GET /y HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut tunnel, fronted)
        .await
        .unwrap();
    assert!(read_all(&mut tunnel).await.starts_with("HTTP/1.1 421"));
    let tunnel = running.connect("api.test:80").await.unwrap();
    assert!(
        tls(tunnel, &upstream.ca_pem, "api.test", &[]).await.is_err(),
        "no TLS on a plain port"
    );
}

#[tokio::test]
async fn connect_whose_host_header_says_something_else_is_refused() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::open(&upstream).await;
    let at = upstream.at("api.test");
    for host in [
        "Host: evil.test:443\r\n".to_owned(),
        format!("Host: {at}\r\nHost: evil.test\r\n"),
        format!("Host: {at}\r\nHost: {at}\r\n"),
        "Host: api.test:1\r\n".to_owned(),
    ] {
        let answer = running.raw(format!("CONNECT {at} HTTP/1.1\r\n{host}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{host:?} {answer}");
    }
    assert_eq!(upstream.connections(), 0);
    for host in ["", "Host: api.test\r\n"] {
        let answer = running.raw(format!("CONNECT {at} HTTP/1.1\r\n{host}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host:?} {answer}");
    }
}

#[tokio::test]
async fn only_plain_http_is_fetched() {
    let upstream = Upstream::plain().await;
    let running = Running::plain(&upstream).await;
    let at = upstream.at("api.test");
    for scheme in ["https", "ftp", "ws"] {
        let answer = running
            .raw(format!("GET {scheme}://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{scheme} {answer}");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn head_over_its_limit_is_refused_before_it_is_held() {
    let upstream = Upstream::plain().await;
    let running = Running::plain(&upstream).await;
    let at = upstream.at("api.test");
    let head = format!(
        "GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nA: {}\r\n\r\n",
        "x".repeat(70 << 10)
    );
    let answer = running.raw(head).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(upstream.seen().is_empty());
}
