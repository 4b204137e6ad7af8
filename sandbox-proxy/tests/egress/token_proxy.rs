//! Token servers that are reached only through a proxy of the host's network.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sandbox_core::credential::CredentialError;
use sandbox_proxy::UpstreamProxy;
use sandbox_proxy::sources::{OAuth2, Static};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::sources::{issue, token};
use crate::support::*;

const PASSWORD: &str = "proxy-Pa55+word";
const REFRESH: &str = "refresh-token-of-someone";

/// A token server over TLS, for `api.test`. Each token is another.
struct TokenServer {
    address: SocketAddr,
    ca_pem: String,
    /// Headers and bodies of requests.
    asked: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    async fn start() -> Self {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let (ca_pem, config) = certificates(&["http/1.1"]);
        let server = Self {
            address: listener.local_addr().unwrap(),
            ca_pem,
            asked: Arc::default(),
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let asked = Arc::clone(&server.asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, asked) = (acceptor.clone(), Arc::clone(&asked));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request: Request<Incoming>| {
                        let asked = Arc::clone(&asked);
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            let mut asked = asked.lock().unwrap();
                            asked.push(format!("{:?} {}", parts.headers, String::from_utf8_lossy(&body)));
                            let text = format!(
                                "{{\"access_token\":\"access-{}\",\"expires_in\":600}}",
                                asked.len()
                            );
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        server
    }

    fn source(&self) -> OAuth2 {
        let url = format!("https://api.test:{}/token", self.address.port());
        OAuth2::refresh(url, "client", Static::new(REFRESH))
            .extra_root(self.ca_pem.clone())
            .renew_before(Duration::from_secs(3600))
    }
}

/// A proxy that speaks HTTP or SOCKS5 and leads to this server whatever it is asked for; keeps all that passes.
struct Company {
    address: SocketAddr,
    passed: Arc<Mutex<Vec<u8>>>,
}

impl Company {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let company = Self {
            address: listener.local_addr().unwrap(),
            passed: Arc::default(),
        };
        let passed = Arc::clone(&company.passed);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, server, Arc::clone(&passed)));
            }
        });
        company
    }

    fn passed(&self) -> Vec<u8> {
        self.passed.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, server: SocketAddr, passed: Arc<Mutex<Vec<u8>>>) {
    let mut said = vec![stream.read_u8().await.unwrap()];
    if said == [5] {
        // RFC 1928 §3, §4 and §6; a name is asked for.
        let mut greeting = [0; 2];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(b"\x05\x00").await.unwrap();
        let mut request = vec![0; 5];
        stream.read_exact(&mut request).await.unwrap();
        let mut rest = vec![0; usize::from(request[4]) + 2];
        stream.read_exact(&mut rest).await.unwrap();
        said.extend([&greeting[..], &request, &rest].concat());
        stream
            .write_all(b"\x05\x00\x00\x01\0\0\0\0\x00\x00")
            .await
            .unwrap();
    } else {
        while !said.ends_with(b"\r\n\r\n") {
            said.push(stream.read_u8().await.unwrap());
        }
        stream
            .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await
            .unwrap();
    }
    passed.lock().unwrap().extend(said);
    let (from, to) = stream.into_split();
    let (back, forth) = TcpStream::connect(server).await.unwrap().into_split();
    tokio::join!(relay(from, forth, &passed), relay(back, to, &passed));
}

async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passed: &Arc<Mutex<Vec<u8>>>,
) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        passed.lock().unwrap().extend(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn tokens_are_renewed_through_the_proxy_and_what_is_secret_passes_within_tls() {
    let server = TokenServer::start().await;
    let company = Company::start(server.address).await;
    let at = company.address.to_string();
    let http = UpstreamProxy::http(&at)
        .unwrap()
        .login("builder", PASSWORD.to_owned().into())
        .unwrap();
    let target = format!("CONNECT api.test:{} HTTP/1.1\r\n", server.address.port());
    let mut last = 0;
    for (proxy, head) in [
        (http, target.as_str()),
        (UpstreamProxy::socks5(&at).unwrap(), "\x08api.test"),
    ] {
        let source = server.source().upstream_proxy(proxy);
        company.passed.lock().unwrap().clear();
        for _ in 0..2 {
            last += 1;
            assert_eq!(token(&source).await, format!("access-{last}"));
        }
        let passed = company.passed();
        assert!(has(&passed, head), "{}", String::from_utf8_lossy(&passed));
        for secret in [REFRESH, "access-", "/token", "client"] {
            assert!(!has(&passed, secret), "{secret}");
        }
    }
    let asked = server.asked.lock().unwrap().join("\n");
    assert!(asked.contains(REFRESH));
    assert!(
        !asked.to_lowercase().contains("proxy-authorization"),
        "the login is for the proxy alone: {asked}"
    );
}

#[tokio::test]
async fn token_server_that_is_an_exception_or_on_this_host_is_reached_without_the_proxy() {
    let server = TokenServer::start().await;
    let company = Company::start(server.address).await;
    let proxy = UpstreamProxy::http(&company.address.to_string()).unwrap();
    // Nobody here knows where the name is.
    let exception = proxy.clone().no_proxy("api.test").unwrap();
    issue(&server.source().upstream_proxy(exception))
        .await
        .unwrap_err();
    for url in ["https://localhost:9/", "http://127.0.0.1:9/"] {
        let source = OAuth2::refresh(url, "client", Static::new(REFRESH)).plain_loopback_allowed();
        issue(&source.upstream_proxy(proxy.clone())).await.unwrap_err();
    }
    assert!(company.passed().is_empty());
}

#[tokio::test]
async fn look_up_that_is_to_be_made_here_is_never_left_to_the_proxy() {
    let server = TokenServer::start().await;
    // Nobody here knows where the name is; who leaves the look-up to the proxy gets there.
    for (resolves_here, is_asked) in [(false, true), (true, false)] {
        let company = Company::start(server.address).await;
        let proxy = UpstreamProxy::http(&company.address.to_string()).unwrap();
        let proxy = if resolves_here {
            proxy.resolve_here()
        } else {
            proxy
        };
        let issued = issue(&server.source().upstream_proxy(proxy)).await;
        assert_eq!(
            (issued.is_ok(), !company.passed().is_empty()),
            (is_asked, is_asked)
        );
    }
}

#[tokio::test]
async fn proxy_that_refuses_or_is_gone_is_told_from_a_token_server_that_fails() {
    let server = TokenServer::start().await;
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let proxy = UpstreamProxy::http(&at)
        .unwrap()
        .login("builder", PASSWORD.to_owned().into())
        .unwrap();
    for (answer, wanted) in [
        (
            "HTTP/1.1 407 Wants proxy-Pa55+word\r\nContent-Length: 0\r\n\r\n",
            "status 407",
        ),
        ("SSH-2.0-none\r\n", "did not answer CONNECT as it should"),
        ("HTTP/1.1 200 OK\r\n\r\nnot TLS", "somebody spoke before TLS did"),
    ] {
        let source = server.source().upstream_proxy(proxy.clone());
        let asking = tokio::spawn(async move { issue(&source).await.unwrap_err() });
        let (mut stream, _) = listener.accept().await.unwrap();
        head_of(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        let told = causes(&asking.await.unwrap());
        assert!(
            told.contains("upstream proxy did not connect") && told.contains(wanted),
            "{told}"
        );
        assert!(!told.contains(PASSWORD), "{told}");
    }
    drop(listener);
    let gone = issue(&server.source().upstream_proxy(proxy)).await.unwrap_err();
    assert!(causes(&gone).contains("upstream proxy could not be reached"));
    assert!(server.asked.lock().unwrap().is_empty());
}

/// All that an error says.
fn causes(error: &CredentialError) -> String {
    let mut told = format!("{error:?} {error}");
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        told += &format!(": {cause}");
        next = cause.source();
    }
    told
}
