//! A command in a microVM makes an authenticated HTTPS call with a key that the microVM never holds.

use sandbox::{Rules, Sandbox, Service, sources};
use stand_in::StandIn;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // An API on this machine that wants a key. For a real one: the rule `api.anthropic.com`, `Service::anthropic()`
    // with `sources::Env::new("ANTHROPIC_API_KEY")`, and neither `resolve` nor `trust`.
    let api = StandIn::start("api.example.com", "the-real-key").await?;
    let target = format!("api.example.com:{}", api.port());

    let sandbox = Sandbox::builder()
        .workspace(std::env::current_dir()?) // at the same path inside; nothing else of this machine is
        .policy(Rules::locked_down().allow(&format!("{target} special-ranges"))) // it is on loopback
        .credential(
            Service::custom("example").header(&target, "x-api-key"),
            sources::Static::new("the-real-key"),
        )
        .resolve("api.example.com", api.ip())
        .trust(api.root_pem())
        .launch()
        .await?;

    for script in [
        "uname -sr; ls",
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
    sandbox.shutdown().await?;
    Ok(())
}
