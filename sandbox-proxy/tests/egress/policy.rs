//! Rules at work: by method and path, and replaced while streams are open.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::policy::{Attempt, Decision, Policy};
use sandbox_proxy::{ChangeError, ProxyBuilder, Rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// A proxy with these rules; `api.test` and `other.test` lead to the upstream.
pub async fn ruled(
    upstream: &Upstream,
    rules: Rules,
    more: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
) -> Running {
    Running::start(|builder| {
        more(
            builder
                .policy(Arc::new(rules))
                .resolve("api.test".parse().unwrap(), vec![LOCAL])
                .resolve("other.test".parse().unwrap(), vec![LOCAL])
                .extra_root(upstream.ca_pem.clone()),
        )
    })
    .await
}

/// A rule about `api.test` at the upstream; `what` follows the port.
pub fn at(upstream: &Upstream, before: &str, after: &str) -> String {
    format!("{before}{}{after} special-ranges", upstream.at("api.test"))
}

pub fn request(method: &str, host: &str, path: &str) -> Request<Full<bytes::Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", host);
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn method_and_path_decide_each_request_and_nothing_is_dialled_before() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let rules = Rules::new().allow(&at(&upstream, "GET,HEAD ", "/docs/**"));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let host = upstream.at("api.test");
    let mut client = running.h1(&host).await;
    for (method, path) in [
        ("GET", "/other"),
        ("POST", "/docs/x"),
        ("get", "/docs/x"),
        ("GET", "/"),
    ] {
        let answer = send(&mut client, request(method, &host, path)).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path}");
        assert!(answer.headers().contains_key("proxy-status"));
    }
    assert_eq!(upstream.connections(), 0, "no request was allowed yet");
    for (method, path) in [
        ("GET", "/docs/x"),
        ("HEAD", "/docs"),
        ("GET", "/docs/a/b?path=/other"),
    ] {
        let answer = send(&mut client, request(method, &host, path)).await;
        assert_eq!(answer.status(), StatusCode::OK, "{method} {path}");
    }
    let event = running
        .events
        .wait(|event| event.path.as_deref() == Some("/docs/x"))
        .await;
    assert!(event.method.is_some());
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn method_and_path_decide_over_http2_too() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let rules = Rules::new()
        .allow(&at(&upstream, "", ""))
        .deny(&format!("POST {}", upstream.at("api.test")))
        .deny(&format!("{}/admin/**", upstream.at("api.test")));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let mut client = running.h2(&upstream.at("api.test")).await;
    for (method, path, status) in [
        ("GET", "/x", StatusCode::OK),
        ("POST", "/x", StatusCode::FORBIDDEN),
        ("GET", "/admin", StatusCode::FORBIDDEN),
        ("GET", "/ADMIN/x", StatusCode::FORBIDDEN),
    ] {
        let uri = format!("https://{}{path}", upstream.at("api.test"));
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::default())
            .unwrap();
        assert_eq!(
            send2(&mut client, request).await.status(),
            status,
            "{method} {path}"
        );
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn path_in_disguise_meets_the_same_rule() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let only_docs = Rules::new().allow(&at(&upstream, "", "/docs/**"));
    let no_admin = Rules::new()
        .allow(&at(&upstream, "", ""))
        .deny(&format!("{}/admin/**", upstream.at("api.test")));
    for rules in [only_docs, no_admin] {
        let running = ruled(&upstream, rules, |builder| builder).await;
        let mut client = running.h1(&upstream.at("api.test")).await;
        for path in [
            "/docs/../admin",
            "/docs/%2e%2e/admin",
            "/docs/.%2E/admin",
            "/docs/..%2fadmin",
            "/docs/..%5cadmin",
            "/docs/..;/admin",
            "/docs/..;a=b/admin",
            "/docs/%252e%252e/admin",
            "/docs/%c0%ae%c0%ae/admin",
            "/./admin",
            "//admin",
            "/admin//x",
            "/%61dmin",
            "/%2561dmin",
            "/admin;x",
            "/admin%3bx",
            "/admin.",
            "/admin%20",
            "/admin%00",
            "/admin%2fx",
            "/ADMIN",
            "/Admin/x?y=/docs/",
        ] {
            let answer = send(&mut client, request("GET", &upstream.at("api.test"), path)).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        }
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn headers_that_make_another_request_of_it_are_refused() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let rules = Rules::new().allow(&at(&upstream, "GET ", "/docs/**"));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let host = upstream.at("api.test");
    let mut client = running.h1(&host).await;
    for (name, value) in [
        ("X-HTTP-Method-Override", "DELETE"),
        ("x_http_method_override", "DELETE"),
        ("X-Method-Override", "POST"),
        ("X-Original-URL", "/admin"),
        ("X-Rewrite-URL", "/admin"),
    ] {
        let mut request = request("GET", &host, "/docs/x");
        request.headers_mut().insert(
            http::HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
        assert_eq!(
            send(&mut client, request).await.status(),
            StatusCode::FORBIDDEN,
            "{name}"
        );
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn method_and_path_decide_on_plain_http() {
    let upstream = Upstream::plain().await;
    let rules = Rules::new().allow(&at(&upstream, "GET http://", "/docs/**"));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let host = upstream.at("api.test");
    let ask = |method: &str, path: &str| {
        format!(
            "{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
    };
    for (method, path, status) in [
        ("GET", "/docs/x", "200"),
        ("POST", "/docs/x", "403"),
        ("GET", "/x", "403"),
        ("GET", "/docs/../x", "403"),
    ] {
        let answer = running.raw(ask(method, path)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{method} {path} {answer}"
        );
    }
}

#[tokio::test]
async fn stream_that_cannot_be_read_is_denied_where_requests_decide() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let rules = Rules::new().allow(&at(&upstream, "GET ", ""));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let mut stream = running.connect(&upstream.at("api.test")).await.unwrap();
    stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("x-should-retry: false"),
        "{answer}"
    );
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn connection_to_a_special_range_is_not_for_a_rule_that_permits_none() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let host = upstream.at("api.test");
    let rules = Rules::new()
        .allow(&at(&upstream, "GET ", "/a"))
        .allow(&format!("GET {host}/b"));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let mut client = running.h1(&host).await;
    let mut status = async |path: &str| send(&mut client, request("GET", &host, path)).await.status();
    for _ in 0..2 {
        assert_eq!(status("/a").await, StatusCode::OK);
        assert_eq!(status("/b").await, StatusCode::FORBIDDEN);
    }
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn requests_in_read_tunnels_obey_a_new_policy_at_once() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let host = upstream.at("api.test");
    let rules = Rules::new()
        .set("task", 0, Rules::new().allow(&at(&upstream, "GET ", "/a")))
        .set("base", 0, Rules::new().allow(&at(&upstream, "GET ", "/b")));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let mut client = running.h1(&host).await;
    let mut status = async |path: &str| send(&mut client, request("GET", &host, path)).await.status();
    assert_eq!(status("/a").await, StatusCode::OK);
    // One set is replaced; the other stays as it is, and so does the connection.
    let task = Rules::new().allow(&at(&upstream, "GET ", "/c"));
    running
        .proxy
        .change_rules(|rules| rules.set("task", 0, task))
        .unwrap();
    assert_eq!(status("/a").await, StatusCode::FORBIDDEN);
    assert_eq!(status("/b").await, StatusCode::OK);
    assert_eq!(status("/c").await, StatusCode::OK);
    let mistake = running.proxy.change_rules(|rules| rules.allow("not a rule"));
    assert!(matches!(mistake, Err(ChangeError::Invalid(_))), "{mistake:?}");
    assert_eq!(status("/c").await, StatusCode::OK, "the rules are as they were");
    running.proxy.set_policy(Arc::new(Rules::locked_down())).unwrap();
    for path in ["/a", "/b", "/c"] {
        assert_eq!(status(path).await, StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test]
async fn opaque_tunnels_end_when_the_policy_no_longer_allows_them() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (api, other) = (upstream.at("api.test"), upstream.at("other.test"));
    let rules = Rules::new()
        .allow(&format!("{api} special-ranges"))
        .allow(&format!("{other} special-ranges"));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let open = async |target: &str| {
        let stream = running.connect(target).await.unwrap();
        let name = target.split(':').next().unwrap();
        h1(tls(stream, &upstream.ca_pem, name, &[]).await.unwrap()).await
    };
    let (mut kept, mut ended) = (open(&api).await, open(&other).await);
    assert_eq!(
        send(&mut ended, request("GET", &other, "/")).await.status(),
        StatusCode::OK
    );
    running
        .proxy
        .change_rules(|rules| rules.deny("other.test"))
        .unwrap();
    let ends = async {
        while ended.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ends)
        .await
        .expect("the tunnel goes on");
    assert_eq!(
        send(&mut kept, request("GET", &api, "/")).await.status(),
        StatusCode::OK
    );
    // What would have to be read cannot be read any more.
    let read = format!("POST {api}");
    running.proxy.change_rules(|rules| rules.deny(&read)).unwrap();
    let ends = async {
        while kept.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ends)
        .await
        .expect("the tunnel goes on");
}

#[tokio::test]
async fn opaque_tunnels_end_when_the_policy_no_longer_allows_their_address() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let api = upstream.at("api.test");
    for (denied, special) in [("127.0.0.0/8", " special-ranges"), ("192.0.2.1", "")] {
        let rules = Rules::new().set("task", 0, Rules::new().allow(&format!("{api} special-ranges")));
        let running = ruled(&upstream, rules, |builder| builder).await;
        let stream = running.connect(&api).await.unwrap();
        let mut open = h1(tls(stream, &upstream.ca_pem, "api.test", &[]).await.unwrap()).await;
        let task = Rules::new().allow(&format!("{api}{special}")).deny(denied);
        running
            .proxy
            .change_rules(|rules| rules.set("task", 0, task))
            .unwrap();
        let ends = async {
            while open.ready().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ends)
            .await
            .expect("the tunnel goes on");
        assert!(running.connect(&api).await.is_err());
    }
}

#[derive(Debug)]
struct AllowsAll;

impl Policy for AllowsAll {
    fn decide(&self, _attempt: &Attempt<'_>) -> Decision<'_> {
        Decision::allow("all")
    }
}

#[tokio::test]
async fn changes_at_the_same_time_are_not_lost_and_need_rules() {
    let running = Running::start(|builder| builder).await;
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let proxy = running.proxy.clone();
            std::thread::spawn(move || {
                for n in 0..10 {
                    let set = Rules::new().allow(&format!("h{n}.t{thread}.test"));
                    proxy
                        .change_rules(|rules| rules.set(&format!("s{thread}-{n}"), 0, set))
                        .unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(running.proxy.rules().unwrap().entries().count(), 80);
    running.proxy.set_policy(Arc::new(AllowsAll)).unwrap();
    assert!(running.proxy.rules().is_none());
    let change = running.proxy.change_rules(|rules| rules);
    assert!(matches!(change, Err(ChangeError::NotRules)), "{change:?}");
}

#[tokio::test]
async fn enforcement_is_what_explain_says() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let rules = Rules::new()
        .allow(&format!("*.test:{} special-ranges", upstream.port()))
        .deny("other.test")
        .level(-1)
        .allow("**");
    let running = ruled(&upstream, rules, |builder| builder).await;
    let rules = running.proxy.rules().unwrap();
    for host in ["api.test", "other.test", "a.b.test", "test", "10.0.0.1"] {
        let target = format!("{host}:{}", upstream.port());
        let explained = rules.explain(&Attempt {
            sandbox: running.proxy.sandbox(),
            host: &host.parse().unwrap(),
            port: upstream.port(),
            scheme: sandbox_core::policy::Scheme::Tunnel,
            request: None,
        });
        let allowed = explained.decision.verdict == sandbox_core::policy::Verdict::Allow;
        match running.connect(&target).await {
            Ok(mut stream) => {
                assert!(allowed, "{host}");
                stream.shutdown().await.unwrap();
                let _ = stream.read(&mut [0]).await;
            }
            Err(answer) => {
                assert!(!allowed, "{host}");
                assert!(answer.contains(explained.decision.rule), "{host} {answer}");
            }
        }
    }
}
