//! A third-party backend behind the same API: the same command and the same authenticated call, with the guest
//! an ordinary process in namespaces. See `examples/custom-backend/` for the backend itself.

use process_backend::ProcessBackend;
use sandbox::artifacts::Artifacts;
use sandbox::{Rules, Sandbox, Service, sources};
use stand_in::StandIn;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let agent = Artifacts::locate()?.agent_program();
    let workspace = tempfile::tempdir()?;
    let api = StandIn::start("api.example.com", "the-real-key").await?;
    let target = format!("api.example.com:{}", api.port());
    let sandbox = Sandbox::builder()
        .workspace(workspace.path())
        .policy(Rules::locked_down().allow(&format!("{target} special-ranges")))
        .credential(
            Service::custom("example").header(&target, "x-api-key"),
            sources::Static::new("the-real-key"),
        )
        .resolve("api.example.com", api.ip())
        .trust(api.root_pem())
        .backend(ProcessBackend::new(agent))
        .launch()
        .await?;
    for script in [
        "pwd; ls /sys/class/net",
        &format!("curl -sS https://{target}/hello"),
        "curl -sS https://example.org",
    ] {
        let output = sandbox.command("sh").args(["-c", script]).output().await?;
        println!(
            "$ {script}\n{}(exit code {})\n",
            output.text(),
            output.status.code()
        );
    }
    sandbox.kill().await;
    Ok(())
}
