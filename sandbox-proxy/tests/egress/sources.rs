//! Sources of credentials: a token server on loopback, files that change, chains.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::StatusCode;
use sandbox_core::Credential;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, ExposeSecret, Issued};
use sandbox_proxy::sources::{Command, File, FirstOf, Kept, OAuth2, OAuthError, Static};
use sandbox_proxy::{Service, sources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::support::*;

/// Answers each request with the next of its answers, the last one for ever; keeps what it was asked.
struct TokenServer {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    /// How many it has under way, and the most so far.
    most: Arc<AtomicUsize>,
    /// Has a permit for each answer that may go out.
    go: Arc<Semaphore>,
}

impl TokenServer {
    async fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let server = Self {
            url: format!("http://{}/token", listener.local_addr().unwrap()),
            asked: Arc::default(),
            most: Arc::default(),
            go: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        };
        let mut answers: VecDeque<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let (asked, most, go) = (
            Arc::clone(&server.asked),
            Arc::clone(&server.most),
            Arc::clone(&server.go),
        );
        let open = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let answer = if answers.len() > 1 {
                    answers.pop_front().unwrap()
                } else {
                    answers[0].clone()
                };
                let (asked, go, open) = (Arc::clone(&asked), Arc::clone(&go), Arc::clone(&open));
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    asked.lock().unwrap().push(request);
                    go.acquire().await.unwrap().forget();
                    open.fetch_sub(1, Ordering::SeqCst);
                    let (status, body) = answer.split_once(' ').unwrap();
                    let length = body.len();
                    let text = format!(
                        "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                    );
                    let _ = stream.write_all(text.as_bytes()).await;
                });
            }
        });
        server
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn source(&self) -> OAuth2 {
        OAuth2::refresh(&self.url, "client", Static::new("refresh-0")).plain_loopback_allowed()
    }
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut text = String::new();
    let length = |text: &str| {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        Some(body.len() >= length.unwrap_or(0))
    };
    while length(&text) != Some(true) {
        match stream.read_u8().await {
            Ok(byte) => text.push(char::from(byte)),
            Err(_) => break,
        }
    }
    text
}

pub async fn issue(source: &dyn CredentialSource) -> Result<Issued, CredentialError> {
    let sandbox = "one".parse().unwrap();
    let request = CredentialRequest {
        sandbox: &sandbox,
        service: "x",
        target: None,
    };
    source.fetch(&request).await
}

pub async fn token(source: &dyn CredentialSource) -> String {
    match issue(source).await.unwrap().credential {
        Credential::Bearer(text) | Credential::Token(text) => text.expose_secret().to_owned(),
        other => panic!("{other:?}"),
    }
}

fn answer(token: &str, seconds: u64) -> String {
    format!("200 {{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":{seconds}}}")
}

#[tokio::test]
async fn fifty_requests_that_wait_get_one_token_from_one_exchange() {
    let server = TokenServer::start(&[&answer("first", 3600), &answer("second", 3600)]).await;
    server.go.forget_permits(usize::MAX >> 4);
    let source = server.source();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let source = source.clone();
            tokio::spawn(async move { token(&source).await })
        })
        .collect();
    while server.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.go.add_permits(100);
    for each in waiting {
        assert_eq!(each.await.unwrap(), "first");
    }
    assert_eq!(token(&source).await, "first", "kept");
    assert_eq!(server.asked().len(), 1);
    assert_eq!(server.most.load(Ordering::SeqCst), 1);
    let asked = &server.asked()[0];
    assert!(
        asked.ends_with("grant_type=refresh_token&refresh_token=refresh-0&client_id=client"),
        "{asked}"
    );
}

#[tokio::test]
async fn token_is_renewed_before_it_ends() {
    let answers = [answer("first", 600), answer("second", 3600)];
    let server = TokenServer::start(&[&answers[0], &answers[1]]).await;
    // It lives ten minutes and is renewed an hour before its end: for the next request.
    let source = server.source().renew_before(Duration::from_secs(1800));
    assert_eq!(token(&source).await, "first");
    assert_eq!(token(&source).await, "second");
    assert_eq!(token(&source).await, "second");
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn token_that_is_still_good_serves_while_its_renewal_fails() {
    let server = TokenServer::start(&[&answer("first", 600), "503 busy"]).await;
    let source = server.source().renew_before(Duration::from_secs(1800));
    for _ in 0..5 {
        assert_eq!(token(&source).await, "first");
    }
    assert_eq!(server.asked().len(), 2, "not asked again for each request");
}

#[tokio::test]
async fn revoked_grant_is_an_error_that_says_so_and_is_not_asked_for_in_a_loop() {
    let server = TokenServer::start(&[
        "400 {\"error\":\"invalid_grant\",\"error_description\":\"refresh-0 revoked\"}",
    ])
    .await;
    let source = server.source();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let source = source.clone();
            tokio::spawn(async move { issue(&source).await.unwrap_err() })
        })
        .collect();
    for each in waiting {
        let error = each.await.unwrap();
        assert!(matches!(error, CredentialError::Ended { .. }), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("refresh-0"), "{error:?}");
    }
    issue(&source).await.unwrap_err();
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn failures_have_types_and_hold_no_secret() {
    let long = format!("200 {}", "x".repeat(200_000));
    for (text, wanted) in [
        (
            "401 {\"error\":\"invalid_client\"}",
            "Refused { code: \"invalid_client\" }",
        ),
        ("400 {\"error\":\"refresh-0\"}", "Refused { code: \"other\" }"),
        ("500 refresh-0", "Status { status: 500 }"),
        ("302 refresh-0", "Status { status: 302 }"),
        ("200 refresh-0", "Answer"),
        ("200 {\"access_token\":\"a b\"}", "Answer"),
        ("200 {\"access_token\":\"ab\",\"token_type\":\"mac\"}", "Answer"),
        (&long, "TooLong"),
    ] {
        let server = TokenServer::start(&[text]).await;
        let error = issue(&server.source()).await.unwrap_err();
        let shown = format!("{:?}", OAuthError::of(&error).unwrap());
        assert!(shown.contains(wanted), "{text:.40}: {shown}");
        assert!(!format!("{error:?}").contains("refresh-0"), "{error:?}");
    }
}

#[tokio::test]
async fn token_servers_are_asked_over_tls_alone() {
    let server = TokenServer::start(&[&answer("first", 3600)]).await;
    let source = OAuth2::refresh(&server.url, "client", Static::new("refresh-0"));
    let error = issue(&source).await.unwrap_err();
    assert!(format!("{error:?}").contains("NotHttps"), "{error:?}");
    assert!(server.asked().is_empty());
    for url in [
        "ftp://auth.test/",
        "auth.test",
        "https://user:pw@auth.test/",
        "http://192.0.2.1/",
    ] {
        let source = OAuth2::refresh(url, "client", Static::new("x")).plain_loopback_allowed();
        assert!(issue(&source).await.is_err(), "{url}");
    }
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let url = format!("https://{}/token", upstream.at("localhost"));
    let untrusted = OAuth2::refresh(url, "client", Static::new("x")).extra_root(upstream.ca_pem.clone());
    assert!(
        issue(&untrusted).await.is_err(),
        "its certificate is for other names"
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn new_refresh_token_is_stored_and_used_and_one_from_the_store_beats_it() {
    let rotating = |n: u32| {
        format!(
            "200 {{\"access_token\":\"a{n}\",\"token_type\":\"bearer\",\"expires_in\":1,\"refresh_token\":\"refresh-{n}\"}}"
        )
    };
    let answers: Vec<_> = (1..5).map(rotating).collect();
    let answers: Vec<_> = answers.iter().map(String::as_str).collect();
    let server = TokenServer::start(&answers).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("refresh");
    std::fs::write(&path, "refresh-0").unwrap();
    let stored = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&stored);
    let source = OAuth2::refresh(&server.url, "client", File::new(&path))
        .plain_loopback_allowed()
        .on_new_refresh_token(move |token| {
            kept.lock().unwrap().push(token.expose_secret().to_owned());
            Err("the disk is full".into())
        });
    let issued = issue(&source).await.unwrap();
    let beside: Vec<_> = issued
        .also_secret
        .iter()
        .map(|s| s.expose_secret().to_owned())
        .collect();
    assert_eq!(beside, ["refresh-0", "refresh-1"]);
    token(&source).await;
    std::fs::write(&path, "signed-in-again").unwrap();
    token(&source).await;
    let used: Vec<_> = server
        .asked()
        .iter()
        .map(|asked| {
            asked
                .split("refresh_token=")
                .nth(1)
                .unwrap()
                .split('&')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(used, ["refresh-0", "refresh-1", "signed-in-again"]);
    assert_eq!(*stored.lock().unwrap(), ["refresh-1", "refresh-2", "refresh-3"]);
}

#[tokio::test]
async fn exchange_that_a_guest_breaks_off_is_not_lost() {
    let text = "200 {\"access_token\":\"a\",\"expires_in\":3600,\"refresh_token\":\"refresh-1\"}";
    let server = TokenServer::start(&[text]).await;
    server.go.forget_permits(usize::MAX >> 4);
    let source = server.source();
    let asking = source.clone();
    let first = tokio::spawn(async move { token(&asking).await });
    while server.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.abort();
    let _ = first.await;
    server.go.add_permits(10);
    assert_eq!(token(&source).await, "a");
    assert_eq!(server.asked().len(), 1, "the refresh token was not used twice");
}

#[tokio::test]
async fn client_credentials_go_as_basic_or_in_the_body() {
    let server = TokenServer::start(&[&answer("first", 3600)]).await;
    let source = OAuth2::client_credentials(&server.url, "cl:ient", Static::new("s&cret"))
        .plain_loopback_allowed()
        .scope("a b");
    assert_eq!(token(&source).await, "first");
    assert_eq!(token(&source.clone().client_secret_in_body()).await, "first");
    let [basic, body] = &server.asked()[..] else {
        panic!()
    };
    // cl%3Aient:s%26cret
    assert!(
        basic.contains("authorization: Basic Y2wlM0FpZW50OnMlMjZjcmV0"),
        "{basic}"
    );
    assert!(
        basic.ends_with("grant_type=client_credentials&scope=a%20b"),
        "{basic}"
    );
    assert!(
        body.ends_with("scope=a%20b&client_id=cl%3Aient&client_secret=s%26cret"),
        "{body}"
    );
}

#[tokio::test]
async fn token_and_what_it_was_got_with_do_not_come_back() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let server = TokenServer::start(&[&answer("access-token-1", 3600)]).await;
    let refresh = "refresh-token-of-someone";
    let source = OAuth2::refresh(&server.url, "client", Static::new(refresh)).plain_loopback_allowed();
    let running = Running::start(|builder| {
        let service = Service::custom("api").bearer(&upstream.at("api.test"));
        allowed(builder, &upstream).credential(service, Arc::new(source))
    })
    .await;
    let mut client = running.h1(&upstream.at("api.test")).await;
    let request = http::Request::post("/echo")
        .header("host", upstream.at("api.test"))
        .body(http_body_util::Full::new(bytes::Bytes::from(format!(
            "{refresh} access-token-1"
        ))))
        .unwrap();
    let echoed = text(&send(&mut client, request).await);
    assert_eq!(upstream.last().headers["authorization"], "Bearer access-token-1");
    assert!(
        !echoed.contains(refresh) && !echoed.contains("access-token-1"),
        "{echoed}"
    );
}

/// Gives a credential that has ended, or ends; counts how often.
#[derive(Debug)]
struct Ending(SystemTime, AtomicUsize);

#[async_trait]
impl CredentialSource for Ending {
    fn describe(&self) -> String {
        "a source of the test".into()
    }

    async fn fetch(&self, _: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let number = self.1.fetch_add(1, Ordering::SeqCst);
        Ok(Issued::token(format!("token-{number}")).until(self.0))
    }
}

#[tokio::test]
async fn kept_credential_is_given_until_shortly_before_its_end() {
    let now = SystemTime::now();
    let far = Kept::new(Ending(now + Duration::from_secs(3600), AtomicUsize::new(0)));
    assert_eq!(token(&far).await, "token-0");
    assert_eq!(token(&far).await, "token-0");
    let near = Kept::new(Ending(now + Duration::from_secs(30), AtomicUsize::new(0)));
    assert_eq!(token(&near).await, "token-0");
    assert_eq!(token(&near).await, "token-1");
}

#[tokio::test]
async fn credential_that_has_ended_is_not_sent() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let ended = Ending(SystemTime::now() - Duration::from_secs(1), AtomicUsize::new(0));
    let running = Running::start(|builder| {
        let service = Service::custom("api").bearer(&upstream.at("api.test"));
        allowed(builder, &upstream).credential(service, Arc::new(ended))
    })
    .await;
    let response = running.get(&upstream.at("api.test"), "/").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn first_source_that_has_something_counts_and_a_broken_one_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let stored = || FirstOf::stored_beats_environment(File::new(&path), "PATH");
    assert_eq!(token(&stored()).await, std::env::var("PATH").unwrap());
    std::fs::write(&path, "stored").unwrap();
    assert_eq!(token(&stored()).await, "stored");
    std::fs::write(&path, "").unwrap();
    let error = issue(&stored()).await.unwrap_err();
    assert!(matches!(error, CredentialError::Malformed { .. }), "{error:?}");
    let nothing = FirstOf::new(File::new("/nonexistent/a")).or(sources::Env::new("SANDBOX_TEST_NOT_SET"));
    let error = issue(&nothing).await.unwrap_err().to_string();
    assert!(
        error.contains("/nonexistent/a") && error.contains("SANDBOX_TEST_NOT_SET"),
        "{error}"
    );
    let ended = FirstOf::new(Command::new("false")).or(Static::new("x"));
    assert!(matches!(issue(&ended).await, Err(CredentialError::Failed { .. })));
}

#[tokio::test]
async fn pipes_and_devices_are_no_files() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for path in [
        pipe.as_path(),
        std::path::Path::new("/dev/zero"),
        directory.path(),
    ] {
        let error = issue(&File::new(path)).await.unwrap_err();
        assert!(matches!(error, CredentialError::Failed { .. }), "{error:?}");
    }
}
