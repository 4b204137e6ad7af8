//! Who the guest is and whom it trusts, as programs inside find it: by files, not by what we set for commands.

use crate::fixture::{api_url, run, sh_ok, shared};

#[test]
fn guest_knows_its_own_name_by_every_way_programs_ask() {
    run(async {
        let name = shared().await.sandbox.id().to_string();
        let told = sh_ok("hostname; cat /etc/hostname; uname -n").await;
        assert_eq!(told.lines().collect::<Vec<_>>(), [name.as_str(); 3]);
        // Without a resolver, so that `sudo` and Java's `getLocalHost` need none.
        assert!(sh_ok("getent hosts $(hostname)").await.starts_with("127.0.0.1"));
        let machine_id = sh_ok("cat /etc/machine-id").await;
        assert!(
            machine_id.trim_end().len() == 32 && machine_id.trim_end().chars().all(|c| c.is_ascii_hexdigit()),
            "{machine_id}"
        );
    });
}

#[test]
fn program_without_our_variables_trusts_the_sandbox_by_the_bundle_of_the_system() {
    run(async {
        let url = api_url("/plain-environment").await;
        let proxy = "https_proxy=http://gateway.sandbox.internal:3128";
        sh_ok(&format!("env -i PATH=$PATH {proxy} curl -sS --fail {url}")).await;
    });
}

#[test]
fn root_through_sudo_keeps_proxy_and_trust() {
    run(async {
        let url = api_url("/by-root").await;
        sh_ok(&format!("sudo curl -sS --fail {url}")).await;
        assert_eq!(
            sh_ok("sudo printenv SSL_CERT_FILE JAVA_TOOL_OPTIONS").await,
            sh_ok("printenv SSL_CERT_FILE JAVA_TOOL_OPTIONS").await
        );
        // And what they lie in is no one's to change but root's.
        sh_ok("! echo x >> /etc/sudoers.d/90-sandbox && ! echo x >> /etc/hosts && ! touch /run/sandbox/x")
            .await;
    });
}

#[test]
fn bundle_rebuilt_by_the_systems_own_tool_keeps_the_authority() {
    run(async {
        let url = api_url("/rebuilt").await;
        sh_ok("sudo update-ca-certificates --fresh").await;
        sh_ok(&format!(
            "env -u CURL_CA_BUNDLE -u SSL_CERT_FILE curl -sS --fail {url}"
        ))
        .await;
    });
}
