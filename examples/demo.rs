//! The main job, shown step by step: real programs on a real directory in a microVM, what they cannot reach, a
//! call with a key that they do not hold, a call that is denied, and the record of it all.
//!
//! Run it with `cargo xtask demo [DIRECTORY]`, which does the set-up first.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use sandbox::core::audit::AuditDecision;
use sandbox::{Event, Rules, Sandbox, Service, Size, sources};
use stand_in::StandIn;

const HOST: &str = "api.example.com";
const KEY: &str = "sk-demo-this-key-stays-on-the-host";

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let workspace = match std::env::args_os().nth(1) {
        Some(directory) => PathBuf::from(directory).canonicalize()?,
        None => std::env::current_dir()?,
    };
    let api = StandIn::start(HOST, KEY).await?;
    let target = format!("{HOST}:{}", api.port());

    heading(&format!("Launching a sandbox on {}", workspace.display()));
    let started = Instant::now();
    let sandbox = Sandbox::builder()
        .workspace(&workspace)
        .memory(Size::mib(512))
        .policy(Rules::locked_down().allow(&format!("https://{target} special-ranges")))
        .credential(
            Service::custom("example")
                .header(&target, "x-api-key")
                .environment("EXAMPLE_API_KEY", "placeholder"),
            sources::Static::new(KEY),
        )
        .resolve(HOST, api.ip())
        .trust(api.root_pem())
        .launch()
        .await?;
    let mut events = sandbox.events();
    println!(
        "{} takes commands after {:.1} s",
        sandbox.id(),
        started.elapsed().as_secs_f64()
    );

    heading("Real programs, on your directory");
    run(&sandbox, "uname -srm").await?;
    run(&sandbox, "git -c safe.directory='*' log --oneline | head -3").await?;
    run(
        &sandbox,
        "python3 -c \"import os; print(len(os.listdir('.')), 'entries in', os.getcwd())\"",
    )
    .await?;

    heading("What the agent cannot reach");
    run(&sandbox, "ls -A ~/.ssh; ls -A \"$(dirname \"$PWD\")\"").await?;
    run(&sandbox, "ps -e | wc -l; ls /sys/class/net").await?;
    run(
        &sandbox,
        "curl -sS --noproxy '*' --max-time 20 http://169.254.169.254/",
    )
    .await?;
    run(&sandbox, "env | grep -i key").await?;

    heading("A call with a key that the sandbox does not hold");
    run(
        &sandbox,
        &format!("curl -sS -w ' (HTTP %{{http_code}})\\n' https://{target}/v1/hello"),
    )
    .await?;
    run(
        &sandbox,
        &format!("curl -sS https://{target}/echo | grep -i x-api-key"),
    )
    .await?;
    let calls = api.seen();
    let arrived = calls
        .iter()
        .filter(|call| call.headers.get("x-api-key").is_some_and(|key| key == KEY))
        .count();
    println!(
        "the API got {} calls, {arrived} of them with the real key",
        calls.len()
    );

    heading("A call that is denied");
    run(&sandbox, "curl -sS --fail https://example.org/").await?;
    run(&sandbox, &format!("curl -sS --fail https://{HOST}:22/")).await?;

    sandbox.shutdown().await?;
    heading("The record");
    while let Ok(event) = events.try_recv() {
        let Event::Attempt(attempt) = event else { continue };
        let verdict = match attempt.decision {
            AuditDecision::Allowed => "allowed",
            AuditDecision::Denied => "DENIED ",
        };
        println!(
            "{verdict} {} {}:{}{}  rule: {:?}  credential: {}",
            attempt.method.as_deref().unwrap_or("-"),
            attempt.host.escape_debug(),
            attempt.port,
            attempt.path.as_deref().unwrap_or_default().escape_debug(),
            attempt.rule,
            attempt.credential.as_deref().unwrap_or("none"),
        );
    }
    println!(
        "\nThe sandbox is gone; nothing of it is left but what it wrote to {}.",
        workspace.display()
    );
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Runs a line as the agent would, and shows what it says, safe for a terminal.
async fn run(sandbox: &Sandbox, script: &str) -> Result<()> {
    println!("$ {script}");
    let started = Instant::now();
    let output = sandbox.command("sh").args(["-c", script]).output().await?;
    for line in output.text().lines() {
        println!("  {}", printable(line));
    }
    println!(
        "  (exit code {}, {:.1} s)",
        output.status.code(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The guest's words without what a terminal would obey.
fn printable(line: &str) -> String {
    let visible = |c: char| {
        if c.is_control() && c != '\t' {
            c.escape_default().collect()
        } else {
            c.to_string()
        }
    };
    line.chars().map(visible).collect()
}
