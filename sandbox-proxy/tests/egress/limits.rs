//! One guest's hunger is its own: how many of each it may have, how it is told, and that others go on.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandbox_core::audit::AuditDecision;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_core::host::HostName;
use sandbox_proxy::{Proxy, Resolver, Rules, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

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
        let answer = running.plain_get(at, "Connection: close\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn connection_with_a_response_under_way_does_not_stand_before_one_that_can_make_room() {
    let shared = Upstream::tls(&["h2"]).await;
    let plain = [Upstream::plain().await, Upstream::plain().await];
    let at = shared.at("api.test");
    let running = Running::start(|builder| {
        let managed = Rules::new().allow(&format!("{at} special-ranges"));
        let rules = plain.iter().fold(managed, |rules, upstream| {
            rules.allow(&format!("http://{} special-ranges", upstream.address))
        });
        with_credential(allowed(builder, &shared), &shared)
            .policy(Arc::new(rules))
            .max_connections(2)
    })
    .await;
    let mut client = running.h1(&at).await;
    let request = Request::get("/big").header("host", &at).body(Full::default());
    let unread = client.send_request(request.unwrap()).await.unwrap();
    for upstream in plain.iter().chain(&plain) {
        let answer = running.plain_get(upstream.address, "Connection: close\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(unread.status(), StatusCode::OK);
}

#[tokio::test]
async fn connection_that_comes_to_wait_makes_room_for_who_waited_for_it() {
    for protocol in ["h2", "http/1.1"] {
        let shared = Upstream::tls(&[protocol]).await;
        let plain = Upstream::plain().await;
        let at = shared.at("api.test");
        let running = Running::start(|builder| {
            let managed = Rules::new().allow(&format!("{at} special-ranges"));
            let rules = managed.allow(&format!("http://{} special-ranges", plain.address));
            with_credential(allowed(builder, &shared), &shared)
                .policy(Arc::new(rules))
                .max_connections(2)
        })
        .await;
        let mut client = running.h2(&at).await;
        let ask = |path: &str| {
            Request::get(format!("https://{at}{path}"))
                .body(Full::<Bytes>::default())
                .unwrap()
        };
        let unread = client.send_request(ask("/big")).await.unwrap();
        // So that the next goes out on another connection, whatever upstream speaks.
        let rules = running.proxy.rules().unwrap();
        running.proxy.set_policy(Arc::new(rules)).unwrap();
        let short = client.send_request(ask("/slow")).await.unwrap();
        assert_eq!(shared.connections(), 2);
        let waits = running.plain_get(plain.address, "Connection: close\r\n");
        let ends = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            shared.go_on.notify_one();
            short.into_body().collect().await
        };
        let (answer, ended) = tokio::join!(waits, ends);
        ended.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{protocol}: {answer}");
        drop(unread);
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

#[tokio::test]
async fn http2_connections_over_the_limit_are_offered_the_older_version() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let both = ["h2", "http/1.1"];
    let mut open = Vec::new();
    for _ in 0..32 {
        let tls = running.tls(&at, "api.test", &both).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        open.push(tls);
    }
    let tls = running.tls(&at, "api.test", &both).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut client = h1(tls).await;
    let request = Request::get("/")
        .header("host", &at)
        .body(Full::default())
        .unwrap();
    assert_eq!(send(&mut client, request).await.status(), StatusCode::OK);
    // Who speaks nothing else is told so.
    let tls = running.tls(&at, "api.test", &["h2"]).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (_client, connection) = builder
        .handshake::<_, Full<Bytes>>(TokioIo::new(tls))
        .await
        .unwrap();
    let told = format!("{:?}", connection.await.unwrap_err());
    assert!(
        told.contains("GoAway") && told.contains("ENHANCE_YOUR_CALM"),
        "{told}"
    );
    running
        .events
        .wait(|event| event.outcome.contains("HTTP/2"))
        .await;
    drop(open);
}

/// A download that has begun, on a connection of its own, and is not read.
async fn unread_download(running: &Running, at: &str) -> (H1, Response<Incoming>) {
    let mut client = running.h1(at).await;
    let request = Request::get("/big").header("host", at).body(Full::default());
    let response = client.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    (client, response)
}

#[tokio::test]
async fn responses_that_nobody_reads_leave_room_for_others() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut unread = Vec::new();
    for _ in 0..5 {
        // Each on a connection of its own, all on one connection to upstream.
        unread.push(unread_download(&running, &at).await);
    }
    assert_eq!(upstream.connections(), 1);
    // Until nothing of them moves any more.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let response = tokio::time::timeout(Duration::from_secs(20), running.get(&at, "/")).await;
    assert_eq!(response.expect("nothing came through").status(), StatusCode::OK);
    drop(unread);
}

#[tokio::test]
async fn downloads_that_nobody_reads_keep_the_places_of_their_connections() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(unread_download(&running, &at).await);
        // No further request goes out on its connection.
        running
            .proxy
            .set_policy(Arc::new(running.proxy.rules().unwrap()))
            .unwrap();
        // Whoever asked on it hears of that.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(upstream.connections(), 20);
    let seen = upstream.seen();
    let h2 = seen.iter().filter(|seen| seen.version == Version::HTTP_2);
    assert_eq!(h2.count(), 16, "the rest over HTTP/1.1");
    drop(unread);
    for _ in 0..100 {
        let rules = running.proxy.rules().unwrap();
        running.proxy.set_policy(Arc::new(rules)).unwrap();
        running.get(&at, "/").await;
        if upstream.last().version == Version::HTTP_2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no place is given back");
}

/// Takes its time, and notes how often it was asked at once.
#[derive(Debug, Default)]
struct Busy {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Busy {
    async fn takes_its_time(&self) {
        let now = self.now.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(now, Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.now.fetch_sub(1, Relaxed);
    }
}

#[async_trait]
impl CredentialSource for Busy {
    fn describe(&self) -> String {
        "busy".to_owned()
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        self.takes_its_time().await;
        Ok(Issued::token(SECRET.to_owned()))
    }
}

#[tokio::test]
async fn source_is_asked_for_few_requests_at_a_time() {
    let upstream = Upstream::tls(&["h2"]).await;
    let at = upstream.at("api.test");
    let source = Arc::<Busy>::default();
    let running = Running::start(|builder| {
        allowed(builder, &upstream).credential(Service::custom("api").bearer(&at), source.clone())
    })
    .await;
    let client = running.h2(&at).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let mut client = client.clone();
        let request = Request::get(format!("https://{at}/"))
            .body(Full::default())
            .unwrap();
        requests.spawn(async move { send2(&mut client, request).await.status() });
    }
    while let Some(status) = requests.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    let most = source.most.load(Relaxed);
    assert!((2..=16).contains(&most), "{most}");
}

#[tokio::test(start_paused = true)]
async fn denials_over_and_over_are_told_one_by_one_and_then_counted() {
    let events = Arc::<Events>::default();
    let proxy = Proxy::builder("one".parse().unwrap())
        .audit(events.clone())
        .build()
        .unwrap();
    for attempt in 0..500 {
        is_denied(&proxy, "denied.test:443").await;
        // Each of the first 250, then the first of its kind.
        assert_eq!(events.all().len(), (attempt + 1).min(251), "after {attempt}");
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    let told = events.all();
    let attempts: Vec<_> = told
        .iter()
        .map(|event| (event.host.as_str(), event.attempts))
        .collect();
    let (last, each) = attempts.split_last().unwrap();
    assert_eq!(*last, ("denied.test", 249));
    assert_eq!(each, [("denied.test", 1); 251]);
}

#[tokio::test]
async fn denials_that_were_counted_are_told_at_the_end() {
    let events = Arc::<Events>::default();
    let proxy = Proxy::builder("one".parse().unwrap())
        .audit(events.clone())
        .build()
        .unwrap();
    for index in 0..2000 {
        is_denied(&proxy, &format!("n{index}.test:443")).await;
    }
    drop(proxy);
    let told = events.all();
    assert!(told.len() < 600, "{}", told.len());
    assert_eq!(told.iter().map(|event| event.attempts).sum::<u64>(), 2000);
}

#[test]
fn hog_in_a_process_with_few_descriptors() {
    assert_passes(inner_half(
        module_path!(),
        "hog_and_neighbour",
        "ulimit -n 192",
        "",
    ));
}

/// The inner half of the test above: does nothing in a process of its own right.
#[tokio::test]
async fn hog_and_neighbour() {
    if told().is_none() {
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

#[tokio::test]
async fn requests_under_way_over_the_limit_are_refused_and_recorded() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let ask = |path: &str| {
        let request = Request::get(format!("https://{at}{path}"));
        request.body(Full::<Bytes>::default()).unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut client = running.h2(&at).await;
        for _ in 0..128 {
            let response = client.send_request(ask("/slow")).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            held.push((client.clone(), response));
        }
    }
    let mut client = running.h2(&at).await;
    let refused = send2(&mut client, ask("/")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        text(&refused).contains("too many requests open"),
        "{}",
        text(&refused)
    );
    let event = running.events.wait(|event| event.status == Some(503)).await;
    assert_eq!(event.decision, AuditDecision::Denied);
    assert_eq!(upstream.seen().len(), 512);
    held.clear();
    // Their ends must have reached the proxy.
    for _ in 0..100 {
        if send2(&mut client, ask("/")).await.status() == StatusCode::OK {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("requests that have ended count still");
}

/// One upstream more than there may be HTTP/2 connections to, and a sandbox that may ask them all.
async fn one_too_many(protocols: &[&str]) -> (Vec<Upstream>, Running) {
    let mut upstreams = Vec::new();
    for _ in 0..17 {
        upstreams.push(Upstream::tls(protocols).await);
    }
    let running = Running::start(|builder| {
        let rules = upstreams.iter().fold(Rules::new(), |rules, upstream| {
            let rule = |path: &str| format!("GET {}{path} special-ranges", upstream.at("api.test"));
            rules.allow(&rule("/")).allow(&rule("/big"))
        });
        let builder = builder
            .policy(Arc::new(rules))
            .resolve("api.test".parse().unwrap(), vec![LOCAL]);
        upstreams.iter().fold(builder, |builder, upstream| {
            builder.extra_root(upstream.ca_pem.clone())
        })
    })
    .await;
    (upstreams, running)
}

#[tokio::test]
async fn http2_connections_to_upstream_over_the_limit_are_made_with_the_older_version() {
    let (upstreams, running) = one_too_many(&["h2", "http/1.1"]).await;
    let (last, others) = upstreams.split_last().unwrap();
    let mut under_way = Vec::new();
    for upstream in others {
        under_way.push(unread_download(&running, &upstream.at("api.test")).await);
        assert_eq!(upstream.last().version, Version::HTTP_2);
    }
    let response = running.get(&last.at("api.test"), "/").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(last.last().version, Version::HTTP_11);
    drop(under_way);
}

#[tokio::test]
async fn http2_connections_that_wait_make_room_for_hosts_that_speak_nothing_else() {
    let (upstreams, running) = one_too_many(&["h2"]).await;
    for upstream in &upstreams {
        let response = running.get(&upstream.at("api.test"), "/").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(upstream.last().version, Version::HTTP_2);
    }
    // And for those that had made room.
    let again = running.get(&upstreams[0].at("api.test"), "/").await;
    assert_eq!((again.status(), upstreams[0].connections()), (StatusCode::OK, 2));
}

#[tokio::test(start_paused = true)]
async fn streams_far_over_the_limit_are_closed_without_a_word() {
    let proxy = Proxy::builder("one".parse().unwrap())
        .max_connections(1)
        .build()
        .unwrap();
    let open = || {
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(proxy.serve(Box::new(far)));
        near
    };
    let _first = open();
    tokio::task::yield_now().await;
    let mut told: Vec<_> = (0..8).map(|_| open()).collect();
    tokio::task::yield_now().await;
    let mut over = open();
    let head = b"CONNECT a.test:443 HTTP/1.1\r\n\r\n";
    // It may be closed before that.
    let _ = over.write_all(head).await;
    assert_eq!(read_all(&mut over).await, "");
    for stream in &mut told {
        stream.write_all(head).await.unwrap();
        let answer = read_all(stream).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
}

/// Takes its time, finds nothing, and notes how often it was asked at once.
#[derive(Debug, Clone, Default)]
struct BusyResolver(Arc<Busy>);

#[async_trait]
impl Resolver for BusyResolver {
    async fn lookup(&self, _name: &HostName) -> io::Result<Vec<IpAddr>> {
        self.0.takes_its_time().await;
        Err(io::ErrorKind::NotFound.into())
    }
}

#[tokio::test]
async fn names_are_looked_up_few_at_a_time() {
    let resolver = BusyResolver::default();
    let busy = Arc::clone(&resolver.0);
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("**.test")))
            .resolver(resolver)
    })
    .await;
    let running = Arc::new(running);
    let mut asking = tokio::task::JoinSet::new();
    for index in 0..80 {
        let running = Arc::clone(&running);
        asking.spawn(async move { running.connect(&format!("n{index}.test:443")).await.unwrap_err() });
    }
    while let Some(answer) = asking.join_next().await {
        let answer = answer.unwrap();
        assert!(answer.contains("error=dns_error"), "{answer}");
    }
    let most = busy.most.load(Relaxed);
    assert!((2..=32).contains(&most), "{most}");
}
