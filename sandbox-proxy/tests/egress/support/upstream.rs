//! An upstream that tells what it saw, and answers by path in the ways that tests want.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use sandbox_proxy::UpstreamProxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{LOCAL, SECRET, streams};

/// A request as upstream saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: http::Method,
    pub version: Version,
    pub target: String,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
}

/// A server with a certificate for `api.test` and `other.test`.
pub struct Upstream {
    pub address: SocketAddr,
    pub ca_pem: String,
    pub connections: Arc<Mutex<usize>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Lets `/slow` go on.
    pub go_on: Arc<tokio::sync::Notify>,
    /// What `/files/` serves, to those who show the secret as Basic password.
    pub files: Arc<Mutex<std::path::PathBuf>>,
    /// Bytes that streams of `/pour` have handed over.
    pub poured: Arc<AtomicU64>,
}

impl Upstream {
    pub async fn tls(protocols: &[&str]) -> Self {
        Self::start(Some(protocols), SocketAddr::new(LOCAL, 0))
            .await
            .unwrap()
    }

    pub async fn plain() -> Self {
        Self::start(None, SocketAddr::new(LOCAL, 0)).await.unwrap()
    }

    pub async fn start(protocols: Option<&[&str]>, address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (ca_pem, config) = certificates(protocols.unwrap_or(&[]));
        let upstream = Self {
            address: listener.local_addr()?,
            ca_pem,
            connections: Arc::default(),
            seen: Arc::default(),
            go_on: Arc::default(),
            files: Arc::default(),
            poured: Arc::default(),
        };
        let (seen, connections) = (Arc::clone(&upstream.seen), Arc::clone(&upstream.connections));
        let (go_on, files) = (Arc::clone(&upstream.go_on), Arc::clone(&upstream.files));
        let poured = Arc::clone(&upstream.poured);
        let acceptor = protocols.map(|_| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *connections.lock().unwrap() += 1;
                let (seen, go_on, acceptor) = (Arc::clone(&seen), Arc::clone(&go_on), acceptor.clone());
                let files = files.lock().unwrap().clone();
                let poured = Arc::clone(&poured);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let poured = Arc::clone(&poured);
                        handle(
                            request,
                            Arc::clone(&seen),
                            Arc::clone(&go_on),
                            files.clone(),
                            poured,
                        )
                    });
                    let Some(acceptor) = acceptor else {
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .with_upgrades()
                            .await;
                        return;
                    };
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .enable_connect_protocol()
                            .max_concurrent_streams(1024)
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    } else {
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .with_upgrades()
                            .await;
                    }
                });
            }
        });
        Ok(upstream)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `name:port` of this server.
    pub fn at(&self, name: &str) -> String {
        format!("{name}:{}", self.port())
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn last(&self) -> Seen {
        self.seen().pop().expect("upstream saw no request")
    }

    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

/// An authority that makes certificates.
pub fn root() -> CertifiedIssuer<'static, KeyPair> {
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "test root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap()
}

/// The configuration of a server with this certificate.
pub fn server_config(leaf: &rcgen::Certificate, key: &KeyPair) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap()
}

/// A root as PEM, and the configuration of a server with a certificate of it.
pub fn certificates(protocols: &[&str]) -> (String, rustls::ServerConfig) {
    let ca = root();
    let key = KeyPair::generate().unwrap();
    let names = ["api.test", "other.test", "sts.eu-west-1.amazonaws.com"].map(str::to_owned);
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    let mut config = server_config(&leaf, &key);
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    (ca.pem(), config)
}

pub type Answer = Response<BoxBody<Bytes, Infallible>>;

pub fn full(text: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(text.into()).boxed())
}

fn chunks(frames: Vec<Frame<Bytes>>) -> Answer {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for frame in frames {
            if sender.send(Ok(frame)).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    let stream = Frames(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
    Response::new(BodyExt::boxed(stream))
}

/// A body from a function that gives frames.
pub struct Frames<F>(pub F);

impl<F> http_body::Body for Frames<F>
where
    F: Future<Output = Option<Result<Frame<Bytes>, Infallible>>> + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::pin::Pin::new(&mut self.0).poll(cx)
    }
}

async fn handle(
    mut request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
    go_on: Arc<tokio::sync::Notify>,
    files: std::path::PathBuf,
    poured: Arc<AtomicU64>,
) -> Result<Answer, Infallible> {
    if streams::are_for(request.uri().path()) {
        return Ok(streams::answer(request, &seen, go_on, poured));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let (trailers, body) = match body.collect().await {
        Ok(body) => (body.trailers().cloned().unwrap_or_default(), body.to_bytes()),
        Err(_) => return Ok(full("broken")),
    };
    seen.lock().unwrap().push(Seen {
        method: parts.method.clone(),
        version: parts.version,
        target: parts.uri.to_string(),
        headers: parts.headers.clone(),
        trailers,
        body: body.clone(),
    });
    let key = ["x-api-key", "authorization"]
        .iter()
        .find_map(|name| parts.headers.get(*name))
        .and_then(|value| value.to_str().ok())
        .unwrap_or("none")
        .to_owned();
    let data = |text: &[u8]| Frame::data(Bytes::copy_from_slice(text));
    Ok(match parts.uri.path() {
        "/echo" => {
            let mut text = String::new();
            for (name, value) in &parts.headers {
                text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
            }
            full([text.as_bytes(), &body].concat())
        }
        "/body" => full(body),
        "/split" => chunks(key.as_bytes().chunks(3).map(data).collect()),
        "/base64" => full(BASE64_STANDARD.encode(format!("user:{key}!"))),
        "/percent" => full(key.bytes().map(|b| format!("%{b:02X}")).collect::<String>()),
        "/hex" => full(key.bytes().map(|b| format!("{b:02x}")).collect::<String>()),
        "/redirect" => {
            let mut answer = full("");
            *answer.status_mut() = StatusCode::FOUND;
            let location = format!("https://elsewhere.test/?k={key}");
            answer.headers_mut().insert("location", location.parse().unwrap());
            answer
        }
        "/session" => {
            let mut answer = full("");
            for cookie in ["session=1", "other=2"] {
                answer
                    .headers_mut()
                    .append("set-cookie", HeaderValue::from_static(cookie));
            }
            answer
        }
        "/redirect-to" => {
            let mut answer = full("");
            *answer.status_mut() = StatusCode::FOUND;
            let location = parts.headers["x-location"].clone();
            answer.headers_mut().insert("location", location);
            answer
        }
        path if path.starts_with("/git/") => {
            let mut answer = full("");
            if key
                == format!(
                    "Basic {}",
                    BASE64_STANDARD.encode(format!("x-access-token:{SECRET}"))
                )
            {
                let (status, headers, content) = super::git::serve(&parts, &body, &files).await;
                answer = full(content);
                (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
            } else {
                *answer.status_mut() = StatusCode::UNAUTHORIZED;
                let basic = HeaderValue::from_static("Basic realm=\"git\"");
                answer.headers_mut().insert("www-authenticate", basic);
            }
            answer
        }
        // The key and what was sent, in the codings of `x-coding`, in small pieces.
        "/coded" => {
            let codings = parts
                .headers
                .get("x-coding")
                .map_or("compress", |value| value.to_str().unwrap());
            let coded = encode(codings, &[key.as_bytes(), b"\n", &body].concat());
            let coded_length = coded.len();
            let mut answer = match parts.method {
                Method::HEAD => full(""),
                _ => chunks(coded.chunks(700).map(data).collect()),
            };
            for (name, value) in [
                ("content-encoding", codings),
                ("etag", "\"tag\""),
                ("repr-digest", "sha-256=:AAAA:"),
                ("accept-ranges", "bytes"),
                ("vary", "accept-encoding"),
            ] {
                answer.headers_mut().insert(name, value.parse().unwrap());
            }
            if let Some(kind) = parts.headers.get("x-type") {
                answer.headers_mut().insert("content-type", kind.clone());
            }
            if let Some(status) = parts.headers.get("x-status") {
                *answer.status_mut() = status.to_str().unwrap().parse().unwrap();
            } else {
                answer.headers_mut().insert("content-length", coded_length.into());
            }
            answer
        }
        // The key in every header that a client may act on, the last of them after more than one frame's worth.
        "/headers" => {
            let mut answer = full(format!("error: {key}"));
            *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            let padding = "x".repeat(24 << 10);
            for (name, value) in [
                ("location", format!("https://elsewhere.test/?k={key}")),
                ("set-cookie", format!("k={key}; Path=/")),
                ("link", format!("<https://elsewhere.test/{key}>; rel=preload")),
                ("alt-svc", format!("h3=\"{key}.elsewhere.test:443\"")),
                ("www-authenticate", format!("Bearer error=\"{key}\"")),
                ("x-percent", key.bytes().map(|b| format!("%{b:02x}")).collect()),
                ("x-base64", BASE64_STANDARD.encode(format!("user:{key}"))),
                ("x-long", format!("{padding}{key}")),
            ] {
                answer.headers_mut().insert(name, value.parse().unwrap());
            }
            answer
        }
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_str(&format!("was {key}")).unwrap());
            let mut answer = chunks(vec![data(b"hello"), Frame::trailers(trailers)]);
            answer
                .headers_mut()
                .insert("trailer", HeaderValue::from_static("x-end"));
            answer
        }
        "/slow" => {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let _ = sender
                    .send(Ok(Frame::data(Bytes::from_static(b"data: one\n\n"))))
                    .await;
                go_on.notified().await;
                let _ = sender
                    .send(Ok(Frame::data(Bytes::from_static(b"data: two\n\n"))))
                    .await;
            });
            let stream = Frames(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
            Response::new(BodyExt::boxed(stream))
        }
        // Wants the client to sign in by a scheme of its choice.
        "/challenge" => {
            let mut answer = full("");
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
            let scheme = parts.headers["x-scheme"].clone();
            answer.headers_mut().insert("www-authenticate", scheme);
            answer
        }
        // So many bytes in a header, as fields of a kilobyte each.
        "/long-head" => {
            let size: usize = parts.headers["x-size"].to_str().unwrap().parse().unwrap();
            let mut answer = full("ok");
            for _ in 0..size >> 10 {
                let value = HeaderValue::try_from("x".repeat(1 << 10)).unwrap();
                answer.headers_mut().append("x-long", value);
            }
            answer
        }
        // So many small fields.
        "/many-fields" => {
            let count: usize = parts.headers["x-count"].to_str().unwrap().parse().unwrap();
            let mut answer = full("ok");
            for _ in 0..count {
                let value = HeaderValue::from_static("x");
                answer.headers_mut().append("x-many", value);
            }
            answer
        }
        // Nothing until the test lets it answer.
        "/hold" => {
            go_on.notified().await;
            full("held")
        }
        // What was sent comes back, and then nothing until the test lets it end.
        "/drip" => {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let _ = sender.send(Ok(Frame::data(body))).await;
                go_on.notified().await;
            });
            let stream = Frames(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
            let mut answer = Response::new(BodyExt::boxed(stream));
            for (name, from) in [("content-type", "x-type"), ("content-encoding", "x-coding")] {
                if let Some(value) = parts.headers.get(from) {
                    answer.headers_mut().insert(name, value.clone());
                }
            }
            answer
        }
        // What was sent, said to be coded.
        "/raw" => {
            let mut answer = full(body);
            let codings = parts.headers["x-coding"].clone();
            answer.headers_mut().insert("content-encoding", codings);
            answer
        }
        "/big" => full(vec![b'x'; 8 << 20]),
        // Stops in the middle of the key until the test lets it go on.
        "/stop" => {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let (first, second) = key.split_at(key.len() / 2);
                let first = format!("the key:\n{first}");
                let _ = sender.send(Ok(Frame::data(Bytes::from(first)))).await;
                go_on.notified().await;
                let _ = sender.send(Ok(Frame::data(Bytes::from(second.to_owned())))).await;
            });
            let stream = Frames(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
            Response::new(BodyExt::boxed(stream))
        }
        "/coded-messages" => {
            let mut answer = full(key);
            let gzip = HeaderValue::from_static("gzip");
            answer.headers_mut().insert("grpc-encoding", gzip);
            answer
        }
        "/ws" => {
            let key_echo = format!("switches with {key}");
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                stream.write_all(&streams::greeting(&key)).await.unwrap();
                // Then what comes is sent back.
                let mut chunk = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                    if stream.write_all(&frame(0x82, &chunk[..count])).await.is_err() {
                        return;
                    }
                }
            });
            let mut answer = full("");
            answer.headers_mut().insert("x-echo", key_echo.parse().unwrap());
            if parts.version == Version::HTTP_2 {
                return Ok(answer);
            }
            answer
                .extensions_mut()
                .insert(ReasonPhrase::try_from(key_echo.into_bytes()).unwrap());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            answer
                .headers_mut()
                .insert("connection", HeaderValue::from_static("upgrade"));
            answer
                .headers_mut()
                .insert("upgrade", HeaderValue::from_static("websocket"));
            if let Some(key) = parts.headers.get("sec-websocket-key") {
                let accept = streams::accept(key.as_bytes()).parse().unwrap();
                answer.headers_mut().insert("sec-websocket-accept", accept);
            }
            answer
        }
        path if path.starts_with("/files/") => {
            let pair = BASE64_STANDARD.encode(format!("x-access-token:{SECRET}"));
            let mut file = files.join(&path["/files/".len()..]);
            if file.is_dir() {
                file.push("index.html");
            }
            let kind = match file.extension().and_then(|extension| extension.to_str()) {
                Some("html") => "text/html",
                Some("json") => "application/json",
                _ => "application/octet-stream",
            };
            let file = std::fs::read(file);
            let (status, content) = match file {
                _ if key != format!("Basic {pair}") => (StatusCode::UNAUTHORIZED, Vec::new()),
                Ok(content) => (StatusCode::OK, content),
                Err(_) => (StatusCode::NOT_FOUND, Vec::new()),
            };
            let mut answer = full(content);
            *answer.status_mut() = status;
            let headers = answer.headers_mut();
            headers.insert("content-type", HeaderValue::from_static(kind));
            headers.insert(
                "www-authenticate",
                HeaderValue::from_static("Basic realm=\"files\""),
            );
            answer
        }
        _ => match parts.headers.get("x-given") {
            Some(given) => full(given.as_bytes().to_vec()),
            None => full("ok"),
        },
    })
}

/// Bytes in these codings, put on in this order; unknown ones change nothing.
pub fn encode(codings: &str, bytes: &[u8]) -> Vec<u8> {
    codings
        .split(", ")
        .fold(bytes.to_vec(), |bytes, coding| match coding {
            "gzip" => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&bytes).unwrap();
                gzip.finish().unwrap()
            }
            "deflate" => {
                let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                zlib.write_all(&bytes).unwrap();
                zlib.finish().unwrap()
            }
            "br" => {
                let mut out = Vec::new();
                brotli::CompressorWriter::new(&mut out, 4096, 4, 18)
                    .write_all(&bytes)
                    .unwrap();
                out
            }
            "zstd" => {
                let mut out = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
                zstd_safe::compress(&mut out, &bytes, 3).unwrap();
                out
            }
            _ => bytes,
        })
}

/// A short WebSocket frame as servers send it (RFC 6455 §5.2).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, u8::try_from(payload.len()).unwrap()];
    assert!(payload.len() < 126);
    frame.extend_from_slice(payload);
    frame
}

/// A SOCKS5 proxy (RFC 1928) that leads every connection to one address, whatever port is asked for: some ports take a
/// privilege to listen on.
pub async fn leads_to(address: SocketAddr) -> UpstreamProxy {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let proxy = UpstreamProxy::socks5(&listener.local_addr().unwrap().to_string()).unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut greeting = [0; 2];
                client.read_exact(&mut greeting).await?;
                client.read_exact(&mut vec![0; usize::from(greeting[1])]).await?;
                client.write_all(&[5, 0]).await?;
                let mut request = [0; 5];
                client.read_exact(&mut request).await?;
                let rest = match request[3] {
                    1 => 3 + 2,
                    3 => usize::from(request[4]) + 2,
                    _ => 15 + 2,
                };
                client.read_exact(&mut vec![0; rest]).await?;
                client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
                let mut upstream = TcpStream::connect(address).await?;
                tokio::io::copy_bidirectional(&mut client, &mut upstream).await
            });
        }
    });
    proxy
}
