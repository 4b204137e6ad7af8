//! One guest's hunger is its own: what is bounded, how it is told, and that others go on.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::audit::AuditDecision;
use sandbox_proxy::{Proxy, Rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// Set in the process that [`hog_in_a_process_with_few_descriptors`] starts.
const FEW: &str = "SANDBOX_TEST_FEW_DESCRIPTORS";

#[tokio::test]
async fn connections_that_wait_make_room_for_others() {
    let upstreams = [
        Upstream::plain().await,
        Upstream::plain().await,
        Upstream::plain().await,
    ];
    let running = Running::start(|builder| {
        let rules = upstreams.iter().fold(Rules::new(), |rules, upstream| {
            rules.allow(&format!("http://127.0.0.1:{} special-ranges", upstream.port()))
        });
        builder.policy(Arc::new(rules)).max_connections(2)
    })
    .await;
    for upstream in upstreams.iter().chain(&upstreams) {
        let at = upstream.address;
        let answer = running
            .raw(format!(
                "GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn upstream_connections_over_the_limit_are_refused_and_recorded() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let two = Running::start(|builder| with_credential(allowed(builder, &upstream), &upstream)).await;
    let running =
        Running::start(|builder| with_credential(allowed(builder, &upstream), &upstream).max_connections(2))
            .await;
    let at = upstream.at("api.test");
    let mut client = running.h2(&at).await;
    let ask = |path: &str| {
        Request::get(format!("https://{at}{path}"))
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    // Each keeps an HTTP/1.1 connection to upstream busy.
    let first = client.send_request(ask("/slow")).await.unwrap();
    let second = client.send_request(ask("/slow")).await.unwrap();
    let refused = send2(&mut client, ask("/")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let status = refused.headers()["proxy-status"].to_str().unwrap();
    assert!(status.contains("connection_limit_reached"), "{status}");
    assert!(
        !refused.headers().contains_key("x-should-retry"),
        "it may do better later"
    );
    let event = running.events.wait(|event| event.status == Some(503)).await;
    assert_eq!(event.decision, AuditDecision::Denied);
    assert_eq!(
        two.get(&at, "/").await.status(),
        StatusCode::OK,
        "another sandbox goes on"
    );
    drop((first, second));
    // Their connections are closed, since they could not be used again.
    assert_eq!(send2(&mut client, ask("/")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn streams_over_the_limit_are_told_so_and_the_rest_work() {
    let upstream = Upstream::plain().await;
    let running = Running::start(|builder| {
        let rule = format!("{} special-ranges", upstream.address);
        builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .max_connections(3)
    })
    .await;
    let at = upstream.address.to_string();
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(running.connect(&at).await.unwrap());
    }
    for _ in 0..20 {
        let refused = running.connect(&at).await.unwrap_err();
        assert!(
            refused.starts_with("HTTP/1.1 503") && refused.contains("connection_limit_reached"),
            "{refused}"
        );
    }
    for mut stream in open {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
    drop(running.events.wait(|event| event.status == Some(503)).await);
}

#[test]
fn hog_in_a_process_with_few_descriptors() {
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -n 192 && exec \"$0\" --exact limits::hog_and_neighbour",
        ])
        .arg(this)
        .env(FEW, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{output:?}"
    );
}

/// The inner half of the test above: does nothing in a process of its own right.
#[tokio::test]
async fn hog_and_neighbour() {
    if std::env::var_os(FEW).is_none() {
        return;
    }
    let upstream = Upstream::plain().await;
    let at = upstream.address;
    let proxy = |name: &str| {
        let rules = Rules::new().allow(&format!("{at} special-ranges"));
        Proxy::builder(name.parse().unwrap())
            .policy(Arc::new(rules))
            .build()
            .unwrap()
    };
    let (hog, neighbour) = (proxy("hog"), proxy("neighbour"));
    let head = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..300 {
        // In memory, so that the descriptors are those of connections to upstream alone.
        let (mut near, far) = tokio::io::duplex(4096);
        tokio::spawn(hog.serve(Box::new(far)));
        near.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        near.read_exact(&mut answer).await.unwrap();
        held.push((near, String::from_utf8_lossy(&answer).into_owned()));
    }
    let open = held.iter().filter(|(_, answer)| answer.ends_with("200")).count();
    assert!((1..=24).contains(&open), "{open}");
    assert!(
        held.iter()
            .all(|(_, answer)| answer.ends_with("200") || answer.ends_with("503")),
        "{:?}",
        held.iter().map(|(_, answer)| answer).collect::<Vec<_>>()
    );
    let (mut near, far) = tokio::io::duplex(4096);
    tokio::spawn(neighbour.serve(Box::new(far)));
    near.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    near.read_exact(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"200"));
}
