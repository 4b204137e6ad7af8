//! Interim answers (1xx): a client hears them when they come, cleaned like answers, and never in the wrong place.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use sandbox_proxy::Rules;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::clients::{run, stdout};
use crate::support::*;

/// What is said before each answer.
const BEFORE: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nX-Echo: key=SECRET;\r\n\
     Set-Cookie: session=1\r\nAlt-Svc: h3=\":443\"\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 9\r\n\r\n\
     HTTP/1.1 150 Odd\r\nContent-Length: 9\r\n\r\n\
     HTTP/1.1 102 Processing\r\n\r\n";

/// The same over HTTP/2, which knows no connection's fields, and where a length breaks the stream.
fn before2() -> [Response<()>; 3] {
    let mut hint = Response::new(());
    *hint.status_mut() = StatusCode::from_u16(103).unwrap();
    for (name, value) in [
        ("link", "</style.css>; rel=preload"),
        ("x-echo", &format!("key={SECRET};")),
        ("set-cookie", "session=1"),
        ("alt-svc", "h3=\":443\""),
    ] {
        hint.headers_mut().insert(name, value.parse().unwrap());
    }
    let status = |code: u16| Response::builder().status(code).body(()).unwrap();
    [hint, status(150), status(102)]
}

/// An upstream that says so, and answers when it may: where, and its sandbox, which has a credential for it.
async fn upstream(protocol: &str, may_answer: Arc<Notify>) -> (Running, String) {
    let (ca_pem, config) = certificates(&[protocol]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    let is_h2 = protocol == "h2";
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, may_answer) = (acceptor.clone(), Arc::clone(&may_answer));
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                if is_h2 {
                    serve2(stream, may_answer).await;
                } else {
                    serve(stream, may_answer).await;
                }
            });
        }
    });
    let running = Running::with_key(&at, ca_pem).await;
    (running, at)
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, may_answer: Arc<Notify>) {
    loop {
        let head = head_of(&mut stream).await;
        let Some(path) = head.split(' ').nth(1) else {
            return;
        };
        let before = BEFORE.replace("SECRET", SECRET);
        stream.write_all(before.as_bytes()).await.unwrap();
        may_answer.notified().await;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

async fn serve2(stream: impl AsyncRead + AsyncWrite + Unpin, may_answer: Arc<Notify>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut reply))) = connection.accept().await {
        let may_answer = Arc::clone(&may_answer);
        tokio::spawn(async move {
            for interim in before2() {
                reply.send_informational(interim).unwrap();
            }
            may_answer.notified().await;
            let path = Bytes::copy_from_slice(request.uri().path().as_bytes());
            let answer = Response::builder().header("content-length", path.len());
            let answer = answer.body(()).unwrap();
            let mut body = reply.send_response(answer, false).unwrap();
            body.send_data(path, true).unwrap();
        });
    }
}

async fn read_exactly(tls: &mut Tls, length: usize) -> String {
    let mut bytes = vec![0; length];
    tls.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A status, and the fields with it.
type Head = (u16, BTreeSet<String>);

/// A head of HTTP/1.1.
fn parsed(head: &str) -> Head {
    let mut lines = head.trim_end().lines().map(str::to_ascii_lowercase);
    let status = lines.next().unwrap();
    (
        status.split(' ').nth(1).unwrap().parse().unwrap(),
        lines.collect(),
    )
}

/// A head of HTTP/2.
fn shown(status: StatusCode, headers: &HeaderMap) -> Head {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        format!("{name}: {}", value.to_str().unwrap().to_ascii_lowercase())
    };
    (status.as_u16(), headers.iter().map(field).collect())
}

/// A client of either version.
enum Client {
    Http1(Box<Tls>),
    Http2(h2::client::SendRequest<Bytes>),
}

impl Client {
    async fn new(running: &Running, at: &str, protocol: &str) -> Self {
        let tls = running.tls(at, "api.test", &[protocol]).await.unwrap();
        if protocol == "http/1.1" {
            return Self::Http1(Box::new(tls));
        }
        let (requests, connection) = h2::client::handshake(tls).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(requests)
    }

    /// Asks, lets upstream answer when two heads have come, and gives these and the answer's content.
    async fn get(&mut self, at: &str, path: &str, may_answer: &Notify) -> (Vec<Head>, String) {
        let mut heads = Vec::new();
        match self {
            Self::Http1(tls) => {
                let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n");
                tls.write_all(request.as_bytes()).await.unwrap();
                for _ in 0..2 {
                    heads.push(parsed(&head_of(tls).await));
                }
                may_answer.notify_one();
                let answer = head_of(tls).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                (heads, read_exactly(tls, path.len()).await)
            }
            Self::Http2(requests) => {
                let request = Request::get(format!("https://{at}{path}")).body(()).unwrap();
                let (mut response, _) = requests.send_request(request, true).unwrap();
                for _ in 0..2 {
                    let interim = poll_fn(|cx| response.poll_informational(cx)).await;
                    let interim = interim.expect("a hint before the answer").unwrap();
                    heads.push(shown(interim.status(), interim.headers()));
                }
                may_answer.notify_one();
                let last = poll_fn(|cx| response.poll_informational(cx)).await;
                assert!(last.is_none(), "{last:?}");
                let response = response.await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                let content = response.into_body().data().await.unwrap().unwrap();
                (heads, String::from_utf8(content.to_vec()).unwrap())
            }
        }
    }
}

#[tokio::test]
async fn client_hears_what_is_said_before_the_answer_when_it_is_said_and_cleaned() {
    for (outer, inner) in ["http/1.1", "h2"]
        .into_iter()
        .flat_map(|outer| [(outer, "http/1.1"), (outer, "h2")])
    {
        let may_answer = Arc::<Notify>::default();
        let (running, at) = upstream(outer, Arc::clone(&may_answer)).await;
        let mut client = Client::new(&running, &at, inner).await;
        for path in ["/one", "/two"] {
            // No session of the credential's, no other way, no field of one hop, no length of what does not come.
            let fields = [
                "link: </style.css>; rel=preload".to_owned(),
                format!("x-echo: key={};", "*".repeat(SECRET.len())),
            ];
            let expected = [(103, BTreeSet::from(fields)), (102, BTreeSet::new())];
            let (heads, content) = client.get(&at, path, &may_answer).await;
            assert_eq!(heads, expected, "{outer} to {inner}");
            assert_eq!(content, path, "{outer} to {inner}");
        }
    }
}

#[tokio::test]
async fn requests_that_are_sent_at_once_have_their_hints_before_their_answers() {
    let may_answer = Arc::<Notify>::default();
    let (running, at) = upstream("http/1.1", Arc::clone(&may_answer)).await;
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    let paths: Vec<_> = (0..20).map(|number| format!("/{number}")).collect();
    let requests: String = paths
        .iter()
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"))
        .collect();
    tls.write_all(requests.as_bytes()).await.unwrap();
    for path in &paths {
        may_answer.notify_one();
        // A hint may be left out where it would stand amid something, and an answer never.
        let mut head = head_of(&mut tls).await;
        while head.starts_with("HTTP/1.1 10") {
            head = head_of(&mut tls).await;
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(read_exactly(&mut tls, path.len()).await, *path);
    }
}

#[tokio::test]
async fn client_of_http10_hears_the_answer_alone() {
    for protocol in ["http/1.1", "h2"] {
        let may_answer = Arc::<Notify>::default();
        let (running, at) = upstream(protocol, Arc::clone(&may_answer)).await;
        may_answer.notify_one();
        let request = format!("GET /old HTTP/1.0\r\nHost: {at}\r\n\r\n");
        let answer = running.raw_inside(&at, request).await;
        assert!(
            answer.starts_with("HTTP/1.") && answer.contains(" 200 "),
            "{answer}"
        );
        assert!(
            answer.ends_with("\r\n\r\n/old") && !answer.contains("103"),
            "{answer}"
        );
    }
}

/// Waits for what is said before the answer, if it is said before that.
async fn interim(response: &mut h2::client::ResponseFuture) -> Option<StatusCode> {
    let mut answer = Pin::new(response);
    poll_fn(|cx| match answer.poll_informational(cx) {
        Poll::Ready(Some(interim)) => Poll::Ready(Some(interim.unwrap().status())),
        Poll::Ready(None) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

#[tokio::test]
async fn client_of_http2_that_asks_first_is_told_to_go_on_if_its_body_is_wanted() {
    let (running, at, listener, acceptor) = raw_upstream(&["http/1.1"]).await;
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let head = head_of(&mut stream).await;
        assert!(
            head.to_ascii_lowercase().contains("expect: 100-continue"),
            "{head}"
        );
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &body[..]].concat();
        stream.write_all(&answer).await.unwrap();
        head_of(&mut stream).await;
        let answer = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    });
    let Client::Http2(mut requests) = Client::new(&running, &at, "h2").await else {
        unreachable!("it was asked for")
    };
    let put = || {
        Request::put(format!("https://{at}/x"))
            .header("expect", "100-continue")
            .header("content-length", 5)
            .body(())
            .unwrap()
    };
    let (mut response, mut body) = requests.send_request(put(), false).unwrap();
    assert_eq!(interim(&mut response).await, Some(StatusCode::CONTINUE));
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let content = response.await.unwrap().into_body().data().await.unwrap();
    assert_eq!(content.unwrap(), "hello");
    let (mut response, _body) = requests.send_request(put(), false).unwrap();
    assert_eq!(interim(&mut response).await, None);
    assert_eq!(response.await.unwrap().status(), StatusCode::EXPECTATION_FAILED);
}

#[tokio::test]
async fn upstream_that_says_one_thing_after_the_other_and_never_answers_is_given_up() {
    let (running, at, listener, acceptor) = raw_http2().await;
    tokio::spawn(async move {
        let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut connection = h2::server::handshake::<_>(stream).await.unwrap();
        let (_request, mut reply) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(async move {
            // Until the proxy has had enough of it.
            while reply
                .send_informational(Response::builder().status(102).body(()).unwrap())
                .is_ok()
            {
                tokio::task::yield_now().await;
            }
        });
        connection.accept().await.is_none()
    });
    let request = format!("GET /x HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    let answer = running.raw_inside(&at, request).await;
    assert!(answer.contains("HTTP/1.1 502"), "{answer}");
    let event = running
        .events
        .wait(|event| event.path.as_deref() == Some("/x"))
        .await;
    assert!(event.outcome.contains("too many interim answers"), "{event:?}");
}

/// Some clients take a hint for the answer, and the answer for that to their next request, which may be another host's.
#[tokio::test]
async fn client_on_a_connection_for_several_hosts_hears_the_answer_alone() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let may_answer = Arc::<Notify>::default();
    may_answer.notify_one();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, may_answer).await;
    });
    let running = Running::start(|builder| {
        let rule = format!("http://{at} special-ranges");
        builder.policy(Arc::new(Rules::new().allow(&rule)))
    })
    .await;
    let request = format!("GET http://{at}/x HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let answer = running.raw(request).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("/x"),
        "{answer}"
    );
}

#[tokio::test]
async fn curl_hears_hints() {
    for (protocol, version, answered) in [
        ("http/1.1", "--http1.1", "HTTP/1.1 200"),
        ("h2", "--http2", "HTTP/2 200"),
    ] {
        let may_answer = Arc::<Notify>::default();
        let (running, at) = upstream(protocol, Arc::clone(&may_answer)).await;
        may_answer.notify_one();
        let url = format!("https://{at}/x");
        let arguments = ["-isS", version, "--suppress-connect-headers", &url];
        let output = run(&running, "curl", &arguments).await;
        assert!(output.status.success(), "{output:?}");
        let output = stdout(&output);
        let (hints, answer) = output.split_once(answered).expect(&output);
        assert!(hints.contains("103") && hints.contains("rel=preload"), "{output}");
        assert!(answer.ends_with("/x"), "{output}");
    }
}
