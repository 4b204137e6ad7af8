//! The main job, in few tests: these also run directly where guest kernels are interpreted.

use crate::fixture::{api_url, run, sh, sh_ok, shared};

#[test]
fn command_runs_under_the_guests_own_kernel() {
    run(async {
        // Drawn by each kernel when it boots; a release may be the same on both sides.
        let boot_id = "/proc/sys/kernel/random/boot_id";
        let host = std::fs::read_to_string(boot_id).unwrap();
        assert_ne!(sh_ok(&format!("cat {boot_id}")).await, host);
        assert_eq!(sh_ok("uname -r").await.trim(), shared().await.sandbox.kernel());
    });
}

#[test]
fn output_exit_code_and_input_are_exact() {
    run(async {
        let output = sh("printf 'a\\000b\\377'; printf err >&2; exit 7").await;
        assert_eq!(output.stdout, b"a\0b\xff");
        assert_eq!(output.stderr, b"err");
        assert_eq!(output.status, sandbox::ExitStatus::Code(7));
    });
}

#[test]
fn workspace_is_one_view_for_host_and_guest() {
    run(async {
        let shared = shared().await;
        std::fs::write(shared.workspace.join("from-host"), "hello guest").unwrap();
        assert_eq!(
            sh_ok("cat from-host; echo hello host > from-guest").await,
            "hello guest"
        );
        assert_eq!(
            std::fs::read_to_string(shared.workspace.join("from-guest")).unwrap(),
            "hello host\n"
        );
        assert_eq!(sh_ok("pwd").await.trim(), shared.workspace.to_str().unwrap());
    });
}

#[test]
fn authenticated_call_succeeds_with_a_key_that_the_guest_does_not_hold() {
    run(async {
        let url = api_url("/v1/messages").await;
        let answer = sh_ok(&format!("curl -sS --fail {url}")).await;
        assert!(answer.contains("hello from the API"), "{answer}");
        let shared = shared().await;
        let seen = shared.api.seen();
        let call = seen.iter().rfind(|seen| seen.target == "/v1/messages").unwrap();
        assert_eq!(call.headers["x-api-key"], shared.key.as_str());
        let inside = sh_ok("env; cat /proc/self/environ").await;
        assert!(!inside.contains(&shared.key));
    });
}

#[test]
fn denied_host_fails_by_exit_code() {
    run(async {
        let output = sh("curl -sS --fail https://denied.example/ 2>&1").await;
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("403"), "curl says why: {text}");
    });
}

#[test]
fn program_without_proxy_variables_reaches_an_allowed_name() {
    run(async {
        let url = api_url("/bare").await;
        sh_ok(&format!("env -i PATH=$PATH curl -sS --fail -o /dev/null {url}")).await;
        let shared = shared().await;
        let seen = shared.api.seen();
        let call = seen.iter().rfind(|seen| seen.target == "/bare").unwrap();
        assert_eq!(call.headers["x-api-key"], shared.key.as_str());
    });
}
