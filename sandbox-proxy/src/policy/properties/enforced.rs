//! What rules say of an attempt against what a proxy does with it, from the bytes of a client to the record.
//!
//! All names lead nowhere, so that nothing is dialled: what is allowed fails after the decision.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditKind, AuditSink};
use sandbox_core::policy::{Approval, Approver, Question};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::by_hand::PATHS;
use super::*;
use crate::Proxy;
use crate::dns::Transport;

const NAMES: [&str; 5] = ["t.test", "a.t.test", "b.a.t.test", "x.test", "y.x.test"];

/// Keeps every record.
#[derive(Debug, Default)]
struct Events(Mutex<Vec<AuditEvent>>);

impl AuditSink for Events {
    fn record(&self, event: &Arc<AuditEvent>) {
        self.0.lock().unwrap().push(AuditEvent::clone(event));
    }

    fn takes_every_attempt(&self) -> bool {
        true
    }
}

impl Events {
    /// What was recorded since this was last asked, which is one attempt.
    fn only(&self) -> AuditEvent {
        let mut events = std::mem::take(&mut *self.0.lock().unwrap());
        assert_eq!(events.len(), 1, "{events:#?}");
        events.remove(0)
    }
}

/// Whoever is asked says this.
#[derive(Debug)]
struct Says(bool);

#[async_trait]
impl Approver for Says {
    async fn approve(&self, _question: Question) -> Approval {
        if self.0 {
            Approval::allow()
        } else {
            Approval::deny()
        }
    }
}

fn proxy(rules: &Rules, says: bool) -> (Proxy, Arc<Events>) {
    let events = Arc::<Events>::default();
    let builder = Proxy::builder("one".parse().unwrap())
        .policy(Arc::new(rules.clone()))
        .approver(Arc::new(Says(says)))
        .audit(events.clone());
    let builder = NAMES.iter().fold(builder, |builder, name| {
        builder.resolve(name.parse().unwrap(), vec![])
    });
    (builder.build().unwrap(), events)
}

/// What the rules say: whether the attempt is allowed, by which rule, and whether that is known without the request.
fn said(rules: &Rules, says: bool, asked: &Asked) -> (bool, String, bool) {
    let (host, port, scheme, method, path) = asked;
    let sandbox: SandboxId = "one".parse().unwrap();
    let host = host.parse().unwrap();
    let explain = |request| {
        let attempt = Attempt {
            sandbox: &sandbox,
            host: &host,
            port: *port,
            scheme: if *scheme == "http" {
                Scheme::Http
            } else {
                Scheme::Tunnel
            },
            request,
        };
        rules.explain(&attempt).decision
    };
    let early = explain(None);
    let is_early = early.verdict != Verdict::Inspect;
    let decision = if is_early {
        early
    } else {
        explain(Some(RequestLine {
            method,
            path: PATHS[*path].0,
        }))
    };
    let is_allowed = match decision.verdict {
        Verdict::Allow => true,
        Verdict::Ask => says,
        Verdict::Deny => false,
        Verdict::Inspect => panic!("no answer to {asked:?}"),
    };
    (is_allowed, decision.rule.to_owned(), is_early)
}

/// The status of the last answer to an attempt.
async fn status(proxy: &Proxy, asked: &Asked) -> u16 {
    let (host, port, scheme, method, path) = asked;
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn(proxy.serve(Box::new(far)));
    let (at, path) = (format!("{host}:{port}"), PATHS[*path].0);
    let head = |target: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    };
    let status = if *scheme == "http" {
        let head = head(&format!("http://{at}{path}"));
        near.write_all(head.as_bytes()).await.unwrap();
        let status = head_of(&mut near).await;
        drop(near);
        status
    } else {
        let connect = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n");
        near.write_all(connect.as_bytes()).await.unwrap();
        match head_of(&mut near).await {
            200 => inside(proxy, near, host, &head(path)).await,
            status => {
                drop(near);
                status
            }
        }
    };
    serving.await.unwrap();
    status
}

/// The status of the answer to a request inside a tunnel.
async fn inside(proxy: &Proxy, tunnel: DuplexStream, host: &str, head: &str) -> u16 {
    let ca_pem = proxy.ca_pem().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca_pem.as_bytes()).flatten());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = host.to_owned().try_into().unwrap();
    let mut tls = connector.connect(name, tunnel).await.unwrap();
    tls.write_all(head.as_bytes()).await.unwrap();
    head_of(&mut tls).await
}

/// Reads the head of an answer. Its status.
async fn head_of<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> u16 {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

fn enforce(set: &[Spec], attempts: &[Asked], says: bool) {
    let rules = build(set);
    let (proxy, events) = proxy(&rules, says);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for asked in attempts {
            let (is_allowed, rule, is_early) = said(&rules, says, asked);
            let status = status(&proxy, asked).await;
            let event = events.only();
            assert_eq!(status, if is_allowed { 502 } else { 403 }, "{asked:?} {event:?}");
            assert_eq!(event.decision == AuditDecision::Allowed, is_allowed, "{event:?}");
            assert_eq!(event.rule, rule, "{event:?}");
            assert_eq!((event.host.as_str(), event.port), (asked.0.as_str(), asked.1));
            let is_tunnel = asked.2 == "https" && is_early;
            assert_eq!(event.kind == AuditKind::Tunnel, is_tunnel, "{event:?}");
        }
    });
    for name in NAMES {
        let decision = rules.explain_name(&name.parse().unwrap());
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let answer = proxy.dns().answer(&query.to_vec().unwrap(), Transport::Datagram);
        let answer = Message::from_vec(&answer).unwrap();
        let exists = answer.metadata.response_code == ResponseCode::NoError;
        assert_eq!(exists, decision.verdict != Verdict::Deny, "{name} {answer:?}");
        if !exists {
            let event = events.only();
            assert_eq!((event.kind, event.host.as_str()), (AuditKind::Lookup, name));
            assert_eq!(event.rule, decision.rule);
        }
    }
    assert!(events.0.lock().unwrap().is_empty());
}

/// Plain HTTP is at every port; a tunnel to port 80 is plain HTTP, too.
fn attempt() -> impl Strategy<Value = Asked> {
    attempt_at(prop::sample::select(NAMES.to_vec())).prop_map(|(host, port, scheme, method, path)| {
        let scheme = if port == 80 { "http" } else { scheme };
        (host, port, scheme, method, path)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn proxy_does_what_explain_says_and_names_its_rule(
        set in proptest::collection::vec(spec(), 0..12),
        attempts in proptest::collection::vec(attempt(), 6),
        says in any::<bool>(),
    ) {
        enforce(&set, &attempts, says);
    }
}
