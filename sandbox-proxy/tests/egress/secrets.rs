//! The credential never comes back, and is never written down.

use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::credential::{
    CredentialError, CredentialRequest, CredentialSource, ExposeSecret, Issued, SecretString,
};
use sandbox_proxy::{JsonLines, ProxyError, Service, sources};

use crate::support::*;

#[tokio::test]
async fn echoed_secret_is_scrubbed_in_every_form() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let running = Running::managed(&upstream).await;
        let at = upstream.at("api.test");
        let mut h2 = running.h2(&at).await;
        for path in ["/echo", "/split", "/base64", "/percent", "/hex", "/redirect"] {
            let response = running.get(&at, path).await;
            let request = Request::get(format!("https://{at}{path}"))
                .body(Full::default())
                .unwrap();
            for response in [response, send2(&mut h2, request).await] {
                let all = format!("{:?} {}", response.headers(), text(&response));
                assert!(!holds_secret(&all), "{path} {all}");
                assert!(all.contains("********"), "{path} {all}");
            }
        }
        assert!(
            upstream
                .seen()
                .iter()
                .all(|seen| seen.headers["x-api-key"] == SECRET)
        );
        assert!(
            upstream
                .seen()
                .iter()
                .all(|seen| seen.headers["accept-encoding"] == "identity")
        );
    }
}

#[tokio::test]
async fn managed_requests_cannot_ask_for_pieces_or_codings() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.h1(&at).await;
    let request = Request::get("/")
        .header("host", &at)
        .header("range", "bytes=0-3")
        .header("if-range", "\"x\"")
        .header("accept-encoding", "gzip, br, zstd");
    send(&mut client, request.body(Full::default()).unwrap()).await;
    let seen = upstream.last();
    assert_eq!(seen.headers["accept-encoding"], "identity");
    assert!(!seen.headers.contains_key("range") && !seen.headers.contains_key("if-range"));
}

#[tokio::test]
async fn redirect_shows_no_secret() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let response = running.get(&upstream.at("api.test"), "/redirect").await;
    let location = response.headers()["location"].to_str().unwrap();
    assert_eq!(
        location,
        format!("https://elsewhere.test/?k={}", "*".repeat(SECRET.len()))
    );
}

#[tokio::test]
async fn coded_response_is_refused_since_nobody_can_look_into_it() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let response = running.get(&upstream.at("api.test"), "/coded").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(!holds_secret(&text(&response)));
    // The next request on the same client connection works.
    assert_eq!(
        running.get(&upstream.at("api.test"), "/").await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn basic_credentials_are_scrubbed_as_pair_and_as_password() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::serving(&upstream, Service::custom("git").basic(&at, "x-access-token")).await;
    let response = running.get(&at, "/echo").await;
    assert!(!holds_secret(&text(&response)), "{}", text(&response));
    let sent = upstream.last().headers["authorization"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(sent.starts_with("Basic ") && !text(&response).contains(&sent));
}

#[tokio::test]
async fn no_secret_in_debug_errors_or_audit() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let log = Shared::default();
    let mut debugged = String::new();
    let running = Running::start(|builder| {
        let builder = allowed(builder, &upstream)
            .audit(Arc::new(JsonLines::new(log.clone())))
            .credential(
                Service::custom("api").query(&at, "key"),
                Arc::new(sources::Static::new(SECRET)),
            );
        debugged = format!("{builder:?}");
        builder
    })
    .await;
    let mut live = running.proxy.subscribe();
    let response = running.get(&at, "/echo?a=1&key=mine").await;
    assert!(
        upstream
            .last()
            .target
            .contains("key=sk-test-4f9Zq%2Fx7%2BKd_tail")
    );
    assert!(!holds_secret(&text(&response)));
    running
        .events
        .wait(|event| event.path.as_deref() == Some("/echo"))
        .await;
    let event = live.recv().await.unwrap();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for (what, text) in [
        ("builder", debugged),
        ("proxy", format!("{:?} {:?}", running.proxy, running.proxy.ca())),
        ("event", format!("{event:?}")),
        ("log", log.clone()),
    ] {
        assert!(!holds_secret(&text) && !text.contains("sk-test"), "{what} {text}");
    }
    assert_eq!(log.lines().count(), 1);
    let line: serde_json::Value = serde_json::from_str(log.trim()).unwrap();
    assert_eq!(
        (&line["sandbox"], &line["credential"]),
        (&"one".into(), &"api".into())
    );
}

#[tokio::test]
async fn secret_that_cannot_be_sent_is_not_told() {
    #[derive(Debug)]
    struct Broken;
    #[async_trait]
    impl CredentialSource for Broken {
        fn describe(&self) -> String {
            "broken".into()
        }
        async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
            Ok(Issued::token(format!("{SECRET}\r\nx-evil: 1")))
        }
    }
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::start(|builder| {
        allowed(builder, &upstream)
            .credential(Service::custom("api").header(&at, "x-api-key"), Arc::new(Broken))
    })
    .await;
    let response = running.get(&at, "/").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(!format!("{:?} {}", response.headers(), text(&response)).contains("sk-test"));
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn rotated_credential_acts_at_once_and_the_old_one_stays_hidden() {
    #[derive(Debug)]
    struct Rotating(Mutex<SecretString>);
    #[async_trait]
    impl CredentialSource for Rotating {
        fn describe(&self) -> String {
            "rotating".into()
        }
        async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
            Ok(Issued::token(self.0.lock().unwrap().expose_secret().to_owned()))
        }
    }
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let source = Arc::new(Rotating(Mutex::new("first-secret-value".into())));
    let running = Running::start(|builder| {
        let service = Service::custom("api").header(&at, "x-api-key");
        allowed(builder, &upstream).credential(service, source.clone())
    })
    .await;
    for _ in 0..2 {
        running.get(&at, "/").await;
    }
    assert_eq!(
        upstream.connections(),
        1,
        "the second request took the first one's"
    );
    *source.0.lock().unwrap() = "second-secret-value".into();
    let mut client = running.h1(&at).await;
    let request = Request::post("/echo").header("host", &at);
    let body = "first-secret-value second-secret-value";
    let response = send(&mut client, request.body(Full::from(body)).unwrap()).await;
    assert_eq!(upstream.last().headers["x-api-key"], "second-secret-value");
    assert_eq!(upstream.connections(), 2, "none that has heard the old one");
    assert!(!text(&response).contains("-secret-value"), "{}", text(&response));
}

#[tokio::test]
async fn missing_credential_is_named_at_launch() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::start(|builder| {
        allowed(builder, &upstream).credential(
            Service::custom("api").header(&at, "x-api-key"),
            Arc::new(sources::Env::new("SANDBOX_TEST_NOT_SET")),
        )
    })
    .await;
    let error = running.proxy.check_credentials().await.unwrap_err();
    assert_eq!(error.service, "api");
    assert!(
        error
            .to_string()
            .contains("environment variable SANDBOX_TEST_NOT_SET"),
        "{error}"
    );
    let response = running.get(&at, "/").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(upstream.seen().is_empty());
    let told = format!("{:?} {}", response.headers(), text(&response));
    assert!(
        told.contains("service api") && !told.contains("SANDBOX_TEST_NOT_SET"),
        "{told}"
    );
    let event = running.events.wait(|event| event.status == Some(502)).await;
    assert!(event.outcome.contains("SANDBOX_TEST_NOT_SET"), "{event:?}");
    let fine = Running::managed(&upstream).await;
    fine.proxy.check_credentials().await.unwrap();
}

#[tokio::test]
async fn mistakes_of_the_builder_are_errors() {
    let builder = || sandbox_proxy::Proxy::builder("one".parse().unwrap());
    let rules = Arc::new(sandbox_proxy::Rules::new().allow("a.test:https"));
    let error = builder().policy(rules).build().unwrap_err();
    assert!(
        matches!(error, ProxyError::Policy(_)) && error.to_string().contains("       ^"),
        "{error}"
    );
    let source = || Arc::new(sources::Static::new("x"));
    let error = builder()
        .credential(Service::custom("x"), source())
        .build()
        .unwrap_err();
    assert!(matches!(error, ProxyError::Service(_)), "{error}");
    let error = builder()
        .credential(Service::openai(), source())
        .credential(Service::custom("mine").bearer("api.openai.com"), source())
        .build()
        .unwrap_err();
    assert!(matches!(error, ProxyError::SameHost { .. }), "{error}");
    for root in [&b"no certificate"[..], b"", b"\x30\x03abc"] {
        let error = builder().extra_root(root).build().unwrap_err();
        assert!(matches!(error, ProxyError::Root), "{error}");
    }
}
