//! How a stream of TLS may start: with a name or without, with a part that is encrypted, with data that came too
//! early, or as something that only some servers take for a start.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use http_body_util::Full;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, EchConfig, EchGreaseConfig, EchMode, Resumption,
    Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_P256_HKDF_SHA256_AES_128;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, EchConfigListBytes, ServerName};
use sandbox_core::audit::AuditDecision;
use sandbox_core::policy::{Attempt, Decision, Policy, Verdict};
use sandbox_proxy::Rules;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::support::*;

/// What a peer on the same machine is given for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client that trusts these roots, and says nothing of HTTP/2.
fn client(roots_pem: &str, encrypted: Option<EchMode>) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(roots_pem.as_bytes()).flatten());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = match encrypted {
        Some(mode) => builder.with_ech(mode).unwrap(),
        None => builder.with_safe_default_protocol_versions().unwrap(),
    };
    builder.with_root_certificates(roots).with_no_client_auth()
}

fn name(name: &str) -> ServerName<'static> {
    name.to_owned().try_into().unwrap()
}

/// A sandbox whose stream is read, and one whose is not; with what their clients trust.
async fn both(upstream: &Upstream) -> [(Running, String); 2] {
    let (read, opaque) = (Running::managed(upstream).await, Running::open(upstream).await);
    let ca = read.proxy.ca_pem().unwrap();
    [(read, ca), (opaque, upstream.ca_pem.clone())]
}

async fn open(running: &Running, target: &str, config: ClientConfig, name: ServerName<'static>) -> Opened {
    let tunnel = running.connect(target).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tunnel).await
}

type Opened = std::io::Result<Tls>;

/// That a client was told by the proxy, and a record written.
async fn assert_refused(running: &Running, opened: Opened) {
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("AccessDenied"), "{error}");
    let denied = running
        .events
        .wait(|event| event.decision == AuditDecision::Denied)
        .await;
    assert!(denied.outcome.contains("server name differs"), "{denied:?}");
}

/// What upstream's `/` answers to a request on this connection.
async fn ask(tls: Tls, at: &str) -> http::Response<bytes::Bytes> {
    let request = http::Request::get("/").header("host", at);
    send(&mut h1(tls).await, request.body(Full::default()).unwrap()).await
}

#[tokio::test]
async fn hello_without_a_name_opens_nothing_where_the_target_is_a_name() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    for (running, roots) in both(&upstream).await {
        let mut config = client(&roots, None);
        config.enable_sni = false;
        let opened = open(&running, &upstream.at("api.test"), config, name("api.test")).await;
        assert_refused(&running, opened).await;
    }
    assert!(upstream.seen().is_empty());
}

/// Reads every stream, and allows no request.
#[derive(Debug)]
struct Reading;

impl Policy for Reading {
    fn decide(&self, attempt: &Attempt<'_>) -> Decision<'_> {
        match attempt.request {
            None => Decision {
                verdict: Verdict::Inspect,
                ..Decision::ask("look at requests").permitting_special_ranges()
            },
            Some(_) => Decision::deny("no request"),
        }
    }
}

#[tokio::test]
async fn hello_without_a_name_is_what_an_address_wants() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.address.to_string();
    let rules = Rules::new().allow(&at);
    let opaque = Running::start(|builder| builder.policy(Arc::new(rules))).await;
    let mut config = client(&upstream.ca_pem, None);
    config.enable_sni = false;
    // The certificate has names alone, which is what this client compares.
    let tls = open(&opaque, &at, config, name("api.test")).await.unwrap();
    assert_eq!(text(&ask(tls, &at).await), "ok");

    let read = Running::start(|builder| builder.policy(Arc::new(Reading))).await;
    let config = client(&read.proxy.ca_pem().unwrap(), None);
    let tls = open(&read, &at, config, name("127.0.0.1")).await.unwrap();
    let answer = ask(tls, &at).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert!(text(&answer).contains("\"rule\": \"no request\""), "{answer:?}");
}

#[tokio::test]
async fn rule_for_an_address_opens_none_of_the_names_there() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.address.to_string();
    let rules = Rules::new().allow(&at);
    let opaque = Running::start(|builder| builder.policy(Arc::new(rules))).await;
    let read = Running::start(|builder| builder.policy(Arc::new(Reading))).await;
    for (running, roots) in [
        (&opaque, upstream.ca_pem.clone()),
        (&read, read.proxy.ca_pem().unwrap()),
    ] {
        let opened = open(running, &at, client(&roots, None), name("api.test")).await;
        assert_refused(running, opened).await;
    }
    assert!(upstream.seen().is_empty());
}

/// What a host says in DNS of how its name is to be encrypted, and under which name the rest goes (RFC 9849 §4).
fn encrypted(outer: &str) -> EchMode {
    let suite = DH_KEM_P256_HKDF_SHA256_AES_128;
    let (HpkePublicKey(key), _) = suite.generate_key_pair().unwrap();
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let contents = [
        // The configuration's number; DHKEM(P-256), its key.
        &[7, 0, 0x10][..],
        &length(&key),
        &key,
        // One suite: HKDF-SHA256 and AES-128-GCM. Names of up to 64 bytes.
        &[0, 4, 0, 1, 0, 1, 64],
        &[u8::try_from(outer.len()).unwrap()],
        outer.as_bytes(),
        // No extensions.
        &[0, 0],
    ]
    .concat();
    let config = [&[0xfe, 0x0d][..], &length(&contents), &contents].concat();
    let list = [&length(&config)[..], &config].concat();
    EchMode::Enable(EchConfig::new(EchConfigListBytes::from(list), &[suite as &dyn Hpke]).unwrap())
}

#[tokio::test]
async fn encrypted_hello_is_held_to_its_outer_name() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    for (running, roots) in both(&upstream).await {
        let config = client(&roots, Some(encrypted("other.test")));
        // It asks for the tunnel's host, inside, where nobody sees it.
        let opened = open(&running, &upstream.at("api.test"), config, name("api.test")).await;
        assert_refused(&running, opened).await;
    }
    assert!(upstream.seen().is_empty());
}

/// Neither the proxy nor this upstream has a key for what is inside. So both answer as the outer name, and a client that
/// wanted another goes away.
#[tokio::test]
async fn encrypted_name_gets_nobody_to_another_host() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    for (running, roots) in both(&upstream).await {
        let config = client(&roots, Some(encrypted("api.test")));
        let opened = open(&running, &upstream.at("api.test"), config, name("other.test")).await;
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("EncryptedClientHello"), "{error}");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn grease_in_place_of_an_encrypted_hello_changes_nothing() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    for (running, roots) in both(&upstream).await {
        let suite = DH_KEM_P256_HKDF_SHA256_AES_128;
        let (key, _) = suite.generate_key_pair().unwrap();
        let grease = EchMode::Grease(EchGreaseConfig::new(suite, key));
        let config = client(&roots, Some(grease));
        let tls = open(&running, &at, config, name("api.test")).await.unwrap();
        assert_eq!(text(&ask(tls, &at).await), "ok");
    }
}

/// A client's first bytes.
fn hello(asked: &str) -> Vec<u8> {
    let mut client = ClientConnection::new(Arc::new(client("", None)), name(asked)).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Servers of Go read over a warning before the hello and take any version below 16, and are asked for another host that
/// way.
#[tokio::test]
async fn hello_in_a_disguise_does_not_get_to_upstream() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::<Mutex<Vec<u8>>>::default();
    tokio::spawn({
        let came = Arc::clone(&came);
        async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let came = Arc::clone(&came);
                tokio::spawn(async move {
                    let mut chunk = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                        came.lock().unwrap().extend_from_slice(&chunk[..count]);
                    }
                });
            }
        }
    });
    let running = Running::start(|builder| {
        let rule = format!("api.test:{port} special-ranges");
        builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
    })
    .await;
    let target = format!("api.test:{port}");
    let usual = hello("other.test");
    let mut odd = usual.clone();
    odd[1] = 4;
    for disguised in [
        [&[21, 3, 1, 0, 2, 1, 90][..], &usual].concat(),
        [&[20, 3, 3, 0, 1, 1][..], &usual].concat(),
        odd,
    ] {
        let mut tunnel = running.connect(&target).await.unwrap();
        // In two pieces, the first of which says nothing.
        let (first, rest) = disguised.split_at(1);
        tunnel.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        tunnel.write_all(rest).await.unwrap();
        let mut alert = [0; 7];
        let told = tokio::time::timeout(PATIENCE, tunnel.read_exact(&mut alert)).await;
        told.expect("the hello went through").unwrap();
        assert_eq!(alert, [21, 3, 3, 0, 2, 2, 49], "access denied, by the proxy");
    }
    assert_eq!(*came.lock().unwrap(), b"");
}

/// Keeps tickets, and takes it that each allows early data, whatever the server says.
#[derive(Debug)]
struct Eager(ClientSessionMemoryCache);

impl Eager {
    fn new() -> Arc<Self> {
        Arc::new(Self(ClientSessionMemoryCache::new(16)))
    }
}

impl ClientSessionStore for Eager {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.0.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, mut value: Tls13ClientSessionValue) {
        // Nothing else makes this client say more than the server allowed.
        value._private_set_max_early_data_size(16 << 10);
        self.0.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(name)
    }
}

/// What became of a connection.
#[derive(Debug)]
struct Told {
    answer: String,
    kind: Option<HandshakeKind>,
    /// Of early data, where the client had a ticket for it: how much, and whether it was taken.
    early: Option<(usize, bool)>,
}

/// Says `first` as early data, if there is a ticket, then `second`, and reads until what comes ends as `last` says.
async fn talk(
    stream: TcpStream,
    config: &Arc<ClientConfig>,
    first: Vec<u8>,
    second: String,
    last: &str,
) -> Told {
    let (config, last) = (Arc::clone(config), last.to_owned());
    let mut tcp = stream.into_std().unwrap();
    tcp.set_nonblocking(false).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let talk = move || {
        let mut connection = ClientConnection::new(config, name("api.test")).unwrap();
        let early = connection.early_data().map(|mut early| {
            early.write_all(&first).unwrap();
            first.len()
        });
        // All at once, as clients do: the early data right behind the hello.
        let mut flight = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut flight).unwrap();
        }
        tcp.write_all(&flight).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp).unwrap();
        }
        let early = early.map(|length| (length, connection.is_early_data_accepted()));
        let mut tls = rustls::Stream::new(&mut connection, &mut tcp);
        tls.write_all(second.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while !answer.ends_with(last.as_bytes()) {
            match tls.read(&mut chunk).unwrap() {
                0 => break,
                count => answer.extend_from_slice(&chunk[..count]),
            }
        }
        Told {
            answer: String::from_utf8_lossy(&answer).into_owned(),
            kind: connection.handshake_kind(),
            early,
        }
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

/// What can be sent again by whoever recorded it must not get a credential: the session is resumed, and the request in it
/// has to be said once more.
#[tokio::test]
async fn early_data_is_not_taken_where_the_stream_is_read() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut config = client(&running.proxy.ca_pem().unwrap(), None);
    config.enable_early_data = true;
    config.resumption = Resumption::store(Eager::new());
    let config = Arc::new(config);
    let request = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: {at}\r\nContent-Length: 0\r\n\r\n");
    for (kind, early) in [
        (HandshakeKind::Full, None),
        (HandshakeKind::Resumed, Some((request("/early").len(), false))),
    ] {
        let tunnel = running.connect(&at).await.unwrap();
        let said = request("/early").into_bytes();
        let told = talk(tunnel, &config, said, request("/late"), "\r\n\r\nok").await;
        assert!(told.answer.starts_with("HTTP/1.1 200"), "{told:?}");
        assert_eq!((told.kind, told.early), (Some(kind), early));
    }
    let seen: Vec<_> = upstream.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(seen, ["/late", "/late"]);
}

/// As long as it may be, it makes a hello of more bytes than a hello may have.
#[tokio::test]
async fn early_data_passes_where_the_stream_is_not_read() {
    let listener = std::net::TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (ca_pem, mut config) = certificates(&[]);
    config.max_early_data_size = 16 << 10;
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut tcp = stream.unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            while connection.is_handshaking() {
                connection.complete_io(&mut tcp).unwrap();
            }
            let mut came = Vec::new();
            if let Some(mut early) = connection.early_data() {
                early.read_to_end(&mut came).unwrap();
            }
            let mut tls = rustls::Stream::new(&mut connection, &mut tcp);
            tls.read_exact(&mut [0; 4]).unwrap();
            write!(tls, "{} bytes came early.", came.len()).unwrap();
            tls.flush().unwrap();
        }
    });
    let running = Running::start(|builder| {
        let rule = format!("api.test:{port} special-ranges");
        builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
    })
    .await;
    let mut config = client(&ca_pem, None);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for count in [0, 16 << 10] {
        let tunnel = running.connect(&format!("api.test:{port}")).await.unwrap();
        let told = talk(tunnel, &config, vec![7; 16 << 10], "late".to_owned(), ".").await;
        assert_eq!(told.answer, format!("{count} bytes came early."));
        assert_eq!(told.early, (count > 0).then_some((count, true)));
    }
}
