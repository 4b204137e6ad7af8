//! The same checks on every backend: nothing above the backend is written per backend.

use process_backend::ProcessBackend;
use sandbox::artifacts::Artifacts;
use sandbox::{ExecError, ExitStatus, Sandbox, Stdin};
use stand_in::StandIn;
use tokio::io::AsyncWriteExt;

use crate::fixture::{API, fresh_directory, run, with_api};

const KEY: &str = "sk-of-the-backend-checks-0123456789";

#[test]
fn kvm_passes_the_checks_of_a_backend() {
    run(async {
        let api = StandIn::start(API, KEY).await.unwrap();
        let workspace = fresh_directory("backend-kvm");
        let sandbox = with_api(&workspace, &api, KEY)
            .launch()
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        checks(&sandbox, &api).await;
        sandbox.shutdown().await.unwrap();
    });
}

#[test]
fn a_third_party_backend_passes_the_same_checks() {
    run(async {
        let api = StandIn::start(API, KEY).await.unwrap();
        let workspace = fresh_directory("backend-process");
        let backend = ProcessBackend::new(Artifacts::locate().unwrap().agent_program());
        let launched = with_api(&workspace, &api, KEY).backend(backend).launch().await;
        let sandbox = launched.unwrap_or_else(|e| panic!("{e}"));
        checks(&sandbox, &api).await;
        sandbox.kill().await;
    });
}

/// What every backend owes: exact commands, and requests that get their credential outside.
async fn checks(sandbox: &Sandbox, api: &StandIn) {
    let mut child = sandbox
        .command("sh")
        .args(["-c", "cat; printf 'e\\377' >&2; exit 9"]);
    child = child.stdin(Stdin::Piped);
    let mut child = child.spawn().await.unwrap();
    let bytes: Vec<u8> = (0..600_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    let (mut stdin, sent) = (child.stdin.take().unwrap(), bytes.clone());
    let writer = tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let output = child.output(1 << 20).await.unwrap();
    writer.await.unwrap();
    assert!(
        output.stdout == bytes,
        "{} of {} bytes",
        output.stdout.len(),
        bytes.len()
    );
    assert_eq!(output.stderr, b"e\xff");
    assert_eq!(output.status, ExitStatus::Code(9));
    assert_eq!(
        sandbox
            .command("sh")
            .args(["-c", "kill -9 $$"])
            .status()
            .await
            .unwrap(),
        ExitStatus::Signal(9)
    );
    assert!(matches!(
        sandbox.command("no-such-program").status().await,
        Err(ExecError::NotFound { .. })
    ));

    let url = format!("https://{API}:{}/checked", api.port());
    let call = sandbox
        .command("curl")
        .args(["-sS", "--fail", "-H", "x-api-key: own", &url])
        .output()
        .await
        .unwrap();
    assert!(call.text().contains("hello from the API"), "{}", call.text());
    let seen = api
        .seen()
        .into_iter()
        .rfind(|seen| seen.target == "/checked")
        .unwrap();
    assert_eq!(
        seen.headers.get_all("x-api-key").iter().collect::<Vec<_>>(),
        [KEY]
    );
    let denied = sandbox
        .command("curl")
        .args(["-sS", "https://denied.example/"])
        .output()
        .await
        .unwrap();
    assert_eq!(
        denied.status,
        ExitStatus::Code(56),
        "curl's code for a refused CONNECT: {}",
        denied.text()
    );
}
