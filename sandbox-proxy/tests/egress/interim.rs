//! Interim answers (1xx): a client of HTTP/1.1 hears them when they come, cleaned like answers, and never in the wrong
//! place.

use std::sync::Arc;

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

/// An upstream that says so, and answers when it may: where, and its sandbox, which has a credential for it.
async fn upstream(may_answer: Arc<Notify>) -> (Running, String) {
    let (ca_pem, config) = certificates(&["http/1.1"]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, may_answer) = (acceptor.clone(), Arc::clone(&may_answer));
            tokio::spawn(async move {
                serve(acceptor.accept(stream).await.unwrap(), may_answer).await;
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

async fn read_exactly(tls: &mut Tls, length: usize) -> String {
    let mut bytes = vec![0; length];
    tls.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A head as lines, without the order of fields.
fn lines(head: &str) -> Vec<String> {
    let mut lines: Vec<_> = head.lines().map(str::to_ascii_lowercase).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn client_hears_what_is_said_before_the_answer_when_it_is_said_and_cleaned() {
    let may_answer = Arc::<Notify>::default();
    let (running, at) = upstream(Arc::clone(&may_answer)).await;
    let mut tls = running.tls(&at, "api.test", &["http/1.1"]).await.unwrap();
    for path in ["/one", "/two"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n");
        tls.write_all(request.as_bytes()).await.unwrap();
        // The answer is not there yet.
        let echo = format!("x-echo: key={};", "*".repeat(SECRET.len()));
        let hints = lines(&head_of(&mut tls).await);
        assert!(
            hints.iter().any(|line| line.starts_with("http/1.1 103")),
            "{hints:?}"
        );
        assert!(
            hints.contains(&"link: </style.css>; rel=preload".to_owned()),
            "{hints:?}"
        );
        assert!(hints.contains(&echo), "{hints:?}");
        // Status, both fields and the end: no session of the credential's, no other way, no field of one hop.
        assert_eq!(hints.len(), 4, "{hints:?}");
        assert_eq!(head_of(&mut tls).await, "HTTP/1.1 102 Processing\r\n\r\n");
        may_answer.notify_one();
        let answer = head_of(&mut tls).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(read_exactly(&mut tls, path.len()).await, path);
    }
}

#[tokio::test]
async fn requests_that_are_sent_at_once_have_their_hints_before_their_answers() {
    let may_answer = Arc::<Notify>::default();
    let (running, at) = upstream(Arc::clone(&may_answer)).await;
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
async fn client_of_http10_and_one_of_http2_hear_the_answer_alone() {
    let may_answer = Arc::<Notify>::default();
    let (running, at) = upstream(Arc::clone(&may_answer)).await;
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
    may_answer.notify_one();
    let mut h2 = running.h2(&at).await;
    let request = http::Request::get(format!("https://{at}/new")).body(http_body_util::Full::default());
    let response = send2(&mut h2, request.unwrap()).await;
    assert_eq!(
        (response.status().as_u16(), &response.body()[..]),
        (200, &b"/new"[..])
    );
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
    let may_answer = Arc::<Notify>::default();
    let (running, at) = upstream(Arc::clone(&may_answer)).await;
    may_answer.notify_one();
    let output = run(
        &running,
        "curl",
        &[
            "-isS",
            "--http1.1",
            "--suppress-connect-headers",
            &format!("https://{at}/x"),
        ],
    )
    .await;
    assert!(output.status.success(), "{output:?}");
    let output = stdout(&output);
    let (hints, answer) = output.split_once("HTTP/1.1 200").expect(&output);
    assert!(hints.contains("103") && hints.contains("rel=preload"), "{output}");
    assert!(answer.ends_with("/x"), "{output}");
}
