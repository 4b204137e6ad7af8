//! The Autobahn test suite for WebSockets (RFC 6455), behind the proxy and before it: nothing behaves otherwise than
//! without the proxy, but for what is said at [`expected`].
//!
//! One end is the suite's fuzzer, which breaks every rule in turn and judges how the other end takes it; that one is
//! the suite's echo, which is strict. They meet directly, for the control, and in each pairing of HTTP/1.1 and HTTP/2,
//! where the proxy has a credential for the server and so searches all that comes from there.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::ext::Protocol;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::support::*;
use crate::websocket::takes_websockets;

/// Makes the suite.
const SET_UP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/egress/conformance/set_up.sh");
/// A run that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often cases are run of which one went wrong.
const RUNS: usize = 3;

/// The name of the way without the proxy.
const DIRECT: &str = "direct";
/// Ways by the version in which the client asks, and that in which upstream is asked.
const PAIRINGS: [(&str, &str, &str); 4] = [
    ("1-1", "http/1.1", "http/1.1"),
    ("1-2", "http/1.1", "h2"),
    ("2-1", "h2", "http/1.1"),
    ("2-2", "h2", "h2"),
];

/// All cases of the protocol itself.
const PROTOCOL: [&str; 8] = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"];
/// Of those about size and number, whose time is measured and judged by nobody, the ones that are quick: messages of up
/// to a megabyte, whole, in frames and in pieces, and a thousand of them.
const SIZES: [&str; 12] = [
    "9.1.1", "9.1.2", "9.1.3", "9.2.1", "9.2.2", "9.2.3", "9.5.5", "9.6.5", "9.7.1", "9.7.3", "9.8.1",
    "9.8.3",
];
/// Of those about compression, one for each offer that a client may make.
const COMPRESSION: [&str; 8] = [
    "12.1.1", "13.1.1", "13.2.1", "13.3.1", "13.4.1", "13.5.1", "13.6.1", "13.7.1",
];
/// How many cases those are.
const COUNT: usize = 247 + SIZES.len() + COMPRESSION.len();

/// How a case went, and how it was closed.
type Outcome = [String; 2];
/// By case.
type Outcomes = BTreeMap<String, Outcome>;

/// Which end is the fuzzer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fuzzer {
    Client,
    Server,
}

/// What a case may come to.
fn expected(fuzzer: Fuzzer, way: &str, case: &str) -> &'static [[&'static str; 2]] {
    let is_one_of = |starts: &[&str]| starts.iter().any(|start| case.starts_with(start));
    match case {
        // What an end does here is its own affair: when it closes in the middle of a long message, and what it makes of
        // codes of closing that nobody has defined. The suite tells it, and does not judge.
        "7.1.6" | "7.13.1" | "7.13.2" => &[["INFORMATIONAL", "INFORMATIONAL"]],
        _ if way == DIRECT => &[["OK", "OK"]],
        // An upstream that compresses could not be searched for secrets, so no offer reaches it. The ends agree on
        // nothing, and the suite leaves it at that.
        _ if is_one_of(&["12.", "13."]) => &[["UNIMPLEMENTED", "OK"]],
        // A client should notice text that is no UTF-8 before the message ends. But the last bytes that have come of a
        // message wait for those that follow, since both together may be a secret; so the client gets it later.
        _ if fuzzer == Fuzzer::Server && is_one_of(&["6.4."]) => &[["NON-STRICT", "OK"]],
        // A message, and then a frame that no one can search. The proxy passes the message on and ends the stream; the
        // suite's client may see that end before it has sent its answer, and then never does.
        "3.2" | "3.3" | "3.4" | "4.1.3" | "4.1.4" | "4.1.5" | "4.2.3" | "4.2.4" | "4.2.5"
            if fuzzer == Fuzzer::Server =>
        {
            &[["OK", "OK"], ["NON-STRICT", "OK"]]
        }
        _ => &[["OK", "OK"]],
    }
}

#[tokio::test]
async fn server_behind_the_proxy_takes_everything_as_it_does_without() {
    conforms(Fuzzer::Client).await;
}

#[tokio::test]
async fn client_before_the_proxy_takes_everything_as_it_does_without() {
    conforms(Fuzzer::Server).await;
}

async fn conforms(fuzzer: Fuzzer) {
    let mut cases: Vec<String> = [&PROTOCOL[..], &SIZES, &COMPRESSION]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut wrong = BTreeMap::new();
    // The suite gives an end a second for most things, which a busy machine may need for something else. What is
    // wrong with an end is so each time.
    for run in 1..=RUNS {
        let all = run_all(fuzzer, &cases).await;
        if run == 1 {
            let counts: Vec<_> = all.values().map(BTreeMap::len).collect();
            assert_eq!(counts, [COUNT; PAIRINGS.len() + 1]);
        }
        wrong.clear();
        for (way, outcomes) in &all {
            for (case, outcome) in outcomes {
                if !expected(fuzzer, way, case)
                    .iter()
                    .any(|expected| outcome == expected)
                {
                    wrong.insert((case.clone(), *way), outcome.clone());
                }
            }
        }
        if wrong.is_empty() {
            return;
        }
        eprintln!("run {run}: {wrong:?}");
        let again: BTreeSet<_> = wrong.keys().map(|(case, _)| case.clone()).collect();
        cases = again.into_iter().collect();
    }
    panic!("{wrong:#?}");
}

/// Runs cases in all ways at a time: most of the time of a case is waiting.
async fn run_all(fuzzer: Fuzzer, cases: &[String]) -> BTreeMap<&'static str, Outcomes> {
    let ways = PAIRINGS.map(|(way, client, upstream)| (way, Some((client, upstream))));
    let mut runs = JoinSet::new();
    for (way, versions) in [(DIRECT, None)].into_iter().chain(ways) {
        let cases = cases.to_vec();
        runs.spawn(async move { (way, run(fuzzer, versions, &cases).await) });
    }
    runs.join_all().await.into_iter().collect()
}

/// Runs cases between two ends: directly, or where these versions are spoken on both sides of the proxy.
async fn run(fuzzer: Fuzzer, versions: Option<(&str, &str)>, cases: &[String]) -> Outcomes {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let specify = |mut spec: Value| {
        spec["cases"] = json!(cases);
        spec["outdir"] = json!("report");
        std::fs::write(directory.join("spec.json"), spec.to_string()).unwrap();
    };
    let port = free_port();
    let url = format!("ws://127.0.0.1:{port}");
    let arguments = match fuzzer {
        Fuzzer::Client => ["testeeserver", "--wsuri", &url],
        Fuzzer::Server => {
            specify(json!({ "url": url }));
            ["fuzzingserver", "--spec", "spec.json"]
        }
    };
    let server = SocketAddr::new(LOCAL, port);
    let _server = serving(directory, &arguments, server).await;
    let reached = match versions {
        Some((client, upstream)) => through_the_proxy(client, upstream, server).await,
        None => server,
    };
    let url = format!("ws://{reached}");
    let arguments = match fuzzer {
        Fuzzer::Client => {
            specify(json!({ "servers": [{ "agent": "echo", "url": url }] }));
            ["fuzzingclient", "--spec", "spec.json"]
        }
        Fuzzer::Server => ["testeeclient", "--wsuri", &url],
    };
    let ended = tokio::time::timeout(PATIENCE, wstest(directory, &arguments).output()).await;
    let ended = ended.unwrap_or_else(|_| panic!("{arguments:?} goes on for ever"));
    let output = ended.unwrap();
    assert!(output.status.success(), "{output:?}");
    outcomes(&directory.join("report"))
}

/// What a report about one end says.
fn outcomes(report: &Path) -> Outcomes {
    let text = std::fs::read_to_string(report.join("index.json")).unwrap();
    let ends: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&text).unwrap();
    let outcome =
        |case: Value| ["behavior", "behaviorClose"].map(|key| case[key].as_str().unwrap().to_owned());
    let cases = ends.into_values().flatten();
    cases.map(|(id, case)| (id, outcome(case))).collect()
}

/// Where the suite is; made when it is first asked for.
fn suite() -> &'static Path {
    static SUITE: LazyLock<PathBuf> = LazyLock::new(|| {
        let output = std::process::Command::new("sh").arg(SET_UP).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().into()
    });
    &SUITE
}

/// One end, in this mode.
fn wstest(directory: &Path, mode: &[&str]) -> Command {
    let mut command = Command::new(suite().join("python"));
    command
        .args(["-W", "ignore"])
        .arg(suite().join("usr/local/bin/wstest"))
        // Its servers would show reports on a port of its choice.
        .args(["--webport", "0", "--mode"])
        .args(mode)
        .current_dir(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The end that waits for the other.
async fn serving(directory: &Path, mode: &[&str], address: SocketAddr) -> Child {
    let log = directory.join("server.log");
    let mut server = wstest(directory, mode)
        .stdout(File::create(&log).unwrap())
        .stderr(File::options().append(true).open(&log).unwrap())
        .spawn()
        .unwrap();
    while TcpStream::connect(address).await.is_err() {
        let ended = server.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "{ended:?} {}",
            std::fs::read_to_string(&log).unwrap()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server
}

/// A port for a server that does not say which one it got. It is below those that systems give out, so that nobody is
/// given it in the meantime.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_mul(16) + NEXT.fetch_add(1, Relaxed);
        let port = u16::try_from(20_000 + next % 12_000).unwrap();
        if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// Where WebSockets go on.
enum Next {
    /// Through a proxy, each in a tunnel of its own.
    Tunnel(Running, String),
    /// Through a proxy, all on one connection of HTTP/2.
    Shared(client2::SendRequest<Empty<Bytes>>, String),
    /// At the server's end, for those that show the credential.
    End(SocketAddr),
}

/// The suite speaks neither TLS nor HTTP/2, nor to proxies. An address at which this server is reached through a proxy
/// all the same.
async fn through_the_proxy(client: &str, upstream: &str, server: SocketAddr) -> SocketAddr {
    let (running, at, listener, acceptor) = raw_upstream(&[upstream]).await;
    tokio::spawn(hop(listener, Some(acceptor), Next::End(server)));
    let next = match client {
        "h2" => Next::Shared(takes_websockets(&running, &at).await, at),
        _ => Next::Tunnel(running, at),
    };
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(hop(listener, None, next));
    address
}

/// Leads WebSockets on, their bytes as they come.
async fn hop(listener: TcpListener, acceptor: Option<TlsAcceptor>, next: Next) {
    let next = Arc::new(next);
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let (acceptor, next) = (acceptor.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else {
                return serve(stream, false, next).await;
            };
            // Who offers nothing that is spoken here comes again with another offer.
            if let Ok(stream) = acceptor.accept(stream).await {
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                serve(stream, is_h2, next).await;
            }
        });
    }
}

async fn serve<S>(stream: S, is_h2: bool, next: Arc<Next>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = TokioIo::new(stream);
    let service = service_fn(move |request| {
        let next = Arc::clone(&next);
        async move { Ok::<_, Infallible>(lead(request, &next).await) }
    });
    let _ = if is_h2 {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.enable_connect_protocol();
        http.serve_connection(stream, service).await
    } else {
        let http = http1::Builder::new();
        http.serve_connection(stream, service).with_upgrades().await
    };
}

/// Opens a WebSocket where it goes on, and answers as that does.
async fn lead(mut request: Request<Incoming>, next: &Next) -> Response<Empty<Bytes>> {
    let near = hyper::upgrade::on(&mut request);
    let mut answer = next.open(&request).await;
    let mut response = Response::new(Empty::new());
    *response.status_mut() = answer.status();
    copy_websocket_headers(answer.headers(), response.headers_mut());
    if !matches!(answer.status(), StatusCode::OK | StatusCode::SWITCHING_PROTOCOLS) {
        return response;
    }
    let far = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        if let (Ok(near), Ok(far)) = tokio::join!(near, far) {
            let _ = copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
        }
    });
    if request.version() == Version::HTTP_2 {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove("sec-websocket-accept");
    } else {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let key = &request.headers()["sec-websocket-key"];
        let accept = HeaderValue::try_from(accept(key.as_bytes())).unwrap();
        let headers = response.headers_mut();
        headers.entry("sec-websocket-accept").or_insert(accept);
        headers.extend(upgrade());
    }
    response
}

impl Next {
    async fn open(&self, asked: &Request<Incoming>) -> Response<Incoming> {
        let path = asked.uri().path_and_query().unwrap().as_str();
        let mut request = Request::new(Empty::new());
        copy_websocket_headers(asked.headers(), request.headers_mut());
        let at = match self {
            Self::Shared(client, at) => {
                request.headers_mut().remove("sec-websocket-key");
                *request.method_mut() = Method::CONNECT;
                *request.uri_mut() = format!("https://{at}{path}").parse().unwrap();
                request
                    .extensions_mut()
                    .insert(Protocol::from_static("websocket"));
                return client.clone().send_request(request).await.unwrap();
            }
            Self::Tunnel(_, at) => at.clone(),
            Self::End(address) => address.to_string(),
        };
        *request.uri_mut() = path.parse().unwrap();
        let headers = request.headers_mut();
        headers.insert("host", at.parse().unwrap());
        headers.extend(upgrade());
        // Who asked by HTTP/2 has none.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        headers.entry("sec-websocket-key").or_insert(key);
        match self {
            Self::Tunnel(running, at) => {
                let tls = running.tls(at, "api.test", &["http/1.1"]).await.unwrap();
                tls.get_ref().0.set_nodelay(true).unwrap();
                ask(tls, request).await
            }
            _ => {
                assert_eq!(asked.headers()["authorization"], format!("Bearer {SECRET}"));
                let stream = TcpStream::connect(&at).await.unwrap();
                stream.set_nodelay(true).unwrap();
                ask(stream, request).await
            }
        }
    }
}

async fn ask<S>(stream: S, request: Request<Empty<Bytes>>) -> Response<Incoming>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut client, connection) = client1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    client.send_request(request).await.unwrap()
}

/// What makes a message of HTTP/1.1 one that opens a WebSocket.
fn upgrade() -> HeaderMap {
    let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
    let header = |(name, value)| {
        (
            http::HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    headers.map(header).into_iter().collect()
}

fn copy_websocket_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if name.as_str().starts_with("sec-websocket-") {
            to.append(name, value.clone());
        }
    }
}
