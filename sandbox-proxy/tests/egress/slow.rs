//! Clients that take their time: a stream is held for a while, and not for ever. The clock is the test's.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::audit::AuditDecision;
use sandbox_proxy::{Proxy, Rules, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::*;

/// A proxy without sockets.
fn proxy() -> (Proxy, Arc<Events>) {
    let events = Arc::<Events>::default();
    let builder = Proxy::builder("one".parse().unwrap()).audit(events.clone());
    (builder.policy(Arc::new(Rules::new())).build().unwrap(), events)
}

/// Writes a byte now and then, until the other side has ended; gives how long that took.
async fn drip<S: AsyncWriteExt + Unpin>(stream: &mut S, pause: Duration, limit: usize) -> Option<Duration> {
    let start = Instant::now();
    for _ in 0..limit {
        if stream.write_all(b"x").await.is_err() {
            return Some(start.elapsed());
        }
        tokio::time::sleep(pause).await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn head_of_a_byte_now_and_then_is_not_waited_for() {
    let (proxy, events) = proxy();
    let (mut near, far) = tokio::io::duplex(4096);
    let serving = tokio::spawn(proxy.serve(Box::new(far)));
    near.write_all(b"CONNECT a.test:443 HTTP/1.1\r\nA: ")
        .await
        .unwrap();
    let held = drip(&mut near, Duration::from_secs(20), 60).await;
    assert!(held.is_some(), "the stream is held for ever");
    serving.await.unwrap();
    let told = events.all();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].decision, AuditDecision::Denied);
    assert!(told[0].outcome.contains("malformed"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn stream_that_says_nothing_is_closed() {
    let (proxy, events) = proxy();
    let (mut near, far) = tokio::io::duplex(4096);
    let serving = tokio::spawn(proxy.serve(Box::new(far)));
    let mut end = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(3600), near.read_to_end(&mut end));
    ended.await.expect("it is held for ever").unwrap();
    serving.await.unwrap();
    assert!(
        events.all().is_empty(),
        "nothing was attempted: {:?}",
        events.all()
    );
}

#[tokio::test(start_paused = true)]
async fn stream_that_is_kept_open_after_an_answer_ends_without_a_denial() {
    for (more, denials) in [("", 1), ("GET http://a.test/ HT", 2)] {
        let (proxy, events) = proxy();
        let (mut near, far) = tokio::io::duplex(4096);
        let serving = tokio::spawn(proxy.serve(Box::new(far)));
        let request = "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n";
        near.write_all(request.as_bytes()).await.unwrap();
        assert!(read_all(&mut near).await.starts_with("HTTP/1.1 403"));
        near.write_all(more.as_bytes()).await.unwrap();
        let mut end = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(600), near.read_to_end(&mut end));
        ended.await.expect("it is held for ever").unwrap();
        serving.await.unwrap();
        let told = events.all();
        assert_eq!(told.len(), denials, "{told:?}");
        let malformed = told.iter().filter(|event| event.outcome.contains("malformed"));
        assert_eq!(malformed.count(), denials - 1, "{told:?}");
    }
}

#[tokio::test]
async fn connection_inside_a_tunnel_that_is_kept_open_ends_without_a_denial() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let get = format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n");
    for (sent, malformed) in [(String::new(), 0), (get.clone(), 0), (get + "GET / HT", 1)] {
        let running = Running::managed(&upstream).await;
        let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
        let (first, part) = sent.split_at(sent.len() - 8 * malformed);
        if !first.is_empty() {
            tls.write_all(first.as_bytes()).await.unwrap();
            assert!(read_all(&mut tls).await.starts_with("HTTP/1.1 200"));
        }
        tls.write_all(part.as_bytes()).await.unwrap();
        tls.flush().await.unwrap();
        tokio::time::pause();
        let ended = tokio::time::timeout(Duration::from_secs(600), tls.read(&mut [0; 1])).await;
        tokio::time::resume();
        assert_eq!(ended.expect("it is held for ever").unwrap_or(0), 0);
        running.events.wait(|event| event.host == "api.test").await;
        let told = running.events.all();
        let denied = told
            .iter()
            .filter(|event| event.decision == AuditDecision::Denied);
        assert_eq!(denied.count(), malformed, "{told:?}");
    }
}

#[tokio::test]
async fn handshake_of_a_byte_now_and_then_is_not_waited_for() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut tunnel = running.connect(&at).await.unwrap();
    // The start of a TLS record of a client hello, whose rest comes slowly.
    tunnel
        .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
        .await
        .unwrap();
    tokio::time::pause();
    let held = drip(&mut tunnel, Duration::from_secs(4), 100).await;
    tokio::time::resume();
    assert!(held.is_some(), "the tunnel is held for ever");
    let event = running.events.wait(|event| event.host == "api.test").await;
    assert!(event.outcome.contains("in time"), "{event:?}");
}

#[tokio::test]
async fn upstream_whose_tls_stalls_is_told_to_the_client() {
    let certified = Upstream::tls(&[]).await;
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    // Takes connections and says nothing on them.
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let running = Running::start(|builder| {
        let service = Service::custom("api").header(&at, "x-api-key");
        with_service(allowed(builder, &certified), service)
            .policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
    })
    .await;
    let tunnel = running.connect(&at).await.unwrap();
    let authority = running.proxy.ca_pem().unwrap();
    tokio::time::pause();
    let answer = async {
        let mut tls = tls(tunnel, &authority, "api.test", &["http/1.1"]).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(300), answer).await;
    tokio::time::resume();
    let answer = answer.expect("it is held for ever").expect("nothing is told");
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("error=connection_timeout"), "{answer}");
    let event = running.events.wait(|event| event.status == Some(504)).await;
    assert!(event.outcome.contains("TLS with upstream"), "{event:?}");
    let blamed = running.events.all();
    assert!(
        !blamed.iter().any(|event| event.outcome.contains("the client")),
        "{blamed:?}"
    );
}

#[tokio::test]
async fn tunnel_on_which_nothing_moves_is_closed() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let running = Running::start(|builder| {
        builder.policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
    })
    .await;
    let mut tunnel = running.connect(&at.to_string()).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    tokio::time::pause();
    let ended = tokio::time::timeout(Duration::from_secs(2 * 3600), tunnel.read(&mut [0; 1])).await;
    tokio::time::resume();
    assert_eq!(ended.expect("it is held for ever").unwrap_or(0), 0);
    assert_eq!(
        accepted.read(&mut [0; 1]).await.unwrap_or(0),
        0,
        "upstream's side, too"
    );
}
