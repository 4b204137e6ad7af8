//! The libraries with which programs make requests, each in its own language.

use std::path::Path;

use super::*;

/// What Java wants: its own form of roots, and its own names for a proxy.
fn java_options(home: &Path, running: &Running) -> String {
    let (ca, store) = (home.join("ca.pem"), home.join("roots.p12"));
    std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
    let made = std::process::Command::new("keytool")
        .args([
            "-importcert",
            "-noprompt",
            "-alias",
            "sandbox",
            "-storepass",
            "changeit",
        ])
        .args(["-storetype", "PKCS12", "-file"])
        .arg(&ca)
        .arg("-keystore")
        .arg(&store)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let (host, port) = (running.address.ip(), running.address.port());
    format!(
        "-Dhttps.proxyHost={host} -Dhttps.proxyPort={port} -Djavax.net.ssl.trustStore={} \
         -Djavax.net.ssl.trustStorePassword=changeit",
        store.display()
    )
}

/// Runs the Java client for this URL.
pub async fn java(running: &Running, url: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    let options = format!("JAVA_TOOL_OPTIONS={}", java_options(home.path(), running));
    let arguments = [options.as_str(), "java", &script("Client.java"), url];
    run_in(home.path(), running, "env", &arguments).await
}

#[tokio::test]
async fn requests_httpx_node_and_java_get_their_answers_and_never_the_key() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let url = format!("https://{}/echo", upstream.at("api.test"));
    for (program, name, shown) in [
        ("python", "with_requests.py", "200"),
        ("python", "with_httpx.py", "HTTP/2"),
        ("node", "fetch.mjs", "200"),
        ("java", "Client.java", "HTTP_2 200"),
    ] {
        let output = match program {
            "java" => java(&running, &url).await,
            _ => run(&running, program, &[&script(name), &url]).await,
        };
        let text = stdout(&output);
        assert!(output.status.success() && text.starts_with(shown), "{output:?}");
        assert!(
            text.contains("payload") && text.contains("x-api-key: ****"),
            "{text}"
        );
        assert!(!holds_secret(&text), "{text}");
        assert_eq!(upstream.last().headers["x-api-key"], SECRET, "{name}");
    }
}

#[tokio::test]
async fn grpc_client_makes_all_four_kinds_of_calls() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::managed(&upstream).await;
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem").to_string_lossy().into_owned();
    let (script, at) = (script("with_grpc.py"), upstream.at("api.test"));
    let output = run_in(home.path(), &running, "python", &[&script, &at, &ca]).await;
    assert_eq!(
        stdout(&output),
        "unary one\nserver ['one'] OK\nclient only\nboth ['message 0', 'message 1', 'message 2']\n",
        "{output:?}"
    );
    assert_eq!(upstream.last().headers["x-api-key"], SECRET);
}

#[tokio::test]
async fn websocket_client_talks_and_the_key_is_blanked_out() {
    for protocols in [&["http/1.1"][..], &["h2"]] {
        let upstream = Upstream::tls(protocols).await;
        let running = Running::managed(&upstream).await;
        let url = format!("wss://{}/ws", upstream.at("api.test"));
        let output = run(&running, "python", &[&script("with_websockets.py"), &url]).await;
        let stars = "*".repeat(SECRET.len());
        // The server sends whole frames back: a masked head of six bytes, and the five of the message.
        assert_eq!(stdout(&output), format!("key {stars};\n11\n"), "{output:?}");
    }
}

#[tokio::test]
async fn opaque_tunnels_carry_the_same_clients() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::open(&upstream).await;
    let at = upstream.at("api.test");
    let home = tempfile::tempdir().unwrap();
    let roots = home.path().join("upstream.pem");
    std::fs::write(&roots, &upstream.ca_pem).unwrap();
    let (roots, url) = (roots.to_string_lossy().into_owned(), format!("https://{at}/body"));
    let arguments = ["-sS", "--http2", "--cacert", &roots, "-d", "payload", &url];
    let output = run(&running, "curl", &arguments).await;
    assert_eq!(stdout(&output), "payload", "{output:?}");
    let output = run(&running, "python", &[&script("with_grpc.py"), &at, &roots]).await;
    assert!(
        stdout(&output).contains("both ['message 0', 'message 1', 'message 2']"),
        "{output:?}"
    );
    assert!(!upstream.last().headers.contains_key("x-api-key"));
}
