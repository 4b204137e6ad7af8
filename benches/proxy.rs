//! What the proxy costs, beside going there directly and beside other proxies that intercept: requests per second,
//! latency, throughput, processor time, memory. Also as a guest sees it.
//!
//! The program is the load. It starts itself as the upstream and as our proxy, and the rivals with the configurations
//! in `benches/rivals/`: everything that is measured is a process of its own on the second processor, load and
//! upstream share the first.

#[path = "support/report.rs"]
mod report;
#[path = "support/proxy/mod.rs"]
mod support;

use std::path::PathBuf;

use report::Report;
use support::load::Ports;
use support::subjects::{ALL, Run};
use support::{Result, cases, guest, idle, ours, process, upstream};
use tokio::runtime;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(role @ ("upstream" | "ours-tunnel" | "ours-intercept")) => serve(role, &arguments),
        // Whatever cargo says: there is one thing to do.
        _ => measure(),
    }
}

/// One of the processes that this program is, too: role, processor, directory, ports.
fn serve(role: &str, arguments: &[String]) -> Result<()> {
    let place = arguments.get(1).ok_or("no processor")?.parse()?;
    let directory = PathBuf::from(arguments.get(2).ok_or("no directory")?);
    let ports: Vec<u16> = arguments
        .iter()
        .skip(3)
        .map(|port| port.parse())
        .collect::<std::result::Result<_, _>>()?;
    // Before the runtime counts processors.
    let _stays = process::Placement::on(place)?;
    match (role, ports.as_slice()) {
        ("upstream", [h1, h2, stranger]) => runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(upstream::serve(
                &directory,
                Ports {
                    h1: *h1,
                    h2: *h2,
                    stranger: *stranger,
                },
            )),
        (_, [own, upstream @ ..]) => runtime::Runtime::new()?.block_on(ours::serve(
            &directory,
            *own,
            upstream,
            role == "ours-intercept",
        )),
        _ => Err("ports are missing".into()),
    }
}

fn measure() -> Result<()> {
    println!("{}", cases::machine());
    process::raise_descriptors();
    let mut report = Report::new("proxy");
    let placement = process::Placement::on(process::LOAD_CPU)?;
    let run = Run::start()?;
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(compare(&run, &mut report))?;
    placement.undo()?;
    if is_asked_for(ONLY_CASES, "guest") {
        let seen = runtime::Runtime::new()?.block_on(guest::from_inside(&run, &mut report));
        if let Err(error) = seen {
            println!("no figures from inside a guest: {error}");
        }
    }
    budgets(&mut report);
    report.finish();
    Ok(())
}

/// For profiling: only these subjects or cases, named with commas between them.
const ONLY_SUBJECTS: &str = "SANDBOX_BENCH_SUBJECTS";
const ONLY_CASES: &str = "SANDBOX_BENCH_CASES";

fn is_asked_for(variable: &str, name: &str) -> bool {
    std::env::var(variable).map_or(true, |names| names.split(',').any(|asked| asked == name))
}

async fn compare(run: &Run, report: &mut Report) -> Result<()> {
    let names: Vec<_> = ALL
        .into_iter()
        .filter(|name| is_asked_for(ONLY_SUBJECTS, name))
        .collect();
    let is_case = |name| is_asked_for(ONLY_CASES, name);
    let mut subjects = Vec::new();
    for name in &names {
        subjects.extend(run.subject(name)?);
    }
    cases::check(run, &subjects).await?;
    if is_case("small-h1") {
        cases::rates_h1(run, &subjects, report).await?;
    }
    if is_case("small-h2") {
        cases::rates_h2(run, &subjects, report).await?;
    }
    if is_case("latency-h1") {
        cases::latencies(run, &subjects, false, report).await?;
    }
    if is_case("latency-h2") {
        cases::latencies(run, &subjects, true, report).await?;
    }
    if is_case("download-h1") {
        cases::downloads(run, &subjects, false, report).await?;
    }
    if is_case("download-h2") {
        cases::downloads(run, &subjects, true, report).await?;
    }
    drop(subjects);
    if is_case("idle") {
        idle::tunnels(run, &names, report).await?;
    }
    Ok(())
}

/// A budget of the design: a subject's row against another's, or against a number.
struct Budget {
    subject: &'static str,
    case: &'static str,
    metric: &'static str,
    against: Option<&'static str>,
    bound: f64,
    is_most: bool,
}

const fn budget(
    subject: &'static str,
    (case, metric): (&'static str, &'static str),
    against: Option<&'static str>,
    (bound, is_most): (f64, bool),
) -> Budget {
    Budget {
        subject,
        case,
        metric,
        against,
        bound,
        is_most,
    }
}

const RATE: (&str, &str) = ("small-h1", "rate");
const BUDGETS: [Budget; 6] = [
    budget(
        "ours-tunnel",
        ("download-h1", "throughput"),
        Some("direct"),
        (0.9, false),
    ),
    budget("ours-intercept", RATE, Some("squid"), (1.5, false)),
    budget("ours-intercept", RATE, Some("hudsucker"), (1.2, false)),
    budget(
        "ours-intercept",
        ("latency-h1", "added p50"),
        Some("squid"),
        (0.5, true),
    ),
    budget(
        "ours-tunnel",
        ("idle-1000", "memory per tunnel"),
        None,
        (16.0, true),
    ),
    budget(
        "ours-tunnel",
        ("idle-8000", "memory per tunnel"),
        None,
        (16.0, true),
    ),
];

/// Says which budgets were kept.
fn budgets(report: &mut Report) {
    println!(
        "\n{:<16} {:<12} {:<18} {:<12} {:>8} {:>8}",
        "budget of", "case", "metric", "against", "bound", "is"
    );
    for budget in BUDGETS {
        let Some(own) = report.value(budget.subject, budget.case, budget.metric) else {
            continue;
        };
        let value = match budget.against {
            None => own,
            Some(other) => match report.value(other, budget.case, budget.metric) {
                Some(other) => own / other,
                None => continue,
            },
        };
        let is_kept = if budget.is_most {
            value <= budget.bound
        } else {
            value >= budget.bound
        };
        let sign = if budget.is_most { "<=" } else { ">=" };
        println!(
            "{:<16} {:<12} {:<18} {:<12} {sign}{:>6} {value:>8.2} {}",
            budget.subject,
            budget.case,
            budget.metric,
            budget.against.unwrap_or("KiB"),
            budget.bound,
            if is_kept { "kept" } else { "MISSED" }
        );
    }
}
