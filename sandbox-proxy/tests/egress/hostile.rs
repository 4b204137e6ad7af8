//! What a guest's root user tries: around the scrubber, past a replaced policy, at the host's threads and the log.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::audit::AuditDecision;
use sandbox_core::host::HostName;
use sandbox_proxy::{ClientCredential, Resolver, Rules, Service, sources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// Never answers, and counts.
#[derive(Debug, Default)]
struct Silent(Arc<AtomicUsize>);

#[async_trait]
impl Resolver for Silent {
    async fn lookup(&self, _name: &HostName) -> io::Result<Vec<IpAddr>> {
        self.0.fetch_add(1, Relaxed);
        std::future::pending().await
    }
}

#[tokio::test]
async fn look_ups_under_way_are_bounded_even_if_nobody_waits_for_them() {
    let resolver = Silent::default();
    let asked = Arc::clone(&resolver.0);
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("*.test")))
            .resolver(resolver)
    })
    .await;
    for round in 0..2 {
        let mut streams = Vec::new();
        for index in 0..48 {
            let mut stream = running.dial().await;
            let head = format!("CONNECT n{round}-{index}.test:443 HTTP/1.1\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            streams.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let asked = asked.load(Relaxed);
    assert!((1..=32).contains(&asked), "{asked}");
}

#[tokio::test]
async fn replaced_policy_acts_inside_open_intercepted_tunnels() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let (mut h1, mut h2) = (running.h1(&at).await, running.h2(&at).await);
    let ask = || {
        Request::get("/")
            .header("host", &at)
            .body(Full::default())
            .unwrap()
    };
    let ask2 = || {
        Request::get(format!("https://{at}/"))
            .body(Full::default())
            .unwrap()
    };
    assert_eq!(send(&mut h1, ask()).await.status(), StatusCode::OK);
    assert_eq!(send2(&mut h2, ask2()).await.status(), StatusCode::OK);

    let narrowed = Rules::new()
        .allow(&format!("{at} special-ranges"))
        .deny("127.0.0.0/8");
    running.proxy.set_policy(Arc::new(narrowed)).unwrap();
    let refused = send(&mut h1, ask()).await;
    assert_eq!(
        refused.status(),
        StatusCode::FORBIDDEN,
        "a connection that was made before is not used"
    );
    assert!(
        refused.headers()["proxy-status"]
            .to_str()
            .unwrap()
            .contains("destination_ip_prohibited")
    );

    running.proxy.set_policy(Arc::new(Rules::locked_down())).unwrap();
    assert_eq!(send(&mut h1, ask()).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(send2(&mut h2, ask2()).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(upstream.seen().len(), 2);

    let rule = format!("{at} special-ranges");
    running
        .proxy
        .set_policy(Arc::new(Rules::new().allow(&rule)))
        .unwrap();
    assert_eq!(send(&mut h1, ask()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn clients_own_credential_does_not_turn_the_scrubber_off() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::start(|builder| {
        allowed(builder, &upstream).credential(
            Service::custom("api")
                .header(&at, "x-api-key")
                .client_credential(ClientCredential::Pass),
            Arc::new(sources::Static::new(SECRET)),
        )
    })
    .await;
    let mut client = running.h1(&at).await;
    let managed = Request::get("/echo")
        .header("host", &at)
        .body(Full::default())
        .unwrap();
    assert!(!holds_secret(&text(&send(&mut client, managed).await)));
    // Stands for a host that shows what it kept of the request before.
    let own = Request::post("/body")
        .header("host", &at)
        .header("x-api-key", "mine")
        .header("range", "bytes=0-7")
        .header("request-range", "bytes=0-7")
        .header("x-ms-range", "bytes=0-7")
        .body(Full::new(Bytes::from(format!("was {SECRET}"))))
        .unwrap();
    let answer = text(&send(&mut client, own).await);
    assert!(answer.starts_with("was ") && !holds_secret(&answer), "{answer}");
    let seen = upstream.last();
    assert_eq!(seen.headers["x-api-key"], "mine");
    assert!(seen.headers.keys().all(|name| !name.as_str().contains("range")));
}

#[tokio::test]
async fn clients_own_credential_is_taken_out_of_trailers_and_underscored_names() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let request = format!(
        "POST /body HTTP/1.1\r\nHost: {at}\r\nX_Api_Key: mine\r\nTransfer-Encoding: chunked\r\n\
         Trailer: x-api-key, x-sum, authorization\r\n\r\n2\r\nhi\r\n0\r\nX-Api-Key: mine\r\nAuthorization: mine\r\n\
         X-Sum: 7\r\n\r\n"
    );
    let answer = running.raw_inside(&at, request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = upstream.last();
    assert_eq!(seen.trailers.get("x-sum").unwrap(), "7");
    assert_eq!(seen.body, "hi");
    let all = format!("{:?} {:?}", seen.headers, seen.trailers);
    assert!(!all.contains("mine"), "{all}");
}

#[tokio::test]
async fn intercepted_tunnel_without_a_request_leaves_a_record() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    drop(running.tls(&at, "api.test", &["http/1.1"]).await.unwrap());
    let event = running
        .events
        .wait(|event| event.method.as_deref() == Some("CONNECT"))
        .await;
    assert_eq!(
        (event.host.as_str(), event.decision),
        ("api.test", AuditDecision::Allowed)
    );
}

#[tokio::test]
async fn endless_response_head_is_refused_before_it_is_held() {
    let listener = tokio::net::TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let rule = format!("http://{at}");
    let running = Running::start(|builder| builder.policy(Arc::new(Rules::new().allow(&rule)))).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_vec();
            for index in 0..40 {
                head.extend_from_slice(format!("x-{index}: {}\r\n", "y".repeat(4096)).as_bytes());
            }
            head.extend_from_slice(b"\r\n");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(&head).await;
        }
    });
    let answer = running.plain_get(at, "").await;
    assert!(
        answer.starts_with("HTTP/1.1 502"),
        "{}",
        answer.get(..80).unwrap_or(&answer)
    );
}
