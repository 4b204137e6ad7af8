//! How much is held for a peer that sends without end, or reads nothing.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::floods::{END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, frame2, head, open};
use crate::streaming::settled;
use crate::support::*;

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

/// Settings that grant each stream the greatest window there is, and the same for the connection.
pub fn greatest_windows() -> (Vec<u8>, Vec<u8>) {
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

#[tokio::test]
async fn heads_of_very_many_fields_are_refused() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h2(&at).await;
    let ask = |more: usize, count: usize| {
        let request = Request::get(format!("https://{at}/many-fields")).header("x-count", count);
        let request = (0..more).fold(request, |request, _| request.header("x-more", "x"));
        request.body(Full::default()).unwrap()
    };
    assert_eq!(send2(&mut client, ask(200, 200)).await.status(), StatusCode::OK);
    let refused = send2(&mut client, ask(300, 0)).await.status();
    assert_eq!(refused, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(
        send2(&mut client, ask(0, 300)).await.status(),
        StatusCode::BAD_GATEWAY
    );
    assert_eq!(upstream.seen().len(), 2);
}
