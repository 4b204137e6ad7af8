//! Proxies of the host's network on the way to upstream: who looks names up, what is vetted, who sees which login.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sandbox_core::host::HostName;
use sandbox_proxy::{ProxyBuilder, Resolver, Rules, UpstreamProxy};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

const PASSWORD: &str = "proxy-Pa55+word";

/// Finds nothing, and remembers what it was asked for.
#[derive(Debug, Clone, Default)]
struct Nothing(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Resolver for Nothing {
    async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        self.0.lock().unwrap().push(name.to_string());
        Err(io::ErrorKind::NotFound.into())
    }
}

/// `api.test` at this upstream, through a proxy; here no name can be looked up.
fn through(builder: ProxyBuilder, upstream: &Upstream, proxy: UpstreamProxy) -> (ProxyBuilder, Nothing) {
    let nothing = Nothing::default();
    let at = upstream.at("api.test");
    let rules = Rules::new().allow(&at).allow(&format!("http://{at}"));
    let builder = builder
        .policy(Arc::new(rules))
        .resolver(nothing.clone())
        .extra_root(upstream.ca_pem.clone())
        .upstream_proxy(proxy);
    (builder, nothing)
}

fn http_proxy(address: SocketAddr) -> UpstreamProxy {
    UpstreamProxy::http(&address.to_string()).unwrap()
}

#[tokio::test]
async fn requests_and_tunnels_go_through_a_chained_http_proxy_by_name() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let company = Running::open(&upstream).await;
    let mut nothing = Nothing::default();
    let running = Running::start(|builder| {
        let (builder, asked) = through(builder, &upstream, http_proxy(company.address));
        nothing = asked;
        with_credential(builder, &upstream)
    })
    .await;
    let target = upstream.at("api.test");
    assert_eq!(running.get(&target, "/").await.status(), 200);
    assert_eq!(upstream.last().headers["x-api-key"], SECRET);
    assert_eq!(upstream.last().version, http::Version::HTTP_2);
    assert!(nothing.0.lock().unwrap().is_empty(), "the proxy looks names up");
    running.proxy.close();
    let event = company.events.wait(|event| event.host == "api.test").await;
    assert_eq!(event.method.as_deref(), Some("CONNECT"));

    let opaque = Running::start(|builder| through(builder, &upstream, http_proxy(company.address)).0).await;
    let tunnel = opaque.connect(&target).await.unwrap();
    let stream = tls(tunnel, &upstream.ca_pem, "api.test", &["http/1.1"])
        .await
        .unwrap();
    let request = Request::get("/").header("host", "api.test");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    assert_eq!(send(&mut h1(stream).await, request).await.status(), 200);
}

#[tokio::test]
async fn policy_comes_before_the_proxy() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let company = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = company.local_addr().unwrap();
    let running = Running::start(|builder| {
        let (builder, _) = through(builder, &upstream, http_proxy(address));
        let rules = Rules::new()
            .allow("api.test")
            .allow("**")
            .allow("10.1.2.3:444 special-ranges");
        builder.policy(Arc::new(rules.deny("bad.test").deny("192.0.2.0/24")))
    })
    .await;
    for (target, why) in [
        ("bad.test:443", "deny bad.test"),
        ("api.test:22", "no rule allows it"),
        ("10.1.2.3:443", "no rule allows it"),
        ("192.0.2.9:443", "deny 192.0.2.0/24"),
        ("intranet:443", "private network"),
        ("metadata.google.internal:443", "private network"),
        ("nas.local:443", "private network"),
        // No proxy leads to this host's own loopback.
        ("localhost:443", "dns_error"),
    ] {
        let answer = running.connect(target).await.unwrap_err();
        assert!(answer.contains(why), "{target} {answer}");
    }
    let came = tokio::time::timeout(std::time::Duration::from_millis(50), company.accept()).await;
    assert!(came.is_err(), "the proxy hears of none of them");
}

#[tokio::test]
async fn addresses_are_vetted_before_the_proxy_is_asked() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (address, heads) = company("HTTP/1.1 200 OK\r\n\r\n").await;
    let rules = |rule: &str| Arc::new(Rules::new().allow("**").allow(rule));
    let running = Running::start(|builder| {
        let proxy = http_proxy(address).resolve_here();
        let resolver = Leads(
            "rebound.test",
            vec!["93.184.216.34".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        );
        through(builder, &upstream, proxy)
            .0
            .policy(rules("192.0.2.0/24"))
            .resolver(resolver)
    })
    .await;
    for (target, why) in [
        ("rebound.test:443", "destination_ip_prohibited"),
        // A look-up that fails is never left to the proxy.
        ("unknown.test:443", "dns_error"),
    ] {
        let answer = running.connect(target).await.unwrap_err();
        assert!(answer.contains(why), "{target} {answer}");
    }
    assert!(heads.lock().unwrap().is_empty(), "{:?}", heads.lock().unwrap());
    let good = Running::start(|builder| {
        let resolver = Leads("good.test", vec!["93.184.216.34".parse().unwrap()]);
        let proxy = http_proxy(address).resolve_here();
        through(builder, &upstream, proxy)
            .0
            .policy(rules("x.test"))
            .resolver(resolver)
    })
    .await;
    assert!(good.connect("good.test:443").await.is_ok());
    let head = heads.lock().unwrap().concat();
    assert!(
        head.starts_with("CONNECT 93.184.216.34:443 HTTP/1.1\r\n"),
        "{head}"
    );
}

/// A proxy that answers every request with the same bytes. What it was sent is kept, head by head.
async fn company(answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                kept.lock().unwrap().push(String::from_utf8(head).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
                // Held open until the other side goes.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    (address, heads)
}

fn with_login(address: SocketAddr) -> UpstreamProxy {
    http_proxy(address)
        .login("builder", PASSWORD.to_owned().into())
        .unwrap()
}

/// `Basic` credentials of [`with_login`].
const AUTHORIZATION: &str = "proxy-authorization: Basic YnVpbGRlcjpwcm94eS1QYTU1K3dvcmQ=\r\n";

#[tokio::test]
async fn proxy_that_wants_other_credentials_is_told_from_a_target_that_fails() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    for (answer, error) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n",
            "error=proxy_configuration_error",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "does not allow it (403)",
        ),
        (
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
            "could not reach it (502)",
        ),
        (
            "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n",
            "error=connection_timeout",
        ),
        ("SSH-2.0-none\r\n", "error=http_protocol_error"),
    ] {
        let (address, heads) = company(answer).await;
        let running = Running::start(|builder| through(builder, &upstream, with_login(address)).0).await;
        let target = upstream.at("api.test");
        let told = running.connect(&target).await.unwrap_err();
        assert!(told.contains(error), "{told}");
        assert!(
            !told.to_ascii_lowercase().contains("proxy-authenticate"),
            "{told}"
        );
        assert!(
            !told.contains(PASSWORD) && !told.contains(&address.port().to_string()),
            "{told}"
        );
        let head = heads.lock().unwrap().concat();
        assert!(
            head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n")),
            "{head}"
        );
        assert!(head.contains(AUTHORIZATION), "{head}");
        let event = running.events.wait(|event| event.host == "api.test").await;
        assert!(!format!("{event:?}").contains(PASSWORD));
    }
    let gone = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap();
    let running = Running::start(|builder| through(builder, &upstream, http_proxy(gone)).0).await;
    let told = running.connect(&upstream.at("api.test")).await.unwrap_err();
    assert!(told.contains("upstream proxy cannot be reached"), "{told}");
}

#[tokio::test]
async fn what_the_target_said_before_the_tunnel_was_handed_over_is_not_lost() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (address, _) = company("HTTP/1.1 200 Connection established\r\n\r\n220 first words\r\n").await;
    let running = Running::start(|builder| through(builder, &upstream, http_proxy(address)).0).await;
    let mut tunnel = running.connect(&upstream.at("api.test")).await.unwrap();
    let mut line = String::new();
    BufReader::new(&mut tunnel).read_line(&mut line).await.unwrap();
    assert_eq!(line, "220 first words\r\n");
}

#[tokio::test]
async fn plain_http_is_forwarded_by_absolute_target_with_the_proxys_own_login() {
    let upstream = Upstream::plain().await;
    let at = upstream.at("api.test");
    let request =
        format!("GET http://{at}/a?b HTTP/1.1\r\nHost: {at}\r\nProxy-Authorization: Basic Z3Vlc3Q=\r\n\r\n");
    // One that tells what it was sent, as error pages do.
    let (address, heads) = company(
        "HTTP/1.1 200 OK\r\nContent-Length: 62\r\nX-Echo: proxy-Pa55+word\r\n\r\n\
         proxy-Pa55+word and Basic YnVpbGRlcjpwcm94eS1QYTU1K3dvcmQ= end",
    )
    .await;
    let running = Running::start(|builder| through(builder, &upstream, with_login(address)).0).await;
    let answer = running.raw(&request).await;
    let head = heads.lock().unwrap().concat();
    assert!(
        head.starts_with(&format!("GET http://{at}/a?b HTTP/1.1\r\n")),
        "{head}"
    );
    assert!(
        head.contains(AUTHORIZATION) && !head.contains("Z3Vlc3Q="),
        "{head}"
    );
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(" end"),
        "{answer}"
    );
    assert!(
        !answer.contains(PASSWORD) && !answer.contains("cHJveHktUGE1NStwb3"),
        "{answer}"
    );
    assert!(!answer.contains("YnVpbGRlcjpwcm94eS1QYTU1K3dvcmQ="), "{answer}");

    let (address, _) = company(
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let running = Running::start(|builder| through(builder, &upstream, http_proxy(address)).0).await;
    let answer = running.raw(&request).await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("proxy_configuration_error"),
        "{answer}"
    );
}

#[tokio::test]
async fn login_for_the_proxy_never_goes_out_on_a_connection_through_it() {
    let upstream = Upstream::plain().await;
    let at = upstream.at("api.test");
    // A company's proxy that, after CONNECT, is the target itself, which opens no WebSocket.
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::<Mutex<Vec<(usize, String)>>>::default();
    let kept = Arc::clone(&heads);
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let answer: &[u8] = match head.starts_with("CONNECT ") {
                        true => b"HTTP/1.1 200 OK\r\n\r\n",
                        false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                    };
                    kept.lock().unwrap().push((connection, head));
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    let running = Running::start(|builder| through(builder, &upstream, with_login(address)).0).await;
    let get = async |more: &str| {
        let answer = running.plain_get(&at, more).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    get("Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n").await;
    get("").await;
    let heads = heads.lock().unwrap();
    let [(first, connect), (second, upgrade), (third, plain)] = &heads[..] else {
        panic!("{heads:?}");
    };
    assert!(
        connect.starts_with("CONNECT ") && connect.contains(AUTHORIZATION),
        "{connect}"
    );
    assert!(
        !upgrade.contains(AUTHORIZATION) && plain.contains(AUTHORIZATION),
        "{heads:?}"
    );
    assert_eq!(first, second);
    assert_ne!(first, third, "what is for the proxy went to the target");
}

#[tokio::test]
async fn plain_http_passes_a_real_chained_proxy() {
    let upstream = Upstream::plain().await;
    let company = Running::plain(&upstream).await;
    let running = Running::start(|builder| through(builder, &upstream, http_proxy(company.address)).0).await;
    let at = upstream.at("api.test");
    let answer = running
        .raw(format!(
            "POST http://{at}/body HTTP/1.1\r\nHost: {at}\r\nContent-Length: 5\r\n\r\nhello"
        ))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    assert_eq!(upstream.last().headers["host"], *at);
}

#[tokio::test]
async fn exceptions_and_fixed_answers_are_reached_directly_and_vetted() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (address, heads) = company("HTTP/1.1 500 Never\r\n\r\n").await;
    let running = Running::start(|builder| {
        let proxy = http_proxy(address).no_proxy("near.test, 127.0.0.0/8").unwrap();
        let rule = format!("**.test:{} special-ranges", upstream.port());
        through(builder, &upstream, proxy)
            .0
            .policy(Arc::new(Rules::new().allow(&rule).allow("near.test:1")))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .resolver(Leads("near.test", vec![LOCAL]))
    })
    .await;
    for name in ["api.test", "near.test"] {
        assert!(running.connect(&upstream.at(name)).await.is_ok(), "{name}");
    }
    let answer = running.connect("near.test:1").await.unwrap_err();
    assert!(answer.contains("destination_ip_prohibited"), "{answer}");
    assert!(heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn socks_proxy_is_asked_by_name() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    // RFC 1928 §3, §4 and §6.
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(b"\x05\x00").await.unwrap();
        let mut request = vec![0; 5];
        stream.read_exact(&mut request).await.unwrap();
        let mut rest = vec![0; usize::from(request[4]) + 2];
        stream.read_exact(&mut rest).await.unwrap();
        // What the target says first comes along with the answer.
        stream
            .write_all(b"\x05\x00\x00\x01\0\0\0\0\x00\x00220 first")
            .await
            .unwrap();
        (greeting, request, rest)
    });
    let socks = UpstreamProxy::socks5(&address.to_string()).unwrap();
    let running = Running::start(|builder| through(builder, &upstream, socks).0).await;
    let mut tunnel = running.connect(&upstream.at("api.test")).await.unwrap();
    let mut first = [0; 9];
    tunnel.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"220 first");
    let (greeting, request, rest) = serving.await.unwrap();
    assert_eq!(greeting, *b"\x05\x01\x00");
    assert_eq!(request[..4], *b"\x05\x01\x00\x03", "connect, by name");
    let port = upstream.port().to_be_bytes();
    assert_eq!(rest, [&b"api.test"[..], &port].concat());
}

/// microsocks on a port of its own choice, with a login or without.
async fn microsocks(login: Option<(&str, &str)>) -> (tokio::process::Child, SocketAddr) {
    let free = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap();
    let mut command = tokio::process::Command::new("microsocks");
    command.args(["-i", "127.0.0.1", "-p", &free.port().to_string()]);
    if let Some((user, password)) = login {
        command.args(["-u", user, "-P", password]);
    }
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("microsocks is installed");
    for _ in 0..500 {
        if TcpStream::connect(free).await.is_ok() {
            return (child, free);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("microsocks does not listen");
}

#[tokio::test]
async fn real_socks_proxy_wants_its_login() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (_child, address) = microsocks(Some(("builder", PASSWORD))).await;
    let socks = UpstreamProxy::socks5(&address.to_string()).unwrap();
    let login = socks
        .clone()
        .login("builder", PASSWORD.to_owned().into())
        .unwrap();
    let here = Running::start(|builder| {
        let rule = format!("{} special-ranges", upstream.at("api.test"));
        through(builder, &upstream, login.clone().resolve_here())
            .0
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolver(Leads("api.test", vec![LOCAL]))
    })
    .await;
    let tunnel = here.connect(&upstream.at("api.test")).await.unwrap();
    let stream = tls(tunnel, &upstream.ca_pem, "api.test", &[]).await.unwrap();
    let request = Request::get("/").header("host", "api.test");
    assert_eq!(
        send(&mut h1(stream).await, request.body(Full::default()).unwrap())
            .await
            .status(),
        200
    );
    let wrong = socks.clone().login("builder", "wrong".to_owned().into()).unwrap();
    for proxy in [socks, wrong] {
        let running = Running::start(|builder| through(builder, &upstream, proxy).0).await;
        let told = running.connect(&upstream.at("api.test")).await.unwrap_err();
        assert!(told.contains("error=proxy_configuration_error"), "{told}");
        assert!(!told.contains("wrong"), "{told}");
    }
}
