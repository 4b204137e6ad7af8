//! What the proxy costs: the same requests to the same HTTPS upstream direct, through an opaque tunnel, and
//! intercepted with a credential injected and scrubbed. Also as a guest sees it.

#[path = "support/report.rs"]
mod report;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use report::Report;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use sandbox::core::SandboxId;
use sandbox::{KvmBackend, Rules, Sandbox, Service, Size, sources};
use sandbox_proxy::Proxy;
use stand_in::StandIn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

/// Name of the upstream.
const HOST: &str = "api.example.com";
const KEY: &str = "sk-bench-0123456789abcdef";
/// Body of a throughput request.
const LARGE: usize = 64 << 20;

fn main() {
    println!("host: {:?} virtualisation", KvmBackend::virtualisation());
    let runtime = Runtime::new().expect("a runtime");
    let mut report = Report::new("proxy");
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    let api = runtime.block_on(StandIn::start(HOST, KEY)).expect("an upstream");
    let upstream = SocketAddr::from((api.ip(), api.port()));
    let host = format!("{HOST}:{}", api.port());
    let (tunnel, _) = runtime.block_on(proxy(&api, false));
    let (intercept, authority) = runtime.block_on(proxy(&api, true));

    for (subject, via, root) in [
        ("direct", None, api.root_pem()),
        ("ours-tunnel", Some(tunnel), api.root_pem()),
        ("ours-intercept", Some(intercept), authority),
    ] {
        let mut sender = runtime.block_on(connect(upstream, via, &root));
        criterion
            .benchmark_group("small-request")
            .bench_function(subject, |bencher| {
                bencher.iter(|| {
                    assert_eq!(
                        runtime.block_on(get(&mut sender, &host, "/small")).0,
                        StatusCode::OK
                    )
                });
            });
        criterion
            .benchmark_group("large-response")
            .bench_function(subject, |bencher| {
                let path = format!("/bytes/{LARGE}");
                bencher.iter(|| assert_eq!(runtime.block_on(get(&mut sender, &host, &path)).1, LARGE));
            });
        report.add_criterion(subject, "small-request", "latency");
        report.add_criterion(subject, "large-response", "time");
        if let Some(time) = report.value(subject, "large-response", "time") {
            report.add(
                subject,
                "large-response",
                "throughput",
                "MiB/s",
                (LARGE >> 20) as f64 / time * 1000.0,
            );
        }
        compare(&mut report, subject);
    }
    criterion.final_summary();
    runtime.block_on(from_inside(&api, &mut report));
    report.finish();
}

fn compare(report: &mut Report, subject: &str) {
    for (case, metric, name) in [
        ("small-request", "latency", "latency ratio"),
        ("large-response", "throughput", "speed ratio"),
    ] {
        if let (Some(own), Some(direct)) = (
            report.value(subject, case, metric),
            report.value("direct", case, metric),
        ) {
            report.add(subject, case, name, "x direct", own / direct);
        }
    }
}

/// A proxy on a TCP port, with or without a credential for the upstream, and its authority's certificate.
async fn proxy(api: &StandIn, intercept: bool) -> (SocketAddr, String) {
    let id: SandboxId = "bench".parse().expect("a name");
    let target = format!("{HOST}:{}", api.port());
    let mut builder = Proxy::builder(id)
        .policy(Arc::new(
            Rules::locked_down().allow(&format!("{target} special-ranges")),
        ))
        .resolve(HOST.parse().expect("a host"), vec![api.ip()])
        .extra_root(api.root_pem());
    if intercept {
        let service = Service::custom("bench").header(&target, "x-api-key");
        builder = builder.credential(service, Arc::new(sources::Static::new(KEY)));
    }
    let proxy = builder.build().unwrap_or_else(|e| panic!("{e}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, authority) = (
        listener.local_addr().expect("an address"),
        proxy.ca_pem().expect("an authority"),
    );
    tokio::spawn(async move { proxy.listen(listener).await });
    (address, authority)
}

/// A keep-alive HTTP/1.1 connection over TLS, direct or through a proxy.
async fn connect(upstream: SocketAddr, via: Option<SocketAddr>, root_pem: &str) -> SendRequest<Empty<Bytes>> {
    let mut stream = TcpStream::connect(via.unwrap_or(upstream))
        .await
        .expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    if via.is_some() {
        let ask = format!(
            "CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n",
            port = upstream.port()
        );
        stream
            .write_all(ask.as_bytes())
            .await
            .expect("the request is sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("an answer"));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root_pem.as_bytes()).expect("a certificate"))
        .expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(HOST).expect("a name");
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .expect("TLS");
    let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    sender
}

/// Status and length of a response, read to its end without keeping it.
async fn get(sender: &mut SendRequest<Empty<Bytes>>, host: &str, path: &str) -> (StatusCode, usize) {
    // The key that the upstream wants: direct and tunnelled requests bring it themselves.
    let request = Request::get(path).header("host", host).header("x-api-key", KEY);
    let request = request.body(Empty::new()).expect("a request");
    sender.ready().await.expect("an open connection");
    let response = sender.send_request(request).await.expect("a response");
    let (status, mut body, mut length) = (response.status(), response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        length += frame.expect("a whole body").data_ref().map_or(0, Bytes::len);
    }
    (status, length)
}

/// The same upstream as programs in a guest reach it: curl, with and without keep-alive.
async fn from_inside(api: &StandIn, report: &mut Report) {
    let workspace = tempfile::tempdir().expect("a directory");
    let target = format!("{HOST}:{}", api.port());
    for (subject, intercept) in [("guest-tunnel", false), ("guest-intercept", true)] {
        let mut builder = Sandbox::builder()
            .workspace(workspace.path())
            .memory(Size::mib(256))
            .policy(Rules::locked_down().allow(&format!("{target} special-ranges")))
            .resolve(HOST, api.ip())
            .trust(api.root_pem());
        if intercept {
            let service = Service::custom("bench").header(&target, "x-api-key");
            builder = builder.credential(service, sources::Static::new(KEY));
        }
        let sandbox = builder.launch().await.unwrap_or_else(|e| panic!("{e}"));
        // -k: a tunnelled guest does not know the upstream's root, and checks nothing less for the rest.
        for (case, metric, unit, path, write_out) in [
            (
                "small-request",
                "latency",
                "ms",
                "/small?[1-21]",
                "%{time_total}\\n",
            ),
            (
                "large-response",
                "throughput",
                "MiB/s",
                "/bytes/8388608",
                "%{speed_download}\\n",
            ),
        ] {
            let url = format!("https://{target}{path}");
            let curl = [
                "-sk",
                "-H",
                "x-api-key: guest",
                "-o",
                "/dev/null",
                "-w",
                write_out,
                &url,
            ];
            let output = sandbox
                .command("curl")
                .args(curl)
                .output()
                .await
                .unwrap_or_else(|e| panic!("{e}"));
            let mut values: Vec<f64> = output
                .text()
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect();
            // The first of several opens the connection.
            if values.len() > 1 {
                values.remove(0);
            }
            values.sort_by(f64::total_cmp);
            let Some(median) = values.get(values.len() / 2) else {
                continue;
            };
            let value = if unit == "ms" {
                median * 1000.0
            } else {
                median / f64::from(1 << 20)
            };
            report.add(subject, case, metric, unit, value);
        }
        sandbox.kill().await;
    }
}
