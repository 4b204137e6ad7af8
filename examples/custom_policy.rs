//! A policy of your own: office hours for one host, a person asked for another, everything else denied.

use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use sandbox::core::policy::{Approval, Approver, Attempt, Decision, Policy, Question};
use sandbox::{Event, Sandbox, Size};
use stand_in::StandIn;

/// Lets `target` through between two hours (UTC), and asks about `ask`.
#[derive(Debug)]
struct OfficeHours {
    open: std::ops::Range<u64>,
    target: (String, u16),
    ask: String,
}

impl Policy for OfficeHours {
    fn decide(&self, attempt: &Attempt<'_>) -> Decision<'_> {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        let hour = seconds / 3600 % 24;
        match attempt.host.name().map(|name| name.as_str()) {
            // The stand-in lives on loopback, which has to be permitted expressly.
            Some(name) if (name, attempt.port) == (self.target.0.as_str(), self.target.1) => {
                if self.open.contains(&hour) {
                    Decision::allow("office hours").permitting_special_ranges()
                } else {
                    Decision::deny("outside office hours")
                }
            }
            Some(name) if name == self.ask => Decision::ask("somebody has to say yes"),
            _ => Decision::deny("not on the list"),
        }
    }
}

/// Stands in for a person at a dialogue.
#[derive(Debug)]
struct SaysNo;

#[async_trait]
impl Approver for SaysNo {
    async fn approve(&self, question: Question) -> Approval {
        println!("asked about {}:{}, said no", question.host, question.port);
        Approval::deny().for_target()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let workspace = tempfile::tempdir()?;
    let api = StandIn::start("api.example.com", "").await?;
    let policy = OfficeHours {
        open: 0..24,
        target: ("api.example.com".into(), api.port()),
        ask: "ask.example.com".into(),
    };
    let sandbox = Sandbox::builder()
        .workspace(workspace.path())
        .memory(Size::mib(256))
        .policy(policy)
        .approver(SaysNo)
        .resolve("api.example.com", api.ip())
        .launch()
        .await?;
    let mut events = sandbox.events();
    let open = format!("https://api.example.com:{}/bytes/5", api.port());
    for url in [
        open.as_str(),
        "https://ask.example.com/",
        "https://other.example.com/",
    ] {
        // -k: without a credential the tunnel is opaque, and the guest does not know the stand-in's root.
        let output = sandbox
            .command("curl")
            .args(["-skS", "-o", "/dev/null", "-w", "HTTP %{http_code}\n", url])
            .output()
            .await?;
        println!("{url}\n{}(exit code {})\n", output.text(), output.status.code());
    }
    sandbox.shutdown().await?;
    while let Ok(event) = events.try_recv() {
        if let Event::Attempt(attempt) = event {
            println!(
                "{:?} {} by rule {:?}",
                attempt.decision, attempt.host, attempt.rule
            );
        }
    }
    Ok(())
}
