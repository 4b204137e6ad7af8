//! Opaque tunnels: what may be opened, and what may go through.

use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sandbox_core::audit::AuditDecision;
use sandbox_proxy::Rules;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::*;

/// Allows a name at a port of its own.
async fn named(name: &str, port: u16) -> Running {
    Running::start(|builder| {
        let rule = format!("{name}:{port} special-ranges");
        builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolve(name.parse().unwrap(), vec![LOCAL])
    })
    .await
}

#[tokio::test]
async fn allowed_tunnel_is_opaque_and_recorded() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::open(&upstream).await;
    let tunnel = running.connect(&upstream.at("api.test")).await.unwrap();
    // The upstream's own certificate is seen: nobody is in between.
    let tls = tls(tunnel, &upstream.ca_pem, "api.test", &["http/1.1"])
        .await
        .unwrap();
    let mut client = h1(tls).await;
    let request = Request::post("/body").header("host", "api.test");
    let response = send(
        &mut client,
        request.body(Full::new(Bytes::from("hello"))).unwrap(),
    )
    .await;
    assert_eq!(text(&response), "hello");
    drop(client);
    let event = running.events.wait(|event| event.host == "api.test").await;
    assert_eq!(event.decision, AuditDecision::Allowed);
    assert_eq!(event.method.as_deref(), Some("CONNECT"));
    assert_eq!((event.port, event.credential), (upstream.port(), None));
    assert!(
        event.bytes_out > 100 && event.bytes_in > 100,
        "{} {}",
        event.bytes_out,
        event.bytes_in
    );
    assert!(event.rule.starts_with("allow api.test"), "{}", event.rule);
}

#[tokio::test]
async fn denial_names_the_rule_and_is_recorded() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::open(&upstream).await;
    let answer = running.connect("denied.test:443").await.unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    assert!(
        answer.contains("proxy-status: sandbox; error=http_request_denied; details=\""),
        "{answer}"
    );
    assert!(
        answer.contains("content-type: application/problem+json"),
        "{answer}"
    );
    assert!(answer.contains("\"rule\": \"no rule allows it\""), "{answer}");
    let event = running.events.wait(|event| event.host == "denied.test").await;
    assert_eq!(event.decision, AuditDecision::Denied);
    assert_eq!((event.port, event.status), (443, Some(403)));
}

#[tokio::test]
async fn other_ports_of_an_allowed_name_are_refused() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("api.test special-ranges")))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
    })
    .await;
    for port in [22, 80, 9999, upstream.port()] {
        let answer = running.connect(&format!("api.test:{port}")).await.unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 403"), "{port} {answer}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn tls_for_another_name_is_refused_with_an_alert() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::open(&upstream).await;
    let tunnel = running.connect(&upstream.at("api.test")).await.unwrap();
    let error = tls(tunnel, &upstream.ca_pem, "other.test", &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    let event = running.events.wait(|event| event.host == "api.test").await;
    assert_eq!(event.decision, AuditDecision::Denied);
    assert!(event.outcome.contains("server name differs"), "{}", event.outcome);
    assert!(upstream.seen().is_empty());
}

/// Servers read hellos that are longer, or otherwise, than what is read here.
#[tokio::test]
async fn tls_that_cannot_be_read_is_refused_on_any_port() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::open(&upstream).await;
    // The first record of a hello of 32 KiB, and just so much of it that it is too much.
    let mut long = vec![22, 3, 1, 0x3f, 0xfc, 1, 0, 0x80, 0];
    long.resize((16 << 10) + 1, 0);
    for hello in [long, vec![22, 3, 1, 0, 5, 1, 0, 0, 1, 0]] {
        let mut tunnel = running.connect(&upstream.at("api.test")).await.unwrap();
        tunnel.write_all(&hello).await.unwrap();
        let mut alert = [0; 7];
        // Upstream would wait for the rest.
        let told = tokio::time::timeout(std::time::Duration::from_secs(10), tunnel.read_exact(&mut alert));
        told.await.expect("the hello went through").unwrap();
        assert_eq!(alert, [21, 3, 3, 0, 2, 2, 49], "access denied, by the proxy");
        let denied = |event: &sandbox_core::audit::AuditEvent| event.decision == AuditDecision::Denied;
        running.events.wait(denied).await;
    }
}

#[tokio::test]
async fn server_that_speaks_first_and_half_close_work_on_a_named_port() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 ready\n").await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        // Only after the client has ended its side.
        stream
            .write_all(format!("{} bytes\n", all.len()).as_bytes())
            .await
            .unwrap();
    });
    let running = named("raw.test", port).await;
    let mut tunnel = running.connect(&format!("raw.test:{port}")).await.unwrap();
    let mut greeting = [0; 10];
    tunnel.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\n");
    let data = vec![7; 3 << 20];
    tunnel.write_all(&data).await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut rest = String::new();
    tunnel.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, format!("{} bytes\n", data.len()));
    let event = running.events.wait(|event| event.host == "raw.test").await;
    assert_eq!((event.bytes_out, event.outcome.as_str()), (data.len() as u64, ""));
}

#[tokio::test]
async fn port_443_carries_nothing_but_tls_for_its_name() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let proxy = leads_to(upstream.address).await;
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(Rules::new().allow("api.test special-ranges")))
            .upstream_proxy(proxy)
    })
    .await;
    let mut tunnel = running.connect("api.test:443").await.unwrap();
    tunnel
        .write_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        .await
        .unwrap();
    let answer = read_all(&mut tunnel).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let tunnel = running.connect("api.test:443").await.unwrap();
    assert!(tls(tunnel, &upstream.ca_pem, "other.test", &[]).await.is_err());
    // To an address: a hello without a name.
    let tunnel = running.connect("api.test:443").await.unwrap();
    assert!(tls(tunnel, &upstream.ca_pem, "127.0.0.1", &[]).await.is_err());
    assert!(upstream.seen().is_empty());
    let tunnel = running.connect("api.test:443").await.unwrap();
    let mut client = h1(tls(tunnel, &upstream.ca_pem, "api.test", &[]).await.unwrap()).await;
    let request = Request::get("/").header("host", "api.test");
    assert_eq!(
        text(&send(&mut client, request.body(Full::default()).unwrap()).await),
        "ok"
    );
}

#[tokio::test]
async fn refused_connection_is_a_502_that_says_so() {
    // Bound and not listening any more.
    let port = TcpListener::bind((LOCAL, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let running = named("raw.test", port).await;
    let answer = running.connect(&format!("raw.test:{port}")).await.unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("error=connection_refused"), "{answer}");
    let event = running.events.wait(|event| event.host == "raw.test").await;
    assert_eq!(event.decision, AuditDecision::Allowed);
    assert!(!event.outcome.is_empty());
}

#[tokio::test]
async fn closing_the_proxy_ends_its_tunnels() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::open(&upstream).await;
    let mut tunnel = running.connect(&upstream.at("api.test")).await.unwrap();
    running.proxy.close();
    assert_eq!(tunnel.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn dropping_a_served_stream_leaves_nothing_open() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let running =
        Running::start(|builder| builder.policy(Arc::new(Rules::new().allow(&format!("127.0.0.1:{port}")))))
            .await;
    let (mut near, far) = tokio::io::duplex(1024);
    let serving = tokio::spawn(running.proxy.serve(Box::new(far)));
    let head = format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    near.write_all(head.as_bytes()).await.unwrap();
    let (mut at_upstream, _) = listener.accept().await.unwrap();
    serving.abort();
    assert_eq!(at_upstream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let event = running.events.wait(|event| event.port == port).await;
    assert_eq!(event.decision, AuditDecision::Allowed);
}

#[tokio::test]
async fn ssh_through_a_tunnel_speaks_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    let made = tokio::process::Command::new("dropbearkey")
        .args(["-t", "ed25519", "-f"])
        .arg(&key)
        .output()
        .await
        .expect("dropbear is installed (dropbear-bin)");
    let made = String::from_utf8(made.stdout).unwrap();
    let public = made
        .lines()
        .find(|line| line.starts_with("ssh-ed25519 "))
        .unwrap();
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            let input = Stdio::from(std::os::fd::OwnedFd::from(stream.try_clone().unwrap()));
            let output = Stdio::from(std::os::fd::OwnedFd::from(stream));
            // Where those who are not root do not look for programs.
            tokio::process::Command::new("/usr/sbin/dropbear")
                .args(["-i", "-r"])
                .arg(&key)
                .stdin(input)
                .stdout(output)
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        }
    });
    let running = named("git.test", port).await;
    let tunnel = running.connect(&format!("git.test:{port}")).await.unwrap();
    // The server speaks first. ssh-keyscan goes through the whole key exchange; it gets the tunnel as its server.
    let bridge = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let near = bridge.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = bridge.accept().await.unwrap();
        let mut tunnel = tunnel;
        let _ = tokio::io::copy_bidirectional(&mut client, &mut tunnel).await;
    });
    let scan = tokio::process::Command::new("ssh-keyscan")
        .args([
            "-t",
            "ed25519",
            "-T",
            "20",
            "-p",
            &near.port().to_string(),
            "127.0.0.1",
        ])
        .output()
        .await
        .unwrap();
    let expected = public.split_whitespace().nth(1).unwrap();
    let shown = String::from_utf8_lossy(&scan.stdout).into_owned();
    assert!(
        shown.contains(expected),
        "{shown} {}",
        String::from_utf8_lossy(&scan.stderr)
    );
}

#[tokio::test]
async fn server_that_has_said_all_still_hears_the_rest() {
    let (running, mut tunnel, mut server) = raw_tunnel().await;
    let port = server.local_addr().unwrap().port();
    server.write_all(b"all of it").await.unwrap();
    server.shutdown().await.unwrap();
    let mut told = String::new();
    tunnel.read_to_string(&mut told).await.unwrap();
    assert_eq!(told, "all of it");
    let rest = vec![b'x'; 1 << 20];
    let writing = async {
        tunnel.write_all(&rest).await.unwrap();
        tunnel.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, read) = tokio::join!(writing, server.read_to_end(&mut heard));
    read.unwrap();
    assert_eq!(heard, rest);
    let event = running.events.wait(|event| event.port == port).await;
    assert_eq!((event.bytes_out, event.bytes_in), (1 << 20, 9));
}
