//! The only way out: names, ports and addresses that are refused, and how.

use sandbox::Event;
use sandbox::core::audit::AuditDecision;

use crate::fixture::{API, api_url, python, run, sh, sh_ok, shared};

#[test]
fn other_ports_of_an_allowed_host_are_refused() {
    run(async {
        for port in [22, 443, 9999] {
            let output = sh(&format!("curl -sS https://{API}:{port}/ 2>&1")).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(
                output.status.code(),
                56,
                "curl's code for a refused CONNECT: {text}"
            );
            assert!(text.contains("403"), "{text}");
        }
    });
}

#[test]
fn plain_http_to_an_allowed_https_host_is_refused() {
    run(async {
        let port = shared().await.api.port();
        let output = sh(&format!(
            "curl -sS -o /dev/null -w '%{{http_code}}' http://{API}:{port}/"
        ))
        .await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "403");
    });
}

#[test]
fn a_refusal_names_the_rule_for_people_and_programs() {
    run(async {
        let text = sh_ok("curl -sS -i http://denied.example/")
            .await
            .to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 403"), "{text}");
        assert!(
            text.contains("proxy-status:") && text.contains("application/problem+json"),
            "{text}"
        );
        // SDKs obey it: asking again is no use.
        assert!(
            text.contains("x-should-retry: false") && !text.contains("retry-after"),
            "{text}"
        );
    });
}

#[test]
fn every_one_of_many_refusals_is_told_or_counted() {
    run(async {
        let mut events = shared().await.sandbox.events();
        let program = "
import urllib.request
for _ in range(400):
    try: urllib.request.urlopen('http://over-and-over.example/')
    except urllib.error.HTTPError as error: assert error.code == 403";
        assert!(python(program).await.status.success());
        let (mut told, mut attempts) = (0, 0);
        while attempts < 400 {
            if let Event::Attempt(attempt) = events.recv().await.unwrap()
                && attempt.host == "over-and-over.example"
            {
                told += 1;
                attempts += attempt.attempts;
            }
        }
        assert_eq!(attempts, 400);
        // How many are counted together is a question of how fast they come.
        assert!((2..=400).contains(&told), "{told}");
    });
}

#[test]
fn special_addresses_are_refused_in_every_spelling() {
    run(async {
        let port = shared().await.api.port();
        for host in [
            "127.0.0.1",
            "[::1]",
            "0.0.0.0",
            "[::ffff:127.0.0.1]",
            "10.0.0.1",
            "192.168.0.1",
            "172.16.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "0x7f.1",
            "2130706433",
            "localhost",
        ] {
            // Spoken by hand, since curl would normalise odd forms itself.
            let request = format!("CONNECT {host}:{port} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n");
            let script = format!("import socket
s = socket.create_connection(('127.0.0.1', 3128)); s.sendall(b'{request}'); print(s.recv(64).split(b'\\r\\n')[0].decode())");
            let output = python(&script).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let status = text.split(' ').nth(1).unwrap_or_default().trim().to_owned();
            assert!(
                status == "403" || status == "400",
                "{host}: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    });
}

#[test]
fn every_attempt_is_an_event_with_its_rule() {
    run(async {
        let mut events = shared().await.sandbox.events();
        sh("curl -s https://only-in-this-test.example/").await;
        let url = api_url("/audited").await;
        sh(&format!("curl -s {url}")).await;
        let (mut denied, mut allowed) = (None, None);
        while denied.is_none() || allowed.is_none() {
            if let Event::Attempt(attempt) = events.recv().await.unwrap() {
                match attempt.decision {
                    AuditDecision::Denied if attempt.host == "only-in-this-test.example" => {
                        denied = Some(attempt)
                    }
                    AuditDecision::Allowed if attempt.path.as_deref() == Some("/audited") => {
                        allowed = Some(attempt)
                    }
                    _ => {}
                }
            }
        }
        let (denied, allowed) = (denied.unwrap(), allowed.unwrap());
        assert!(
            !denied.rule.is_empty() && denied.credential.is_none(),
            "{denied:?}"
        );
        assert!(allowed.rule.contains(API), "{allowed:?}");
        assert_eq!(allowed.credential.as_deref(), Some("stand-in"));
    });
}
