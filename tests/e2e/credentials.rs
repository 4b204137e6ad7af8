//! Credentials: added outside, replaced where the client sends its own, never given away.

use crate::fixture::{API, api_url, python, run, sh, sh_ok, shared};

#[test]
fn what_the_client_sends_as_credential_is_replaced() {
    run(async {
        let url = api_url("/replaced").await;
        let own = "-H 'x-api-key: attackers-own' -H 'X-Api-Key: second' -H 'X-API-KEY: third'";
        for version in ["--http1.1", "--http2"] {
            sh_ok(&format!("curl -sS --fail {version} {own} {url}")).await;
            let shared = shared().await;
            let seen = shared.api.seen();
            let call = seen.iter().rfind(|seen| seen.target == "/replaced").unwrap();
            let keys: Vec<_> = call.headers.get_all("x-api-key").iter().collect();
            assert_eq!(keys, [shared.key.as_str()], "over {version}");
        }
    });
}

#[test]
fn a_server_that_echoes_the_key_does_not_give_it_to_the_guest() {
    run(async {
        let url = api_url("/echo").await;
        let shared = shared().await;
        for version in ["--http1.1", "--http2"] {
            let text = sh_ok(&format!("curl -sS -i {version} {url}")).await;
            assert!(text.contains("x-api-key:"), "the server did echo: {text}");
            assert!(!text.contains(&shared.key), "over {version}: {text}");
        }
        let call = shared
            .api
            .seen()
            .into_iter()
            .rfind(|seen| seen.target == "/echo")
            .unwrap();
        assert_eq!(
            call.headers["x-api-key"],
            shared.key.as_str(),
            "the key was there to be echoed"
        );
    });
}

#[test]
fn both_http_versions_reach_the_server() {
    run(async {
        let url = api_url("/version").await;
        let one = sh_ok(&format!(
            "curl -sS -o /dev/null -w '%{{http_version}}' --http1.1 {url}"
        ))
        .await;
        let two = sh_ok(&format!(
            "curl -sS -o /dev/null -w '%{{http_version}}' --http2 {url}"
        ))
        .await;
        assert_eq!((one.as_str(), two.as_str()), ("1.1", "2"));
    });
}

#[test]
fn another_host_header_gets_no_key_and_no_answer() {
    run(async {
        let url = api_url("/fronted").await;
        for version in ["--http1.1", "--http2"] {
            let asked =
                format!("curl -s -o /dev/null -w '%{{http_code}}' {version} -H 'Host: evil.example' {url}");
            let output = sh(&asked).await;
            let status = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                ["400", "403", "421", "000"].contains(&status.as_str()),
                "over {version}: {status}"
            );
        }
        assert!(
            shared()
                .await
                .api
                .seen()
                .iter()
                .all(|seen| seen.target != "/fronted")
        );
    });
}

#[test]
fn another_server_name_gets_no_connection() {
    run(async {
        let port = shared().await.api.port();
        let script = format!(
            "import socket, ssl
s = socket.create_connection(('127.0.0.1', 3128))
s.sendall(b'CONNECT {API}:{port} HTTP/1.1\\r\\nHost: {API}:{port}\\r\\n\\r\\n')
head = s.recv(4096)
try:
    t = ssl.create_default_context(); t.check_hostname = False; t.verify_mode = ssl.CERT_NONE
    w = t.wrap_socket(s, server_hostname='evil.example')
    w.sendall(b'GET /sni HTTP/1.1\\r\\nHost: {API}:{port}\\r\\nConnection: close\\r\\n\\r\\n')
    print('ANSWER', w.recv(64))
except Exception as e: print('refused', type(e).__name__)"
        );
        let output = python(&script).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.starts_with("refused") || text.contains("421") || text.contains("403"),
            "{text}"
        );
        assert!(shared().await.api.seen().iter().all(|seen| seen.target != "/sni"));
    });
}

#[test]
fn python_and_git_trust_the_sandbox_as_curl_does() {
    run(async {
        let url = api_url("/python").await;
        let script = format!("import urllib.request; print(urllib.request.urlopen('{url}').status)");
        let output = python(&script).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "200\n", "{stderr}");
        let url = api_url("/repository.git").await;
        let output = sh(&format!("git ls-remote {url} 2>&1")).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // The stand-in serves no repository; what counts is that TLS went through and the request arrived.
        assert!(!text.contains("certificate"), "{text}");
        let seen = shared().await.api.seen();
        assert!(
            seen.iter()
                .any(|seen| seen.target.starts_with("/repository.git/info/refs")),
            "{text}"
        );
    });
}
