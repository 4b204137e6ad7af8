//! Compressed responses: what is asked for, what is looked into, what is refused, and what the client gets.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use sandbox_proxy::{Service, sources};

use crate::support::*;

/// A request for the key and this content, coded.
async fn coded(
    running: &Running,
    at: &str,
    codings: &str,
    more: &[(&str, &str)],
    content: &[u8],
) -> Response<Bytes> {
    let mut client = running.h1(at).await;
    let mut request = Request::post("/coded")
        .header("host", at)
        .header("x-coding", codings);
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    send(&mut client, request.body(Full::from(content.to_vec())).unwrap()).await
}

fn stars() -> String {
    "*".repeat(SECRET.len())
}

#[tokio::test]
async fn compressed_responses_are_decoded_and_scrubbed() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let content = format!("{}{SECRET}", "some text. ".repeat(20_000));
        for codings in ["gzip", "deflate", "br", "zstd", "gzip, br"] {
            let response = coded(&running, &at, codings, &[], content.as_bytes()).await;
            assert_eq!(response.status(), StatusCode::OK, "{codings}");
            let clean = format!("{}\n{}", stars(), content.replace(SECRET, &stars()));
            assert!(response.body() == clean.as_bytes(), "{codings}");
            // Of the coded content; the tag names what this client always gets.
            for gone in [
                "content-encoding",
                "content-length",
                "repr-digest",
                "accept-ranges",
            ] {
                assert!(!response.headers().contains_key(gone), "{gone}");
            }
            assert_eq!(response.headers()["etag"], "\"tag\"");
        }
    }
}

#[tokio::test]
async fn services_are_asked_not_to_compress_unless_they_are_allowed_to() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let offers = [("accept-encoding", "dcz, gzip;q=0.5, br, *;q=0.1")];
    let running = Running::managed(&upstream).await;
    coded(&running, &at, "gzip", &offers, b"").await;
    assert_eq!(upstream.last().headers["accept-encoding"], "identity");
    let running = Running::start(|builder| {
        let service = Service::custom("api")
            .header(&at, "x-api-key")
            .allow_compression();
        allowed(builder, &upstream).credential(service, Arc::new(sources::Static::new(SECRET)))
    })
    .await;
    let response = coded(&running, &at, "gzip", &offers, b"").await;
    assert_eq!(text(&response), format!("{}\n", stars()));
    assert_eq!(upstream.last().headers["accept-encoding"], "gzip;q=0.5, br");
    coded(&running, &at, "gzip", &[], b"").await;
    assert_eq!(upstream.last().headers["accept-encoding"], "identity");
}

#[tokio::test]
async fn unknown_codings_are_refused_from_services_and_pass_from_others() {
    let (upstream, plain) = (Upstream::tls(&["http/1.1"]).await, Upstream::plain().await);
    let running = Running::beside(&upstream, &plain, &["elsewhere.test"]).await;
    let at = upstream.at("api.test");
    for (codings, more) in [
        ("compress", &[][..]),
        ("dcz", &[]),
        ("gzip, br, zstd", &[]),
        // A part of something coded.
        ("gzip", &[("x-status", "206")]),
    ] {
        let response = coded(&running, &at, codings, more, b"").await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{codings}");
        assert!(!holds_secret(&text(&response)));
    }
    let at = plain.at("elsewhere.test");
    let ask = |coding: &str, more: &str| {
        format!(
            "POST http://{at}/coded HTTP/1.1\r\nHost: {at}\r\nX-Coding: {coding}\r\nAccept-Encoding: gzip, x\r\n\
             {more}Content-Length: {}\r\nConnection: close\r\n\r\n{SECRET}",
            SECRET.len()
        )
    };
    let answer = running.raw(ask("compress", "")).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("content-encoding: compress"),
        "{answer}"
    );
    assert_eq!(plain.last().headers["accept-encoding"], "gzip");
    // The secret, known from then on, is looked for in what can be read.
    running.get(&upstream.at("api.test"), "/").await;
    let answer = running.raw(ask("gzip", "")).await;
    assert!(answer.contains(&stars()) && !holds_secret(&answer), "{answer}");
    // A part could not be decoded.
    running.raw(ask("gzip", "Range: bytes=0-7\r\n")).await;
    assert_eq!(plain.last().headers["accept-encoding"], "identity");
    assert_eq!(plain.last().headers["range"], "bytes=0-7");
}

#[tokio::test]
async fn heads_are_told_what_bodies_would_be() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut client = running.h1(&at).await;
        for (coding, is_known) in [("gzip", true), ("compress", false)] {
            let request = Request::builder()
                .method(Method::HEAD)
                .uri("/coded")
                .header("host", &at);
            let request = request.header("x-coding", coding).body(Full::default()).unwrap();
            let response = send(&mut client, request).await;
            assert_eq!(response.status(), StatusCode::OK);
            for name in ["content-encoding", "content-length"] {
                assert_eq!(
                    response.headers().contains_key(name),
                    !is_known,
                    "{protocol} {coding} {name}"
                );
            }
        }
        // The connection goes on with the next response where it should.
        let request = Request::get("/body")
            .header("host", &at)
            .body(Full::from("next"))
            .unwrap();
        assert_eq!(send(&mut client, request).await.body(), "next");
    }
}

#[tokio::test]
async fn broken_and_truncated_streams_break_off_and_do_not_pass_for_whole() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    for (coding, sent) in [
        ("x-gzip", &b"no gzip at all"[..]),
        ("gzip, x-gzip", b"coded once only"),
    ] {
        let mut client = running.h1(&at).await;
        let request = Request::post("/coded")
            .header("host", &at)
            .header("x-coding", coding);
        let request = request.body(Full::from(sent.to_vec())).unwrap();
        let response = client.send_request(request).await.unwrap();
        let ended = http_body_util::BodyExt::collect(response.into_body()).await;
        assert!(ended.is_err(), "{coding}");
    }
    running
        .events
        .wait(|event| event.outcome.contains("stream is broken"))
        .await;
}

#[tokio::test]
async fn bomb_flows_through_without_filling_anything() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    // 32 MiB of zeros, twice compressed, are some hundred bytes.
    let bomb = encode("gzip, gzip", &vec![0; 32 << 20]);
    let mut client = running.h1(&at).await;
    let request = Request::post("/raw")
        .header("host", &at)
        .header("x-coding", "gzip, gzip");
    let request = request.body(Full::from(bomb)).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert!(!response.headers().contains_key("content-encoding"));
    let mut body = response.into_body();
    let (mut total, mut longest) = (0, 0);
    while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
        let data = frame.unwrap().into_data().unwrap();
        total += data.len();
        longest = longest.max(data.len());
    }
    assert_eq!(total, 32 << 20);
    assert!(longest <= 256 << 10, "{longest}");
}

#[tokio::test]
async fn events_in_a_compressed_stream_arrive_when_they_happen() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h1(&at).await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, b"data: one\n\n").unwrap();
    std::io::Write::flush(&mut gzip).unwrap();
    let request = Request::post("/drip")
        .header("host", &at)
        .header("x-type", "text/event-stream")
        .header("x-coding", "gzip")
        .body(Full::from(gzip.get_ref().clone()))
        .unwrap();
    let mut body = client.send_request(request).await.unwrap().into_body();
    let first = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "data: one\n\n");
    upstream.go_on.notify_one();
}

#[tokio::test]
async fn curl_gets_what_it_asked_for_with_compression() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
    let output = tokio::process::Command::new("curl")
        .args([
            "-sS",
            "--compressed",
            "-H",
            "x-coding: gzip",
            "--data",
            "payload",
            "--cacert",
        ])
        .arg(&ca)
        .args([
            "--proxy",
            &format!("http://{}", running.address),
            &format!("https://{at}/coded"),
        ])
        .output()
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{}\npayload", stars()),
        "{output:?}"
    );
}
