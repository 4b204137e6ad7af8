//! Bodies of a gigabyte or a quarter of one, made and compared as they go: every byte arrives, in its place, and nobody
//! holds more than a little of them.
//!
//! Each test runs in a process of its own, in which client, proxy and upstream are all there is: what the process grows
//! by is what they hold together.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandbox_proxy::Rules;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use crate::streaming::{Body, Client, Pieces, empty, streamed};
use crate::support::*;

/// Set in the processes that the tests start.
const INNER: &str = "SANDBOX_TEST_HUGE";
const LENGTH: u64 = 1 << 30;
/// Of bodies that would make a test long: a build without optimisation searches no more than 100 MiB of what comes down
/// in a second. Many times what the process may grow by.
const QUARTER: u64 = LENGTH / 4;
/// What goes first, so that buffers and the allocator have the size that they need.
const WARM_UP: u64 = 64 << 20;
/// Bodies are made of pieces of this size, which are much more than one frame or record.
const PIECE: usize = 64 << 10;
/// What a process may grow by while bodies pass that are many times as long.
const GROWTH: u64 = 32 << 20;
/// More than all buffers between processes on one machine, where the last has a small one: what may be under way while
/// nobody reads.
const BUFFERS: u64 = 40 << 20;
/// How long nothing more is sent until that is taken for all that is.
const STILL: Duration = Duration::from_millis(300);

/// Every piece holds its number, and then bytes that no coding or search has an easy time with.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        };
        Self((0..PIECE).map(next).collect())
    }

    fn piece(&self, number: u64) -> Bytes {
        let mut piece = self.0.clone();
        piece[..8].copy_from_slice(&number.to_be_bytes());
        piece.into()
    }

    /// Compares what comes after so many bytes.
    fn compare(&self, mut at: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (number, offset) = (at / PIECE as u64, at as usize % PIECE);
            let (now, rest) = data.split_at(data.len().min(PIECE - offset));
            let (stamp, plain) = now.split_at(now.len().min(8_usize.saturating_sub(offset)));
            let is_same = *stamp == number.to_be_bytes()[offset.min(8)..][..stamp.len()]
                && *plain == self.0[offset + stamp.len()..][..plain.len()];
            assert!(is_same, "other bytes than were sent, around {at}");
            at += now.len() as u64;
            data = rest;
        }
    }
}

/// How many bytes the sender of a body has handed over.
type Sent = Arc<AtomicU64>;

/// Sends a body as frames.
async fn send_frames(pieces: Pieces, length: u64, sent: Sent) {
    let pattern = Pattern::new();
    for number in 0..length / PIECE as u64 {
        if pieces.send(Ok(Frame::data(pattern.piece(number)))).await.is_err() {
            return;
        }
        sent.fetch_add(PIECE as u64, Relaxed);
    }
}

/// Sends a body as it is.
async fn send_bytes<W: AsyncWrite + Unpin>(mut stream: W, length: u64, sent: Sent) {
    let pattern = Pattern::new();
    for number in 0..length / PIECE as u64 {
        stream.write_all(&pattern.piece(number)).await.unwrap();
        sent.fetch_add(PIECE as u64, Relaxed);
    }
    stream.shutdown().await.unwrap();
}

/// Who takes a body: compares it, and in its middle stops until nobody sends any more.
struct Taker {
    pattern: Pattern,
    length: u64,
    taken: u64,
    has_stopped: bool,
    sent: Sent,
}

impl Taker {
    fn new(length: u64, sent: &Sent) -> Self {
        Self {
            pattern: Pattern::new(),
            length,
            taken: 0,
            has_stopped: false,
            sent: Arc::clone(sent),
        }
    }

    async fn take(&mut self, data: &[u8]) {
        self.pattern.compare(self.taken, data);
        self.taken += data.len() as u64;
        if self.taken < self.length / 2 || self.has_stopped {
            return;
        }
        self.has_stopped = true;
        let mut sent = 0;
        while sent != self.sent.load(Relaxed) {
            sent = self.sent.load(Relaxed);
            tokio::time::sleep(STILL).await;
        }
        let under_way = sent - self.taken;
        assert!(
            under_way < BUFFERS,
            "{under_way} bytes are sent to one who reads none"
        );
    }

    async fn frames(mut self, mut body: Incoming) {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.unwrap().into_data() {
                self.take(&data).await;
            }
        }
        assert_eq!(self.taken, self.length);
    }

    async fn bytes<R: AsyncRead + Unpin>(mut self, mut stream: R) {
        let mut chunk = vec![0; PIECE];
        while let count @ 1.. = stream.read(&mut chunk).await.unwrap() {
            self.take(&chunk[..count]).await;
        }
        assert_eq!(self.taken, self.length);
    }
}

/// The most memory that this process has had.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Gives a body of as many bytes as the path says, or takes one.
async fn serve(request: Request<Incoming>, sent: Sent) -> Result<Response<Body>, Infallible> {
    assert_eq!(request.headers()["x-api-key"], SECRET);
    let (way, length) = request.uri().path()[1..].split_once('/').unwrap();
    let length = length.parse().unwrap();
    let (pieces, body) = streamed();
    if way == "down" {
        tokio::spawn(send_frames(pieces, length, sent));
    } else {
        tokio::spawn(async move {
            // If it panics, the client is told nothing.
            Taker::new(length, &sent).frames(request.into_body()).await;
            pieces.send(Ok(Frame::data("whole".into()))).await.unwrap();
        });
    }
    Ok(Response::new(body))
}

/// An upstream that speaks one version of HTTP: its port and its root.
async fn upstream(protocol: &'static str, sent: Sent) -> (u16, String) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (ca_pem, config) = certificates(&[protocol]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, sent) = (acceptor.clone(), Arc::clone(&sent));
            tokio::spawn(async move {
                let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
                let service = service_fn(move |request: Request<Incoming>| {
                    assert_eq!(request.version() == Version::HTTP_2, protocol == "h2");
                    serve(request, Arc::clone(&sent))
                });
                // Either ends with an error when the other side is gone.
                if protocol == "h2" {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(stream, service).await;
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(stream, service).await;
                }
            });
        }
    });
    (port, ca_pem)
}

/// Runs one of the tests below in a process of its own.
fn alone(test: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{errors}"
    );
}

/// Runs the inner half of a test, which does nothing in a process of its own right.
fn inner(test: impl Future<Output = ()>) {
    if std::env::var_os(INNER).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(test);
    }
}

/// Bodies down and up through a stream that is read, with a credential that is put in and looked for, between a client
/// and an upstream of these versions of HTTP.
async fn read(client_speaks: &'static str, upstream_speaks: &'static str, down: u64, up: u64) {
    let sent = Sent::default();
    let (port, ca_pem) = upstream(upstream_speaks, Arc::clone(&sent)).await;
    let at = format!("api.test:{port}");
    let running = Running::with_key(&at, ca_pem).await;
    let mut before = 0;
    for (down, up) in [(WARM_UP, WARM_UP), (down, up)] {
        let request = |path: String| Request::post(format!("https://{at}{path}"));
        let mut client = Client::new(&running, &at, client_speaks == "h2").await;
        sent.store(0, Relaxed);
        let asking = request(format!("/down/{down}")).body(empty()).unwrap();
        let response = client.send(asking).await.unwrap();
        Taker::new(down, &sent).frames(response.into_body()).await;

        let mut client = Client::new(&running, &at, client_speaks == "h2").await;
        sent.store(0, Relaxed);
        let (pieces, body) = streamed();
        let sending = tokio::spawn(send_frames(pieces, up, Arc::clone(&sent)));
        let asking = request(format!("/up/{up}")).body(body).unwrap();
        let told = client.send(asking).await.unwrap().into_body().collect().await;
        assert_eq!(told.unwrap().to_bytes(), "whole");
        sending.await.unwrap();
        if before == 0 {
            before = peak();
        }
    }
    let growth = peak() - before;
    assert!(growth < GROWTH, "{growth} bytes more are held of longer bodies");
}

/// One body up and one down through a tunnel that is not read.
async fn opaque() {
    // Who reads has a small buffer in the kernel, which else makes it as large as the whole bound.
    let small = || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(PIECE as u32).unwrap();
        socket
    };
    let socket = small();
    socket.bind((LOCAL, 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let port = listener.local_addr().unwrap().port();
    let running = Running::start(|builder| {
        let rule = format!("raw.test:{port} special-ranges");
        builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolve("raw.test".parse().unwrap(), vec![LOCAL])
    })
    .await;
    let mut before = 0;
    for length in [WARM_UP, LENGTH] {
        let (up, down) = (Sent::default(), Sent::default());
        let stream = small().connect(running.address).await.unwrap();
        let tunnel = running.connect_on(stream, &format!("raw.test:{port}")).await;
        let (stream, _) = listener.accept().await.unwrap();
        let ((mut from, mut to), (mut read, mut write)) = (tunnel.unwrap().into_split(), stream.into_split());
        tokio::join!(
            send_bytes(&mut to, length, Arc::clone(&up)),
            Taker::new(length, &up).bytes(&mut read),
        );
        tokio::join!(
            send_bytes(&mut write, length, Arc::clone(&down)),
            Taker::new(length, &down).bytes(&mut from),
        );
        if before == 0 {
            before = peak();
        }
    }
    let growth = peak() - before;
    assert!(growth < GROWTH, "{growth} bytes more are held of longer streams");
}

#[test]
fn gigabytes_over_http1_pass_in_little_memory() {
    alone("huge::over_http1");
}

#[test]
fn over_http1() {
    inner(read("http/1.1", "http/1.1", LENGTH, LENGTH));
}

#[test]
fn gigabytes_up_over_http2_and_a_quarter_down_pass_in_little_memory() {
    alone("huge::over_http2");
}

#[test]
fn over_http2() {
    inner(read("h2", "h2", QUARTER, LENGTH));
}

#[test]
fn quarters_of_gigabytes_from_http1_to_http2_pass_in_little_memory() {
    alone("huge::from_http1_to_http2");
}

#[test]
fn from_http1_to_http2() {
    inner(read("http/1.1", "h2", QUARTER, QUARTER));
}

#[test]
fn quarters_of_gigabytes_from_http2_to_http1_pass_in_little_memory() {
    alone("huge::from_http2_to_http1");
}

#[test]
fn from_http2_to_http1() {
    inner(read("h2", "http/1.1", QUARTER, QUARTER));
}

#[test]
fn gigabytes_in_a_tunnel_pass_in_little_memory() {
    alone("huge::in_a_tunnel");
}

#[test]
fn in_a_tunnel() {
    inner(opaque());
}
