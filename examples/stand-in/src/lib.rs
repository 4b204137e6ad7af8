//! An HTTPS API on loopback that wants a key in the header `x-api-key`, as real ones do.
//!
//! `/echo` gives the request's headers back, as careless servers do; `/bytes/N` gives N bytes to anybody; every
//! other path answers 200 to the right key and 401 to any other. It speaks HTTP/1.1 and HTTP/2 under its own root certificate.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Largest request body that is read.
const BODY_LIMIT: usize = 16 << 20;

/// Most bytes that `/bytes/N` gives.
const BYTES_LIMIT: usize = 256 << 20;

/// Requests that are remembered; benchmarks send many more.
const SEEN_LIMIT: usize = 1000;

/// The running API. Ends when dropped.
pub struct StandIn {
    address: SocketAddr,
    root_pem: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Protocol version.
    pub version: Version,
    /// Method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// `Host` or `:authority`.
    pub authority: Option<String>,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl StandIn {
    /// Starts the API for `name` on a free port of 127.0.0.1; it wants `key`.
    ///
    /// # Errors
    /// When there is no port or no certificate to be had.
    pub async fn start(name: &str, key: &str) -> anyhow::Result<Self> {
        Self::start_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), name, key).await
    }

    /// As [`Self::start`], on a chosen address.
    ///
    /// # Errors
    /// When the address cannot be used or no certificate is to be had.
    pub async fn start_on(address: SocketAddr, name: &str, key: &str) -> anyhow::Result<Self> {
        let mut root = rcgen::CertificateParams::new(Vec::new())?;
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        root.distinguished_name
            .push(rcgen::DnType::CommonName, "stand-in root");
        let root_key = rcgen::KeyPair::generate()?;
        let root = rcgen::CertifiedIssuer::self_signed(root, root_key)?;
        let leaf_key = rcgen::KeyPair::generate()?;
        let leaf = rcgen::CertificateParams::new(vec![name.to_owned()])?.signed_by(&leaf_key, &root)?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(leaf.der().to_vec())],
                PrivatePkcs8KeyDer::from(leaf_key.serialize_der()).into(),
            )?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&seen),
            key.into(),
        ));
        Ok(Self {
            address,
            root_pem: root.pem(),
            seen,
            task,
        })
    }

    /// Where it listens.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The root certificate to trust.
    pub fn root_pem(&self) -> String {
        self.root_pem.clone()
    }

    /// The last thousand requests, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, seen: Arc<Mutex<Vec<Seen>>>, key: Arc<str>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (tls, seen, key) = (tls.clone(), Arc::clone(&seen), Arc::clone(&key));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| answer(request, Arc::clone(&seen), Arc::clone(&key)));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away is no fault of ours.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
    key: Arc<str>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return Ok(reply(
                StatusCode::PAYLOAD_TOO_LARGE,
                "{\"error\":\"body too large\"}",
            ));
        }
    };
    let host = head
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok())
        .map(str::to_owned);
    let keys: Vec<_> = head.headers.get_all("x-api-key").iter().collect();
    let right_key = matches!(keys.as_slice(), [only] if only.as_bytes() == key.as_bytes());
    let bytes = head
        .uri
        .path()
        .strip_prefix("/bytes/")
        .and_then(|count| count.parse::<usize>().ok());
    let response = if let Some(count) = bytes {
        reply(StatusCode::OK, vec![b'x'; count.min(BYTES_LIMIT)])
    } else if head.uri.path() == "/echo" {
        let lines = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        reply(StatusCode::OK, lines.collect::<String>())
    } else if right_key {
        reply(StatusCode::OK, "{\"answer\":\"hello from the API\"}")
    } else {
        reply(StatusCode::UNAUTHORIZED, "{\"error\":\"invalid x-api-key\"}")
    };
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() == SEEN_LIMIT {
        seen.remove(0);
    }
    seen.push(Seen {
        version: head.version,
        method: head.method,
        target: head
            .uri
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default(),
        authority: head.uri.authority().map(ToString::to_string).or(host),
        headers: head.headers,
        body,
    });
    Ok(response)
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
