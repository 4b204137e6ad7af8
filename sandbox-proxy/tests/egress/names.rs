//! Names and addresses: what is asked of the resolver, and what is dialled.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use async_trait::async_trait;
use sandbox_core::audit::AuditDecision;
use sandbox_core::policy::{Approval, Approver, Attempt, Decision, Policy, Question};
use sandbox_proxy::Rules;

use crate::support::*;

/// Allows `good.test`, whose addresses are these.
async fn good(resolver: Scripted) -> Running {
    Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("good.test")))
            .resolver(resolver)
    })
    .await
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn denied_name_is_never_resolved() {
    let resolver = Scripted::default();
    let asked = Arc::clone(&resolver.asked);
    let running = good(resolver).await;
    for target in ["data.evil.test:443", "good.test:444", "x.good.test:443"] {
        assert!(
            running
                .connect(target)
                .await
                .unwrap_err()
                .starts_with("HTTP/1.1 403")
        );
    }
    let plain = running
        .raw("GET http://data.evil.test/ HTTP/1.1\r\nHost: data.evil.test\r\n\r\n")
        .await;
    assert!(plain.starts_with("HTTP/1.1 403"), "{plain}");
    assert_eq!(asked.load(Relaxed), 0);
    assert!(
        running
            .connect("good.test:443")
            .await
            .unwrap_err()
            .contains("error=dns_error")
    );
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test]
async fn any_special_address_refuses_the_name() {
    let answers = [
        &["127.0.0.1"][..],
        &["93.184.216.34", "10.0.0.1"],
        &["93.184.216.34", "2606:4700::1111", "fd00:ec2::254"],
        &["::ffff:169.254.169.254"],
        &["64:ff9b::7f00:1"],
        &["168.63.129.16"],
        &["0.0.0.0"],
    ];
    let resolver = Scripted {
        answers: answers.iter().map(|texts| addresses(texts)).collect(),
        ..Scripted::default()
    };
    let running = good(resolver).await;
    for texts in answers {
        let answer = running.connect("good.test:443").await.unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 403"), "{texts:?} {answer}");
        assert!(
            answer.contains("error=destination_ip_prohibited"),
            "{texts:?} {answer}"
        );
    }
}

#[tokio::test]
async fn second_look_up_cannot_rebind() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let port = upstream.port();
    // What is vetted is what is dialled: a second answer would lead to the upstream on loopback.
    let resolver = Scripted {
        answers: vec![addresses(&["192.0.2.1"]), vec![LOCAL], vec![LOCAL]],
        ..Scripted::default()
    };
    let asked = Arc::clone(&resolver.asked);
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow(&format!("good.test:{port}"))))
            .resolver(resolver)
    })
    .await;
    for _ in 0..2 {
        assert!(running.connect(&format!("good.test:{port}")).await.is_err());
    }
    assert_eq!(asked.load(Relaxed), 2, "one look-up per attempt");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn fixed_answers_are_vetted_too() {
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("api.test")))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
    })
    .await;
    let answer = running.connect("api.test:443").await.unwrap_err();
    assert!(answer.contains("error=destination_ip_prohibited"), "{answer}");
    assert!(answer.contains("loopback"), "{answer}");
}

#[tokio::test]
async fn odd_and_local_targets_are_refused_under_the_open_preset() {
    let running = Running::start(|builder| builder.policy(Arc::new(Rules::open()))).await;
    for target in [
        "127.0.0.1:443",
        "[::1]:443",
        "[::ffff:127.0.0.1]:443",
        "169.254.169.254:80",
        "localhost:443",
        "0x7f.1:443",
        "2130706433:443",
        "0177.0.0.1:443",
        "127.1:443",
        "user@example.com:443",
        "example.com:22",
        "example.com",
        "example.com:0",
        "example.com:99999",
        "a..b:443",
        "ex%61mple.com:443",
        ":443",
        "*:443",
    ] {
        let answer = running.connect(target).await.unwrap_err();
        let refused = answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.1 400");
        assert!(refused, "{target} {answer}");
    }
}

#[tokio::test]
async fn text_that_is_no_host_name_is_refused_wherever_it_stands() {
    let running = Running::start(|builder| builder.policy(Arc::new(Rules::open()))).await;
    let long_label = format!("{}.test", "a".repeat(64));
    let long_name = format!("{}test", "a.".repeat(128));
    for host in [
        // Odd forms of 127.0.0.1, and near them.
        "0x7f000001",
        "0x7f.0x0.0x0.0x1",
        "017700000001",
        "127.0.1",
        "127.0.0.1.",
        "127.0.0.0x1",
        "0",
        "1.2.3.4.5",
        "256.256.256.256",
        "[::127.0.0.1",
        "[::1%25lo]",
        "[fe80::1%25eth0]",
        "[::ffff:0x7f.1]",
        // No labels, or labels that are none.
        ".",
        "..",
        ".evil.test",
        "evil..test",
        "evil.test..",
        "xn--.test",
        "xn--a.test",
        "xn--0.test",
        "xn--99999999999.test",
        "evil_%2etest",
        "evil%00.test",
        "evil\\test",
        &long_label,
        &long_name,
    ] {
        let answer = running.connect(&format!("{host}:443")).await.unwrap_err();
        let refused = answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 403");
        assert!(refused, "{host} {answer}");
        let plain = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = running.raw(plain).await;
        let refused = answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 403");
        assert!(refused, "{host} {answer}");
    }
    assert!(
        running
            .events
            .all()
            .iter()
            .all(|event| event.decision == AuditDecision::Denied)
    );
}

#[tokio::test]
async fn look_alikes_are_other_names_and_spellings_the_same() {
    let running = Running::start(|builder| {
        builder.policy(Arc::new(Rules::new().deny("bücher.test").level(-1).allow("**")))
    })
    .await;
    // As A-label in any case; clients send names as ASCII, and bytes that are none are refused by the parser.
    for target in [
        "xn--bcher-kva.test:443",
        "XN--BCHER-KVA.test:443",
        "Xn--Bcher-Kva.TEST.:443",
    ] {
        let answer = running.connect(target).await.unwrap_err();
        assert!(
            answer.contains("deny bücher.test") || answer.contains("deny b\\u00fccher.test"),
            "{target} {answer}"
        );
    }
    // Cyrillic а and о: other names than the ones they look like, and not matched by their rules.
    let strict = Running::start(|builder| builder.policy(Arc::new(Rules::new().allow("apple.test")))).await;
    for target in ["xn--pple-43d.test:443", "xn--80ak6aa92e.test:443"] {
        let answer = strict.connect(target).await.unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 403"), "{target} {answer}");
    }
    for bytes in [
        "CONNECT \u{430}pple.test:443 HTTP/1.1\r\n\r\n",
        "CONNECT b\u{fc}cher.test:443 HTTP/1.1\r\n\r\n",
    ] {
        let answer = running.raw(bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}

#[tokio::test]
async fn rule_without_a_port_opens_no_other() {
    let resolver = Scripted::default();
    let asked = Arc::clone(&resolver.asked);
    let running = good(resolver).await;
    for port in [1, 22, 25, 80, 444, 8443, 9999, 65535] {
        let answer = running.connect(&format!("good.test:{port}")).await.unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 403"), "{port} {answer}");
    }
    assert_eq!(asked.load(Relaxed), 0);
}

#[tokio::test]
async fn empty_rules_allow_nothing() {
    for rules in [Rules::new(), Rules::locked_down(), "# nothing".parse().unwrap()] {
        let running = Running::start(|builder| builder.policy(Arc::new(rules))).await;
        let answer = running.connect("example.com:443").await.unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
}

#[tokio::test]
async fn rules_with_a_mistake_stop_the_start_and_allow_nothing() {
    let rules = Rules::open().allow("not a rule");
    let built = sandbox_proxy::Proxy::builder("one".parse().unwrap())
        .policy(Arc::new(rules.clone()))
        .build();
    assert!(built.is_err());
    let verdict = rules.decide(&Attempt {
        sandbox: &"one".parse().unwrap(),
        host: &"example.com".parse().unwrap(),
        port: 443,
        scheme: sandbox_core::policy::Scheme::Tunnel,
        request: None,
    });
    assert_eq!(verdict.verdict, sandbox_core::policy::Verdict::Deny);
}

#[tokio::test]
async fn spellings_of_a_name_meet_the_same_rule() {
    let running = Running::start(|builder| builder.policy(Arc::new(Rules::open().deny("evil.test")))).await;
    for target in ["EVIL.test:443", "evil.test.:443", "Evil.Test.:443"] {
        let answer = running.connect(target).await.unwrap_err();
        assert!(answer.contains("deny evil.test"), "{target} {answer}");
    }
}

/// Does what it must not.
#[derive(Debug)]
struct Panics;

impl Policy for Panics {
    fn decide(&self, _attempt: &Attempt<'_>) -> Decision<'_> {
        panic!("a mistake in a policy");
    }
}

#[tokio::test]
async fn policy_that_panics_denies() {
    let running = Running::start(|builder| builder.policy(Arc::new(Panics))).await;
    let answer = running.connect("example.com:443").await.unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(
        running
            .raw("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
            .await
            .contains("403")
    );
}

/// Says yes to one name and nothing to others.
#[derive(Debug)]
struct Slow;

#[async_trait]
impl Approver for Slow {
    async fn approve(&self, question: Question) -> Approval {
        if question.host.to_string() == "api.test" {
            return Approval::allow();
        }
        std::future::pending().await
    }
}

#[tokio::test]
async fn approver_is_asked_and_silence_denies() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::start(|builder| {
        let rule = format!("{} special-ranges", upstream.at("api.test"));
        builder
            .policy(Arc::new(Rules::new().ask(&rule).otherwise_ask()))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .approver(Arc::new(Slow))
            .approval_time(std::time::Duration::from_millis(50))
    })
    .await;
    assert!(running.connect(&upstream.at("api.test")).await.is_ok());
    let answer = running.connect("slow.test:443").await.unwrap_err();
    assert!(answer.contains("no answer in time"), "{answer}");
    let alone = Running::start(|builder| builder.policy(Arc::new(Rules::new().otherwise_ask()))).await;
    assert!(
        alone
            .connect("slow.test:443")
            .await
            .unwrap_err()
            .starts_with("HTTP/1.1 403")
    );
}

#[tokio::test]
async fn policy_is_replaced_while_running() {
    let running = Running::start(|builder| builder).await;
    assert!(
        running
            .connect("api.test:443")
            .await
            .unwrap_err()
            .starts_with("HTTP/1.1 403")
    );
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let rule = format!("127.0.0.1:{}", upstream.port());
    running
        .proxy
        .set_policy(Arc::new(Rules::new().allow(&rule)))
        .unwrap();
    assert!(running.connect(&upstream.address.to_string()).await.is_ok());
    assert!(
        running
            .proxy
            .set_policy(Arc::new(Rules::new().allow("bad rule")))
            .is_err()
    );
    assert!(
        running.connect(&upstream.address.to_string()).await.is_ok(),
        "the old policy stays"
    );
}
