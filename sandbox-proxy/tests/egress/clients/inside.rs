//! Denials inside of streams that are read, as clients see them: a response that names the rule, which each takes for a
//! failure as it takes any 403, and none asks again.

use sandbox_core::audit::AuditDecision;
use sandbox_proxy::{ClientCredential, Limits, Rules};

use super::*;

/// What each of these says: the status and the headers that tell a final denial from others, and the rule.
const SHOWN: &str =
    "403 sandbox; error=http_request_denied false application/problem+json no rule allows it\n";

/// As [`SHOWN`], by the library that is named first.
const PYTHON: &str = r#"
import json, sys
library, url = sys.argv[1:]
if library == "urllib":
    import urllib.error, urllib.request
    try:
        urllib.request.urlopen(url)
    except urllib.error.HTTPError as error:
        status, headers, text = error.code, error.headers, error.read()
else:
    module = __import__(library)
    answer = module.Client(http2=True).get(url) if library == "httpx" else module.get(url)
    status, headers, text = answer.status_code, answer.headers, answer.content
told = headers["proxy-status"].split("; details")[0]
print(status, told, headers["x-should-retry"], headers["content-type"], json.loads(text)["rule"])
"#;

/// As [`SHOWN`], with what is built into Node.
const NODE: &str = r#"
const answer = await fetch(process.argv[1]);
const header = (name) => answer.headers.get(name);
const told = header("proxy-status").split("; details")[0];
const { rule } = await answer.json();
console.log(answer.status, told, header("x-should-retry"), header("content-type"), rule);
"#;

/// A sandbox that reads what goes to the upstream, since one path there is allowed.
async fn reading(upstream: &Upstream) -> Running {
    let rules = Rules::new().allow(&format!("{}/public special-ranges", upstream.at("api.test")));
    Running::start(|builder| allowed(builder, upstream).policy(Arc::new(rules))).await
}

/// How often requests for paths that start so were asked for, and that each was denied by the rules.
fn denied(running: &Running, path: &str) -> u64 {
    let events = running.events.all();
    let asked = events
        .iter()
        .filter(|event| event.path.as_deref().is_some_and(|asked| asked.starts_with(path)));
    asked
        .map(|event| {
            assert_eq!(event.decision, AuditDecision::Denied, "{event:?}");
            assert_eq!(event.rule, "no rule allows it", "{event:?}");
            assert_eq!(event.status, Some(403), "{event:?}");
            event.attempts
        })
        .sum()
}

#[tokio::test]
async fn libraries_show_the_status_the_headers_and_the_rule() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = reading(&upstream).await;
    let url = |name: &str| format!("https://{}/{name}", upstream.at("api.test"));
    for library in ["urllib", "requests", "httpx"] {
        let output = run(&running, "python", &["-c", PYTHON, library, &url(library)]).await;
        assert_eq!(stdout(&output), SHOWN, "{library}: {output:?}");
        assert_eq!(denied(&running, &format!("/{library}")), 1);
    }
    let arguments = ["--input-type=module", "-e", NODE, &url("node")];
    let output = run(&running, "node", &arguments).await;
    assert_eq!(stdout(&output), SHOWN, "{output:?}");
    assert_eq!(denied(&running, "/node"), 1);
    let output = languages::java(&running, &url("java")).await;
    let text = stdout(&output);
    assert!(
        text.starts_with("HTTP_2 403 ") && text.contains("\"rule\": \"no rule allows it\""),
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(denied(&running, "/java"), 1);
    assert!(upstream.seen().is_empty());
}

/// A path, the exit code, what is said, how often the client may ask, and the client.
type Case<'a> = (&'a str, i32, &'a str, u64, &'a str, &'a [&'a str]);

#[tokio::test]
async fn programs_end_with_a_code_of_failure_and_do_not_ask_again() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = reading(&upstream).await;
    let at = upstream.at("api.test");
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem").to_string_lossy().into_owned();
    std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
    let url = |path: &str| format!("https://{at}{path}");
    let (curl, retry, git) = (url("/curl"), url("/retry"), url("/git.git"));
    let index = format!("--index-url={}", url("/pip"));
    let registry = format!("--registry={}", url("/npm/"));
    let websocket = format!("wss://{at}/websockets");
    let (grpc, websockets) = (script("with_grpc.py"), script("with_websockets.py"));
    let cases: [Case<'_>; 7] = [
        ("/curl", 22, "", 1, "curl", &["-sS", "--fail", &curl]),
        (
            "/retry",
            22,
            "",
            1,
            "curl",
            &["-sS", "--fail", "--retry", "5", &retry],
        ),
        ("/git.git", 128, "403", 1, "git", &["ls-remote", &git]),
        (
            "/pip",
            1,
            "",
            1,
            "pip",
            &[
                "install",
                "--no-cache-dir",
                "--disable-pip-version-check",
                &index,
                "x",
            ],
        ),
        // It looks the package up for two of its steps.
        (
            "/npm",
            1,
            "E403",
            2,
            "npm",
            &["install", "--no-audit", "--no-fund", &registry, "x"],
        ),
        // gRPC tells the kind of a failure by the HTTP status where there is no other.
        (
            "/chat.Chat",
            1,
            "PERMISSION_DENIED",
            1,
            "python",
            &[&grpc, &at, &ca],
        ),
        (
            "/websockets",
            1,
            "HTTP 403",
            1,
            "python",
            &[&websockets, &websocket],
        ),
    ];
    for (path, code, shown, most, program, arguments) in cases {
        let output = run(&running, program, arguments).await;
        assert_eq!(output.status.code(), Some(code), "{path}: {output:?}");
        let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(shown), "{path}: {output:?}");
        let tries = denied(&running, path);
        assert!((1..=most).contains(&tries), "{path} was asked for {tries} times");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn sdks_take_a_denial_for_final() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = reading(&upstream).await;
    for (name, path) in [("openai", "/chat/completions"), ("anthropic", "/v1/messages")] {
        let url = format!("https://{}", upstream.at("api.test"));
        let output = run(&running, "python", &["-c", SDK, name, &url]).await;
        assert_eq!(stdout(&output), "403 false\n", "{output:?}");
        assert_eq!(denied(&running, path), 1);
    }
}

/// Runs curl, and gives its exit code and what it showed of heads and bodies, in lower case.
async fn curl(running: &Running, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(running, "curl", &[&["-sS", "-D", "-"], arguments].concat()).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (
        output.status.code(),
        (stdout(&output) + &errors).to_ascii_lowercase(),
    )
}

/// A status with its kind, whether it is final, the rule if one decided, and what curl is told beside the URL.
type Kind<'a> = (&'a str, &'a str, bool, Option<&'a str>, &'a [&'a str]);

#[tokio::test]
async fn every_kind_of_refusal_inside_says_which_it_is() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::start(|builder| {
        let rules = Rules::new()
            .allow(&format!("{at} special-ranges"))
            .deny(&format!("{at}/denied"))
            // This one may not be where it is.
            .allow(&format!("GET,HEAD {}", upstream.at("other.test")));
        allowed(builder, &upstream)
            .policy(Arc::new(rules))
            .resolve("other.test".parse().unwrap(), vec![LOCAL])
            .limits(Limits::new().requests_per_host(20, Duration::from_secs(3600)))
            .credential(
                Service::custom("api")
                    .header(&at, "x-api-key")
                    .client_credential(ClientCredential::Reject),
                Arc::new(sources::Static::new(SECRET)),
            )
    })
    .await;
    let (url, other) = (
        format!("https://{at}/"),
        format!("https://{}/", upstream.at("other.test")),
    );
    let denied_url = format!("{url}denied");
    let denied_rule = format!("deny {at}/denied");
    let http = "http_request_denied";
    let kinds: [Kind<'_>; 6] = [
        ("403", http, true, Some(&denied_rule), &[&denied_url]),
        ("403", "destination_ip_prohibited", true, None, &[&other]),
        ("403", http, true, None, &["-H", "x-api-key: mine", &url]),
        ("405", http, true, None, &["-X", "TRACE", &url]),
        ("421", http, true, None, &["-H", "Host: other.test", &url]),
        (
            "400",
            "http_request_error",
            true,
            None,
            &["-H", "Host: user@api.test", &url],
        ),
    ];
    for version in ["--http1.1", "--http2"] {
        for (status, error, is_final, rule, arguments) in &kinds {
            // What HTTP/2 itself refuses gets no answer.
            if *status == "400" && version == "--http2" {
                continue;
            }
            let (code, told) = curl(&running, &[&[version], *arguments].concat()).await;
            let inside = told
                .rsplit_once("\r\nhttp/")
                .map_or(told.as_str(), |(_, inside)| inside);
            assert_eq!(code, Some(0), "a response is a response: {told}");
            assert!(
                inside
                    .split(' ')
                    .nth(1)
                    .is_some_and(|told| told.starts_with(status)),
                "{told}"
            );
            assert!(
                inside.contains(&format!("proxy-status: sandbox; error={error}")),
                "{told}"
            );
            assert!(
                inside.contains("content-type: application/problem+json"),
                "{told}"
            );
            assert_eq!(inside.contains("x-should-retry: false"), *is_final, "{told}");
            assert!(!inside.contains("retry-after"), "{told}");
            if let Some(rule) = rule {
                assert!(inside.contains(&format!("\"rule\": \"{rule}\"")), "{told}");
            }
        }
    }
    assert!(upstream.seen().is_empty());
    // Until the limit is reached, which passes by itself.
    let mut told = String::new();
    for _ in 0..20 {
        told = curl(&running, &[&url]).await.1;
        if told.contains(" 429") {
            break;
        }
    }
    for shown in [
        " 429",
        "proxy-status: sandbox; error=http_request_denied",
        "retry-after: ",
        "\"rule\": \"limit: requests to a host\"",
    ] {
        assert!(told.contains(shown), "no {shown:?} in {told}");
    }
    assert!(!told.contains("x-should-retry"), "{told}");
}

#[tokio::test]
async fn plain_http_is_denied_in_the_same_words_asked_for_or_tunnelled() {
    let upstream = Upstream::plain().await;
    // Port 80 alone is read in a tunnel.
    let proxy = leads_to(upstream.address).await;
    let running = Running::start(|builder| {
        let rules = Rules::new()
            .allow(&format!(
                "http://{}/public special-ranges",
                upstream.at("api.test")
            ))
            .allow("http://web.test/public special-ranges");
        allowed(builder, &upstream)
            .policy(Arc::new(rules))
            .upstream_proxy(proxy)
    })
    .await;
    let url = format!("http://{}", upstream.at("api.test"));
    for (url, way) in [
        (url, vec![]),
        ("http://web.test".to_owned(), vec!["--proxytunnel"]),
    ] {
        let (private, public) = (format!("{url}/private"), format!("{url}/public"));
        let (code, told) = curl(&running, &[&way[..], &[private.as_str()]].concat()).await;
        assert_eq!(code, Some(0), "{told}");
        for shown in [
            "http/1.1 403",
            "proxy-status: sandbox; error=http_request_denied",
            "content-type: application/problem+json",
            "x-should-retry: false",
            "\"rule\": \"no rule allows it\"",
        ] {
            assert!(told.contains(shown), "no {shown:?} in {told}");
        }
        let (code, _) = curl(&running, &[&way[..], &["--fail", private.as_str()]].concat()).await;
        assert_eq!(code, Some(22));
        let (code, told) = curl(&running, &[&way[..], &["--fail", public.as_str()]].concat()).await;
        assert!(code == Some(0) && told.ends_with("ok"), "{told}");
    }
}

#[tokio::test]
async fn tunnel_that_is_refused_after_it_was_opened_ends_with_a_reason() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let at = upstream.at("api.test");
    for running in [Running::managed(&upstream).await, Running::open(&upstream).await] {
        // The tunnel is to one host, and what is asked for in it is another.
        let elsewhere = format!("::{at}");
        let arguments = ["--connect-to", &elsewhere, "https://other.test/"];
        let (code, told) = curl(&running, &arguments).await;
        assert_eq!(code, Some(35), "{told}");
        assert!(told.contains("access denied"), "{told}");
        let event = running.events.wait(|event| event.host == "api.test").await;
        assert_eq!(event.decision, AuditDecision::Denied);
    }
    assert!(upstream.seen().is_empty());
}
