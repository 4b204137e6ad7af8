//! One small request to a server of credentials, over TLS: no redirect is followed, a proxy is used only where one is
//! given, and what comes back is bounded and wiped.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sandbox_core::host::Host;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::defence;
use crate::tls::client::{Clients, parse_roots, server_name};
use crate::upstream_proxy::{AskError, UpstreamProxy};

/// For the whole exchange: requests of the guest wait for it.
const EXCHANGE_TIME: Duration = Duration::from_secs(20);
/// For each step on the way to the server: to look a name up, to connect, for a proxy to answer, for TLS.
const STEP_TIME: Duration = Duration::from_secs(8);
/// Addresses of a name that a proxy is asked for, one after the other.
const MAX_TARGETS: usize = 2;
/// Tokens have a few KiB; bounds what a server that has gone mad makes the host hold.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Of an answer's head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Why there is no answer. Holds nothing of what was sent or came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("its address is not one that starts with https:// and names a host")]
    Address,
    #[error("it is not reached over TLS: give an address that starts with https://")]
    NotHttps,
    #[error("a root certificate that was given is none")]
    Root,
    #[error("it could not be reached")]
    Unreachable(#[from] io::Error),
    #[error("the upstream proxy could not be reached")]
    ProxyUnreachable(#[source] io::Error),
    #[error("the upstream proxy did not connect to it")]
    Proxy(#[from] AskError),
    #[error("the upstream proxy did not connect to it: somebody spoke before TLS did")]
    NotTunnelled,
    #[error("{} within {} s", .0, STEP_TIME.as_secs())]
    Step(&'static str),
    #[error("it does not speak HTTP")]
    Http(#[from] hyper::Error),
    #[error("it did not answer within {} s", EXCHANGE_TIME.as_secs())]
    TooSlow,
    #[error("its answer is longer than {} KiB", MAX_ANSWER_BYTES >> 10)]
    TooLong,
}

/// Which servers may be asked without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Plain {
    /// None.
    #[default]
    Never,
    /// Those on this host.
    Loopback,
    /// Those of a cloud's machines and containers: on this host, or at an address of the link.
    Link,
}

/// Sends requests.
#[derive(Debug, Clone)]
pub(super) struct Http {
    clients: Arc<Clients>,
    plain: Plain,
    proxy: Option<UpstreamProxy>,
}

impl Http {
    pub(super) fn new(roots: &[Vec<u8>], plain: Plain) -> Result<Self, HttpError> {
        let mut parsed = Vec::new();
        for root in roots {
            parsed.extend(parse_roots(root).ok_or(HttpError::Root)?);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self {
            clients: Arc::new(Clients::new(provider, parsed)),
            plain,
            proxy: None,
        })
    }

    /// Reaches servers through this proxy, except for those without TLS, which are on this host or beside it.
    pub(super) fn through(self, proxy: Option<UpstreamProxy>) -> Self {
        Self { proxy, ..self }
    }

    /// Sends a request to the address it has and gives the whole answer.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), HttpError> {
        if !defence::holds("source-answer-time") {
            return self.exchange(request).await;
        }
        timeout(EXCHANGE_TIME, self.exchange(request))
            .await
            .unwrap_or(Err(HttpError::TooSlow))
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), HttpError> {
        let uri = std::mem::take(request.uri_mut());
        let authority = uri.authority().ok_or(HttpError::Address)?;
        if authority.as_str().contains('@') {
            return Err(HttpError::Address);
        }
        let host: Host = authority.host().parse().map_err(|_| HttpError::Address)?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(HttpError::Address),
        };
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        *request.uri_mut() = Uri::try_from(target).map_err(|_| HttpError::Address)?;
        let value = HeaderValue::try_from(authority.as_str()).map_err(|_| HttpError::Address)?;
        request.headers_mut().insert(HOST, value);
        let stream = match self.proxy.as_ref().filter(|_| is_tls) {
            Some(proxy) if proxy.carries(&host, port) => tunnel(proxy, &host, port).await?,
            _ => self.reach(&host, port, is_tls).await?,
        };
        if !is_tls {
            return speak(stream, request).await;
        }
        let configs = self.clients.configs().await.map_err(io::Error::other)?;
        let name = server_name(&host).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&configs.h1));
        let stream = step("TLS was not agreed on", connector.connect(name, stream)).await??;
        speak(stream, request).await
    }

    /// A connection to the server itself.
    async fn reach(&self, host: &Host, port: u16, is_tls: bool) -> Result<TcpStream, HttpError> {
        let mut addresses = step("its name was not looked up", look_up(host, port)).await??;
        if !is_tls && defence::holds("oauth-https-only") {
            addresses.retain(|address| self.plain.allows(*address));
            if addresses.is_empty() {
                return Err(HttpError::NotHttps);
            }
        }
        let connecting = TcpStream::connect(addresses.as_slice());
        Ok(step("it was not connected to", connecting).await??)
    }
}

/// A connection to the server through the proxy, which is told its name, unless names are to be looked up here.
async fn tunnel(proxy: &UpstreamProxy, host: &Host, port: u16) -> Result<TcpStream, HttpError> {
    let targets = if proxy.resolves_here {
        let found = step("its name was not looked up", look_up(host, port)).await??;
        let targets = found.iter().map(|address| Host::from(address.ip()));
        targets.take(MAX_TARGETS).collect()
    } else {
        vec![host.clone()]
    };
    let mut last = HttpError::Unreachable(io::ErrorKind::NotFound.into());
    for target in targets {
        let dialled = async { TcpStream::connect(look_up(&proxy.host, proxy.port).await?.as_slice()).await };
        let stream = step("the upstream proxy was not connected to", dialled)
            .await?
            .map_err(HttpError::ProxyUnreachable)?;
        let asked = step(
            "the upstream proxy did not answer",
            proxy.ask(stream, &target, port),
        )
        .await;
        match asked {
            Ok(Ok((stream, said))) if said.is_empty() => return Ok(stream),
            Ok(Ok(_)) => return Err(HttpError::NotTunnelled),
            Ok(Err(error)) => last = error.into(),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn look_up(host: &Host, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(match host {
        Host::Address(address) => vec![SocketAddr::new(*address, port)],
        Host::Name(name) => tokio::net::lookup_host((name.as_str(), port)).await?.collect(),
    })
}

/// One step on the way to the server, in its time.
async fn step<T>(too_slow: &'static str, step: impl Future<Output = T>) -> Result<T, HttpError> {
    if !defence::holds("source-step-time") {
        return Ok(step.await);
    }
    timeout(STEP_TIME, step)
        .await
        .map_err(|_| HttpError::Step(too_slow))
}

impl Plain {
    fn allows(self, address: SocketAddr) -> bool {
        let is_link = match address.ip() {
            std::net::IpAddr::V4(address) => address.is_link_local(),
            // Where AWS has the same servers.
            std::net::IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x0ec2]),
        };
        match self {
            Self::Never => false,
            Self::Loopback => address.ip().is_loopback(),
            Self::Link => address.ip().is_loopback() || is_link,
        }
    }
}

async fn speak<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Zeroizing<Vec<u8>>), HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if text.len() + data.len() > MAX_ANSWER_BYTES && defence::holds("source-answer-bound") {
                return Err(HttpError::TooLong);
            }
            text.extend_from_slice(&data);
        }
        Ok((status, text))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => match ended {
            // The answer may have come whole before.
            Ok(()) => exchange.await,
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn each_step_on_the_way_has_its_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let port = address.port();
        let none = || Http::new(&[], Plain::Never).unwrap();
        let behind = |proxy: UpstreamProxy| none().through(Some(proxy));
        let at = address.to_string();
        for (http, url, wanted) in [
            (none(), format!("https://{address}/"), "TLS was not agreed on"),
            (
                behind(UpstreamProxy::http(&at).unwrap()),
                format!("https://a.test:{port}/"),
                "the upstream proxy did not answer",
            ),
            (
                behind(UpstreamProxy::socks5(&at).unwrap()),
                "https://a.test/".to_owned(),
                "the upstream proxy did not answer",
            ),
        ] {
            let request = Request::get(url).body(Full::default()).unwrap();
            let asking = tokio::spawn(async move { http.send(request).await });
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            tokio::time::pause();
            let answer = asking.await.unwrap();
            assert!(
                matches!(answer, Err(HttpError::Step(told)) if told == wanted),
                "{answer:?}"
            );
            tokio::time::resume();
        }
    }

    #[tokio::test]
    async fn server_that_stops_within_its_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (said, has_said) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it";
            stream.write_all(answer).await.unwrap();
            said.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        let http = Http::new(&[], Plain::Loopback).unwrap();
        let request = Request::get(format!("http://{address}/token"));
        let asking = tokio::spawn(async move { http.send(request.body(Full::default()).unwrap()).await });
        has_said.await.unwrap();
        // From here on only time passes.
        tokio::time::pause();
        let answer = timeout(3 * EXCHANGE_TIME, asking).await.expect("it is given up");
        assert!(matches!(answer.unwrap(), Err(HttpError::TooSlow)));
    }
}
