//! The crate `hudsucker` as a program: intercepts, puts a key into each request, verifies upstream.
//!
//! `rival-hudsucker PORT DIRECTORY KEY`; the directory holds the authority to sign with (`ca.pem`, `ca.key`) and the
//! root to trust (`upstream.pem`).

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};

use hudsucker::certificate_authority::RcgenAuthority;
use hudsucker::hyper::{Request, header::HeaderValue};
use hudsucker::rcgen::{Issuer, KeyPair};
use hudsucker::{Body, HttpContext, HttpHandler, Proxy, RequestOrResponse};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpSocket;

type Error = Box<dyn std::error::Error>;

#[derive(Clone)]
struct Inject(HeaderValue);

impl HttpHandler for Inject {
    async fn handle_request(&mut self, _: &HttpContext, mut request: Request<Body>) -> RequestOrResponse {
        if request.method() != "CONNECT" {
            request.headers_mut().insert("x-api-key", self.0.clone());
        }
        request.into()
    }
}

/// Every name is on loopback.
#[derive(Clone)]
struct Loopback;

impl tower_service::Service<Name> for Loopback {
    type Response = std::iter::Once<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(std::iter::once(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))))
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("rival-hudsucker PORT DIRECTORY KEY");
    let (port, directory, key) = (next()?.parse::<u16>()?, next()?, next()?);
    let directory = Path::new(&directory);

    let pair = KeyPair::from_pem(&std::fs::read_to_string(directory.join("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(directory.join("ca.pem"))?, pair)?;
    let authority = RcgenAuthority::new(issuer, 1000, default_provider());

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("upstream.pem"))?)?;
    let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new_with_resolver(Loopback);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);

    // Sockets that it accepts inherit this; it does not set it itself, and would wait 40 ms for each answer.
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;

    Proxy::builder()
        .with_listener(socket.listen(1024)?)
        .with_ca(authority)
        .with_http_connector(connector)
        .with_http_handler(Inject(key.parse()?))
        .build()?
        .start()
        .await?;
    Ok(())
}
