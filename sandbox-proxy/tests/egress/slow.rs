//! Clients and upstreams that take their time: a stream is held for a while, and not for ever. The clock is the test's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::audit::AuditDecision;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_core::host::HostName;
use sandbox_proxy::{Proxy, Resolver, Rules, Service, UpstreamProxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::floods::{END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, frame2, open};
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
async fn client_that_says_nothing_in_a_tunnel_is_told_that_tls_was_waited_for() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let mut tunnel = running.connect(&upstream.at("api.test")).await.unwrap();
    tokio::time::pause();
    let mut told = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(3600), tunnel.read_to_end(&mut told));
    ended.await.expect("it is held for ever").unwrap();
    tokio::time::resume();
    // A fatal alert, access_denied.
    assert_eq!(told, [21, 3, 3, 0, 2, 2, 49]);
}

#[tokio::test]
async fn http2_head_of_a_byte_now_and_then_is_not_waited_for() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let mut tls = open(&running, &upstream.at("api.test"), &[]).await;
    // The start of a frame that is as long as one may be.
    tls.write_all(&[0, 64, 0, HEADERS, 0, 0, 0, 0, 1]).await.unwrap();
    tokio::time::pause();
    let held = drip(&mut tls, Duration::from_secs(4), 100).await;
    tokio::time::resume();
    assert!(held.is_some(), "the connection is held for ever");
}

#[tokio::test]
async fn http2_connection_on_which_a_request_is_under_way_stays_open() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h2(&at).await;
    let request = Request::get(format!("https://{at}/hold")).body(Full::default());
    let held = tokio::spawn(async move { send2(&mut client, request.unwrap()).await });
    while upstream.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(600)).await;
    tokio::time::resume();
    upstream.go_on.notify_one();
    assert_eq!(text(&held.await.unwrap()), "held");
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
    let (_running, mut tunnel, mut accepted) = raw_tunnel().await;
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

/// Longer than the proxy waits for anything, by a clock that goes on to whatever is waited for.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// What the proxy answers, now that nothing more will come from whom it waits for.
async fn in_the_end<S: AsyncReadExt + Unpin>(stream: &mut S) -> (String, Duration) {
    tokio::time::pause();
    let start = Instant::now();
    let mut answer = [0; 4096];
    let read = timeout(FOR_EVER, stream.read(&mut answer)).await;
    let waited = start.elapsed();
    tokio::time::resume();
    let count = read.expect("it is held for ever").unwrap_or(0);
    (String::from_utf8_lossy(&answer[..count]).into_owned(), waited)
}

/// Asks for a tunnel whose answer will not come by itself.
async fn asks(running: &Running, target: &str) -> TcpStream {
    let mut stream = running.dial().await;
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Says when it is asked, and never answers.
#[derive(Debug, Clone, Default)]
struct Mute(Arc<Notify>);

#[async_trait]
impl Resolver for Mute {
    async fn lookup(&self, _name: &HostName) -> io::Result<Vec<IpAddr>> {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl CredentialSource for Mute {
    fn describe(&self) -> String {
        "mute".to_owned()
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn look_up_that_never_ends_is_a_timeout() {
    let mute = Mute::default();
    let resolver = mute.clone();
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("api.test")))
            .resolver(resolver)
    })
    .await;
    let mut stream = asks(&running, "api.test:443").await;
    mute.0.notified().await;
    let (answer, _) = in_the_end(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 504") && answer.contains("error=dns_timeout"),
        "{answer}"
    );
    let event = running.events.wait(|event| event.host == "api.test").await;
    assert_eq!(
        (event.status, event.outcome.as_str()),
        (Some(504), "the look-up took too long")
    );
}

#[tokio::test]
async fn look_up_of_the_upstream_proxy_that_never_ends_is_a_failure() {
    let mute = Mute::default();
    let resolver = mute.clone();
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("api.test")))
            .resolver(resolver)
            .upstream_proxy(UpstreamProxy::http("proxy.test:3128").unwrap())
    })
    .await;
    let mut stream = asks(&running, "api.test:443").await;
    mute.0.notified().await;
    let (answer, waited) = in_the_end(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("error=destination_unavailable"),
        "{answer}"
    );
    // The look-up itself goes on for longer.
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    let event = running.events.wait(|event| event.host == "api.test").await;
    assert!(event.outcome.contains("cannot be reached"), "{event:?}");
}

/// A listener whose queue is full, at every address of this host: what connects to it waits for ever.
async fn dead() -> (TcpListener, Vec<TcpStream>) {
    let dead = TcpSocket::new_v4().unwrap();
    dead.bind(SocketAddr::from(([0; 4], 0))).unwrap();
    let dead = dead.listen(1).unwrap();
    let address = SocketAddr::new(LOCAL, dead.local_addr().unwrap().port());
    let mut queue = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queue.push(stream.unwrap());
    }
    (dead, queue)
}

#[tokio::test]
async fn addresses_that_never_answer_are_a_timeout_each_and_together() {
    let (dead, _queue) = dead().await;
    let port = dead.local_addr().unwrap().port();
    for (count, limit) in [(1, 10), (16, 18)] {
        let addresses = (1..=count).map(|last| IpAddr::from([127, 0, 1, last])).collect();
        let running = Running::start(|builder| {
            builder
                .policy(Arc::new(
                    Rules::new().allow(&format!("api.test:{port} special-ranges")),
                ))
                .resolve("api.test".parse().unwrap(), addresses)
        })
        .await;
        let mut stream = asks(&running, &format!("api.test:{port}")).await;
        let (answer, waited) = in_the_end(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 504") && answer.contains("error=connection_timeout"),
            "{answer}"
        );
        assert!(waited < Duration::from_secs(limit), "{count} {waited:?}");
        let event = running.events.wait(|event| event.host == "api.test").await;
        assert!(event.outcome.contains("did not answer"), "{event:?}");
    }
}

#[tokio::test]
async fn upstream_proxy_that_never_answers_is_a_timeout() {
    let company = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let proxies = [UpstreamProxy::http, UpstreamProxy::socks5];
    for proxy in proxies {
        let proxy = proxy(&company.local_addr().unwrap().to_string()).unwrap();
        let running = Running::start(|builder| {
            builder
                .policy(Arc::new(Rules::new().allow("api.test")))
                .upstream_proxy(proxy)
        })
        .await;
        let mut stream = asks(&running, "api.test:443").await;
        let (mut came, _) = company.accept().await.unwrap();
        came.read_u8().await.unwrap();
        let (answer, _) = in_the_end(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 504") && answer.contains("error=connection_timeout"),
            "{answer}"
        );
        let event = running.events.wait(|event| event.host == "api.test").await;
        assert_eq!(event.outcome, "the upstream proxy did not answer");
    }
}

#[tokio::test]
async fn tls_that_upstream_never_answers_is_a_timeout() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    // Where requests decide, upstream is dialled for the first of them, else for the tunnel.
    for rule in [
        format!("{at} special-ranges"),
        format!("GET https://{at}/** special-ranges"),
    ] {
        let running = Running::start(|builder| {
            with_service(builder, Service::custom("api").bearer(&at))
                .policy(Arc::new(Rules::new().allow(&rule)))
                .resolve("api.test".parse().unwrap(), vec![LOCAL])
        })
        .await;
        let tunnel = running.connect(&at).await.unwrap();
        let (reached, ca_pem) = (accept_all(&listener), running.proxy.ca_pem().unwrap());
        let asked = async {
            tokio::time::pause();
            let mut tls = timeout(FOR_EVER, tls(tunnel, &ca_pem, "api.test", &["http/1.1"]))
                .await
                .expect("the client waits for ever")
                .expect("the client is not told in HTTP");
            let head = format!("GET /x HTTP/1.1\r\nHost: {at}\r\n\r\n");
            tls.write_all(head.as_bytes()).await.unwrap();
            tokio::time::resume();
            in_the_end(&mut tls).await.0
        };
        let answer = tokio::select! {
            answer = asked => answer,
            never = reached => never,
        };
        assert!(
            answer.starts_with("HTTP/1.1 504") && answer.contains("error=connection_timeout"),
            "{rule} {answer}"
        );
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/x"))
            .await;
        assert_eq!(
            (event.status, event.outcome.as_str()),
            (Some(504), "TLS with upstream took too long")
        );
    }
}

/// Takes what comes, and never says anything.
async fn accept_all(listener: &TcpListener) -> String {
    let mut open = Vec::new();
    loop {
        open.push(listener.accept().await.unwrap());
    }
}

#[tokio::test]
async fn credential_that_never_comes_is_a_timeout() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let mute = Mute::default();
    let running = Running::start(|builder| {
        let service = Service::custom("api").bearer(&at);
        allowed(builder, &upstream).credential(service, Arc::new(mute.clone()))
    })
    .await;
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let head = format!("GET /x HTTP/1.1\r\nHost: {at}\r\n\r\n");
    tls.write_all(head.as_bytes()).await.unwrap();
    mute.0.notified().await;
    let (answer, _) = in_the_end(&mut tls).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    let event = running
        .events
        .wait(|event| event.path.as_deref() == Some("/x"))
        .await;
    assert_eq!(event.status, Some(504));
    assert!(event.outcome.contains("took too long"), "{event:?}");
    assert_eq!(
        event.credential_reason.as_deref(),
        Some("api: not injected: the source took too long")
    );
    assert!(upstream.seen().is_empty());
}

/// Asks upstreams that answer nothing, with these lines more in the head.
async fn assert_given_up(more: &str) {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
        let head = format!("GET /hold HTTP/1.1\r\nHost: {at}\r\n{more}\r\n");
        tls.write_all(head.as_bytes()).await.unwrap();
        while upstream.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (answer, _) = in_the_end(&mut tls).await;
        assert!(
            answer.starts_with("HTTP/1.1 504") && answer.contains("error=http_response_timeout"),
            "{protocol} {answer}"
        );
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/hold"))
            .await;
        assert_eq!(
            (event.status, event.outcome.as_str()),
            (Some(504), "upstream did not answer in time")
        );
    }
}

#[tokio::test]
async fn response_that_never_begins_is_a_timeout() {
    assert_given_up("").await;
}

#[tokio::test]
async fn websocket_that_is_never_answered_is_a_timeout() {
    assert_given_up(
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    )
    .await;
}

#[tokio::test]
async fn http2_upstream_that_gives_no_sign_of_life_is_given_up() {
    let (running, at, listener, acceptor) = raw_http2().await;
    let came = Arc::<Notify>::default();
    let told = Arc::clone(&came);
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        stream.read_exact(&mut [0; 24]).await.unwrap();
        stream.write_all(&frame2(SETTINGS, 0, 0, &[])).await.unwrap();
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let length = u16::from_be_bytes([head[1], head[2]]);
            stream
                .read_exact(&mut vec![0; usize::from(length)])
                .await
                .unwrap();
            if head[3] == HEADERS {
                told.notify_one();
            }
        }
    });
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let head = format!("GET /x HTTP/1.1\r\nHost: {at}\r\n\r\n");
    tls.write_all(head.as_bytes()).await.unwrap();
    came.notified().await;
    let (answer, _) = in_the_end(&mut tls).await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("error=http_response_incomplete"),
        "{answer}"
    );
    let event = running
        .events
        .wait(|event| event.path.as_deref() == Some("/x"))
        .await;
    assert!(event.outcome.contains("upstream failed"), "{event:?}");
}

/// What a client of HTTP/1.1 gets that ends its side when it has asked, inside a tunnel and of an absolute target; and what
/// its attempt's record says.
async fn half_closed(path: &str) -> Vec<(String, String)> {
    let mut told = Vec::new();
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::managed(&upstream).await;
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    told.push(asks_and_ends(&running, &mut tls, path, &at).await);
    let upstream = Upstream::plain().await;
    let at = upstream.address.to_string();
    let running = Running::start(|builder| {
        let rule = format!("http://{at} special-ranges");
        builder.policy(Arc::new(Rules::new().allow(&rule)))
    })
    .await;
    let mut stream = running.dial().await;
    told.push(asks_and_ends(&running, &mut stream, &format!("http://{at}{path}"), &at).await);
    told
}

async fn asks_and_ends<S>(running: &Running, stream: &mut S, target: &str, at: &str) -> (String, String)
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
{
    let head = format!("GET {target} HTTP/1.1\r\nHost: {at}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer));
    // Nobody says goodbye to who is gone.
    let _ = read.await.expect("it is held for ever");
    let event = running.events.wait(|event| event.path.is_some()).await;
    (
        String::from_utf8_lossy(&answer).into_owned(),
        event.outcome.clone(),
    )
}

#[tokio::test]
async fn client_that_ends_its_side_when_it_has_asked_gets_its_answer() {
    for (answer, outcome) in half_closed("/x").await {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(outcome, "");
    }
}

#[tokio::test]
async fn client_that_ended_its_side_is_gone_where_the_answer_is_slow() {
    for (answer, outcome) in half_closed("/hold").await {
        assert_eq!(answer, "");
        assert!(outcome.contains("went away"), "{outcome}");
    }
}

#[tokio::test]
async fn upload_that_nobody_takes_after_its_answer_is_not_kept_for_ever() {
    let (running, at, listener, acceptor) = raw_http2().await;
    let reset = Arc::<Notify>::default();
    let told = Arc::clone(&reset);
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        stream.read_exact(&mut [0; 24]).await.unwrap();
        stream.write_all(&frame2(SETTINGS, 0, 0, &[])).await.unwrap();
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            stream.read_exact(&mut payload).await.unwrap();
            let answer = match head[3] {
                // `:status: 200`, and that is all (RFC 7541, appendix A).
                HEADERS => frame2(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88]),
                PING => frame2(PING, 1, 0, &payload),
                RST_STREAM => {
                    told.notify_one();
                    continue;
                }
                _ => continue,
            };
            stream.write_all(&answer).await.unwrap();
        }
    });
    let mut client = running.h2(&at).await;
    // More than upstream's window takes.
    let body = Full::from(vec![b'x'; 100 << 10]);
    let request = Request::post(format!("https://{at}/x")).body(body).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    tokio::time::pause();
    let ended = timeout(FOR_EVER, reset.notified()).await;
    tokio::time::resume();
    ended.expect("it is held for ever");
}

/// An upload of six bytes to an upstream that answers when it has them, and how many it has.
async fn upload() -> (Running, Tls, Arc<AtomicUsize>) {
    let (running, at, listener, acceptor) = raw_upstream(&["http/1.1"]).await;
    let came = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&came);
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        head_of(&mut stream).await;
        while count.fetch_add(1, Relaxed) < 6 {
            if stream.read_u8().await.is_err() {
                return;
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let _ = stream.read_u8().await;
    });
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let head = format!("POST /x HTTP/1.1\r\nHost: {at}\r\nContent-Length: 6\r\n\r\n");
    tls.write_all(head.as_bytes()).await.unwrap();
    reaches(&came, 1).await;
    (running, tls, came)
}

/// One more than the bytes that came, once its head has.
async fn reaches(came: &AtomicUsize, wanted: usize) {
    for _ in 0..4000 {
        if came.load(Relaxed) >= wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} and not {wanted}", came.load(Relaxed));
}

#[tokio::test]
async fn upload_that_moves_now_and_then_is_given_its_time() {
    let (_running, mut tls, came) = upload().await;
    // Together longer than an answer may take.
    for sent in 1..=5 {
        tls.write_all(b"x").await.unwrap();
        reaches(&came, sent + 1).await;
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(15 * 60)).await;
        tokio::time::resume();
    }
    tls.write_all(b"x").await.unwrap();
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn upload_that_stands_still_is_a_timeout() {
    let (_running, mut tls, came) = upload().await;
    tls.write_all(b"xxxxx").await.unwrap();
    reaches(&came, 6).await;
    let (answer, _) = in_the_end(&mut tls).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
}
