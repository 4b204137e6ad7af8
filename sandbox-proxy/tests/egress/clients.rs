//! Clients that people use. Each is told of the proxy the way the guest is: by environment variables.

mod denied;
mod inside;
mod languages;
mod packages;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sandbox_core::audit::AuditDecision;
use sandbox_proxy::{Service, sources};
use tokio::process::Command;

use crate::support::*;

/// Where the clients that are scripts stand.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/egress/clients");
/// A client that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(240);
/// Variables that name the file of trusted roots, each for its own programs.
const ROOTS: [&str; 8] = [
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];

/// Where the clients of `clients/requirements.txt` are; made when it is first asked for.
fn peers() -> &'static Path {
    static PEERS: LazyLock<PathBuf> = LazyLock::new(|| {
        let script = Path::new(SCRIPTS).join("set_up.sh");
        let output = std::process::Command::new("sh").arg(script).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().into()
    });
    &PEERS
}

/// The path of a script beside this file.
fn script(name: &str) -> String {
    format!("{SCRIPTS}/{name}")
}

/// Runs a client with the variables of a guest.
pub async fn run(running: &Running, program: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), running, program, arguments).await
}

/// Runs a client with the variables of a guest and this home directory.
async fn run_in(home: &Path, running: &Running, program: &str, arguments: &[&str]) -> Output {
    let proxy = format!("http://{}", running.address);
    let ca = home.join("ca.pem");
    std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", format!("{}/bin:{path}", peers().display()))
        .env("HOME", home)
        .envs(["http_proxy", "https_proxy", "HTTPS_PROXY"].map(|name| (name, &proxy)))
        .env("NODE_USE_ENV_PROXY", "1")
        .envs(ROOTS.map(|name| (name, &ca)))
        .envs(running.proxy.placeholders())
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .current_dir(home);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{program} goes on for ever"));
    output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"))
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn curl_speaks_both_versions_and_never_sees_the_key() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let url = format!("https://{}/echo", upstream.at("api.test"));
    for version in ["--http1.1", "--http2"] {
        let arguments = [
            "-sS",
            version,
            "--compressed",
            "-d",
            "payload",
            "-w",
            "\n%{http_version}",
            &url,
        ];
        let output = run(&running, "curl", &arguments).await;
        let text = stdout(&output);
        assert!(output.status.success(), "{output:?}");
        assert!(
            text.contains("payload") && text.contains("x-api-key: ****"),
            "{text}"
        );
        assert!(!holds_secret(&text), "{text}");
        let wanted = if version == "--http2" { "2" } else { "1.1" };
        assert!(text.ends_with(&format!("\n{wanted}")), "{text}");
        assert_eq!(upstream.last().headers["x-api-key"], SECRET);
    }
}

#[tokio::test]
async fn curl_fails_by_exit_code_when_denied() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let output = run(&running, "curl", &["-sS", "https://denied.test/"]).await;
    assert_eq!(output.status.code(), Some(56), "{output:?}");
    let event = running.events.wait(|event| event.host == "denied.test").await;
    assert_eq!(event.decision, AuditDecision::Denied);
}

#[tokio::test]
async fn curl_cannot_front_another_host() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let url = format!("https://{}/echo", upstream.at("api.test"));
    for version in ["--http1.1", "--http2"] {
        let arguments = [
            "-sS",
            version,
            "-H",
            "Host: evil.test",
            "-w",
            "%{http_code}",
            "-o",
            "/dev/null",
            &url,
        ];
        let output = run(&running, "curl", &arguments).await;
        assert_eq!(stdout(&output), "421", "{output:?}");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn python_trusts_the_authority_and_gets_its_answer() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let script = format!(
        "import urllib.request as u\nprint(u.urlopen(u.Request('https://{}/echo', data=b'payload')).read().decode())",
        upstream.at("api.test")
    );
    let output = run(&running, "python3", &["-c", &script]).await;
    let text = stdout(&output);
    assert!(output.status.success() && text.contains("payload"), "{output:?}");
    assert!(!holds_secret(&text), "{text}");
}

#[tokio::test]
async fn openssl_sees_a_chain_that_it_can_verify() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
    let at = upstream.at("api.test");
    let (proxy, ca) = (running.address.to_string(), ca.to_string_lossy().into_owned());
    let arguments = [
        "s_client",
        "-proxy",
        &proxy,
        "-connect",
        &at,
        "-servername",
        "api.test",
        "-verify_hostname",
        "api.test",
        "-x509_strict",
        "-CAfile",
        &ca,
        "-verify_return_error",
        "-brief",
    ];
    let output = run(&running, "openssl", &arguments).await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("Verification: OK") && told.contains("Verified peername: api.test"),
        "{told}"
    );
}

#[tokio::test]
async fn git_clones_over_https_with_a_token_it_never_has() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::serving(&upstream, Service::custom("git").basic(&at, "x-access-token")).await;
    let directory = tempfile::tempdir().unwrap();
    let at_path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (work, bare, clone) = (at_path("work"), at_path("bare.git"), at_path("clone"));
    let identity = ["-c", "user.name=t", "-c", "user.email=t@t.test"];
    let commit = [
        &["-C", &work][..],
        &identity,
        &["commit", "-qm", "first", "--allow-empty"],
    ]
    .concat();
    for arguments in [
        &["init", "-q", &work][..],
        &commit,
        &["clone", "-q", "--bare", &work, &bare],
        // Served as plain files, which is the older of git's two ways over HTTP.
        &["-C", &bare, "update-server-info"],
    ] {
        let output = run(&running, "git", arguments).await;
        assert!(output.status.success(), "{output:?}");
    }
    *upstream.files.lock().unwrap() = directory.path().to_owned();
    let url = format!("https://{at}/files/bare.git");
    let output = run(&running, "git", &["clone", "-q", &url, &clone]).await;
    assert!(output.status.success(), "{output:?}");
    let log = run(&running, "git", &["-C", &clone, "log", "--format=%s"]).await;
    assert_eq!(stdout(&log), "first\n");
}

/// Asks for a completion with the official SDK, which retries what it takes for passing.
const SDK: &str = r#"
import sys
name, url = sys.argv[1:]
module = __import__(name)
client = (module.OpenAI if name == "openai" else module.Anthropic)(api_key="placeholder", base_url=url)
try:
    if name == "openai":
        client.chat.completions.create(model="m", messages=[])
    else:
        client.messages.create(model="m", max_tokens=1, messages=[])
except module.APIStatusError as error:
    print(error.status_code, error.response.headers.get("x-should-retry"))
"#;

#[tokio::test]
async fn sdks_do_not_retry_what_is_final() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    // 502 is a status that SDKs retry; nothing but the header keeps them from it.
    let running = Running::start(|builder| {
        allowed(builder, &upstream).credential(
            Service::custom("api").bearer(&at),
            Arc::new(sources::Env::new("SANDBOX_TEST_NOT_SET")),
        )
    })
    .await;
    for (name, path) in [("openai", "/chat/completions"), ("anthropic", "/v1/messages")] {
        let url = format!("https://{at}");
        let output = run(&running, "python3", &["-c", SDK, name, &url]).await;
        assert_eq!(stdout(&output), "502 false\n", "{output:?}");
        let tries = running.events.all();
        let tries = tries.iter().filter(|event| event.path.as_deref() == Some(path));
        assert_eq!(tries.map(|event| event.attempts).sum::<u64>(), 1);
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn curl_is_told_that_a_denial_is_final_and_that_a_failure_is_not() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::open(&upstream).await;
    for (url, status, is_final) in [
        ("http://denied.test/".to_owned(), "403", true),
        ("https://denied.test/".to_owned(), "403", true),
        // Allowed, but nobody is there.
        (format!("https://{}/", upstream.at("nobody.test")), "502", false),
    ] {
        let rule = format!("{} special-ranges", upstream.at("nobody.test"));
        running
            .proxy
            .set_policy(Arc::new(sandbox_proxy::Rules::new().allow(&rule)))
            .unwrap();
        let output = run(&running, "curl", &["-sS", "-D", "-", "-o", "/dev/null", &url]).await;
        let head = stdout(&output).to_ascii_lowercase();
        assert!(head.contains(status) && head.contains("proxy-status: "), "{head}");
        assert_eq!(head.contains("x-should-retry: false"), is_final, "{head}");
        assert!(!head.contains("retry-after"), "{head}");
    }
}
