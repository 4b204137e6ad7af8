//! A proxy on a port, and clients that say just what a test wants; upstream is in a file of its own.

mod git;
mod process;
mod resolvers;
mod session;
mod streams;
mod upstream;

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandbox_core::audit::{AuditEvent, AuditSink};
use sandbox_proxy::{Proxy, ProxyBuilder, Rules, Service, sources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub use process::{assert_passes, inner_half, told};
pub use resolvers::{Leads, Scripted};
pub use session::{Session, go_on, store, store_more};
pub use streams::{POURED, accept, greets_and_echoes, message};
pub use upstream::{Frames, Seen, Upstream, certificates, encode, leads_to, root, server_config};

/// The credential that must never be seen by a client.
pub const SECRET: &str = "sk-test-4f9Zq/x7+Kd_tail";
pub const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Keeps every audit event.
#[derive(Debug, Default)]
pub struct Events(Mutex<Vec<AuditEvent>>);

impl AuditSink for Events {
    fn record(&self, event: &Arc<AuditEvent>) {
        self.0.lock().unwrap().push(AuditEvent::clone(event));
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

    /// Allows `api.test` at the upstream, over plain HTTP.
    pub async fn plain(upstream: &Upstream) -> Self {
        Self::start(|builder| {
            let rule = format!("http://{} special-ranges", upstream.at("api.test"));
            builder
                .policy(Arc::new(Rules::new().allow(&rule)))
                .resolve("api.test".parse().unwrap(), vec![LOCAL])
        })
        .await
    }

    /// Allows `api.test` at the upstream, with the secret in `x-api-key`.
    pub async fn managed(upstream: &Upstream) -> Self {
        Self::start(|builder| with_credential(allowed(builder, upstream), upstream)).await
    }

    /// As [`managed`](Self::managed), for `api.test` at a target whose certificate this root has signed.
    pub async fn with_key(at: &str, ca_pem: String) -> Self {
        Self::start(|builder| {
            builder
                .policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
                .resolve("api.test".parse().unwrap(), vec![LOCAL])
                .extra_root(ca_pem)
                .credential(
                    Service::custom("api").header(at, "x-api-key"),
                    Arc::new(sources::Static::new(SECRET)),
                )
        })
        .await
    }

    /// Its hosts are allowed, and requests to this service of its get [`SECRET`].
    pub async fn serving(upstream: &Upstream, service: Service) -> Self {
        Self::start(|builder| with_service(allowed(builder, upstream), service)).await
    }

    /// As [`managed`](Self::managed); over plain HTTP, these names are allowed at another upstream.
    pub async fn beside(upstream: &Upstream, plain: &Upstream, names: &[&str]) -> Self {
        Self::start(|builder| {
            let managed = format!("{} special-ranges", upstream.at("api.test"));
            let rules = names.iter().fold(Rules::new().allow(&managed), |rules, name| {
                rules.allow(&format!("http://{} special-ranges", plain.at(name)))
            });
            let builder = with_credential(allowed(builder, upstream), upstream).policy(Arc::new(rules));
            names.iter().fold(builder, |builder, name| {
                builder.resolve(name.parse().unwrap(), vec![LOCAL])
            })
        })
        .await
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

    /// What comes back for `GET http://at/` with these lines more in its head.
    pub async fn plain_get(&self, at: impl Display, more: &str) -> String {
        self.raw(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{more}\r\n"))
            .await
    }

    /// Opens a tunnel; the head of the answer if it is refused.
    pub async fn connect(&self, target: &str) -> Result<TcpStream, String> {
        self.connect_on(self.dial().await, target).await
    }

    /// The same on a connection that is there.
    pub async fn connect_on(&self, mut stream: TcpStream, target: &str) -> Result<TcpStream, String> {
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = head_of(&mut stream).await;
        if head.starts_with("HTTP/1.1 200") {
            Ok(stream)
        } else {
            Err(head + &read_some(&mut stream).await)
        }
    }

    /// A tunnel to the target with TLS inside, as a client that trusts the sandbox's authority.
    pub async fn tls(&self, target: &str, name: &str, protocols: &[&str]) -> std::io::Result<Tls> {
        let stream = self.connect(target).await.expect("the tunnel is refused");
        tls(stream, &self.proxy.ca_pem().unwrap(), name, protocols).await
    }

    /// As [`raw`](Self::raw), inside an intercepted tunnel to `api.test` at this target.
    pub async fn raw_inside(&self, target: &str, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.tls(target, "api.test", &["http/1.1"]).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_all(&mut stream).await
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

    /// As [`h2`](Self::h2), for a request whose body ends with trailers.
    pub async fn trailers(&self, target: &str) -> hyper::client::conn::http2::SendRequest<WithTrailers> {
        let name = target.split(':').next().unwrap();
        let tls = self.tls(target, name, &["h2"]).await.unwrap();
        let executor = TokioExecutor::new();
        let (client, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(tls))
            .await
            .unwrap();
        tokio::spawn(connection);
        client
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

/// Asks for a tunnel, without a socket, and is denied it. Returns when nothing of the attempt goes on.
pub async fn is_denied(proxy: &Proxy, target: &str) {
    let (mut near, far) = tokio::io::duplex(4096);
    let serving = tokio::spawn(proxy.serve(Box::new(far)));
    let head = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
    near.write_all(head.as_bytes()).await.unwrap();
    assert!(read_all(&mut near).await.starts_with("HTTP/1.1 403"));
    drop(near);
    serving.await.unwrap();
}

/// Some data and then trailers.
pub struct WithTrailers(pub Option<Bytes>, pub Option<http::HeaderMap>);

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let data = self.0.take().map(http_body::Frame::data);
        let frame = data.or_else(|| self.1.take().map(http_body::Frame::trailers));
        std::task::Poll::Ready(frame.map(Ok))
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
    with_service(
        builder,
        Service::custom("api").header(&upstream.at("api.test"), "x-api-key"),
    )
}

/// [`SECRET`] for requests to a service.
pub fn with_service(builder: ProxyBuilder, service: Service) -> ProxyBuilder {
    builder.credential(service, Arc::new(sources::Static::new(SECRET)))
}

/// An upstream of HTTP/2 that is yet to be served, and a sandbox with a credential for it.
pub async fn raw_http2() -> (Running, String, TcpListener, tokio_rustls::TlsAcceptor) {
    raw_upstream(&["h2"]).await
}

/// As [`raw_http2`], of the versions of HTTP that these protocols stand for.
pub async fn raw_upstream(protocols: &[&str]) -> (Running, String, TcpListener, tokio_rustls::TlsAcceptor) {
    let (ca_pem, config) = certificates(protocols);
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    let running = Running::start(|builder| {
        with_service(builder, Service::custom("api").bearer(&at))
            .policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .extra_root(ca_pem)
    })
    .await;
    (running, at, listener, Arc::new(config).into())
}

/// A tunnel to a server that is the test's own, and that server's end of it.
pub async fn raw_tunnel() -> (Running, TcpStream, TcpStream) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let running = Running::start(|builder| {
        builder.policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
    })
    .await;
    let tunnel = running.connect(&at.to_string()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (running, tunnel, server)
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

/// Reads the head of a message and nothing behind it, or what there is of it.
pub async fn head_of<R: tokio::io::AsyncRead + Unpin>(stream: &mut R) -> String {
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

/// Text that threads and tasks write into.
#[derive(Debug, Clone, Default)]
pub struct Shared(pub Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}
