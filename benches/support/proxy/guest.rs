//! The proxy as programs in a guest see it: curl to the same upstream, through the machine's streams.

use std::net::Ipv4Addr;

use sandbox::{Rules, Sandbox, Service, Size, sources};

use super::cases::median;
use super::subjects::Run;
use super::{HOST, KEY, Result};
use crate::report::Report;

/// Case, metric, unit, path, and what curl says of it.
const CASES: [(&str, &str, &str, &str, &str); 2] = [
    (
        "guest-small",
        "latency",
        "ms",
        "/small?[1-21]",
        "%{time_total}\\n",
    ),
    (
        "guest-download",
        "throughput",
        "MB/s",
        "/bytes/8388608",
        "%{speed_download}\\n",
    ),
];

/// Boots a guest for a tunnel and one for interception.
pub async fn from_inside(run: &Run, report: &mut Report) -> Result<()> {
    let workspace = tempfile::tempdir()?;
    let target = format!("{HOST}:{}", run.upstream.h1);
    for (subject, intercept) in [("ours-tunnel", false), ("ours-intercept", true)] {
        let mut builder = Sandbox::builder()
            .workspace(workspace.path())
            .memory(Size::mib(256))
            .policy(Rules::locked_down().allow(&format!("{target} special-ranges")))
            .resolve(HOST, Ipv4Addr::LOCALHOST.into())
            .trust(run.upstream_root()?);
        if intercept {
            let service = Service::custom("bench").header(&target, "x-api-key");
            builder = builder.credential(service, sources::Static::new(KEY));
        }
        let sandbox = builder.launch().await?;
        let header = format!("x-api-key: {}", if intercept { "guest" } else { KEY });
        for (case, metric, unit, path, write_out) in CASES {
            let url = format!("https://{target}{path}");
            // -k: a tunnelled guest does not know the upstream's root, and checks nothing less for the rest.
            let curl = ["-sk", "-H", &header, "-o", "/dev/null", "-w", write_out, &url];
            let output = sandbox.command("curl").args(curl).output().await?;
            let text = output.text();
            let mut values: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
            // The first of several opens the connection.
            if values.len() > 1 {
                values.remove(0);
            }
            let value = match unit {
                "ms" => median(values) * 1e3,
                _ => median(values) / 1e6,
            };
            report.add(subject, case, metric, unit, value);
        }
        sandbox.kill().await;
    }
    Ok(())
}
