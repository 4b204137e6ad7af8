//! All that a guest can make the host hold, at once: the table in `proxy/limits.rs`, measured.
//!
//! The proxy is alone in a process, and a guest and upstreams that want the worst are in another: what the first grows
//! by is what the proxy holds for them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sandbox_proxy::{Rules, Service};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::buffers::greatest_windows;
use crate::floods::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, frame2};
use crate::streaming::settled;
use crate::support::*;

/// What the table says for a process with 1024 descriptors.
const MOST: u64 = 441 << 20;
/// The proxy's part of those.
const MOST_DESCRIPTORS: usize = 768;
/// HTTP/2 connections of the guest, and to upstream.
const H2_CLIENTS: usize = 32;
const H2_UPSTREAMS: usize = 16;
/// Of those of the guest, the ones whose upstreams stop reading at some time.
const H2_MUTE: usize = 16;
/// Over each HTTP/2 connection of the guest: downloads, as many as fill the windows of upstream; uploads, as many as fill
/// the guest's; and as many more requests as it may have.
const DOWNLOADS: u32 = 4;
const UPLOADS: u32 = 8;
const STREAMS: u32 = 128;
/// The flag of settings that have been read.
const ACK: u8 = 1;
const PIECE: usize = 16 << 10;

/// The proxy's process, from outside.
struct Process(Child);

impl Process {
    fn file(&self, name: &str) -> std::path::PathBuf {
        format!("/proc/{}/{name}", self.0.id()).into()
    }

    /// Memory that no other process shares.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(self.file("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(self.file("fd")).unwrap().count()
    }

    /// Its memory, once that stands still.
    async fn settled_memory(&self) -> u64 {
        let mut last = [0; 3];
        loop {
            sleep(Duration::from_secs(1)).await;
            last = [last[1], last[2], self.memory()];
            let (least, most) = (last.iter().min().unwrap(), last.iter().max().unwrap());
            if most - least < 1 << 20 {
                return *most;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn guest_that_takes_all_it_can_get_is_held_no_more_for_than_the_table_says() {
    let mut both = inner_half(module_path!(), "guest_and_upstreams", "", "");
    let output = both.output().unwrap();
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    println!("{}", said[0]);
    assert!(
        output.status.success() && said[0].contains("1 passed"),
        "{}",
        said[1]
    );
}

/// The largest head of the smallest fields, as HPACK: as it is counted (RFC 7541 §4.1), each is 32 bytes and its name.
fn many_fields(limit: usize) -> Vec<u8> {
    let mut fields = Vec::new();
    for number in 0..limit / 36 {
        let name = format!("{:04x}", number + 0xa000);
        fields.extend([&[0, 4][..], name.as_bytes(), &[0]].concat());
    }
    fields
}

/// As much of a head as may be: as many fields as one has, and as long.
fn long_fields() -> Vec<u8> {
    let value = [&[127, 74][..], &[b'x'; 201]].concat();
    let field = |number: u8| [&[0, 4][..], format!("x-{number:02x}").as_bytes(), &value].concat();
    (0..250).flat_map(field).collect()
}

/// A head in as many frames as it takes.
fn head_frames(flags: u8, id: u32, fields: &[u8]) -> Vec<u8> {
    let mut pieces = fields.chunks(PIECE).peekable();
    let (mut frames, mut kind, mut flags) = (Vec::new(), HEADERS, flags);
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        frames.extend(frame2(kind, flags, id, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    frames
}

/// What all HTTP/2 upstreams do: they send on every stream that is asked for by `POST` as much as they may, answer a
/// `GET` with a long head, and grant nothing.
#[derive(Default)]
struct Greedy {
    poured: AtomicU64,
    answered: AtomicU64,
    mute: CancellationToken,
}

impl Greedy {
    async fn serve<S>(&self, mut stream: S, falls_mute: bool) -> std::io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        stream.read_exact(&mut [0; 24]).await?;
        // Streams may be sent as much as they like, the connection may not: who is mute grants that, too.
        let (settings, update) = greatest_windows();
        stream.write_all(&frame2(SETTINGS, 0, 0, &settings)).await?;
        // The other side's settings hold from when they are acknowledged.
        stream.write_all(&frame2(SETTINGS, ACK, 0, &[])).await?;
        if falls_mute {
            stream.write_all(&update).await?;
        }
        let fields = [&[0x88][..], &long_fields()].concat();
        let (mut open, mut connection) = (HashMap::<u32, usize>::new(), 65_535_usize);
        loop {
            let mut start = [0; 9];
            tokio::select! {
                biased;
                () = self.mute.cancelled(), if falls_mute => std::future::pending().await,
                read = stream.read_exact(&mut start) => { read?; }
            }
            let mut payload = vec![0; usize::from(u16::from_be_bytes([start[1], start[2]]))];
            stream.read_exact(&mut payload).await?;
            let id = u32::from_be_bytes([start[5], start[6], start[7], start[8]]);
            match start[3] {
                HEADERS if payload[0] == 0x82 => {
                    stream.write_all(&head_frames(END_STREAM, id, &fields)).await?;
                    self.answered.fetch_add(1, Relaxed);
                }
                HEADERS if start[4] & END_STREAM != 0 => {
                    stream
                        .write_all(&frame2(HEADERS, END_HEADERS, id, &[0x88]))
                        .await?;
                    open.insert(id, 512 << 10);
                }
                WINDOW_UPDATE => {
                    let more = u32::from_be_bytes(payload[..4].try_into().unwrap()) as usize;
                    match open.get_mut(&id) {
                        _ if id == 0 => connection += more,
                        Some(window) => *window += more,
                        None => {}
                    }
                }
                _ => {}
            }
            for (id, window) in &mut open {
                while *window > 0 && connection > 0 {
                    let piece = vec![b'x'; PIECE.min(*window).min(connection)];
                    stream.write_all(&frame2(DATA, 0, *id, &piece)).await?;
                    *window -= piece.len();
                    connection -= piece.len();
                    self.poured.fetch_add(piece.len() as u64, Relaxed);
                }
            }
        }
    }
}

/// Writes for ever, and reads nothing.
async fn pour(mut stream: impl AsyncWrite + Unpin, start: &[u8], piece: &[u8]) {
    let _ = stream.write_all(start).await;
    while stream.write_all(piece).await.is_ok() {}
    std::future::pending::<()>().await;
}

/// The guest's way to the proxy.
#[derive(Clone)]
struct Guest {
    proxy: SocketAddr,
    names: SocketAddr,
    ca_pem: Arc<str>,
}

impl Guest {
    async fn dial(&self, address: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        // What the kernel holds is no affair of this test.
        socket.set_recv_buffer_size(PIECE as u32).unwrap();
        socket.connect(address).await.unwrap()
    }

    async fn connect(&self, target: &str) -> TcpStream {
        let mut stream = self.dial(self.proxy).await;
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = head_of(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stream
    }

    async fn tls(&self, target: &str, protocol: &str) -> Tls {
        let stream = self.connect(target).await;
        tls(stream, &self.ca_pem, "api.test", &[protocol]).await.unwrap()
    }

    async fn get(&self, target: &str) -> String {
        let mut tls = self.tls(target, "http/1.1").await;
        let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut tls).await
    }

    /// An HTTP/2 connection on which nothing is ever read.
    async fn open(&self, target: &str) -> Tls {
        let mut tls = self.tls(target, "h2").await;
        let (settings, update) = greatest_windows();
        let settings = [frame2(SETTINGS, 0, 0, &settings), frame2(SETTINGS, ACK, 0, &[])].concat();
        tls.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &update].concat())
            .await
            .unwrap();
        tls
    }
}

/// A head in HPACK, with its method as index of the static table.
fn head(method: u8, target: &str) -> Vec<u8> {
    let length = u8::try_from(target.len()).unwrap();
    [&[method, 0x87, 0x84, 0x01, length][..], target.as_bytes()].concat()
}

/// 64 MiB of nothing in a coding, with the widest window.
fn bomb(coding: &str) -> Vec<u8> {
    let nothing = vec![0; 64 << 20];
    let mut coded = Vec::new();
    match coding {
        "br" => brotli::CompressorWriter::new(&mut coded, PIECE, 1, 24)
            .write_all(&nothing)
            .unwrap(),
        "zstd" => {
            let mut context = zstd_safe::CCtx::create();
            context
                .set_parameter(zstd_safe::CParameter::WindowLog(23))
                .unwrap();
            coded = Vec::with_capacity(1 << 20);
            context.compress2(&mut coded, &nothing).unwrap();
        }
        _ => coded = encode(coding, &nothing),
    }
    coded
}

/// Asks for a compressed body, and reads as much of it as fills the decoder.
async fn unread_bomb(guest: Guest, target: String, coding: &'static str, bomb: Arc<[u8]>, size: usize) {
    let mut tls = guest.tls(&target, "http/1.1").await;
    let length = bomb.len();
    let head = format!(
        "POST /raw HTTP/1.1\r\nHost: {target}\r\nX-Coding: {coding}\r\nContent-Length: {length}\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    tls.write_all(&bomb).await.unwrap();
    let (mut chunk, mut taken) = (vec![0; 64 << 10], 0);
    while taken < size {
        match tls.read(&mut chunk).await {
            Ok(count @ 1..) => taken += count,
            // More are asked for than may be open.
            _ => return,
        }
    }
    std::future::pending::<()>().await;
}

/// Opens a WebSocket, and sends on it for ever.
async fn unread_websocket(guest: Guest, target: String) {
    let mut tls = guest.tls(&target, "http/1.1").await;
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: {target}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let answer = head_of(&mut tls).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    pour(tls, &[], &[b'x'; PIECE]).await;
}

/// Answers a WebSocket, and sends one message on it that has no end.
async fn websocket_upstream(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    head_of(&mut stream).await;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        accept(b"dGhlIHNhbXBsZSBub25jZQ==")
    );
    let frame = [&[0, 126, 0x40, 0][..], &[b'x'; PIECE]].concat();
    let first = [answer.as_bytes(), &[1, 1, b'x']].concat();
    pour(stream, &first, &frame).await;
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    (listener, at)
}

/// The guest and its upstreams: does nothing in a process of its own right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guest_and_upstreams() {
    if told().is_none() {
        return;
    }
    let mut upstreams = JoinSet::new();
    let honest = Upstream::tls(&["http/1.1"]).await;
    let at = honest.at("api.test");
    // On a runtime of its own, so that all its connections end with it.
    let sink = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let unread = sink.spawn(Upstream::tls(&["http/1.1"])).await.unwrap();
    let unread_at = unread.at("api.test");
    let greedy = Arc::<Greedy>::default();
    let mut h2_targets = Vec::new();
    let (h2_root, config) = certificates(&["h2"]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    for index in 0..H2_UPSTREAMS {
        let (listener, at) = listener().await;
        h2_targets.push(at);
        let (greedy, acceptor) = (Arc::clone(&greedy), acceptor.clone());
        upstreams.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (greedy, acceptor) = (Arc::clone(&greedy), acceptor.clone());
                connections.spawn(async move {
                    let stream = acceptor.accept(stream).await?;
                    greedy.serve(stream, index < H2_MUTE / 2).await
                });
            }
        });
    }
    let (ws_root, config) = certificates(&["http/1.1"]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (ws, ws_at) = listener().await;
    upstreams.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = ws.accept().await {
            let acceptor = acceptor.clone();
            connections
                .spawn(async move { websocket_upstream(acceptor.accept(stream).await.unwrap()).await });
        }
    });
    let (raw, raw_at) = listener().await;
    upstreams.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = raw.accept().await {
            connections.spawn(pour(stream, &[], &[b'x'; PIECE]));
        }
    });

    let read = [&h2_targets[..], &[at.clone(), unread_at.clone(), ws_at.clone()]]
        .concat()
        .join(" ");
    let roots = [honest.ca_pem.clone(), unread.ca_pem.clone(), h2_root, ws_root].join(";");
    let mut inner = inner_half(
        module_path!(),
        "proxy_alone",
        "ulimit -n 1024",
        format!("{read};{raw_at};{roots}"),
    );
    let mut child = inner
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut ready = String::new();
    while ready.matches(';').count() < 4 {
        assert!(said.read_line(&mut ready).unwrap() > 0, "{ready}");
    }
    let said: Vec<&str> = ready[ready.find("listens;").unwrap()..].split(';').collect();
    let port = |at: usize| SocketAddr::new(LOCAL, said[at].parse().unwrap());
    let guest = Guest {
        proxy: port(1),
        names: port(2),
        ca_pem: said[3].into(),
    };
    let process = Process(child);

    assert!(guest.get(&at).await.starts_with("HTTP/1.1 200"));
    let (memory, descriptors) = (process.settled_memory().await, process.descriptors());

    let mut hostile = JoinSet::new();
    for _ in 0..18 {
        let stream = guest.connect(&raw_at).await;
        hostile.spawn(async move { pour(stream, &[], &[b'x'; PIECE]).await });
    }
    for _ in 0..24 {
        let tls = guest.tls(&unread_at, "http/1.1").await;
        let start = format!("POST /pour HTTP/1.1\r\nHost: {unread_at}\r\nContent-Length: 9999999999\r\n\r\n");
        hostile.spawn(async move { pour(tls, start.as_bytes(), &[b'x'; PIECE]).await });
    }
    for _ in 0..8 {
        hostile.spawn(unread_websocket(guest.clone(), ws_at.clone()));
    }
    process.settled_memory().await;
    for (coding, count, size) in [("br", 2, 17), ("zstd", 24, 9), ("gzip", 4, 1)] {
        let bomb: Arc<[u8]> = bomb(coding).into();
        for _ in 0..count {
            hostile.spawn(unread_bomb(
                guest.clone(),
                unread_at.clone(),
                coding,
                Arc::clone(&bomb),
                size << 20,
            ));
        }
    }
    process.settled_memory().await;
    for _ in 0..6 {
        let mut stream = guest.connect(&at).await;
        // The start of a long client hello.
        stream
            .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
            .await
            .unwrap();
        hostile.spawn(async move {
            while stream.write_all(b"x").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
    for _ in 0..10 {
        let mut stream = guest.dial(guest.proxy).await;
        let field = format!("A: {}\r\n", "x".repeat(1000));
        let start = format!("GET http://{at}/ HTTP/1.1\r\n{}A: ", field.repeat(63));
        stream.write_all(start.as_bytes()).await.unwrap();
        hostile.spawn(async move {
            while stream.write_all(b"x").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
    for _ in 0..40 {
        let mut stream = guest.dial(guest.names).await;
        hostile.spawn(async move {
            let _ = stream.write_all(&[2, 0, 1]).await;
            std::future::pending::<()>().await;
        });
    }

    let mut open = Vec::new();
    for index in 0..H2_CLIENTS {
        let target = &h2_targets[index / 2];
        let mut tls = guest.open(target).await;
        for number in 0..DOWNLOADS {
            let request = frame2(
                HEADERS,
                END_STREAM | END_HEADERS,
                2 * number + 1,
                &head(0x83, target),
            );
            tls.write_all(&request).await.unwrap();
        }
        open.push((tls, target));
    }
    settled(|| greedy.poured.load(Relaxed)).await;
    process.settled_memory().await;
    greedy.mute.cancel();
    sleep(Duration::from_millis(100)).await;
    let write = async |tls: &mut Tls, bytes: &[u8]| {
        // One that takes no more has had enough.
        let _ = timeout(Duration::from_secs(1), tls.write_all(bytes)).await;
    };
    let (long, many) = (long_fields(), many_fields(60 << 10));
    for (tls, target) in &mut open {
        for number in DOWNLOADS..DOWNLOADS + UPLOADS {
            let id = 2 * number + 1;
            let start = head_frames(0, id, &[&head(0x83, target), &long[..]].concat());
            let body = frame2(DATA, 0, id, &[b'x'; PIECE]).repeat(8);
            let trailers = frame2(HEADERS, END_STREAM | END_HEADERS, id, &many);
            for bytes in [start, body, trailers] {
                write(tls, &bytes).await;
            }
        }
    }
    process.settled_memory().await;
    let mut refused = 0;
    for number in DOWNLOADS + UPLOADS..STREAMS {
        for (tls, target) in &mut open[H2_MUTE..] {
            let id = 2 * number + 1;
            let request = frame2(HEADERS, END_STREAM | END_HEADERS, id, &head(0x82, target));
            write(tls, &request).await;
        }
        // Until they are answered, or refused again and again.
        if number % 3 == 0 && refused < 5 {
            let before = greedy.answered.load(Relaxed);
            settled(|| greedy.answered.load(Relaxed) + 1).await;
            let is_refused = greedy.answered.load(Relaxed) == before;
            refused = if is_refused { refused + 1 } else { 0 };
        }
    }
    let (most, most_descriptors) = (process.settled_memory().await, process.descriptors());
    let answered = greedy.answered.load(Relaxed);

    hostile.shutdown().await;
    drop(open);
    let mut answer = String::new();
    for _ in 0..100 {
        answer = guest.get(&at).await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    upstreams.shutdown().await;
    sink.shutdown_background();
    // What is freed in small pieces stays with the allocator, so that how much is given back says little.
    println!(
        "{} KiB more at the most and {} after, {most_descriptors} descriptors, {answered} long heads",
        (most - memory) >> 10,
        process.settled_memory().await.saturating_sub(memory) >> 10,
    );
    let taken = most - memory;
    assert!((MOST / 2..MOST).contains(&taken), "{} KiB", taken >> 10);
    assert!(most_descriptors < MOST_DESCRIPTORS, "{most_descriptors}");
    for _ in 0..100 {
        if process.descriptors() <= descriptors + 4 {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{} descriptors are left", process.descriptors());
}

/// The inner half of `guest_and_upstreams`: does nothing in a process of its own right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_alone() {
    let Some(told) = told() else {
        return;
    };
    let told = told.into_string().unwrap();
    let mut parts = told.split(';');
    let (targets, opaque) = (parts.next().unwrap(), parts.next().unwrap());
    let rules = targets
        .split(' ')
        .chain([opaque])
        .fold(Rules::new(), |rules, at| {
            rules.allow(&format!("{at} special-ranges"))
        });
    let service = targets.split(' ').fold(Service::custom("api"), |service, at| {
        service.header(at, "x-api-key")
    });
    let running = Running::start(|builder| {
        let builder = with_service(builder, service)
            .policy(Arc::new(rules))
            .resolve("api.test".parse().unwrap(), vec![LOCAL]);
        parts.fold(builder, |builder, root| builder.extra_root(root.to_owned()))
    })
    .await;
    let names = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let ports = [running.address.port(), names.local_addr().unwrap().port()];
    let dns = running.proxy.dns();
    tokio::spawn(async move { dns.listen(names).await });
    println!(
        "listens;{};{};{};",
        ports[0],
        ports[1],
        running.proxy.ca_pem().unwrap()
    );
    std::io::stdout().flush().unwrap();
    // Until the guest is gone.
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
        .await
        .unwrap()
        .unwrap();
}
