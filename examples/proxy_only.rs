//! The egress proxy alone, for an ordinary process: `cargo run --example proxy_only -- curl -sS https://docs.rs`.
//!
//! The child finds the proxy by its environment. Nothing keeps it from going around it: that is what a sandbox is for.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use sandbox_proxy::{JsonLines, Proxy, Rules, Service, sources};
use stand_in::StandIn;
use tokio::net::TcpListener;
use tokio::process::Command;

/// Variables that name a file of all roots a program trusts, each for its own programs.
const ROOTS: [&str; 8] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    // Before there is anything to tell.
    let _privacy = sandbox_proxy::keep_memory_private()?;
    // Stands in for an API on the internet that wants a key.
    let api = StandIn::start("api.example.com", "the-real-key").await?;
    let target = format!("api.example.com:{}", api.port());
    let proxy = Proxy::builder("proxy-only".parse()?)
        .policy(Arc::new(
            Rules::balanced().allow(&format!("{target} special-ranges")),
        ))
        .credential(
            Service::custom("example")
                .header(&target, "x-api-key")
                .environment("EXAMPLE_API_KEY", "placeholder"),
            Arc::new(sources::Static::new("the-real-key")),
        )
        .resolve("api.example.com".parse()?, vec![api.ip()])
        .extra_root(api.root_pem())
        .audit(Arc::new(JsonLines::new(std::io::stderr())))
        .build()?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let directory = tempfile::tempdir()?;
    let (authority, roots) = (
        directory.path().join("ca.pem"),
        directory.path().join("roots.pem"),
    );
    std::fs::write(&authority, proxy.ca_pem()?)?;
    // Hosts without a credential are tunnelled, and show certificates of their own.
    let platform = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    std::fs::write(&roots, platform + &proxy.ca_pem()?)?;
    let serving = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.listen(listener).await }
    });

    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.is_empty() {
        let script =
            format!("curl -sS https://{target}/echo; curl -sS https://example.org; echo \"exit code $?\"");
        arguments = vec!["sh".into(), "-c".into(), script.into()];
    }
    let status = Command::new(&arguments[0])
        .args(&arguments[1..])
        .envs(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"].map(|name| (name, &url)))
        .env("NODE_USE_ENV_PROXY", "1")
        .env("NODE_EXTRA_CA_CERTS", &authority)
        .envs(ROOTS.map(|name| (name, &roots)))
        .env("EXAMPLE_API", format!("https://{target}"))
        .envs(proxy.placeholders())
        .status()
        .await?;
    serving.abort();
    Ok(ExitCode::from(
        status.code().and_then(|code| code.try_into().ok()).unwrap_or(1),
    ))
}
