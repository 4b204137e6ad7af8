//! What the scrubber tells a guesser (nothing), what it holds up (nothing that is waited for), and where it looks.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};

use crate::support::*;

/// Sends `content` to a server that sends it back and then falls silent; what arrives until then, and after.
async fn drip(running: &Running, upstream: &Upstream, kind: &str, content: &[u8]) -> (Bytes, Bytes) {
    let at = upstream.at("api.test");
    let mut client = running.h1(&at).await;
    let request = Request::post("/drip")
        .header("host", &at)
        .header("x-type", kind)
        .body(Full::from(content.to_vec()))
        .unwrap();
    let mut body = client.send_request(request).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    upstream.go_on.notify_one();
    (first, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn guess_that_is_right_looks_like_one_that_is_wrong() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        for kind in ["application/json", "text/event-stream"] {
            for guess in [&SECRET[..12], "sk-wrong-one", "............"] {
                let content = format!("line\n{guess}");
                let (first, rest) = drip(&running, &upstream, kind, content.as_bytes()).await;
                assert_eq!(
                    (first, rest),
                    ("line\n".into(), Bytes::from(guess)),
                    "{protocol} {kind}"
                );
            }
        }
    }
}

#[tokio::test]
async fn events_and_messages_arrive_before_the_stream_goes_on() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    for (kind, content) in [
        ("text/event-stream", &b"data: hello\n\n"[..]),
        ("application/x-ndjson", b"{\"a\":1}\n"),
        ("application/grpc", b"\0\0\0\0\x05hello"),
        (
            "application/vnd.amazon.eventstream",
            b"\0\0\0\x14................",
        ),
    ] {
        let (first, rest) = drip(&running, &upstream, kind, content).await;
        assert_eq!((&first[..], &rest[..]), (content, &b""[..]), "{kind}");
    }
}

#[tokio::test]
async fn stream_that_a_guest_stops_in_the_middle_of_the_secret_gives_none_of_it() {
    // What a server sends stops within the secret for as long as a guest likes: its other streams on the same
    // connection hold the window. Here the server itself stops.
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h1(&at).await;
    let request = Request::get("/stop")
        .header("host", &at)
        .body(Full::default())
        .unwrap();
    let mut body = client.send_request(request).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "the key:\n");
    let silence = tokio::time::timeout(std::time::Duration::from_millis(500), body.frame()).await;
    assert!(silence.is_err(), "{silence:?}");
    upstream.go_on.notify_one();
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!(rest, "*".repeat(SECRET.len()));
}

#[tokio::test]
async fn secret_is_scrubbed_on_other_ports_hosts_and_plain_http() {
    let (upstream, plain) = (Upstream::tls(&["http/1.1"]).await, Upstream::plain().await);
    let running = Running::beside(&upstream, &plain, &["api.test", "elsewhere.test"]).await;
    let ask = |host: &str| {
        let at = plain.at(host);
        // Stands for a host that shows what it knows of other requests.
        format!(
            "POST http://{at}/body HTTP/1.1\r\nHost: {at}\r\nRange: bytes=0-7\r\nAccept-Encoding: gzip\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{SECRET}",
            SECRET.len()
        )
    };
    // Open before the credential was ever used.
    let at = plain.at("api.test");
    let mut before = running.dial().await;
    let head = format!(
        "POST http://{at}/drip HTTP/1.1\r\nHost: {at}\r\nContent-Length: {}\r\n\r\n",
        SECRET.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut before, head.as_bytes())
        .await
        .unwrap();
    let sent = running.get(&upstream.at("api.test"), "/").await;
    assert_eq!(sent.status(), StatusCode::OK);
    tokio::io::AsyncWriteExt::write_all(&mut before, SECRET.as_bytes())
        .await
        .unwrap();
    plain.go_on.notify_one();
    let answer = read_all(&mut before).await;
    assert!(answer.contains(&"*".repeat(SECRET.len())), "{answer}");

    for (host, ranged) in [("api.test", false), ("elsewhere.test", true)] {
        let answer = running.raw(ask(host)).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("****") && !holds_secret(&answer),
            "{answer}"
        );
        let seen = plain.last();
        assert!(!seen.headers.contains_key("x-api-key"), "not injected");
        assert_eq!(seen.headers["accept-encoding"], "identity");
        assert_eq!(seen.headers.contains_key("range"), ranged, "{host}");
    }
}

#[tokio::test]
async fn coded_messages_inside_the_content_are_neither_asked_for_nor_passed() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h2(&at).await;
    let request = Request::post(format!("https://{at}/coded-messages"))
        .header("grpc-accept-encoding", "gzip,identity")
        .header("a-im", "vcdiff")
        .body(Full::default())
        .unwrap();
    let refused = send2(&mut client, request).await;
    assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
    let seen = upstream.last();
    assert_eq!(seen.headers["grpc-accept-encoding"], "identity");
    assert!(!seen.headers.contains_key("a-im"));
}

#[tokio::test]
async fn headers_that_clients_act_on_show_no_secret_however_long_they_are() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut client = running.h1(&at).await;
        let request = Request::get("/headers")
            .header("host", &at)
            .body(Full::default())
            .unwrap();
        let response = send(&mut client, request).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let stars = "*".repeat(SECRET.len());
        assert!(
            !response.headers().contains_key("set-cookie"),
            "sessions stay on the host"
        );
        assert!(
            response.headers()["x-long"]
                .to_str()
                .unwrap()
                .ends_with(&format!("x{stars}"))
        );
        assert_eq!(response.headers()["x-percent"], "*".repeat(3 * SECRET.len()));
        // Would lead to a port that nobody looks at.
        assert!(!response.headers().contains_key("alt-svc"));
        let all = format!("{:?} {}", response.headers(), text(&response));
        assert!(!holds_secret(&all), "{protocol} {all}");
        assert_eq!(text(&response), format!("error: {stars}"));
    }
}

#[tokio::test]
async fn trailers_show_no_secret() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut client = running.h1(&at).await;
        let request = Request::get("/trailers")
            .header("host", &at)
            .header("te", "trailers");
        let response = client
            .send_request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        let body = response.into_body().collect().await.unwrap();
        let stars = "*".repeat(SECRET.len());
        assert_eq!(
            body.trailers().unwrap()["x-end"],
            format!("was {stars}"),
            "{protocol}"
        );
        assert_eq!(body.to_bytes(), "hello");
    }
}
