//! Messages whose length can be read in two ways: upstream gets one request with one length, or none.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox_proxy::{Rules, Service};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::*;

/// A server that keeps every byte that it is sent, and answers each whole request.
async fn keeping(config: Option<rustls::ServerConfig>) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let kept = Arc::<Mutex<Vec<u8>>>::default();
    let (acceptor, bytes) = (
        config.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config))),
        Arc::clone(&kept),
    );
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, bytes) = (acceptor.clone(), Arc::clone(&bytes));
            tokio::spawn(async move {
                match acceptor {
                    Some(acceptor) => keep(acceptor.accept(stream).await.unwrap(), &bytes).await,
                    None => keep(stream, &bytes).await,
                }
            });
        }
    });
    (port, kept)
}

async fn keep(mut stream: impl AsyncRead + AsyncWrite + Unpin, kept: &Mutex<Vec<u8>>) {
    let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        kept.lock().unwrap().extend_from_slice(&chunk[..count]);
        request.extend_from_slice(&chunk[..count]);
        if is_whole(&request) {
            request.clear();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        }
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    if head.contains("transfer-encoding: chunked") {
        return body.ends_with("0\r\n\r\n");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

/// The statuses of so many answers, and nothing after them.
async fn statuses(stream: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<String> {
    let (mut told, mut chunk) = (Vec::new(), [0; 4096]);
    let statuses = |told: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(told);
        let answers = text.split("HTTP/1.1 ").skip(1);
        answers.map(|answer| answer[..3].to_owned()).collect()
    };
    loop {
        // Another answer than those that are expected would come at once.
        let patience = match statuses(&told).len() < count {
            true => Duration::from_secs(10),
            false => Duration::from_millis(50),
        };
        match timeout(patience, stream.read(&mut chunk)).await {
            Ok(Ok(count @ 1..)) => told.extend_from_slice(&chunk[..count]),
            _ => return statuses(&told),
        }
    }
}

const CHUNKED: &str = "transfer-encoding: chunked";

#[tokio::test]
async fn message_with_two_lengths_is_one_request_or_none() {
    let hello = "5\r\nhello\r\n0\r\n\r\n";
    // What is said of the length, what follows the head, the answers, and what upstream gets: length and body. What is
    // smuggled follows each of them, and is a request of the client's own, which a rule denies, where one is answered.
    for (lengths, body, expected, passed) in [
        // Chunks count, the other length does not go on, and nothing is read after them (RFC 9112 §6.1 and §6.3).
        (
            "Content-Length: 6\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
            &["200"][..],
            Some((CHUNKED, "0\r\n\r\n")),
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 6",
            "0\r\n\r\n",
            &["200"],
            Some((CHUNKED, "0\r\n\r\n")),
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 6\r\nContent-Length: 7",
            hello,
            &["200"],
            Some((CHUNKED, hello)),
        ),
        (
            "Content-Length: 500\r\nTransfer-Encoding: chunked",
            hello,
            &["200"],
            Some((CHUNKED, hello)),
        ),
        (
            "Content-Length: 5\r\nContent-Length: 5",
            "hello",
            &["200", "403"],
            Some(("content-length: 5", "hello")),
        ),
        ("Content-Length: 5\r\nContent-Length: 6", "hello", &["400"], None),
        ("Content-Length: 5, 5", "hello", &["400"], None),
        ("Content-Length: 5, 6", "hello", &["400"], None),
        ("Content-Length: +5", "hello", &["400"], None),
        ("Content-Length: 0x5", "hello", &["400"], None),
        ("Content-Length: -5", "hello", &["400"], None),
        ("Content-Length : 5", "hello", &["400"], None),
        ("Content-Length: 99999999999999999999", "hello", &["400"], None),
        (
            "Transfer-Encoding : chunked\r\nContent-Length: 5",
            hello,
            &["400"],
            None,
        ),
        ("Transfer-Encoding:\x0bchunked", hello, &["400"], None),
        ("Transfer-Encoding: xchunked", hello, &["400"], None),
        ("Transfer-Encoding: identity", hello, &["400"], None),
        ("Transfer-Encoding: chunked, identity", hello, &["400"], None),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            hello,
            &["400"],
            None,
        ),
        ("X-A: 1\r\n folded\r\nContent-Length: 5", "hello", &["400"], None),
        ("Content-Length:\r\n 5", "hello", &["400"], None),
        ("Transfer-Encoding:\r\n chunked", hello, &["400"], None),
        ("X-A: 1\rContent-Length: 5", "hello", &["400"], None),
        // A bare LF ends a line (RFC 9112 §2.2), and goes on as CR LF.
        (
            "X-A: 1\nContent-Length: 5",
            "hello",
            &["200", "403"],
            Some(("content-length: 5", "hello")),
        ),
        // Extensions of chunks end here (RFC 9112 §7.1.1).
        (
            "Transfer-Encoding: chunked",
            "5;a=b\r\nhello\r\n0;c\r\n\r\n",
            &["200", "403"],
            Some((CHUNKED, hello)),
        ),
        (
            "Transfer-Encoding: Chunked",
            "005\r\nhello\r\n000\r\n\r\n",
            &["200", "403"],
            Some((CHUNKED, hello)),
        ),
        // What was done to the body beside chunks would be lost.
        ("Transfer-Encoding: gzip, chunked", hello, &["400", "403"], None),
        (
            "Transfer-Encoding: chunked, chunked",
            hello,
            &["400", "403"],
            None,
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            hello,
            &["400", "403"],
            None,
        ),
    ] {
        for tls in [false, true] {
            let (seen, told) = exchanged(lengths, body, tls, expected.len()).await;
            assert_eq!(told, expected, "{lengths:?} {body:?} {tls}");
            let Some((length, body)) = passed else {
                assert_eq!(seen, "", "{lengths:?} {tls}");
                continue;
            };
            let (head, rest) = seen.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("POST /body HTTP/1.1\r\n"), "{seen}");
            assert!(!head.replace("\r\n", "").contains(['\r', '\n']), "{seen}");
            let all: Vec<_> = head
                .lines()
                .filter(|line| line.starts_with("content-length") || line.starts_with("transfer-encoding"))
                .collect();
            assert_eq!(all, [length], "{lengths:?} {seen}");
            assert_eq!(rest, body, "{lengths:?} {tls}");
        }
    }
}

#[tokio::test]
async fn chunks_that_cannot_be_read_never_end_a_request() {
    let much = "x".repeat(100 << 10);
    // Longer than anybody holds.
    let extension = format!("5;a={much}\r\nhello\r\n0\r\n\r\n");
    let trailers = format!("5\r\nhello\r\n0\r\nX-A: {much}\r\n\r\n");
    for body in [
        extension.as_str(),
        trailers.as_str(),
        "5\nhello\r\n0\r\n\r\n",
        "5;a=b\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n-0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        for tls in [false, true] {
            let (seen, told) = exchanged("Transfer-Encoding: chunked", body, tls, 1).await;
            assert!(!told.iter().any(|status| status == "200"), "{body:?} {told:?}");
            assert!(told.len() <= 1, "{body:?} {told:?}");
            assert!(!seen.contains("0\r\n\r\n"), "{body:?} {seen}");
            assert!(seen.matches(" HTTP/1.1\r\n").count() <= 1, "{body:?} {seen}");
        }
    }
}

/// Sends a request with this length and body, and right after it another one: all that upstream got, and the statuses of
/// the answers.
async fn exchanged(lengths: &str, body: &str, tls: bool, answers: usize) -> (String, Vec<String>) {
    let (ca_pem, config) = certificates(&["http/1.1"]);
    let (port, kept) = keeping(tls.then_some(config)).await;
    let at = format!("api.test:{port}");
    let (scheme, own) = if tls { ("", "") } else { ("http://", "http://") };
    let running = Running::start(|builder| {
        let rule = format!("POST {scheme}{at}/body special-ranges");
        let builder = builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .extra_root(ca_pem);
        with_service(builder, Service::custom("api").bearer(&at))
    })
    .await;
    let prefix = if tls { String::new() } else { format!("{own}{at}") };
    let smuggled = format!("GET {prefix}/smuggled HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let message = format!("POST {prefix}/body HTTP/1.1\r\nHost: {at}\r\n{lengths}\r\n\r\n{body}{smuggled}");
    let told = if tls {
        let mut stream = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
        // It may have been refused before its end.
        let _ = stream.write_all(message.as_bytes()).await;
        statuses(&mut stream, answers).await
    } else {
        let mut stream = running.dial().await;
        // It may have been refused before its end.
        let _ = stream.write_all(message.as_bytes()).await;
        statuses(&mut stream, answers).await
    };
    let seen = String::from_utf8(kept.lock().unwrap().clone()).unwrap();
    assert!(!seen.contains("smuggled"), "{lengths:?} {body:?} {seen}");
    (seen, told)
}
