//! gRPC as its four kinds of calls, and gRPC-web: messages arrive when they are sent, status in trailers.

use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;

use crate::streaming::{Client, streamed};
use crate::support::*;

#[tokio::test]
async fn each_message_arrives_before_the_next_is_sent_and_the_status_at_the_end() {
    for protocol in ["h2", "http/1.1"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut client = Client::new(&running, &at, true).await;
        let (messages, body) = streamed();
        let request = Request::post(format!("https://{at}/chat.Chat/Talk"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let mut body = response.into_body();
        // The last one starts like a secret and ends there: still nothing waits.
        for text in ["one", "two", &SECRET[..SECRET.len() - 1]] {
            let sent = message(text.as_bytes());
            messages.send(Ok(Frame::data(sent.clone()))).await.unwrap();
            let mut back = Vec::new();
            while back.len() < sent.len() {
                back.extend_from_slice(body.frame().await.unwrap().unwrap().data_ref().unwrap());
            }
            assert_eq!(back, sent);
        }
        // A message that holds the secret comes back without it.
        messages
            .send(Ok(Frame::data(message(SECRET.as_bytes()))))
            .await
            .unwrap();
        drop(messages);
        let rest = body.collect().await.unwrap();
        assert_eq!(rest.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(rest.to_bytes(), message("*".repeat(SECRET.len()).as_bytes()));
        assert_eq!(upstream.last().headers["te"], "trailers");
        assert_eq!(upstream.last().headers["x-api-key"], SECRET);
    }
}

#[tokio::test]
async fn calls_of_grpc_web_pass_over_both_versions() {
    for (is_h2, kind) in [
        (false, "application/grpc-web+proto"),
        (true, "application/grpc-web+proto"),
        (false, "application/grpc-web-text"),
    ] {
        let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut client = Client::new(&running, &at, is_h2).await;
        let (messages, body) = streamed();
        let request = Request::post(format!("https://{at}/chat.Chat/Ask"))
            .header("content-type", kind)
            .header("x-grpc-web", "1")
            .body(body)
            .unwrap();
        // Its trailers are a frame of the body.
        let said = [
            message(b"question"),
            [&b"\x80\0\0\0\x10"[..], b"grpc-status: 0\r\n"].concat().into(),
        ]
        .concat();
        messages.send(Ok(Frame::data(said.clone().into()))).await.unwrap();
        drop(messages);
        let response = client.send(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], kind);
        let back = response.into_body().collect().await.unwrap();
        assert_eq!(back.to_bytes(), said);
        assert_eq!(upstream.last().headers["x-grpc-web"], "1");
    }
}

#[tokio::test]
async fn refused_call_is_refused_like_any_request() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let mut client = Client::new(&running, &upstream.at("api.test"), true).await;
    let (messages, body) = streamed();
    let request = Request::post("https://evil.test/chat.Chat/Talk")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let response = client.send(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(response.headers()["x-should-retry"], "false");
    drop(messages);
    assert!(upstream.seen().is_empty());
}
