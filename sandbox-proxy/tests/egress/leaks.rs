//! Tries to make the secret appear: in logs of every level, in `Debug`, in errors, in records, in answers.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use sandbox_core::credential::{Credential, CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_core::policy::{RequestLine, Scheme};
use sandbox_proxy::{ClientCredential, JsonLines, Proxy, Service, sources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::*;

/// Everything this thread logs from now on, of every level and crate.
fn log() -> (Shared, tracing::subscriber::DefaultGuard) {
    let log = Shared::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

fn assert_clean(what: &str, text: &str) {
    if let Some(line) = text
        .lines()
        .find(|line| holds_secret(line) || line.contains("sk-test"))
    {
        panic!("{what}: {line}");
    }
}

/// The places that a credential can be put in, and the sources that it can come from.
fn services(at: &str) -> Vec<(Service, Arc<dyn CredentialSource>)> {
    #[derive(Debug)]
    struct Of(Credential);
    #[async_trait]
    impl CredentialSource for Of {
        fn describe(&self) -> String {
            format!("{:?}", self.0)
        }
        async fn fetch(&self, _: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
            Ok(Issued::new(self.0.clone()))
        }
    }
    let fixed = || Arc::new(sources::Static::new(SECRET)) as Arc<dyn CredentialSource>;
    let of = |credential| Arc::new(Of(credential)) as Arc<dyn CredentialSource>;
    let secret = || SECRET.to_owned().into();
    let service = || Service::custom("api");
    let (name, username) = ("x-key".to_owned(), "me".to_owned());
    vec![
        (service().header(at, "x-api-key"), fixed()),
        (service().bearer(at), fixed()),
        (service().basic(at, "me"), fixed()),
        (service().query(at, "key"), fixed()),
        (
            service().header(at, "x-api-key"),
            Arc::new(
                sources::Command::new("echo")
                    .args([SECRET])
                    .cached(std::time::Duration::from_secs(60)),
            ),
        ),
        (service().bearer(at), of(Credential::Bearer(secret()))),
        (
            service().bearer(at),
            of(Credential::Header {
                name: name.clone(),
                value: secret(),
            }),
        ),
        (
            service().bearer(at),
            of(Credential::Basic {
                username,
                password: secret(),
            }),
        ),
        (
            service().bearer(at),
            of(Credential::Query {
                name,
                value: secret(),
            }),
        ),
        // What cannot be sent.
        (
            service().bearer(at),
            of(Credential::Token(format!("{SECRET}\n").into())),
        ),
        (
            service().header(at, "x-key"),
            of(Credential::Header {
                name: "a b".to_owned(),
                value: secret(),
            }),
        ),
        (
            service().bearer(at),
            of(Credential::Basic {
                username: "a:b".to_owned(),
                password: secret(),
            }),
        ),
    ]
}

#[tokio::test]
async fn no_secret_in_logs_records_or_answers_whatever_the_place_and_the_version() {
    let (log, _guard) = log();
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let at = upstream.at("api.test");
        for (service, source) in services(&at) {
            let mut told = format!("{service:?}");
            // What a user's own source says of itself is theirs; `Command` is given the secret here as an argument.
            let lines = Shared::default();
            let running = Running::start(|builder| {
                allowed(builder, &upstream)
                    .audit(Arc::new(JsonLines::new(lines.clone())))
                    .credential(service, source)
            })
            .await;
            let mut h1 = running.h1(&at).await;
            let mut h2 = running.h2(&at).await;
            for path in ["/echo", "/split", "/redirect", "/coded", "/hex", "/trailers"] {
                let request = Request::post(path)
                    .header("host", &at)
                    .header("x-api-key", "mine");
                let request = request.body(Full::from("payload")).unwrap();
                let response = send(&mut h1, request).await;
                write!(told, "{response:?}").unwrap();
                let request = Request::get(format!("https://{at}{path}"));
                let response = send2(&mut h2, request.body(Full::default()).unwrap()).await;
                write!(told, "{response:?}").unwrap();
            }
            let why = running.proxy.explain_credential(
                Scheme::Tunnel,
                &"api.test".parse().unwrap(),
                upstream.port(),
                RequestLine {
                    method: "GET",
                    path: "/",
                },
            );
            write!(told, "{why:?} {why} {:?} {:?}", running.proxy, running.proxy.ca()).unwrap();
            running
                .events
                .wait(|event| event.path.as_deref() == Some("/trailers"))
                .await;
            write!(told, "{:?}", running.events.all()).unwrap();
            assert_clean("told", &told);
            assert_clean("records", &lines.text());
        }
        assert!(
            upstream
                .seen()
                .iter()
                .any(|seen| holds_secret(&format!("{:?}{}", seen.headers, seen.target)))
        );
    }
    let log = log.text();
    // It would hold it, if anything did: the log of the crates below is in it, too.
    assert!(
        log.contains("h2::") && log.contains("sandbox_proxy::credentials"),
        "{}",
        log.len()
    );
    assert_clean("log", &log);
}

/// Answers that are none, made of the key that came with the request.
const GARBAGE: [&str; 7] = [
    "HTTP/1.1 200 KEY\r\nx: KEY\r\nno header KEY\r\n\r\n",
    "KEY\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: KEY\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nKEY",
    "HTTP/1.1 101 KEY\r\nupgrade: KEY\r\nconnection: upgrade\r\n\r\nKEY",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nKEY\r\n",
    "HTTP/1.1 502 KEY\r\nproxy-status: KEY\r\nx-KEY: 1\r\ncontent-length: 0\r\n\r\n",
];

#[tokio::test]
async fn no_secret_in_what_is_told_of_an_upstream_that_answers_garbage() {
    let (log, _guard) = log();
    let (ca, config) = certificates(&["http/1.1"]);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = format!("api.test:{}", listener.local_addr().unwrap().port());
    let got_it = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&got_it);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, got_it) = (acceptor.clone(), Arc::clone(&counted));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                if head.contains(SECRET) {
                    *got_it.lock().unwrap() += 1;
                }
                let index: usize = head.get(5..6).and_then(|digit| digit.parse().ok()).unwrap_or(0);
                let answer = GARBAGE[index].replace("KEY", SECRET);
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    let running = Running::with_key(&at, ca).await;
    let mut told = String::new();
    for index in 0..GARBAGE.len() {
        let mut client = running.h1(&at).await;
        let request = Request::get(format!("/{index}"))
            .header("host", &at)
            .body(Full::default());
        match client.send_request(request.unwrap()).await {
            Ok(response) => {
                write!(told, "{response:?}").unwrap();
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    let frame = frame.map(|frame| {
                        frame
                            .into_data()
                            .map(|data| String::from_utf8_lossy(&data).into_owned())
                    });
                    let ended = frame.is_err();
                    writeln!(told, "{frame:?}").unwrap();
                    if ended {
                        break;
                    }
                }
            }
            Err(error) => write!(told, "{error:?}").unwrap(),
        }
        let path = format!("/{index}");
        let event = running
            .events
            .wait(|event| event.path.as_ref() == Some(&path))
            .await;
        write!(told, "{event:?}").unwrap();
    }
    assert_eq!(*got_it.lock().unwrap(), GARBAGE.len());
    assert_clean("told", &told);
    assert_clean("log", &log.text());
}

#[tokio::test]
async fn no_secret_in_debug_or_errors_of_public_types() {
    let secret = || SECRET.to_owned().into();
    let sandbox = "one".parse().unwrap();
    let request = CredentialRequest {
        sandbox: &sandbox,
        service: "api",
        target: None,
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    let command = sources::Command::new("cat").args([&file]);
    let all: [Arc<dyn CredentialSource>; 4] = [
        Arc::new(sources::Static::new(SECRET)),
        Arc::new(sources::File::new(&file)),
        Arc::new(command.cached(std::time::Duration::from_secs(60))),
        Arc::new(sources::Command::new("cat").args([&file])),
    ];
    let mut told = String::new();
    for content in [
        format!("{SECRET}\n"),
        format!("{SECRET}\n{SECRET}"),
        format!("{SECRET}\x1b"),
    ] {
        std::fs::write(&file, content).unwrap();
        for source in &all {
            let result = source.fetch(&request).await;
            write!(told, "{result:?} {source:?} {}", source.describe()).unwrap();
            if let Err(error) = result {
                write!(told, "{error} {:?}", std::error::Error::source(&error)).unwrap();
            }
        }
    }
    for credential in [
        Credential::Token(secret()),
        Credential::Bearer(secret()),
        Credential::Header {
            name: "x".to_owned(),
            value: secret(),
        },
        Credential::Basic {
            username: "u".to_owned(),
            password: secret(),
        },
        Credential::Query {
            name: "k".to_owned(),
            value: secret(),
        },
        Credential::Aws {
            access_key_id: "a".to_owned(),
            secret_access_key: secret(),
            session_token: Some(secret()),
        },
    ] {
        write!(told, "{credential:?} {:#?}", credential.clone()).unwrap();
    }
    let builder = Proxy::builder(sandbox.clone())
        .credential(Service::github(), Arc::new(sources::Static::new(SECRET)))
        .credential(
            Service::anthropic(),
            Arc::new(sources::Env::new("SANDBOX_TEST_NOT_SET")),
        );
    write!(told, "{builder:#?}").unwrap();
    let proxy = builder.build().unwrap();
    let missing = proxy.check_credentials().await.unwrap_err();
    write!(
        told,
        "{proxy:#?} {missing:?} {missing} {:?} {:?}",
        proxy.placeholders(),
        proxy.placeholder_tag()
    )
    .unwrap();
    assert_clean("told", &told);
}

/// A source that panics with these words.
#[derive(Debug)]
struct Panics(String);

#[async_trait]
impl CredentialSource for Panics {
    fn describe(&self) -> String {
        "panics".into()
    }

    async fn fetch(&self, _: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        panic!("{}", self.0);
    }
}

#[tokio::test]
async fn source_that_panics_is_one_that_gives_nothing() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::start(|builder| {
        let service = Service::custom("api")
            .bearer(&at)
            .client_credential(ClientCredential::Pass);
        allowed(builder, &upstream).credential(service, Arc::new(Panics("on purpose, in a test".to_owned())))
    })
    .await;
    let mut client = running.h1(&at).await;
    let ask = || Request::get("/").header("host", &at);
    let response = send(&mut client, ask().body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    // The stream goes on.
    let own = ask().header("authorization", "Bearer mine").body(Full::default());
    assert_eq!(send(&mut client, own.unwrap()).await.status(), StatusCode::OK);
    assert_eq!(upstream.last().headers["authorization"], "Bearer mine");
}

#[tokio::test]
async fn no_secret_in_what_is_told_of_a_source_that_panics_with_it() {
    let (log, _guard) = log();
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let lines = Shared::default();
    let running = Running::start(|builder| {
        allowed(builder, &upstream)
            .audit(Arc::new(JsonLines::new(lines.clone())))
            .credential(
                Service::custom("api").bearer(&at),
                Arc::new(Panics(format!("the key {SECRET} is of no use"))),
            )
    })
    .await;
    let missing = running.proxy.check_credentials().await.unwrap_err();
    let cause = std::error::Error::source(&missing.cause).unwrap();
    let mut told = format!("{missing} {missing:?} {} {cause}", missing.cause);
    let response = running.get(&at, "/").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    write!(told, "{response:?}").unwrap();
    running.events.wait(|event| event.status == Some(502)).await;
    write!(told, "{:?}", running.events.all()).unwrap();
    assert!(told.contains("panicked") && upstream.seen().is_empty());
    assert_clean("told", &told);
    while !lines.text().contains("502") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_clean("records", &lines.text());
    assert!(log.text().contains("sandbox_proxy::credentials"));
    assert_clean("log", &log.text());
}
