//! What is never in the log, nor in what is made of it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_proxy::{AuditLog, Rules, Service};

use super::{Dir, page};
use crate::support::{Running, SECRET, Upstream, allowed, holds_secret, text};

#[tokio::test]
async fn secret_does_not_get_into_the_log_by_any_way() {
    /// Fails with the secret in what it says, after it gave it once.
    #[derive(Debug)]
    struct Telling(std::sync::atomic::AtomicBool);
    #[async_trait]
    impl CredentialSource for Telling {
        fn describe(&self) -> String {
            format!("store with {SECRET}")
        }
        async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
            if self.0.swap(true, std::sync::atomic::Ordering::Relaxed) {
                return Err(CredentialError::NotFound {
                    source_name: self.describe(),
                });
            }
            Ok(Issued::token(SECRET))
        }
    }
    let dir = Dir::new();
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let plain = Upstream::plain().await;
    let at = upstream.at("api.test");
    let log = AuditLog::open(dir.log()).unwrap();
    let running = Running::start(|builder| {
        let rules = Rules::new()
            .allow(&format!("{at} special-ranges"))
            .allow(&format!("http://{} special-ranges", plain.address));
        allowed(builder, &upstream)
            .policy(Arc::new(rules))
            .credential(
                Service::custom("api").header(&at, "x-api-key"),
                Arc::new(Telling(Default::default())),
            )
            .audit(Arc::new(log.clone()))
    })
    .await;
    let mut live = running.proxy.subscribe();
    assert_eq!(running.get(&at, "/echo").await.status(), StatusCode::OK);
    // From now on the secret has gone out, and a host may have told it to the guest.
    let percent: String = SECRET.bytes().map(|b| format!("%{b:02X}")).collect();
    let name = SECRET.replace(['/', '+', '_'], "-");
    for path in [
        format!("/{SECRET}"),
        format!("/{percent}?{SECRET}"),
        format!("/{}{SECRET}", "x".repeat(1010)),
        format!("/{}{SECRET}", "x".repeat(4080)),
    ] {
        let response = running.get(&at, &path).await;
        assert!(!holds_secret(&text(&response)), "{path}");
    }
    let to = plain.address;
    for head in [
        format!("GET http://{to}/{SECRET} HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://{SECRET}@{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://user:{SECRET}@{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {SECRET}\r\n"),
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\n{SECRET}: 1\r\n"),
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\nx: {SECRET}\u{1}\r\n"),
        format!("{SECRET} http://{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("sk-test-4f9Zq http://{to}/ HTTP/1.1\r\nHost: {to}\r\n"),
        format!("GET http://{name}.test/ HTTP/1.1\r\nHost: {name}.test\r\n"),
        format!("GET {SECRET} HTTP/1.1\r\nHost: {to}\r\n"),
        format!("CONNECT {SECRET}:443 HTTP/1.1\r\nHost: {SECRET}:443\r\n"),
        format!("CONNECT {SECRET}@api.test:443 HTTP/1.1\r\n"),
        format!("CONNECT api.test:{SECRET} HTTP/1.1\r\n"),
        format!("GET http://{to}/ {SECRET}\r\nHost: {to}\r\n"),
    ] {
        running.raw(format!("{head}Connection: close\r\n\r\n")).await;
    }
    // As a server name.
    let _ = running
        .tls(&at, &format!("{}.test", name.to_lowercase()), &["http/1.1"])
        .await;
    // Attempts are recorded when they end, which the client does not see.
    drop(running);
    let mut seen = Vec::new();
    while let Ok(Ok(event)) = tokio::time::timeout(Duration::from_secs(2), live.recv()).await {
        seen.push(event);
    }
    assert!(seen.len() >= 15, "{}", seen.len());
    let reasons: Vec<_> = seen.iter().map(|event| event.outcome.as_str()).collect();
    assert!(
        reasons.iter().any(|reason| reason.contains("store with ****")),
        "{reasons:?}"
    );
    log.flush().unwrap();
    for (what, text) in [
        ("log", dir.read()),
        ("page", page(&dir, None)),
        ("events", format!("{seen:?}")),
    ] {
        assert!(!holds_secret(&text), "{what}: {text}");
        // No part that was cut at its end, either.
        assert!(!text.contains("sk-test-4f9Zq/x7"), "{what}: {text}");
    }
}
