//! Denials as clients see them: they end by themselves, soon, and with a code that says that it failed.

use sandbox_core::policy::{Attempt, Decision, Policy, Verdict};

use super::*;

/// A name, the exit code, how often the client may ask, and the client.
type Case<'a> = (&'a str, Option<i32>, u64, &'a str, &'a [&'a str]);

/// How often a client asked for a host.
fn tries(running: &Running, host: &str) -> u64 {
    let events = running.events.all();
    let tries = events.iter().filter(|event| event.host == host);
    tries.map(|event| event.attempts).sum()
}

#[tokio::test]
async fn every_client_ends_by_itself_with_a_code_of_failure() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem").to_string_lossy().into_owned();
    std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
    let urllib = "import sys, urllib.request as u\nu.urlopen(sys.argv[1])";
    let (requests, httpx, node) = (
        script("with_requests.py"),
        script("with_httpx.py"),
        script("fetch.mjs"),
    );
    let (grpc, websockets) = (script("with_grpc.py"), script("with_websockets.py"));
    // The code where its manual names one, and how often it may ask.
    let clients: [Case<'_>; 10] = [
        ("curl", Some(56), 1, "curl", &["-sS", "https://curl.test/"]),
        // It retries only what it takes for passing.
        (
            "retry",
            Some(56),
            1,
            "curl",
            &["-sS", "--retry", "5", "https://retry.test/"],
        ),
        (
            "git",
            Some(128),
            2,
            "git",
            &["ls-remote", "https://git.test/x.git"],
        ),
        (
            "urllib",
            Some(1),
            1,
            "python",
            &["-c", urllib, "https://urllib.test/"],
        ),
        (
            "requests",
            Some(1),
            1,
            "python",
            &[&requests, "https://requests.test/"],
        ),
        ("httpx", Some(1), 20, "python", &[&httpx, "https://httpx.test/"]),
        ("node", Some(1), 1, "node", &[&node, "https://node.test/"]),
        ("grpc", Some(1), 3, "python", &[&grpc, "grpc.test:443", &ca]),
        (
            "websockets",
            Some(1),
            1,
            "python",
            &[&websockets, "wss://websockets.test/"],
        ),
        // It takes all that fails to connect for passing.
        (
            "pip",
            Some(1),
            8,
            "pip",
            &[
                "install",
                "--no-cache-dir",
                "--index-url=https://pip.test/simple",
                "x",
            ],
        ),
    ];
    for (name, code, most, program, arguments) in clients {
        let output = run(&running, program, arguments).await;
        assert!(!output.status.success(), "{name}: {output:?}");
        if let Some(code) = code {
            assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        }
        let tries = tries(&running, &format!("{name}.test"));
        assert!((1..=most).contains(&tries), "{name} asked {tries} times");
    }
    let output = languages::java(&running, "https://java.test/").await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        (1..=2).contains(&tries(&running, "java.test")),
        "{}",
        tries(&running, "java.test")
    );
}

#[tokio::test]
async fn npm_gives_up_by_itself() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    // As often as by default, without waiting ten seconds and more in between.
    let arguments = [
        "install",
        "--no-audit",
        "--fetch-retry-mintimeout=10",
        "--fetch-retry-maxtimeout=100",
        "--registry=https://npm.test/",
        "x",
    ];
    let output = run(&running, "npm", &arguments).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        (1..=3).contains(&tries(&running, "npm.test")),
        "{}",
        tries(&running, "npm.test")
    );
}

/// Reads every stream and allows nothing but `/public`.
#[derive(Debug)]
struct Public;

impl Policy for Public {
    fn decide(&self, attempt: &Attempt<'_>) -> Decision<'_> {
        match attempt.request {
            None => Decision {
                verdict: Verdict::Inspect,
                ..Decision::ask("look at requests").permitting_special_ranges()
            },
            Some(line) if line.path == "/public" => Decision::allow("public").permitting_special_ranges(),
            Some(_) => Decision::deny("nothing but /public"),
        }
    }
}

#[tokio::test]
async fn denial_inside_a_stream_that_is_read_is_a_response_that_says_all() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::start(|builder| allowed(builder, &upstream).policy(Arc::new(Public))).await;
    let at = upstream.at("api.test");
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://{at}/private");
        let output = run(&running, "curl", &["-sS", version, "-D", "-", &url]).await;
        let text = stdout(&output).to_ascii_lowercase();
        for shown in [
            " 403",
            "content-type: application/problem+json",
            "proxy-status: sandbox; error=http_request_denied",
            "x-should-retry: false",
            "\"rule\": \"nothing but /public\"",
        ] {
            assert!(text.contains(shown), "no {shown:?} in {text}");
        }
        // curl takes any response for success, unless told otherwise.
        let output = run(&running, "curl", &["-sS", "--fail", version, &url]).await;
        assert_eq!(output.status.code(), Some(22), "{output:?}");
        let url = format!("https://{at}/public");
        let output = run(&running, "curl", &["-sS", "--fail", version, &url]).await;
        assert!(output.status.success(), "{output:?}");
    }
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.target.ends_with("/public"))
    );
}
