//! One guest's hunger is its own: what is bounded, how it is told, and that others go on.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use sandbox_core::audit::AuditDecision;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_core::host::HostName;
use sandbox_proxy::{Limits, Proxy, Resolver, Rules, Service};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::floods::{END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, frame2, head, open};
use crate::streaming::settled;
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
    // Who speaks nothing else is told by the record.
    let mut tls = running.tls(&at, "api.test", &["h2"]).await.unwrap();
    assert_eq!(tls.read(&mut [0; 64]).await.unwrap_or(0), 0);
    running
        .events
        .wait(|event| event.outcome.contains("HTTP/2"))
        .await;
    drop(open);
}

#[tokio::test]
async fn responses_that_nobody_reads_leave_room_for_others() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut unread = Vec::new();
    for _ in 0..5 {
        // Each on a connection of its own, all on one connection to upstream.
        let mut client = running.h1(&at).await;
        let request = Request::get("/big")
            .header("host", &at)
            .body(Full::default())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        unread.push((client, response));
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
        let mut client = running.h1(&at).await;
        let request = Request::get("/big")
            .header("host", &at)
            .body(Full::default())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        unread.push((client, response));
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

#[tokio::test]
async fn http2_connections_to_upstream_over_the_limit_are_made_with_the_older_version() {
    let mut upstreams = Vec::new();
    for _ in 0..17 {
        upstreams.push(Upstream::tls(&["h2", "http/1.1"]).await);
    }
    let running = Running::start(|builder| {
        let rules = upstreams.iter().fold(Rules::new(), |rules, upstream| {
            rules.allow(&format!("GET {}/ special-ranges", upstream.at("api.test")))
        });
        let builder = builder
            .policy(Arc::new(rules))
            .resolve("api.test".parse().unwrap(), vec![LOCAL]);
        upstreams.iter().fold(builder, |builder, upstream| {
            builder.extra_root(upstream.ca_pem.clone())
        })
    })
    .await;
    let mut versions = Vec::new();
    for upstream in &upstreams {
        let response = running.get(&upstream.at("api.test"), "/").await;
        assert_eq!(response.status(), StatusCode::OK);
        versions.push(upstream.last().version);
    }
    let (last, others) = versions.split_last().unwrap();
    assert!(
        others.iter().all(|version| *version == http::Version::HTTP_2),
        "{versions:?}"
    );
    assert_eq!(*last, http::Version::HTTP_11);
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

/// What the other side of HTTP/2 says that it may be sent, until it has said it: for a stream, for the connection, and of
/// a head.
async fn announced(stream: &mut (impl AsyncRead + Unpin)) -> (u32, u32, u32) {
    // As long as nothing is said (RFC 9113 §6.5.2 and §6.9.2).
    let (mut of_stream, mut of_connection, mut of_head) = (65_535, 65_535, u32::MAX);
    loop {
        let mut start = [0; 9];
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read_exact(&mut start)).await;
        if !matches!(read, Ok(Ok(_))) {
            return (of_stream, of_connection, of_head);
        }
        let mut payload = vec![0; usize::from(u16::from_be_bytes([start[1], start[2]]))];
        stream.read_exact(&mut payload).await.unwrap();
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        match start[3] {
            SETTINGS => {
                for setting in payload.chunks(6) {
                    match setting[1] {
                        4 => of_stream = number(&setting[2..]),
                        6 => of_head = number(&setting[2..]),
                        _ => {}
                    }
                }
            }
            WINDOW_UPDATE if start[5..] == [0; 4] => of_connection += number(&payload),
            _ => {}
        }
    }
}

#[tokio::test]
async fn http2_either_way_may_send_little_that_nobody_has_read() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let mut client = open(&running, &upstream.at("api.test"), &[]).await;
    assert_eq!(announced(&mut client).await, (128 << 10, 1 << 20, 64 << 10));

    let (running, at, listener, acceptor) = raw_http2().await;
    let (asked, told) = tokio::join!(running.tls(&at, "api.test", &["http/1.1"]), async {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        stream.read_exact(&mut [0; 24]).await.unwrap();
        stream.write_all(&frame2(SETTINGS, 0, 0, &[])).await.unwrap();
        announced(&mut stream).await
    });
    drop(asked);
    assert_eq!(told, (512 << 10, 4 << 20, 64 << 10));
}

/// An upstream of HTTP/2 that is yet to be served, and a sandbox with a credential for it.
async fn raw_http2() -> (Running, String, TcpListener, tokio_rustls::TlsAcceptor) {
    let (ca_pem, config) = certificates(&["h2"]);
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    let running = Running::start(|builder| {
        with_service(builder, Service::custom("api").bearer(&at))
            .policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .extra_root(ca_pem)
    })
    .await;
    (running, at, listener, Arc::new(config).into())
}

/// Settings that grant each stream the greatest window there is, and the same for the connection.
fn greatest_windows() -> (Vec<u8>, Vec<u8>) {
    let greatest = 0x7fff_ffff_u32.to_be_bytes();
    let more = (0x7fff_ffff_u32 - 65_535).to_be_bytes();
    (
        [&[0, 4][..], &greatest].concat(),
        frame2(WINDOW_UPDATE, 0, 0, &more),
    )
}

#[tokio::test]
async fn client_that_grants_a_great_window_and_never_reads_is_held_little_for() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let (settings, update) = greatest_windows();
    let mut client = open(&running, &at, &settings).await;
    let request = frame2(HEADERS, END_STREAM | END_HEADERS, 1, &head(&at, "/pour"));
    client.write_all(&[update, request].concat()).await.unwrap();
    let poured = settled(|| upstream.poured.load(Relaxed)).await;
    assert!((1..32 << 20).contains(&poured), "{poured}");
}

#[tokio::test]
async fn upstream_that_grants_a_great_window_and_never_reads_is_held_little_for() {
    let (running, at, listener, acceptor) = raw_http2().await;
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let (settings, update) = greatest_windows();
        let granted = [frame2(SETTINGS, 0, 0, &settings), update].concat();
        stream.write_all(&granted).await.unwrap();
        // Open, and never read.
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    });
    let mut client = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let size = 96 << 20;
    let head = format!("POST /x HTTP/1.1\r\nHost: {at}\r\nContent-Length: {size}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let (piece, mut taken) = (vec![b'x'; 64 << 10], 0);
    while taken < size {
        let write = tokio::time::timeout(Duration::from_secs(1), client.write_all(&piece)).await;
        if !matches!(write, Ok(Ok(()))) {
            break;
        }
        taken += piece.len();
    }
    assert!((1..48 << 20).contains(&taken), "{taken}");
}

#[tokio::test]
async fn response_heads_are_bounded() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        for (size, expected) in [(48 << 10, StatusCode::OK), (80 << 10, StatusCode::BAD_GATEWAY)] {
            let mut client = running.h1(&at).await;
            let request = Request::get("/long-head")
                .header("host", &at)
                .header("x-size", size.to_string());
            let response = send(&mut client, request.body(Full::default()).unwrap()).await;
            assert_eq!(response.status(), expected, "{protocol} {size}");
        }
        let event = running.events.wait(|event| event.status == Some(502)).await;
        assert!(event.outcome.contains("upstream failed"), "{event:?}");
    }
}
