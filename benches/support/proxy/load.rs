//! The load: HTTPS through whatever is between it and the upstream. HTTP/1.1 is spoken by hand, so that most of what is
//! measured is the subject; HTTP/2 by hyper.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::subjects::Way;
use super::{HOST, KEY, Result, pki};

/// What is read at once.
const CHUNK: usize = 64 << 10;
/// Longest head of a response.
const HEAD: usize = 16 << 10;
/// What a download over HTTP/2 may bring before it is taken, for every subject.
const WINDOW: u32 = 8 << 20;

/// Where upstream listens on loopback.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub h1: u16,
    pub h2: u16,
    /// With a certificate that nobody may take.
    pub stranger: u16,
}

impl Ports {
    /// As arguments of a process.
    pub fn all(self) -> [u16; 3] {
        [self.h1, self.h2, self.stranger]
    }
}

async fn connect(
    way: &Way,
    port: u16,
    alpn: &str,
    capacity: usize,
) -> Result<TlsStream<BufReader<TcpStream>>> {
    let mut stream = TcpStream::connect(way.proxy.unwrap_or((Ipv4Addr::LOCALHOST, port).into())).await?;
    stream.set_nodelay(true)?;
    if way.proxy.is_some() {
        let target = format!("{HOST}:{port}");
        let ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(ask.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err("closed on CONNECT".to_owned().into());
            }
        }
        if !answer.starts_with(b"HTTP/1.1 200") && !answer.starts_with(b"HTTP/1.0 200") {
            return Err(format!("CONNECT was answered {}", answer.escape_ascii()).into());
        }
    }
    let config = pki::client(&way.root, alpn)?;
    let stream = BufReader::with_capacity(capacity, stream);
    let stream = TlsConnector::from(config)
        .connect(ServerName::try_from(HOST)?, stream)
        .await?;
    let agreed = stream.get_ref().1.alpn_protocol();
    // Who names none speaks HTTP/1.1.
    if agreed.unwrap_or(b"http/1.1") != alpn.as_bytes() {
        return Err(format!("speaks no {alpn}").into());
    }
    Ok(stream)
}

/// A keep-alive HTTP/1.1 connection.
pub struct H1 {
    stream: TlsStream<BufReader<TcpStream>>,
    host: String,
    sends_key: bool,
}

impl H1 {
    /// For load.
    pub async fn open(way: &Way, port: u16) -> Result<Self> {
        Self::open_with(way, port, CHUNK).await
    }

    /// With a read buffer of this size.
    pub async fn open_with(way: &Way, port: u16, capacity: usize) -> Result<Self> {
        Ok(Self {
            stream: connect(way, port, "http/1.1", capacity).await?,
            host: format!("{HOST}:{port}"),
            sends_key: way.sends_key,
        })
    }

    /// The bytes of a GET.
    pub fn request(&self, path: &str) -> Vec<u8> {
        let key = if self.sends_key { KEY } else { "placeholder" };
        format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nuser-agent: bench/1\r\naccept: */*\r\nx-api-key: {key}\r\n\r\n",
            self.host
        )
        .into_bytes()
    }

    /// Sends a request and reads the response to its end. Returns the length of its body.
    pub async fn get(&mut self, request: &[u8], buffer: &mut Vec<u8>) -> Result<u64> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        buffer.clear();
        let end = loop {
            if self.stream.read_buf(buffer).await? == 0 || buffer.len() > CHUNK + HEAD {
                return Err("the response ended in its head".into());
            }
            if let Some(at) = buffer.windows(4).position(|end| end == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = std::str::from_utf8(buffer.get(..end).unwrap_or_default())?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<u64>().ok())?
        });
        let (true, Some(length)) = (head.starts_with("HTTP/1.1 200"), length) else {
            return Err(format!("not the response expected: {head}").into());
        };
        let mut got = (buffer.len() - end) as u64;
        while got < length {
            buffer.clear();
            let read = self.stream.read_buf(buffer).await?;
            if read == 0 {
                return Err("the response ended too soon".into());
            }
            got += read as u64;
        }
        Ok(length)
    }
}

/// A buffer to read into.
pub fn buffer() -> Vec<u8> {
    Vec::with_capacity(CHUNK)
}

/// An HTTP/2 connection; clones share it.
#[derive(Clone)]
pub struct H2 {
    sender: SendRequest<Empty<Bytes>>,
    base: String,
    sends_key: bool,
}

impl H2 {
    pub async fn open(way: &Way, port: u16) -> Result<Self> {
        let stream = connect(way, port, "h2", CHUNK).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            base: format!("https://{HOST}:{port}"),
            sends_key: way.sends_key,
        })
    }

    /// Gets a path, to the end. Returns the length of the body.
    pub async fn get(&mut self, path: &str) -> Result<u64> {
        let key = if self.sends_key { KEY } else { "placeholder" };
        let request = Request::get(format!("{}{path}", self.base))
            .header("user-agent", "bench/1")
            .header("accept", "*/*")
            .header("x-api-key", key)
            .body(Empty::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        if response.status() != 200 {
            return Err(format!("not the response expected: {}", response.status()).into());
        }
        let (mut body, mut length) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len) as u64;
        }
        Ok(length)
    }
}

/// Requests that were answered on all connections in about `time`, and how long it took.
pub async fn hammer_h1(connections: &mut Vec<H1>, time: Duration) -> Result<(u64, Duration)> {
    let started = Instant::now();
    let tasks: Vec<_> = connections
        .drain(..)
        .map(|mut connection| {
            tokio::spawn(async move {
                let (request, mut buffer) = (connection.request("/small"), buffer());
                let mut count = 0;
                while started.elapsed() < time {
                    connection.get(&request, &mut buffer).await?;
                    count += 1;
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((connection, count))
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        let (connection, count) = task.await??;
        connections.push(connection);
        total += count;
    }
    Ok((total, started.elapsed()))
}

/// The same over HTTP/2, with so many streams at once on each connection.
pub async fn hammer_h2(connections: &[H2], streams: usize, time: Duration) -> Result<(u64, Duration)> {
    let started = Instant::now();
    let tasks: Vec<_> = connections
        .iter()
        .flat_map(|connection| std::iter::repeat_n(connection, streams))
        .map(|connection| {
            let mut connection = connection.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while started.elapsed() < time {
                    connection.get("/small").await?;
                    count += 1;
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(count)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok((total, started.elapsed()))
}

/// Latencies of requests one after another over HTTP/2, in seconds.
pub async fn one_by_one_h2(connection: &mut H2, time: Duration) -> Result<Vec<f64>> {
    let (started, mut latencies) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        let before = Instant::now();
        connection.get("/small").await?;
        latencies.push(before.elapsed().as_secs_f64());
    }
    Ok(latencies)
}

/// Latencies of requests one after another over HTTP/1.1, in seconds.
pub async fn one_by_one(connection: &mut H1, time: Duration) -> Result<Vec<f64>> {
    let (request, mut buffer) = (connection.request("/small"), buffer());
    let (started, mut latencies) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        let before = Instant::now();
        connection.get(&request, &mut buffer).await?;
        latencies.push(before.elapsed().as_secs_f64());
    }
    Ok(latencies)
}
