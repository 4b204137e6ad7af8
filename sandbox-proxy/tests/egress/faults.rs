//! Upstreams that fail or lie: the client is never given a broken response as a whole one, and the record says why.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use rcgen::{CertificateParams, KeyPair};
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_proxy::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::floods::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame2};
use crate::streaming::{Client, empty, streamed};
use crate::support::*;

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As TLS wants it.
    Notified,
    /// The connection ends, TLS does not.
    Cut,
    /// A reset.
    Reset,
    /// It stays open.
    Open,
}

/// A TLS server that gives these bytes to each request's first bytes, and then ends so.
async fn answering(answer: Vec<u8>, end: End) -> (Running, String) {
    let (ca_pem, config) = certificates(&["http/1.1"]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut head = [0; 4096];
                while matches!(stream.read(&mut head).await, Ok(1..)) {
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.flush().await;
                    match end {
                        End::Open => continue,
                        End::Notified => drop(stream.shutdown().await),
                        End::Cut => {}
                        // What is unread or unsent is thrown away.
                        End::Reset => drop(stream.get_ref().0.set_zero_linger()),
                    }
                    return;
                }
            });
        }
    });
    (Running::with_key(&at, ca_pem).await, at)
}

/// What a client gets: status, and the whole body or that it broke.
async fn get(running: &Running, at: &str, is_h2: bool) -> (StatusCode, Result<Vec<u8>, ()>) {
    let mut client = Client::new(running, at, is_h2).await;
    let request = Request::get(format!("https://{at}/x")).body(empty()).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status();
    let body = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect()).await;
    let body = body.expect("neither an end nor an error");
    (status, body.map(|body| body.to_bytes().to_vec()).map_err(drop))
}

#[tokio::test]
async fn body_that_is_not_whole_never_ends_well() {
    for (answer, end) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
            End::Notified,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", End::Reset),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
            End::Notified,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho",
            End::Reset,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n",
            End::Notified,
        ),
        // Without a length the end of TLS is the end of the body: nobody on the way may fake it.
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nshort", End::Cut),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nshort", End::Reset),
        // Sizes that are none.
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nxyz\r\n",
            End::Open,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshortfffff\r\n",
            End::Open,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nffffffffffffffffff\r\n",
            End::Open,
        ),
    ] {
        for is_h2 in [false, true] {
            let (running, at) = answering(answer.into(), end).await;
            let (status, body) = get(&running, &at, is_h2).await;
            let is_broken = body.is_err() || status == StatusCode::BAD_GATEWAY;
            assert!(is_broken, "{answer:?} {end:?} {is_h2} {status} {body:?}");
            let event = running
                .events
                .wait(|event| event.path.as_deref() == Some("/x"))
                .await;
            assert!(!event.outcome.is_empty(), "{answer:?} {event:?}");
        }
    }
}

/// A server of HTTP/2 that answers each request with the frames that are made for its stream.
async fn answering2(answer: impl Fn(u32) -> Vec<u8> + Send + 'static) -> (Running, String) {
    let (ca_pem, config) = certificates(&["h2"]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.read_exact(&mut [0; 24]).await.unwrap();
            stream.write_all(&frame2(SETTINGS, 0, 0, &[])).await.unwrap();
            let mut head = [0; 9];
            while stream.read_exact(&mut head).await.is_ok() {
                let [_, high, low, kind, _, id @ ..] = head;
                let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
                stream.read_exact(&mut payload).await.unwrap();
                if kind == HEADERS {
                    let answer = answer(u32::from_be_bytes(id));
                    stream.write_all(&answer).await.unwrap();
                }
            }
        }
    });
    (Running::with_key(&at, ca_pem).await, at)
}

/// A server of HTTP/2 that answers the first request with half a body, sends its last frame with these flags, and then
/// resets the stream with `NO_ERROR`.
async fn resetting(last_flags: u8) -> (Running, String) {
    answering2(move |id| {
        let answer = [
            frame2(HEADERS, END_HEADERS, id, OK),
            frame2(DATA, last_flags, id, b"half"),
            frame2(RST_STREAM, 0, id, &[0; 4]),
        ];
        answer.concat()
    })
    .await
}

/// `:status: 200` (RFC 7541, appendix A).
const OK: &[u8] = &[0x88];

/// Upstream can say anything beside the code, also the key that came with the request.
#[tokio::test]
async fn of_a_connection_that_upstream_ends_nothing_but_the_code_is_told() {
    for has_begun in [false, true] {
        let (running, at) = answering2(move |id| {
            let why = [&[0; 4], &11_u32.to_be_bytes()[..], SECRET.as_bytes()].concat();
            let mut answer = Vec::new();
            if has_begun {
                answer.extend(frame2(HEADERS, END_HEADERS, id, OK));
                answer.extend(frame2(DATA, 0, id, b"half"));
            }
            answer.extend(frame2(GOAWAY, 0, 0, &why));
            answer
        })
        .await;
        let request = format!("GET /x HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        let answer = running.raw_inside(&at, request).await;
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/x"))
            .await;
        for told in [answer, format!("{event:?}")] {
            assert!(!told.contains(SECRET), "{told}");
        }
        assert!(event.outcome.contains("excessive load"), "{event:?}");
    }
}

#[tokio::test]
async fn stream_that_is_reset_without_an_error_is_whole_only_if_its_end_came() {
    for is_h2 in [false, true] {
        let (running, at) = resetting(0).await;
        let mut client = Client::new(&running, &at, is_h2).await;
        let request = Request::get(format!("https://{at}/x")).body(empty()).unwrap();
        // All of it may be there before the first of it was sent on: then there is no head either.
        if let Ok(response) = client.send(request).await {
            let body = response.into_body().collect().await;
            assert!(body.is_err(), "{is_h2} {body:?}");
        }
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/x"))
            .await;
        assert_eq!(event.outcome, "upstream gave the response up before its end");

        let (running, at) = resetting(END_STREAM).await;
        let whole = (StatusCode::OK, Ok(b"half".to_vec()));
        assert_eq!(get(&running, &at, is_h2).await, whole);
    }
}

#[tokio::test]
async fn body_that_ends_with_its_connection_is_whole_if_tls_says_so() {
    let (running, at) = answering(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwhole".into(),
        End::Notified,
    )
    .await;
    for is_h2 in [false, true] {
        assert_eq!(
            get(&running, &at, is_h2).await,
            (StatusCode::OK, Ok(b"whole".to_vec()))
        );
    }
}

#[tokio::test]
async fn head_that_two_parsers_could_read_in_two_ways_is_no_answer() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n folded\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\rSet-Cookie: a=b\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: \0\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A : 1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n",
        "HTTP/1.1 099 OK\r\nContent-Length: 5\r\n",
        "HTTP/9.9 200 OK\r\nContent-Length: 5\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let (running, at) = answering(format!("{head}\r\nhello").into(), End::Notified).await;
        for is_h2 in [false, true] {
            let (status, _) = get(&running, &at, is_h2).await;
            assert_eq!(status, StatusCode::BAD_GATEWAY, "{head:?}");
        }
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/x"))
            .await;
        assert!(!event.outcome.is_empty(), "{head:?} {event:?}");
    }
}

#[tokio::test]
async fn of_two_lengths_one_is_passed_on() {
    let answer =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let (running, at) = answering(answer.into(), End::Open).await;
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let request = format!("GET /x HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = tls.read_to_string(&mut answer).await;
    let head = answer.to_ascii_lowercase();
    let lengths = head.matches("content-length").count() + head.matches("transfer-encoding").count();
    assert!(
        answer.starts_with("HTTP/1.1 502") || lengths == 1 && head.contains("chunked"),
        "{answer}"
    );
}

#[tokio::test]
async fn bytes_after_a_response_are_nobodys() {
    let answer =
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let (running, at) = answering(answer.into(), End::Open).await;
    for _ in 0..4 {
        assert_eq!(
            get(&running, &at, false).await,
            (StatusCode::OK, Ok(b"hello".to_vec()))
        );
    }
}

#[tokio::test]
async fn interim_answers_are_not_the_answer() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
                  HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    for is_h2 in [false, true] {
        let (running, at) = answering(answer.into(), End::Open).await;
        assert_eq!(
            get(&running, &at, is_h2).await,
            (StatusCode::OK, Ok(b"hello".to_vec()))
        );
    }
}

#[tokio::test]
async fn upstream_that_answers_nothing_is_a_502() {
    for end in [End::Notified, End::Cut, End::Reset] {
        let (running, at) = answering(Vec::new(), end).await;
        for is_h2 in [false, true] {
            assert_eq!(get(&running, &at, is_h2).await.0, StatusCode::BAD_GATEWAY);
        }
    }
}

#[tokio::test]
async fn upload_that_breaks_off_is_not_taken_for_a_whole_one() {
    for protocol in ["http/1.1", "h2"] {
        for framing in [
            "Content-Length: 10\r\n\r\nhalf",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "",
        ] {
            let upstream = Upstream::tls(&[protocol]).await;
            let running = Running::managed(&upstream).await;
            let at = upstream.at("api.test");
            if framing.is_empty() {
                let mut client = Client::new(&running, &at, true).await;
                let (pieces, body) = streamed();
                let request = Request::post(format!("https://{at}/body")).body(body).unwrap();
                let sending = tokio::spawn(async move { client.send(request).await.map(drop) });
                // More than goes out before the proxy has taken some of it.
                for _ in 0..8 {
                    let piece = vec![b'x'; 64 << 10];
                    pieces
                        .send(Ok(http_body::Frame::data(piece.into())))
                        .await
                        .unwrap();
                }
                sending.abort();
                drop(sending.await);
            } else {
                let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
                let request = format!("POST /body HTTP/1.1\r\nHost: {at}\r\n{framing}");
                tls.write_all(request.as_bytes()).await.unwrap();
                tls.shutdown().await.unwrap();
                let _ = tls.read(&mut [0; 1024]).await;
            }
            let event = running
                .events
                .wait(|event| event.path.as_deref() == Some("/body"))
                .await;
            assert_ne!(event.status, Some(200), "{event:?}");
            assert!(!event.outcome.is_empty(), "{event:?}");
            assert!(upstream.seen().is_empty(), "upstream took it for whole");
        }
    }
}

/// A server whose certificate is as told, and the root that clients trust.
async fn with_certificate(names: &[&str], valid: (i64, i64), is_self_signed: bool) -> (Running, String) {
    let day = |days: i64| {
        let length = Duration::from_secs(days.unsigned_abs() * 24 * 3600);
        let now = SystemTime::now();
        if days < 0 { now - length } else { now + length }
    };
    let root = root();
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut leaf = CertificateParams::new(names).unwrap();
    (leaf.not_before, leaf.not_after) = (day(valid.0).into(), day(valid.1).into());
    let leaf = if is_self_signed {
        leaf.self_signed(&key).unwrap()
    } else {
        leaf.signed_by(&key, &root).unwrap()
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(&leaf, &key)));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut head = [0; 4096];
                    let _ = stream.read(&mut head).await;
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                        .await;
                    let _ = stream.read(&mut head).await;
                }
            });
        }
    });
    (Running::with_key(&at, root.pem()).await, at)
}

#[tokio::test]
async fn certificates_that_do_not_hold_are_told_as_such() {
    let good = with_certificate(&["api.test"], (-1, 1), false).await;
    assert_eq!(good.0.get(&good.1, "/x").await.status(), StatusCode::OK);
    for (what, names, valid, is_self_signed) in [
        ("Expired", ["api.test"], (-9, -2), false),
        ("NotValidYet", ["api.test"], (2, 9), false),
        ("NotValidForName", ["other.test"], (-1, 1), false),
        ("UnknownIssuer", ["api.test"], (-1, 1), true),
    ] {
        let (running, at) = with_certificate(&names, valid, is_self_signed).await;
        let response = running.get(&at, "/x").await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{what}");
        let status = response.headers()["proxy-status"].to_str().unwrap();
        assert!(status.contains("error=tls_certificate_error"), "{what}: {status}");
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/x"))
            .await;
        assert!(event.outcome.contains(what), "{what}: {event:?}");
    }
}

/// A source that fails, or that has nothing.
#[derive(Debug)]
struct Without {
    fails: bool,
}

#[async_trait]
impl CredentialSource for Without {
    fn describe(&self) -> String {
        "without".to_owned()
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let source_name = self.describe();
        Err(if self.fails {
            let cause = "the token server is down".into();
            CredentialError::Failed { source_name, cause }
        } else {
            CredentialError::NotFound { source_name }
        })
    }
}

#[tokio::test]
async fn source_that_fails_is_told_as_something_that_may_pass() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    for fails in [true, false] {
        let running = Running::start(|builder| {
            let service = Service::custom("api").bearer(&at);
            allowed(builder, &upstream).credential(service, Arc::new(Without { fails }))
        })
        .await;
        let response = running.get(&at, "/x").await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let headers = response.headers();
        let status = headers["proxy-status"].to_str().unwrap();
        assert!(
            status.starts_with("sandbox; error=proxy_internal_error;"),
            "{status}"
        );
        assert!(!status.contains("token server"), "that is the host's: {status}");
        let final_as = headers.get("x-should-retry").map(|value| value.to_str().unwrap());
        assert_eq!(final_as, (!fails).then_some("false"), "fails: {fails}");
        assert!(!headers.contains_key("retry-after"));
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn key_in_a_reason_phrase_or_in_a_name_of_a_header_does_not_come_through() {
    // Names are told in lower case, whatever upstream says.
    let name = SECRET.replace('/', "%2F");
    for (head, status) in [
        (
            format!("HTTP/1.1 200 {SECRET}\r\nX-Last: 1\r\n"),
            "HTTP/1.1 200 OK\r\n",
        ),
        (
            format!("HTTP/1.1 299 was {SECRET}\r\nX-Last: 1\r\n"),
            "HTTP/1.1 299 ",
        ),
        (
            format!("HTTP/1.1 200 OK\r\n{name}: 1\r\nX-Last: 1\r\n"),
            "HTTP/1.1 200 OK\r\n",
        ),
        (
            format!("HTTP/1.1 200 OK\r\nX-Was-{name}-X: 1\r\nX-Last: 1\r\n"),
            "HTTP/1.1 200 OK\r\n",
        ),
    ] {
        let answer = format!("{head}Content-Length: 2\r\n\r\nok");
        let (running, at) = answering(answer.into(), End::Open).await;
        let request = format!("GET /x HTTP/1.1\r\nHost: {at}\r\n\r\n");
        let told = running.raw_inside(&at, request).await;
        assert!(told.starts_with(status) && told.ends_with("ok"), "{head} {told}");
        assert!(told.contains("x-last: 1\r\n"), "{head} {told}");
        let (told, secret) = (told.to_ascii_lowercase(), SECRET.to_ascii_lowercase());
        for part in [&secret[..8], &secret[secret.len() - 8..]] {
            assert!(!told.contains(part), "{head} {told}");
        }
    }
}

#[tokio::test]
async fn response_that_is_coded_for_its_transfer_is_refused_from_services() {
    for codings in ["gzip, chunked", "chunked, chunked", "x-own,chunked"] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: {codings}\r\n\r\n{:x}\r\n{SECRET}\r\n0\r\n\r\n",
            SECRET.len()
        );
        let (running, at) = answering(answer.into(), End::Open).await;
        for is_h2 in [false, true] {
            let (status, _) = get(&running, &at, is_h2).await;
            assert_eq!(status, StatusCode::BAD_GATEWAY, "{codings}");
        }
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/x"))
            .await;
        assert!(event.outcome.contains("cannot be searched"), "{event:?}");
    }
}
