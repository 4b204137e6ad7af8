//! Requests over HTTP/2 that wait for their turn, since upstream takes few at a time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::support::*;

/// An upstream that takes one request at a time on a connection, and what the test has in hand of it.
struct OneByOne {
    /// The paths that came, each with the number of its connection.
    came: Mutex<Vec<(usize, String)>>,
    arrived: Notify,
    may_answer: Notify,
    /// A connection's next request is its last.
    ends: Notify,
}

impl OneByOne {
    async fn start() -> (Running, String, Arc<Self>) {
        let (running, at, listener, acceptor) = raw_http2().await;
        let this = Arc::new(Self {
            came: Mutex::default(),
            arrived: Notify::new(),
            may_answer: Notify::new(),
            ends: Notify::new(),
        });
        let upstream = Arc::clone(&this);
        tokio::spawn(async move {
            let mut connections = 0;
            while let Ok((stream, _)) = listener.accept().await {
                connections += 1;
                let stream = acceptor.accept(stream).await.unwrap();
                tokio::spawn(Arc::clone(&upstream).serve(stream, connections));
            }
        });
        (running, at, this)
    }

    async fn serve(
        self: Arc<Self>,
        stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
        number: usize,
    ) {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(1);
        let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
        loop {
            let accepted = tokio::select! {
                accepted = connection.accept() => accepted,
                () = self.ends.notified() => {
                    connection.graceful_shutdown();
                    continue;
                }
            };
            let Some(Ok((request, mut reply))) = accepted else {
                return;
            };
            self.came
                .lock()
                .unwrap()
                .push((number, request.uri().path().to_owned()));
            self.arrived.notify_one();
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                this.may_answer.notified().await;
                // It may have been cancelled.
                let _ = reply.send_response(Response::new(()), true);
            });
        }
    }
}

fn get(at: &str, path: &str) -> Request<http_body_util::Full<Bytes>> {
    Request::get(format!("https://{at}{path}"))
        .body(Default::default())
        .unwrap()
}

fn asks(client: &H2, request: Request<http_body_util::Full<Bytes>>) -> JoinHandle<Response<Bytes>> {
    let mut client = client.clone();
    tokio::spawn(async move { send2(&mut client, request).await })
}

#[tokio::test]
async fn request_that_is_cancelled_before_its_turn_is_never_sent() {
    let (running, at, upstream) = OneByOne::start().await;
    let mut client = running.h2(&at).await;
    let first = asks(&client, get(&at, "/first"));
    upstream.arrived.notified().await;
    let second = asks(&client, get(&at, "/second"));
    // The proxy has read it when it answers what came behind it, and does not wait for it.
    let other = send2(&mut client, get("other.test", "/")).await;
    assert_eq!(other.status(), StatusCode::MISDIRECTED_REQUEST);
    tokio::time::sleep(Duration::from_millis(50)).await;
    second.abort();
    running
        .events
        .wait(|event| event.path.as_deref() == Some("/second"))
        .await;
    upstream.may_answer.notify_one();
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
    upstream.may_answer.notify_one();
    send2(&mut client, get(&at, "/third")).await;
    let came = upstream.came.lock().unwrap().clone();
    assert_eq!(came, [(1, "/first".to_owned()), (1, "/third".to_owned())]);
}

#[tokio::test]
async fn request_that_waits_on_a_connection_that_ends_goes_out_on_the_next() {
    let (running, at, upstream) = OneByOne::start().await;
    let mut client = running.h2(&at).await;
    let first = asks(&client, get(&at, "/first"));
    upstream.arrived.notified().await;
    let second = asks(&client, get(&at, "/second"));
    let other = send2(&mut client, get("other.test", "/")).await;
    assert_eq!(other.status(), StatusCode::MISDIRECTED_REQUEST);
    upstream.ends.notify_one();
    // On a connection of its own, while the first is under way.
    upstream.arrived.notified().await;
    upstream.may_answer.notify_one();
    upstream.may_answer.notify_one();
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
    assert_eq!(second.await.unwrap().status(), StatusCode::OK);
    let came = upstream.came.lock().unwrap().clone();
    assert_eq!(came, [(1, "/first".to_owned()), (2, "/second".to_owned())]);
}
