//! Intercepted tunnels: HTTP/1.1 and HTTP/2 in any pairing, streaming, upgrades, and whom upstream's TLS convinces.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use sandbox_core::audit::AuditDecision;
use sandbox_proxy::{Rules, Service, sources};
use tokio::io::AsyncWriteExt;

use crate::support::*;

#[tokio::test]
async fn credential_is_injected_in_every_pairing_of_versions() {
    for (protocols, upstream_version) in [
        (&["http/1.1"][..], Version::HTTP_11),
        (&["h2"][..], Version::HTTP_2),
        (&[][..], Version::HTTP_11),
    ] {
        let upstream = Upstream::tls(protocols).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let response = running.get(&at, "/v1/x?q=1").await;
        assert_eq!(
            (response.status(), text(&response).as_str()),
            (StatusCode::OK, "ok")
        );
        let mut h2 = running.h2(&at).await;
        let request = Request::post(format!("https://{at}/body?q=2")).body(Full::new(Bytes::from("data")));
        let response = send2(&mut h2, request.unwrap()).await;
        assert_eq!(text(&response), "data");
        let seen = upstream.seen();
        assert_eq!(seen.len(), 2);
        for seen in seen {
            assert_eq!(seen.version, upstream_version);
            assert_eq!(seen.headers["x-api-key"], SECRET);
            assert!(seen.target.contains("?q="), "{}", seen.target);
            if seen.version == Version::HTTP_11 {
                assert_eq!(seen.headers["host"], at);
            } else {
                assert!(
                    seen.target.starts_with(&format!("https://{at}/")),
                    "{}",
                    seen.target
                );
                assert!(!seen.headers.contains_key("host"));
            }
        }
        assert_eq!(upstream.connections(), 1, "one connection serves all");
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/body"))
            .await;
        assert_eq!(event.credential.as_deref(), Some("api"));
        assert_eq!(event.decision, AuditDecision::Allowed);
        assert_eq!((event.bytes_out, event.bytes_in), (4, 4));
    }
}

#[tokio::test]
async fn client_is_told_of_http2_only_where_upstream_speaks_it() {
    for (protocols, chosen) in [
        (&["http/1.1"][..], &b"http/1.1"[..]),
        (&["h2", "http/1.1"], b"h2"),
    ] {
        let upstream = Upstream::tls(protocols).await;
        let running = Running::managed(&upstream).await;
        let tls = running
            .tls(&upstream.at("api.test"), "api.test", &["h2", "http/1.1"])
            .await
            .unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(chosen));
    }
}

#[tokio::test]
async fn client_is_told_of_http2_where_a_request_decides_what_is_dialled() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::start(|builder| {
        let rules = Rules::new().allow(&format!("GET {at}/allowed special-ranges"));
        allowed(builder, &upstream).policy(Arc::new(rules))
    })
    .await;
    let mut client = running.h2(&at).await;
    assert_eq!(upstream.connections(), 0, "nothing is known of it");
    for (path, status) in [("denied", StatusCode::FORBIDDEN), ("allowed", StatusCode::OK)] {
        let request = Request::get(format!("https://{at}/{path}")).body(Full::default());
        assert_eq!(send2(&mut client, request.unwrap()).await.status(), status);
    }
    assert_eq!(upstream.last().version, Version::HTTP_11);
}

#[tokio::test]
async fn response_streams_without_being_collected() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut client = running.h1(&at).await;
        let request = Request::get("/slow")
            .header("host", &at)
            .body(Full::default())
            .unwrap();
        let mut body = client.send_request(request).await.unwrap().into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "data: one\n\n");
        upstream.go_on.notify_one();
        let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(second, "data: two\n\n");
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let data: Bytes = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut h1 = running.h1(&at).await;
        let request = Request::post("/body")
            .header("host", &at)
            .body(Full::new(data.clone()));
        assert_eq!(send(&mut h1, request.unwrap()).await.body(), &data);
        let mut h2 = running.h2(&at).await;
        let request = Request::post(format!("https://{at}/body")).body(Full::new(data.clone()));
        assert_eq!(send2(&mut h2, request.unwrap()).await.body(), &data);
    }
}

#[tokio::test]
async fn websocket_passes_and_its_server_side_is_scrubbed() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h1(&at).await;
    let request = Request::get("/ws")
        .header("host", &at)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-extensions", "permessage-deflate")
        .body(Full::default())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let sent = greets_and_echoes(&mut stream).await;
    let seen = upstream.last();
    assert_eq!(seen.headers["x-api-key"], SECRET);
    assert!(!seen.headers.contains_key("sec-websocket-extensions"));
    drop(stream);
    drop(client);
    let event = running
        .events
        .wait(|event| event.path.as_deref() == Some("/ws"))
        .await;
    assert_eq!((event.status, event.bytes_out), (Some(101), sent));
}

#[tokio::test]
async fn other_upgrades_are_not_offered_to_upstream() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h1(&at).await;
    let request = Request::get("/")
        .header("host", &at)
        .header("connection", "upgrade, http2-settings")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA")
        .body(Full::default())
        .unwrap();
    assert_eq!(send(&mut client, request).await.status(), StatusCode::OK);
    for gone in ["upgrade", "connection", "http2-settings"] {
        assert!(!upstream.last().headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn upstream_with_an_untrusted_certificate_gets_nothing() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let stranger = Upstream::tls(&["http/1.1"]).await;
    let running = Running::start(|builder| {
        let at = upstream.at("api.test");
        builder
            .policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .extra_root(stranger.ca_pem.clone())
            .credential(
                Service::custom("api").header(&at, "x-api-key"),
                Arc::new(sources::Static::new(SECRET)),
            )
    })
    .await;
    let response = running.get(&upstream.at("api.test"), "/").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let status = response.headers()["proxy-status"].to_str().unwrap();
    assert!(status.contains("error=tls_certificate_error"), "{status}");
    assert!(upstream.seen().is_empty());
}

/// Its inner half has this upstream's authority where the platform has its own.
#[tokio::test]
async fn upstream_is_trusted_by_the_roots_of_the_platform() {
    let Some(file) = told() else {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("roots.pem");
        let test = "upstream_is_trusted_by_the_roots_of_the_platform";
        let mut inner = inner_half(module_path!(), test, "", &file);
        inner.env("SSL_CERT_FILE", &file).env_remove("SSL_CERT_DIR");
        return assert_passes(inner);
    };
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let other = Upstream::tls(&["http/1.1"]).await;
    std::fs::write(file, &upstream.ca_pem).unwrap();
    for (upstream, status) in [(&upstream, StatusCode::OK), (&other, StatusCode::BAD_GATEWAY)] {
        let at = upstream.at("api.test");
        let running = Running::start(|builder| {
            let rules = Rules::new().allow(&format!("{at} special-ranges"));
            let builder = builder
                .policy(Arc::new(rules))
                .resolve("api.test".parse().unwrap(), vec![LOCAL]);
            with_credential(builder, upstream)
        })
        .await;
        assert_eq!(running.get(&at, "/").await.status(), status);
    }
    assert_eq!(upstream.last().headers["x-api-key"], SECRET);
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn certificate_names_the_host_and_differs_by_sandbox() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let one = Running::managed(&upstream).await;
    let two = Running::managed(&upstream).await;
    assert_ne!(one.proxy.ca_pem().unwrap(), two.proxy.ca_pem().unwrap());
    let tunnel = one.connect(&upstream.at("api.test")).await.unwrap();
    assert!(
        tls(tunnel, &two.proxy.ca_pem().unwrap(), "api.test", &[])
            .await
            .is_err(),
        "not each other's authority"
    );
    assert!(
        one.proxy
            .ca_pem()
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    assert!(!one.proxy.ca_pem().unwrap().contains("PRIVATE"));
}

#[tokio::test]
async fn request_trailers_and_response_trailers_pass_over_http2() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let mut client = running.h2(&upstream.at("api.test")).await;
    let request = Request::get(format!("https://{}/trailers", upstream.at("api.test")))
        .header("te", "trailers")
        .body(Full::default())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().unwrap().clone();
    assert_eq!(trailers["x-end"], format!("was {}", "*".repeat(SECRET.len())));
    assert_eq!(collected.to_bytes(), "hello");
    assert_eq!(upstream.last().headers["te"], "trailers");
}

#[tokio::test]
async fn not_tls_in_an_intercepted_tunnel_is_refused_in_its_own_language() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut tunnel = running.connect(&at).await.unwrap();
    let request = format!("GET /echo HTTP/1.1\r\nHost: {at}\r\n\r\n");
    tunnel.write_all(request.as_bytes()).await.unwrap();
    let answer = read_all(&mut tunnel).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(upstream.seen().is_empty());
    let event = running.events.wait(|event| event.host == "api.test").await;
    assert_eq!(event.decision, AuditDecision::Denied);
}
