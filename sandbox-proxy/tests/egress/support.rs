//! An upstream that tells what it saw, a proxy on a port, and clients that say just what a test wants.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sandbox_core::audit::{AuditEvent, AuditSink};
use sandbox_proxy::{Proxy, ProxyBuilder, Rules, Service, sources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The credential that must never be seen by a client.
pub const SECRET: &str = "sk-test-4f9Zq/x7+Kd_tail";
pub const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A request as upstream saw it.
#[derive(Debug, Clone)]
pub struct Seen {
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
        };
        let (seen, connections) = (Arc::clone(&upstream.seen), Arc::clone(&upstream.connections));
        let (go_on, files) = (Arc::clone(&upstream.go_on), Arc::clone(&upstream.files));
        let acceptor = protocols.map(|_| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *connections.lock().unwrap() += 1;
                let (seen, go_on, acceptor) = (Arc::clone(&seen), Arc::clone(&go_on), acceptor.clone());
                let files = files.lock().unwrap().clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        handle(request, Arc::clone(&seen), Arc::clone(&go_on), files.clone())
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

fn certificates(protocols: &[&str]) -> (String, rustls::ServerConfig) {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "test root");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["api.test".to_owned(), "other.test".to_owned()];
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    (ca.pem(), config)
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn full(text: impl Into<Bytes>) -> Answer {
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
struct Frames<F>(F);

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
) -> Result<Answer, Infallible> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let (trailers, body) = match body.collect().await {
        Ok(body) => (body.trailers().cloned().unwrap_or_default(), body.to_bytes()),
        Err(_) => return Ok(full("broken")),
    };
    seen.lock().unwrap().push(Seen {
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
        "/coded" => {
            let mut answer = full(key);
            answer
                .headers_mut()
                .insert("content-encoding", HeaderValue::from_static("gzip"));
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
        // What was sent comes back, and then nothing until the test lets it end.
        "/drip" => {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let _ = sender.send(Ok(Frame::data(body))).await;
                go_on.notified().await;
            });
            let stream = Frames(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
            let mut answer = Response::new(BodyExt::boxed(stream));
            if let Some(kind) = parts.headers.get("x-type") {
                answer.headers_mut().insert("content-type", kind.clone());
            }
            answer
        }
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
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                // One text message in two frames, the border within the key; then what comes is sent back.
                let text = format!("key {key};");
                let (first, second) = text.split_at(9);
                let greeting = [frame(0x01, first.as_bytes()), frame(0x80, second.as_bytes())].concat();
                stream.write_all(&greeting).await.unwrap();
                let mut chunk = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                    if stream.write_all(&frame(0x82, &chunk[..count])).await.is_err() {
                        return;
                    }
                }
            });
            let mut answer = full("");
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            answer
                .headers_mut()
                .insert("connection", HeaderValue::from_static("upgrade"));
            answer
                .headers_mut()
                .insert("upgrade", HeaderValue::from_static("websocket"));
            answer
        }
        path if path.starts_with("/files/") => {
            let pair = BASE64_STANDARD.encode(format!("x-access-token:{SECRET}"));
            let file = std::fs::read(files.join(&path["/files/".len()..]));
            let (status, content) = match file {
                _ if key != format!("Basic {pair}") => (StatusCode::UNAUTHORIZED, Vec::new()),
                Ok(content) => (StatusCode::OK, content),
                Err(_) => (StatusCode::NOT_FOUND, Vec::new()),
            };
            let mut answer = full(content);
            *answer.status_mut() = status;
            answer
        }
        _ => full("ok"),
    })
}

/// A short WebSocket frame as servers send it (RFC 6455 §5.2).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, u8::try_from(payload.len()).unwrap()];
    assert!(payload.len() < 126);
    frame.extend_from_slice(payload);
    frame
}

/// Keeps every audit event.
#[derive(Debug, Default)]
pub struct Events(Mutex<Vec<AuditEvent>>);

impl AuditSink for Events {
    fn record(&self, event: &AuditEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Events {
    /// The first event of which this is true; events come when attempts end.
    pub async fn wait(&self, wanted: impl Fn(&AuditEvent) -> bool) -> AuditEvent {
        for _ in 0..500 {
            if let Some(event) = self.0.lock().unwrap().iter().find(|event| wanted(event)) {
                return event.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no such event among {:#?}", self.0.lock().unwrap());
    }

    pub fn all(&self) -> Vec<AuditEvent> {
        self.0.lock().unwrap().clone()
    }
}

/// A proxy on a port.
pub struct Running {
    pub proxy: Proxy,
    pub address: SocketAddr,
    pub events: Arc<Events>,
}

impl Running {
    pub async fn start(build: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Self {
        let events = Arc::<Events>::default();
        let builder = Proxy::builder("one".parse().unwrap()).audit(events.clone());
        let proxy = build(builder).build().unwrap();
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = proxy.clone();
        tokio::spawn(async move { serving.listen(listener).await });
        Self {
            proxy,
            address,
            events,
        }
    }

    /// Allows `api.test` at the upstream, without a credential.
    pub async fn open(upstream: &Upstream) -> Self {
        Self::start(|builder| allowed(builder, upstream)).await
    }

    /// Allows `api.test` at the upstream, with the secret in `x-api-key`.
    pub async fn managed(upstream: &Upstream) -> Self {
        Self::start(|builder| with_credential(allowed(builder, upstream), upstream)).await
    }

    pub async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and gives all that comes back until the stream ends.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.dial().await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_all(&mut stream).await
    }

    /// Opens a tunnel; the head of the answer if it is refused.
    pub async fn connect(&self, target: &str) -> Result<TcpStream, String> {
        let mut stream = self.dial().await;
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        if head.starts_with("HTTP/1.1 200") {
            Ok(stream)
        } else {
            Err(head + &read_some(&mut stream).await)
        }
    }

    /// A tunnel to the target with TLS inside, as a client that trusts the sandbox's authority.
    pub async fn tls(&self, target: &str, name: &str, protocols: &[&str]) -> std::io::Result<Tls> {
        let stream = self.connect(target).await.expect("the tunnel is refused");
        tls(stream, &self.proxy.ca_pem(), name, protocols).await
    }

    /// One HTTP/1.1 request inside an intercepted tunnel.
    pub async fn get(&self, target: &str, path: &str) -> Response<Bytes> {
        let mut client = self.h1(target).await;
        let host = HeaderValue::from_str(target).unwrap();
        let request = Request::get(path).header("host", host);
        send(&mut client, request.body(Full::default()).unwrap()).await
    }

    pub async fn h1(&self, target: &str) -> H1 {
        let name = target.split(':').next().unwrap();
        h1(self.tls(target, name, &["http/1.1"]).await.unwrap()).await
    }

    pub async fn h2(&self, target: &str) -> H2 {
        let name = target.split(':').next().unwrap();
        let tls = self.tls(target, name, &["h2"]).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
                .await
                .unwrap();
        tokio::spawn(connection);
        client
    }
}

pub fn allowed(builder: ProxyBuilder, upstream: &Upstream) -> ProxyBuilder {
    let rule = format!("{} special-ranges", upstream.at("api.test"));
    builder
        .policy(Arc::new(Rules::new().allow(&rule)))
        .resolve("api.test".parse().unwrap(), vec![LOCAL])
        .extra_root(upstream.ca_pem.clone())
}

/// The secret in `x-api-key` for `api.test`.
pub fn with_credential(builder: ProxyBuilder, upstream: &Upstream) -> ProxyBuilder {
    builder.credential(
        Service::custom("api").header(&upstream.at("api.test"), "x-api-key"),
        Arc::new(sources::Static::new(SECRET)),
    )
}

pub type Tls = tokio_rustls::client::TlsStream<TcpStream>;
pub type H1 = hyper::client::conn::http1::SendRequest<Full<Bytes>>;
pub type H2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

pub async fn tls(stream: TcpStream, ca_pem: &str, name: &str, protocols: &[&str]) -> std::io::Result<Tls> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca_pem.as_bytes()).flatten());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

pub async fn h1(tls: Tls) -> H1 {
    let (client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    client
}

pub async fn send(client: &mut H1, request: Request<Full<Bytes>>) -> Response<Bytes> {
    client.ready().await.unwrap();
    whole(client.send_request(request).await.unwrap()).await
}

pub async fn send2(client: &mut H2, request: Request<Full<Bytes>>) -> Response<Bytes> {
    whole(client.send_request(request).await.unwrap()).await
}

async fn whole(response: Response<Incoming>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

pub fn text(response: &Response<Bytes>) -> String {
    String::from_utf8_lossy(response.body()).into_owned()
}

/// All that comes until the end, or until nothing comes for a while.
pub async fn read_all<R: tokio::io::AsyncRead + Unpin>(stream: &mut R) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(Ok(count @ 1..)) =
        tokio::time::timeout(Duration::from_secs(3), stream.read(&mut chunk)).await
    {
        bytes.extend_from_slice(&chunk[..count]);
        // Keep-alive would make every test wait.
        if complete(&bytes) {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether these are a head and the body that its length announces.
fn complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    head.to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
        .is_some_and(|length| body.len() >= length)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

async fn read_some(stream: &mut TcpStream) -> String {
    let mut chunk = [0; 4096];
    match tokio::time::timeout(Duration::from_secs(3), stream.read(&mut chunk)).await {
        Ok(Ok(count)) => String::from_utf8_lossy(&chunk[..count]).into_owned(),
        _ => String::new(),
    }
}

/// Whether a text holds the secret in one of the forms that tests look for.
pub fn holds_secret(text: &str) -> bool {
    let percent: String = SECRET.bytes().map(|b| format!("%{b:02X}")).collect();
    let hex: String = SECRET.bytes().map(|b| format!("{b:02x}")).collect();
    let base64 = |skip: usize| BASE64_STANDARD.encode(&SECRET[skip..SECRET.len() - 3])[..20].to_owned();
    [SECRET.to_owned(), percent, hex, base64(0), base64(1), base64(2)]
        .iter()
        .any(|form| text.contains(form))
}
