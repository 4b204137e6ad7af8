//! Three agents at once, each in a sandbox of its own: own workspace, own policy, own credential, own audit.

use std::fs;
use std::path::Path;

use anyhow::Result;
use sandbox::{Event, Rules, Sandbox, Service, Size, sources};
use stand_in::StandIn;
use tokio::task::JoinSet;

const AGENTS: [&str; 3] = ["ada", "bob", "cyd"];

#[tokio::main]
async fn main() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut apis = Vec::new();
    for name in AGENTS {
        let api = StandIn::start(&format!("{name}.example.com"), &format!("key-of-{name}")).await?;
        apis.push((name, api));
    }
    let targets: Vec<_> = apis.iter().map(|(name, api)| target(name, api)).collect();

    let mut agents = JoinSet::new();
    for (name, api) in apis {
        let workspace = root.path().join(name);
        fs::create_dir(&workspace)?;
        let others = targets.iter().filter(|other| **other != target(name, &api));
        let others = others.cloned().collect();
        agents.spawn(async move { run_agent(name, &api, others, &workspace).await });
    }
    while let Some(report) = agents.join_next().await {
        println!("{}", report??);
    }
    for name in AGENTS {
        let answer = fs::read_to_string(root.path().join(name).join("answer"))?;
        println!("{name} left {answer:?}");
    }
    Ok(())
}

/// One agent's whole life: launch, a call to its own API, an attempt at the others', a report.
async fn run_agent(name: &str, api: &StandIn, others: Vec<String>, workspace: &Path) -> Result<String> {
    let target = target(name, api);
    let sandbox = Sandbox::builder()
        .name(name)
        .workspace(workspace)
        .memory(Size::mib(256))
        .policy(Rules::locked_down().allow(&format!("{target} special-ranges")))
        .credential(
            Service::custom(name).header(&target, "x-api-key"),
            sources::Static::new(format!("key-of-{name}")),
        )
        .resolve(format!("{name}.example.com"), api.ip())
        .trust(api.root_pem())
        .launch()
        .await?;
    let mut events = sandbox.events();

    let script = "own=$1; shift
        echo \"$(hostname) in $PWD\"
        curl -sS --fail \"https://$own/\" > answer
        for other; do curl -sS \"https://$other/\" && echo \"reached $other\"; done
        true";
    let agent = sandbox.command("sh").args(["-c", script, "agent", &target]);
    let output = agent.args(others).output().await?;
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

fn target(name: &str, api: &StandIn) -> String {
    format!("{name}.example.com:{}", api.port())
}
