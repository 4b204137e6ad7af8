//! Sinks of the user's own: one that is not ready, and one that panics.

use std::sync::Arc;

use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditSink};
use sandbox_proxy::AuditLog;

use super::Dir;
use crate::support::{Running, Upstream, allowed, send, with_credential};

#[tokio::test]
async fn nothing_is_allowed_while_a_sink_is_not_ready() {
    #[derive(Debug, Default)]
    struct Sink(std::sync::atomic::AtomicBool);
    impl AuditSink for Sink {
        fn record(&self, _event: &Arc<AuditEvent>) {}
        fn is_ready(&self) -> bool {
            !self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let sink = Arc::<Sink>::default();
    let running =
        Running::start(|builder| with_credential(allowed(builder, &upstream), &upstream).audit(sink.clone()))
            .await;
    let mut client = running.h1(&at).await;
    let request = || {
        Request::get("/")
            .header("host", at.as_str())
            .body(Full::default())
            .unwrap()
    };
    assert_eq!(send(&mut client, request()).await.status(), StatusCode::OK);
    sink.0.store(true, std::sync::atomic::Ordering::Relaxed);
    let seen = upstream.seen().len();
    let refused = send(&mut client, request()).await;
    assert_eq!(
        refused.status(),
        StatusCode::SERVICE_UNAVAILABLE,
        "in a tunnel that was open before"
    );
    assert!(
        running
            .connect(&at)
            .await
            .unwrap_err()
            .starts_with("HTTP/1.1 503")
    );
    assert_eq!(upstream.seen().len(), seen);
    let event = running
        .events
        .wait(|event| event.decision == AuditDecision::Denied)
        .await;
    assert_eq!(event.rule, "the audit log fails");
    sink.0.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(running.connect(&at).await.is_ok());
}

#[tokio::test]
async fn sink_that_panics_takes_nothing_along() {
    #[derive(Debug)]
    struct Panics;
    impl AuditSink for Panics {
        fn record(&self, _event: &Arc<AuditEvent>) {
            panic!("a sink of the user's");
        }
    }
    let dir = Dir::new();
    let log = AuditLog::open(dir.log()).unwrap();
    let running =
        Running::start(|builder| builder.audit(Arc::new(Panics)).audit(Arc::new(log.clone()))).await;
    assert!(running.connect("denied.test:443").await.is_err());
    assert!(running.connect("denied.test:443").await.is_err());
    running.events.wait(|event| event.host == "denied.test").await;
    log.flush().unwrap();
    assert!(!dir.events().is_empty());
}
