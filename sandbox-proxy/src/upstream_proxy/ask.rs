//! Asking the proxy for a target: by `CONNECT` (RFC 9110 §9.3.6) or SOCKS5 (RFC 1928).

use std::borrow::Cow;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sandbox_core::credential::ExposeSecret;
use sandbox_core::host::Host;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_socks::TargetAddr;
use tokio_socks::tcp::Socks5Stream;

use super::{Protocol, UpstreamProxy};

/// Of the head of the proxy's answer.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Why the proxy did not connect to a target. Holds no login, and nothing of the proxy's own words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("it answered CONNECT with status {}", .0.as_u16())]
    Status(StatusCode),
    #[error("it did not answer CONNECT as it should")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("it did not connect by SOCKS")]
    Socks(#[from] tokio_socks::Error),
}

impl UpstreamProxy {
    /// Asks for the target on a connection to the proxy. Afterwards that is one to the target, which may have said
    /// something by then.
    pub(crate) async fn ask<S>(&self, stream: S, host: &Host, port: u16) -> Result<(S, Bytes), AskError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self.protocol {
            Protocol::Http => self.connect(stream, host, port).await,
            Protocol::Socks5 => Ok((self.socks(stream, host, port).await?, Bytes::new())),
        }
    }

    async fn connect<S>(&self, stream: S, host: &Host, port: u16) -> Result<(S, Bytes), AskError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // Ends with this future.
        let mut driver = JoinSet::new();
        driver.spawn(connection.with_upgrades());
        let authority = format!("{host}:{port}");
        let target = Uri::try_from(authority.as_str()).map_err(failed)?;
        let mut request = Request::connect(target)
            .header(HOST, authority)
            .body(Empty::<Bytes>::new())
            .map_err(failed)?;
        if let Some(authorization) = self.authorization() {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        let response = sender.send_request(request).await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(AskError::Status(response.status()));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
        let parts = upgraded
            .downcast::<TokioIo<S>>()
            .map_err(|_| failed("the stream was lost"))?;
        // A server that speaks first may have done so already.
        Ok((parts.io.into_inner(), parts.read_buf))
    }

    async fn socks<S>(&self, stream: S, host: &Host, port: u16) -> Result<S, tokio_socks::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let target = match host {
            Host::Address(address) => TargetAddr::Ip(SocketAddr::new(*address, port)),
            Host::Name(name) => TargetAddr::Domain(Cow::Borrowed(name.as_str()), port),
        };
        let connected = match &self.login {
            Some(login) => {
                let password = login.password.expose_secret();
                Socks5Stream::connect_with_password_and_socket(stream, target, &login.user, password).await
            }
            None => Socks5Stream::connect_with_socket(stream, target).await,
        };
        connected.map(Socks5Stream::into_inner)
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AskError {
    AskError::Http(error.into())
}
