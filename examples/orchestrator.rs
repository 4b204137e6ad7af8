//! Three agents at once, each in a sandbox of its own: own workspace, own policy, own credential, own audit.

use std::error::Error;
use std::fs;
use std::path::Path;

use sandbox::{Event, Rules, Sandbox, Service, Size, sources};
use stand_in::StandIn;
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut agents = JoinSet::new();
    for name in ["ada", "bob", "cyd"] {
        let workspace = root.path().join(name);
        fs::create_dir(&workspace)?;
        agents.spawn(async move { run_agent(name, &workspace).await });
    }
    while let Some(report) = agents.join_next().await {
        println!("{}", report??);
    }
    for name in ["ada", "bob", "cyd"] {
        println!(
            "{name} left {:?}",
            fs::read_to_string(root.path().join(name).join("answer"))?
        );
    }
    Ok(())
}

/// One agent's whole life: launch, two calls (its own API, and a neighbour's), a report.
async fn run_agent(name: &'static str, workspace: &Path) -> Result<String> {
    let host = format!("{name}.example.com");
    let key = format!("key-of-{name}");
    let api = StandIn::start(&host, &key).await?;
    let target = format!("{host}:{}", api.port());

    let sandbox = Sandbox::builder()
        .name(name)
        .workspace(workspace)
        .memory(Size::mib(256))
        .policy(Rules::locked_down().allow(&format!("{target} special-ranges")))
        .credential(
            Service::custom(name).header(&target, "x-api-key"),
            sources::Static::new(key),
        )
        .resolve(&host, api.ip())
        .trust(api.root_pem())
        .launch()
        .await?;
    let mut events = sandbox.events();

    let script = format!(
        "hostname; curl -sS --fail https://{target}/ > answer && cat answer; echo
         for other in ada bob cyd; do
             test $other = {name} || curl -sS https://$other.example.com/ >/dev/null 2>&1 && echo reached $other
         done; true"
    );
    let output = sandbox.command("sh").args(["-c", &script]).output().await?;
    sandbox.shutdown().await?;

    let mut report = format!("== {name}\n{}", output.text());
    while let Ok(event) = events.try_recv() {
        if let Event::Attempt(attempt) = event {
            report += &format!(
                "{:?} {}:{} by rule {:?}\n",
                attempt.decision, attempt.host, attempt.port, attempt.rule
            );
        }
    }
    Ok(report)
}
