//! WebSockets: asked for by either version of HTTP, opened at upstream by either, scrubbed in all pairings.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::support::*;

/// The example of RFC 6455.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

type Opened = Result<TokioIo<hyper::upgrade::Upgraded>, Response<hyper::body::Incoming>>;

/// Opens a WebSocket by an upgrade.
async fn by_upgrade(running: &Running, at: &str, path: &str) -> Opened {
    let tls = running.tls(at, "api.test", &["http/1.1"]).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(path)
        .header("host", at)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY)
        .header("sec-websocket-extensions", "permessage-deflate");
    let response = client
        .send_request(request.body(Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(response);
    }
    assert_eq!(response.headers()["sec-websocket-accept"], accept(KEY.as_bytes()));
    assert_eq!(response.headers()["upgrade"], "websocket");
    assert!(response.extensions().get::<hyper::ext::ReasonPhrase>().is_none());
    shows_no_secret(&response);
    Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
}

/// `/ws` tells the key in its head, too.
fn shows_no_secret(response: &Response<hyper::body::Incoming>) {
    let echo = response.headers()["x-echo"].to_str().unwrap();
    assert!(
        echo.starts_with("switches with ") && !holds_secret(echo),
        "{echo}"
    );
}

/// A connection on which WebSockets can be asked for by extended CONNECT (RFC 8441).
pub async fn takes_websockets(running: &Running, at: &str) -> http2::SendRequest<Empty<Bytes>> {
    let tls = running.tls(at, "api.test", &["h2"]).await.unwrap();
    tls.get_ref().0.set_nodelay(true).unwrap();
    let (client, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .unwrap();
    // Whoever drives the connection learns from the settings that it may ask.
    let (told, enabled) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut connection = connection;
        let mut told = Some(told);
        let mut look = tokio::time::interval(std::time::Duration::from_millis(5));
        std::future::poll_fn(|cx| {
            while told.is_some() && look.poll_tick(cx).is_ready() {}
            let ended = std::pin::Pin::new(&mut connection).poll(cx);
            if connection.is_extended_connect_protocol_enabled()
                && let Some(told) = told.take()
            {
                let _ = told.send(());
            }
            ended
        })
        .await
    });
    enabled
        .await
        .expect("the settings must say that WebSockets can be asked for");
    client
}

/// Opens a WebSocket by extended CONNECT (RFC 8441).
async fn by_connect(running: &Running, at: &str, path: &str) -> Opened {
    let mut client = takes_websockets(running, at).await;
    let request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(format!("https://{at}{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-extensions", "permessage-deflate")
        .extension(Protocol::from_static("websocket"));
    let response = client
        .send_request(request.body(Empty::new()).unwrap())
        .await
        .unwrap();
    if response.status() != StatusCode::OK {
        return Err(response);
    }
    for gone in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    shows_no_secret(&response);
    Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
}

#[tokio::test]
async fn websockets_pass_in_every_pairing_and_their_server_side_is_scrubbed() {
    for protocols in [&["http/1.1"][..], &["h2"], &["h2", "http/1.1"]] {
        for extended in [false, true] {
            let upstream = Upstream::tls(protocols).await;
            let running = Running::managed(&upstream).await;
            let at = upstream.at("api.test");
            let opened = if extended {
                by_connect(&running, &at, "/ws").await
            } else {
                by_upgrade(&running, &at, "/ws").await
            };
            let Ok(mut stream) = opened else {
                panic!("{protocols:?} {extended} {opened:?}");
            };
            let sent = greets_and_echoes(&mut stream).await;
            let seen = upstream.last();
            assert_eq!(seen.headers["x-api-key"], SECRET);
            assert_eq!(seen.headers["sec-websocket-version"], "13");
            assert!(!seen.headers.contains_key("sec-websocket-extensions"));
            assert_eq!(
                seen.headers.contains_key("sec-websocket-key"),
                seen.version == Version::HTTP_11
            );
            drop(stream);
            let event = running
                .events
                .wait(|event| event.path.as_deref() == Some("/ws"))
                .await;
            assert_eq!(
                event.method.as_deref(),
                Some("GET"),
                "one method for policies and people"
            );
            assert_eq!(event.status, Some(if extended { 200 } else { 101 }));
            assert_eq!(event.bytes_out, sent);
        }
    }
}

#[tokio::test]
async fn upstream_that_opens_no_websocket_is_told_as_what_it_is() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        // A redirect is passed on; an ordinary 200 is no WebSocket, and must not look like one.
        let declined = by_connect(&running, &at, "/redirect").await.unwrap_err();
        assert_eq!(declined.status(), StatusCode::FOUND);
        let declined = by_upgrade(&running, &at, "/redirect").await.unwrap_err();
        assert_eq!(declined.status(), StatusCode::FOUND);
        if protocol == "http/1.1" {
            let declined = by_connect(&running, &at, "/").await.unwrap_err();
            assert_eq!(declined.status(), StatusCode::BAD_GATEWAY);
            let declined = by_upgrade(&running, &at, "/").await.unwrap_err();
            assert_eq!(declined.status(), StatusCode::OK);
            assert_eq!(declined.into_body().collect().await.unwrap().to_bytes(), "ok");
        }
    }
}

/// A connection on which the proxy's settings have come, with the answer to a request.
async fn settled(running: &Running, at: &str) -> H2 {
    let mut client = running.h2(at).await;
    let first = Request::get(format!("https://{at}/"))
        .body(Full::default())
        .unwrap();
    send2(&mut client, first).await;
    client
}

#[tokio::test]
async fn only_websockets_are_opened_by_extended_connect() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = settled(&running, &at).await;
    for (uri, protocol) in [
        (format!("https://{at}/ws"), Some("connect-udp")),
        (format!("https://{at}/ws"), Some("connect-ip")),
        (at.clone(), None),
    ] {
        let mut request = Request::builder().method(Method::CONNECT).uri(uri);
        if let Some(protocol) = protocol {
            request = request.extension(Protocol::from_static(protocol));
        }
        let response = client
            .send_request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{protocol:?}");
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn websocket_for_another_host_is_refused() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = settled(&running, &at).await;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("https://evil.test/ws")
        .extension(Protocol::from_static("websocket"));
    let response = client
        .send_request(request.body(Full::default()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(upstream.seen().len(), 1);
}

/// A switch without the proof that a WebSocket is opened, and what comes after it.
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nsecret";

/// What asks for a WebSocket, but for the key.
const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\n";

/// An upstream that answers each request with these bytes, over plain HTTP.
async fn answering(answer: &'static str) -> (Running, String) {
    let listener = tokio::net::TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let rule = format!("http://{at} special-ranges");
    let rules = sandbox_proxy::Rules::new().allow(&rule);
    (
        Running::start(|builder| builder.policy(std::sync::Arc::new(rules))).await,
        at,
    )
}

/// A request with these lines more in its head fails, and nothing that follows the switch comes through.
async fn opens_nothing(running: &Running, at: &str, more: &str) {
    let told = running.plain_get(at, more).await;
    assert!(
        told.starts_with("HTTP/1.1 502") && !told.contains("secret"),
        "{told}"
    );
}

#[tokio::test]
async fn switch_to_something_that_is_no_websocket_opens_nothing() {
    for answer in [
        SWITCH,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\nsecret",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nsecret",
    ] {
        let (running, at) = answering(answer).await;
        let keyed = format!("{UPGRADE}Sec-WebSocket-Key: {KEY}\r\n");
        opens_nothing(&running, &at, &keyed).await;
    }
}

#[tokio::test]
async fn switch_without_a_key_to_show_for_it_opens_nothing() {
    let (running, at) = answering(SWITCH).await;
    opens_nothing(&running, &at, UPGRADE).await;
}

#[tokio::test]
async fn switch_that_nobody_asked_for_opens_nothing() {
    let (running, at) = answering(SWITCH).await;
    for upgrade in ["", "Connection: upgrade\r\nUpgrade: h2c\r\n"] {
        opens_nothing(&running, &at, upgrade).await;
    }
}

/// A server whose second frame is none, and which tells what it is sent after all.
async fn breaks_the_rules(acceptor: TlsAcceptor, stream: TcpStream, said: mpsc::Sender<Vec<u8>>) {
    let mut stream = BufStream::new(acceptor.accept(stream).await.unwrap());
    while stream.read_line(&mut String::new()).await.unwrap() > 2 {}
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\nX-Echo: switches with a message\r\n\r\n",
        accept(KEY.as_bytes())
    );
    // All at once, so that it is read at once.
    let frames = b"\x81\x05first\xc1\x07refused\x81\x05third";
    stream
        .write_all(&[switch.as_bytes(), frames].concat())
        .await
        .unwrap();
    stream.flush().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    said.send(all).await.unwrap();
}

#[tokio::test]
async fn messages_before_a_frame_that_cannot_be_searched_come_through_and_are_answered() {
    let (running, at, listener, acceptor) = raw_upstream(&["http/1.1"]).await;
    let (said, mut says) = mpsc::channel(1);
    tokio::spawn(async move {
        // The first connection may be none that is asked for anything.
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(breaks_the_rules(acceptor.clone(), stream, said.clone()));
        }
    });
    let mut stream = by_upgrade(&running, &at, "/").await.unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).await.unwrap();
    assert_eq!(told, b"\x81\x05first");
    stream.write_all(b"answer").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(says.recv().await.unwrap(), b"answer");
    let event = running
        .events
        .wait(|event| event.path.as_deref() == Some("/"))
        .await;
    assert_eq!(event.outcome, "the WebSocket broke: invalid data");
}

#[tokio::test]
async fn websockets_end_when_the_policy_no_longer_allows_them() {
    for extended in [false, true] {
        let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut stream = if extended {
            by_connect(&running, &at, "/ws").await.unwrap()
        } else {
            by_upgrade(&running, &at, "/ws").await.unwrap()
        };
        stream.read_u8().await.unwrap();
        // What has nothing to do with it, or with its path, leaves it open.
        for rule in ["other.test", "api.test/other"] {
            running.proxy.change_rules(|rules| rules.deny(rule)).unwrap();
            stream.write_all(b"x").await.unwrap();
            while stream.read_u8().await.unwrap() != b'x' {}
        }
        running
            .proxy
            .change_rules(|rules| rules.deny("api.test/ws"))
            .unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await;
        assert!(ended.is_ok(), "the WebSocket goes on, {extended}");
    }
}

#[tokio::test]
async fn request_for_a_websocket_has_no_body() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {at}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {KEY}\r\nContent-Length: 26\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n\r\n"
    );
    let answer = running.raw_inside(&at, request).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(upstream.seen().is_empty());
}
