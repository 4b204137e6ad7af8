//! HTTP/2 clients that send frames as no client would: each is stopped, holds little, and others go on.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::streaming::settled;
use crate::support::*;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// Far more than any buffer between two processes on one machine.
const FLOOD: usize = 48 << 20;

/// A frame (RFC 9113 §4.1).
pub fn frame2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a GET, each field by the static table or as a literal (RFC 7541 §6).
pub fn head(at: &str, path: &str) -> Vec<u8> {
    let literal = |index: u8, value: &str| {
        let mut field = vec![index, u8::try_from(value.len()).unwrap()];
        field.extend_from_slice(value.as_bytes());
        field
    };
    [vec![0x82, 0x87], literal(0x04, path), literal(0x01, at)].concat()
}

/// A connection that has said what every client says first.
pub async fn open(running: &Running, at: &str, settings: &[u8]) -> Tls {
    let mut tls = running.tls(at, "api.test", &["h2"]).await.unwrap();
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    tls.write_all(&frame2(SETTINGS, 0, 0, settings)).await.unwrap();
    tls
}

/// Writes the same again and again until the proxy has had enough: it takes no more, or ends the connection. Gives
/// how much it took.
async fn flood(tls: &mut Tls, mut next: impl FnMut() -> Vec<u8>) -> usize {
    let mut taken = 0;
    while taken < FLOOD {
        let bytes = next();
        match tokio::time::timeout(Duration::from_secs(2), tls.write_all(&bytes)).await {
            Ok(Ok(())) => taken += bytes.len(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    taken
}

/// The reason of the frame that ends the connection, if one comes.
async fn goaway(tls: &mut Tls) -> Option<u32> {
    let told = async {
        loop {
            let mut head = [0; 9];
            tls.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            tls.read_exact(&mut payload).await.ok()?;
            if head[3] == GOAWAY {
                return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told)
        .await
        .ok()
        .flatten()
}

async fn others_go_on(running: &Running, at: &str) {
    let answer = tokio::time::timeout(Duration::from_secs(30), running.get(at, "/")).await;
    assert_eq!(answer.expect("others wait").status(), StatusCode::OK);
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut tls = open(&running, &at, &[]).await;
    let head = head(&at, "/slow");
    let mut stream = 1;
    // CVE-2023-44487: no number of streams at once limits these.
    let taken = flood(&mut tls, || {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            bytes.extend(frame2(HEADERS, END_STREAM | END_HEADERS, stream, &head));
            bytes.extend(frame2(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            stream += 2;
        }
        bytes
    })
    .await;
    assert!(taken < FLOOD, "{taken}");
    assert!(upstream.seen().len() < 2000, "{}", upstream.seen().len());
    others_go_on(&running, &at).await;
}

#[tokio::test]
async fn head_that_goes_on_for_ever_ends_the_connection() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut tls = open(&running, &at, &[]).await;
    tls.write_all(&frame2(HEADERS, END_STREAM, 1, &head(&at, "/")))
        .await
        .unwrap();
    // A field of no value, again and again; and frames with nothing in them.
    let field = [&[0, 1, b'x', 127, 0][..], &[b'y'; 127]].concat().repeat(100);
    let full = frame2(CONTINUATION, 0, 1, &field);
    let taken = flood(&mut tls, || full.clone()).await;
    assert!(taken < FLOOD, "{taken}");

    let mut tls = open(&running, &at, &[]).await;
    tls.write_all(&frame2(HEADERS, END_STREAM, 1, &head(&at, "/")))
        .await
        .unwrap();
    let empty = frame2(CONTINUATION, 0, 1, &[]).repeat(1000);
    let taken = flood(&mut tls, || empty.clone()).await;
    assert!(taken < FLOOD, "{taken}");
    assert!(upstream.seen().is_empty());
    others_go_on(&running, &at).await;
}

#[tokio::test]
async fn frames_that_want_an_answer_are_taken_only_as_fast_as_answers_are_read() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let window = [0, 4, 0, 0, 255, 255];
    for flooded in [
        frame2(PING, 0, 0, &[7; 8]),
        frame2(SETTINGS, 0, 0, &window),
        frame2(SETTINGS, 0, 0, &[]),
    ] {
        let mut tls = open(&running, &at, &[]).await;
        let many = flooded.repeat(1000);
        let taken = flood(&mut tls, || many.clone()).await;
        assert!(taken < FLOOD, "{taken}");
        others_go_on(&running, &at).await;
    }
}

#[tokio::test]
async fn responses_that_may_not_be_sent_hold_little() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    // No stream may be sent a byte.
    let mut tls = open(&running, &at, &[0, 4, 0, 0, 0, 0]).await;
    for index in 0..64 {
        let head = frame2(
            HEADERS,
            END_STREAM | END_HEADERS,
            2 * index + 1,
            &head(&at, "/pour"),
        );
        tls.write_all(&head).await.unwrap();
    }
    let poured = settled(|| upstream.poured.load(Relaxed)).await;
    assert!(poured < 24 << 20, "{poured}");
    assert!(upstream.seen().len() >= 8, "some are under way");
    drop(tls);
    others_go_on(&running, &at).await;
}

#[tokio::test]
async fn streams_over_the_number_are_refused() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut tls = open(&running, &at, &[]).await;
    for index in 0..200 {
        let head = frame2(
            HEADERS,
            END_STREAM | END_HEADERS,
            2 * index + 1,
            &head(&at, "/slow"),
        );
        if tls.write_all(&head).await.is_err() {
            break;
        }
    }
    // The answers of those that are refused; who goes on is sent away.
    let refused = async {
        let mut refused = 0;
        let mut head = [0; 9];
        while refused < 1 {
            match tokio::time::timeout(Duration::from_secs(3), tls.read_exact(&mut head)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => break,
                // Refusals wait for whatever wakes the connection next.
                Err(_) => {
                    tls.write_all(&frame2(PING, 0, 0, &[1; 8])).await.unwrap();
                    continue;
                }
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            if tls.read_exact(&mut payload).await.is_err() {
                break;
            }
            match head[3] {
                RST_STREAM => refused += 1,
                GOAWAY => break,
                _ => {}
            }
        }
        refused
    };
    let refused = tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .expect("nobody is refused");
    assert!(refused >= 1);
    assert!(upstream.seen().len() <= 128, "{}", upstream.seen().len());
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_the_connection() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    for (what, frames) in [
        ("data on no stream", frame2(DATA, 0, 0, b"x")),
        (
            "head on an even stream",
            frame2(HEADERS, END_HEADERS, 2, &head(&at, "/")),
        ),
        (
            "window past its limit",
            frame2(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
        ),
        ("window of nothing", frame2(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("settings of a strange length", frame2(SETTINGS, 0, 0, &[1, 2, 3])),
        (
            "window out of range",
            frame2(SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]),
        ),
        ("frame longer than allowed", frame2(DATA, 0, 1, &vec![0; 70_000])),
        ("ping of a strange length", frame2(PING, 0, 0, b"1234")),
        (
            "continuation of nothing",
            frame2(CONTINUATION, END_HEADERS, 1, b""),
        ),
        (
            "field that cannot be decoded",
            frame2(HEADERS, END_HEADERS, 1, &[0xff; 64]),
        ),
    ] {
        let mut tls = open(&running, &at, &[]).await;
        tls.write_all(&frames).await.unwrap();
        let reason = goaway(&mut tls).await;
        assert!(reason.is_some_and(|reason| reason != 0), "{what}: {reason:?}");
    }
    assert!(upstream.seen().is_empty());
    others_go_on(&running, &at).await;
}

#[tokio::test]
async fn heads_that_are_malformed_never_reach_upstream() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let field = |name: &str, value: &str| {
        let mut field = vec![0, u8::try_from(name.len()).unwrap()];
        field.extend_from_slice(name.as_bytes());
        field.push(u8::try_from(value.len()).unwrap());
        field.extend_from_slice(value.as_bytes());
        field
    };
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("X-Upper", "1"),
        ("x-split", "1\r\nevil: 1"),
        ("x-nul", "\0"),
        ("na me", "1"),
        (":path", "/two"),
        (":strange", "1"),
        ("content-length", "5"),
        ("host", "evil.test"),
    ] {
        let mut tls = open(&running, &at, &[]).await;
        let head = [head(&at, "/x"), field(name, value)].concat();
        tls.write_all(&frame2(HEADERS, END_STREAM | END_HEADERS, 1, &head))
            .await
            .unwrap();
        let mut answer = [0; 9];
        // Reset, goodbye, or an answer of the proxy's own: something comes, and nothing went on.
        loop {
            if tls.read_exact(&mut answer).await.is_err() {
                break;
            }
            let length = u32::from_be_bytes([0, answer[0], answer[1], answer[2]]) as usize;
            let mut payload = vec![0; length];
            if tls.read_exact(&mut payload).await.is_err()
                || matches!(answer[3], HEADERS | RST_STREAM | GOAWAY)
            {
                break;
            }
        }
        let seen = upstream.seen();
        assert!(seen.is_empty(), "{name}: {value:?} {seen:?}");
    }
}
