//! Requests inside intercepted tunnels that are not what they seem.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use sandbox_core::audit::AuditDecision;
use sandbox_core::policy::{Attempt, Decision, Policy, Verdict};
use sandbox_proxy::{ClientCredential, Service, sources};
use tokio::io::AsyncWriteExt;

use crate::support::*;

#[tokio::test]
async fn host_must_be_the_tunnels() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let port = upstream.port();
    for head in [
        "GET / HTTP/1.1\r\nHost: evil.test\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: api.test\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: other.test:{port}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {at}\r\nHost: evil.test\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {at}\r\nHost: {at}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x@{at}\r\n"),
        format!("GET https://evil.test/ HTTP/1.1\r\nHost: {at}\r\n"),
        format!("GET https://{at}/ HTTP/1.1\r\nHost: evil.test\r\n"),
        format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n"),
        "GET / HTTP/1.1\r\n".to_owned(),
        "GET / HTTP/1.0\r\n".to_owned(),
        "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n".to_owned(),
        format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: user:pw@{at}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {at},evil.test\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {at} evil.test\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {at}/\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {at}#@evil.test\r\n"),
        format!("GET / HTTP/1.1\r\nHost: evil.api.test:{port}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: api.test..:{port}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: api.test:0{port}0\r\n"),
        "GET / HTTP/1.1\r\nHost: api.test:443\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost:\r\n".to_owned(),
        format!("GET https://user@{at}/ HTTP/1.1\r\nHost: {at}\r\n"),
        format!("GET https://api.test/ HTTP/1.1\r\nHost: {at}\r\n"),
        format!("GET ftp://{at}/ HTTP/1.1\r\nHost: {at}\r\n"),
        format!("TRACE / HTTP/1.1\r\nHost: {at}\r\n"),
    ] {
        let answer = running.raw_inside(&at, format!("{head}\r\n")).await;
        assert!(
            answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{head:?} {answer}"
        );
        let is_method = head.starts_with("CONNECT") || head.starts_with("TRACE");
        assert_eq!(answer.contains(" 405 "), is_method, "{head:?} {answer}");
    }
    assert!(upstream.seen().is_empty());
    let event = running.events.wait(|event| event.status == Some(421)).await;
    assert_eq!(event.decision, AuditDecision::Denied);
}

#[tokio::test]
async fn every_spelling_of_the_tunnels_host_is_one_and_upstream_sees_its_normal_form() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let (at, port) = (upstream.at("api.test"), upstream.port());
    for head in [
        format!("GET / HTTP/1.1\r\nHost: API.Test:{port}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: api.test.:{port}\r\n"),
        format!("GET https://API.TEST.:{port}/ HTTP/1.1\r\nHost: api.test:{port}\r\n"),
        format!("GET HTTPS://{at}/ HTTP/1.1\r\nhOST:  {at} \r\n"),
        format!("GET / HTTP/1.0\r\nHost: {at}\r\n"),
    ] {
        let request = format!("{head}Connection: close\r\n\r\n");
        let answer = running.raw_inside(&at, request).await;
        assert!(answer.contains(" 200 "), "{head:?} {answer}");
        let seen = upstream.last();
        assert_eq!(
            (seen.headers["host"].to_str().unwrap(), seen.target.as_str()),
            (at.as_str(), "/")
        );
        assert_eq!(seen.headers["x-api-key"], SECRET);
    }
    assert_eq!(upstream.seen().len(), 5);
}

#[tokio::test]
async fn other_spellings_of_another_host_are_refused_over_http2() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let (at, port) = (upstream.at("api.test"), upstream.port());
    for authority in [
        "evil.test".to_owned(),
        "api.test".to_owned(),
        "api.test:443".to_owned(),
        format!("user@{at}"),
        format!("evil.api.test:{port}"),
        format!("127.0.0.1:{port}"),
    ] {
        let mut client = running.h2(&at).await;
        let request = Request::get(format!("https://{authority}/")).body(Full::default());
        // Some are refused by HTTP/2 itself.
        if let Ok(response) = client.send_request(request.unwrap()).await {
            assert!(response.status().is_client_error(), "{authority} {response:?}");
        }
    }
    let mut client = running.h2(&at).await;
    for hosts in [
        &["evil.test"][..],
        &[&at, "evil.test"],
        &[&at, &at],
        &["user@api.test"],
    ] {
        let mut request = Request::get(format!("https://{at}/"));
        for host in hosts {
            request = request.header("host", *host);
        }
        let response = send2(&mut client, request.body(Full::default()).unwrap()).await;
        assert!(response.status().is_client_error(), "{hosts:?} {response:?}");
    }
    let plain = Request::get(format!("http://{at}/")).body(Full::default());
    assert!(
        send2(&mut client, plain.unwrap())
            .await
            .status()
            .is_client_error()
    );
    assert!(upstream.seen().is_empty());
    let request = Request::get(format!("https://API.test.:{port}/")).header("host", &at);
    let response = send2(&mut client, request.body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        upstream.last().target.starts_with(&format!("https://{at}/")),
        "{}",
        upstream.last().target
    );
}

#[tokio::test]
async fn authority_of_http2_must_be_the_tunnels() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h2(&at).await;
    let evil = Request::get("https://evil.test/").body(Full::default()).unwrap();
    assert_eq!(
        send2(&mut client, evil).await.status(),
        StatusCode::MISDIRECTED_REQUEST
    );
    let two_faced = Request::get(format!("https://{at}/")).header("host", "evil.test");
    let response = send2(&mut client, two_faced.body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
    let trace = Request::builder()
        .method(Method::TRACE)
        .uri(format!("https://{at}/"));
    let response = send2(&mut client, trace.body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(upstream.seen().is_empty());
    let fine = Request::get(format!("https://{at}/"))
        .body(Full::default())
        .unwrap();
    assert_eq!(send2(&mut client, fine).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn refusal_of_a_head_request_has_no_content_over_http2() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let mut client = running.h2(&upstream.at("api.test")).await;
    for (method, is_told) in [(Method::HEAD, false), (Method::GET, true)] {
        let request = Request::builder().method(method).uri("https://other.test/");
        let request = request.body(Full::default()).unwrap();
        let response = send2(&mut client, request).await;
        assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
        assert_ne!(response.headers()["content-length"], "0");
        assert_eq!(!response.body().is_empty(), is_told);
    }
}

#[tokio::test]
async fn server_name_must_be_the_tunnels() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    for name in ["other.test", "evil.test", "127.0.0.1"] {
        let error = running
            .tls(&upstream.at("api.test"), name, &[])
            .await
            .unwrap_err();
        assert!(error.to_string().contains("AccessDenied"), "{name} {error}");
    }
}

#[tokio::test]
async fn credentials_of_the_client_are_replaced_however_they_are_sent() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let head = format!(
        "GET /echo HTTP/1.1\r\nHost: {at}\r\nX-API-Key: mine\r\nx-api-key: mine2\r\nAUTHORIZATION: Bearer mine3\r\n\
         Cookie: session=mine4\r\nProxy-Authorization: Basic bWluZTU=\r\nConnection: x-api-key\r\n\r\n"
    );
    let answer = running.raw_inside(&at, head).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = upstream.last();
    let keys: Vec<_> = seen.headers.get_all("x-api-key").iter().collect();
    assert_eq!(keys, [SECRET]);
    let all = format!("{:?}", seen.headers);
    assert!(!all.contains("mine") && !all.contains("bWluZTU"), "{all}");
}

#[tokio::test]
async fn pass_and_reject_are_for_the_clients_own_and_never_for_placeholders() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    for (mode, own_status, own_sent) in [
        (ClientCredential::Pass, StatusCode::OK, Some("mine")),
        (ClientCredential::Reject, StatusCode::FORBIDDEN, None),
        (ClientCredential::Replace, StatusCode::OK, Some(SECRET)),
    ] {
        let running = Running::start(|builder| {
            allowed(builder, &upstream).credential(
                Service::custom("api")
                    .header(&at, "x-api-key")
                    .environment("API_KEY", "sandbox-placeholder-api")
                    .client_credential(mode),
                Arc::new(sources::Static::new(SECRET)),
            )
        })
        .await;
        assert_eq!(
            running.proxy.placeholders(),
            [("API_KEY".to_owned(), "sandbox-placeholder-api".to_owned())]
        );
        let mut client = running.h1(&at).await;
        let before = upstream.seen().len();
        let ask = |key: &str| {
            let request = Request::get("/").header("host", &at).header("x-api-key", key);
            request.body(Full::default()).unwrap()
        };
        assert_eq!(send(&mut client, ask("mine")).await.status(), own_status);
        match own_sent {
            Some(sent) => assert_eq!(upstream.last().headers["x-api-key"], sent),
            None => assert_eq!(upstream.seen().len(), before),
        }
        assert_eq!(
            send(&mut client, ask("sandbox-placeholder-api")).await.status(),
            StatusCode::OK
        );
        assert_eq!(upstream.last().headers["x-api-key"], SECRET);
    }
}

#[tokio::test]
async fn placeholder_in_a_body_is_left_alone() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h1(&at).await;
    let request = Request::post("/body").header("host", &at);
    let body = "my environment: API_KEY=sandbox-placeholder-api";
    let response = send(&mut client, request.body(Full::from(body)).unwrap()).await;
    assert_eq!(text(&response), body);
}

/// Reads everything, and allows `GET` of what is public.
#[derive(Debug)]
struct ReadOnly;

impl Policy for ReadOnly {
    fn decide(&self, attempt: &Attempt<'_>) -> Decision<'_> {
        let verdict = match attempt.request {
            None => Verdict::Inspect,
            Some(line) if line.method == "GET" && line.path.starts_with("/public") => Verdict::Allow,
            Some(_) => Verdict::Deny,
        };
        Decision {
            verdict,
            rule: "read only",
            permits_special_ranges: true,
        }
    }
}

#[tokio::test]
async fn policy_that_inspects_is_asked_for_each_request() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(ReadOnly))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .extra_root(upstream.ca_pem.clone())
    })
    .await;
    let at = upstream.at("api.test");
    let denied = running.get(&at, "/private").await;
    assert_eq!(upstream.connections(), 0, "nothing is dialled before a yes");
    assert_eq!(running.get(&at, "/public/x").await.status(), StatusCode::OK);
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert!(text(&denied).contains("read only"));
    let mut client = running.h2(&at).await;
    let post = Request::post(format!("https://{at}/public/x"))
        .body(Full::default())
        .unwrap();
    assert_eq!(send2(&mut client, post).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(upstream.seen().len(), 1);
    // What cannot be read is denied.
    let mut tunnel = running.connect(&at).await.unwrap();
    tunnel.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    assert!(read_all(&mut tunnel).await.starts_with("HTTP/1.1 403"));
}
