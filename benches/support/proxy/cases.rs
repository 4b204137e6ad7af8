//! Rates, latencies and throughput. Subjects take turns, several times, and medians over the turns are kept: what
//! disturbs the machine for a while disturbs all.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::load::{self, H1, H2};
use super::subjects::{Run, Subject};
use super::{Result, process};
use crate::report::Report;

/// Connections over HTTP/1.1, and over HTTP/2 with streams on each.
const H1_CONNECTIONS: usize = 32;
const H2_CONNECTIONS: usize = 4;
const H2_STREAMS: usize = 8;

/// Turns of each subject, and how long a turn is.
const TURNS: usize = 5;
const RATE_TIME: Duration = Duration::from_millis(1500);
const LATENCY_TIME: Duration = Duration::from_millis(1000);
const WARM_TIME: Duration = Duration::from_millis(500);

/// A download, and how many there are at most.
const DOWNLOAD: u64 = 1 << 30;
const DOWNLOADS: usize = 3;
/// A subject that takes longer than this for one download is not asked again.
const SLOW_DOWNLOAD: Duration = Duration::from_secs(6);

/// What the turns of each subject gave.
#[derive(Default)]
struct Turns(HashMap<(&'static str, &'static str), Vec<f64>>);

impl Turns {
    fn add(&mut self, subject: &Subject, metric: &'static str, value: f64) {
        self.0.entry((subject.name, metric)).or_default().push(value);
    }

    fn median(&self, subject: &str, metric: &'static str) -> Option<f64> {
        self.0
            .iter()
            .find(|((name, what), _)| *name == subject && *what == metric)
            .map(|(_, values)| median(values.clone()))
    }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Sees that everybody answers, and that nobody takes a certificate of a stranger for upstream's.
pub async fn check(run: &Run, subjects: &[Subject]) -> Result<()> {
    for subject in subjects {
        small(subject, run.upstream.h1).await?;
        if small(subject, run.upstream.stranger).await.is_ok() {
            return Err(format!("{} does not check upstream's certificate", subject.name).into());
        }
    }
    Ok(())
}

async fn small(subject: &Subject, port: u16) -> Result<u64> {
    let mut connection = H1::open(&subject.way, port).await?;
    let request = connection.request("/small");
    connection.get(&request, &mut load::buffer()).await
}

/// Small requests on many connections at once.
pub async fn rates_h1(run: &Run, subjects: &[Subject], report: &mut Report) -> Result<()> {
    let mut connections = Vec::new();
    for subject in subjects {
        let mut own = Vec::new();
        for _ in 0..H1_CONNECTIONS {
            own.push(H1::open(&subject.way, run.upstream.h1).await?);
        }
        load::hammer_h1(&mut own, WARM_TIME).await?;
        connections.push(own);
    }
    let mut turns = Turns::default();
    for _ in 0..TURNS {
        for (subject, own) in subjects.iter().zip(&mut connections) {
            let before = subject.cpu_seconds()?;
            let (count, time) = load::hammer_h1(own, RATE_TIME).await?;
            rate(&mut turns, subject, count, time, before)?;
        }
    }
    report_rates(&turns, subjects, "small-h1", report);
    Ok(())
}

/// The same with many streams on some connections.
pub async fn rates_h2(run: &Run, subjects: &[Subject], report: &mut Report) -> Result<()> {
    let mut connections = Vec::new();
    for subject in subjects.iter().filter(|subject| subject.speaks_h2) {
        let mut own = Vec::new();
        for _ in 0..H2_CONNECTIONS {
            own.push(H2::open(&subject.way, run.upstream.h2).await?);
        }
        load::hammer_h2(&own, H2_STREAMS, WARM_TIME).await?;
        connections.push((subject, own));
    }
    let mut turns = Turns::default();
    for _ in 0..TURNS {
        for (subject, own) in &connections {
            let before = subject.cpu_seconds()?;
            let (count, time) = load::hammer_h2(own, H2_STREAMS, RATE_TIME).await?;
            rate(&mut turns, subject, count, time, before)?;
        }
    }
    report_rates(&turns, subjects, "small-h2", report);
    Ok(())
}

fn rate(turns: &mut Turns, subject: &Subject, count: u64, time: Duration, before: f64) -> Result<()> {
    turns.add(subject, "rate", count as f64 / time.as_secs_f64());
    let used = subject.cpu_seconds()? - before;
    turns.add(subject, "cpu", used * 1e6 / count.max(1) as f64);
    Ok(())
}

fn report_rates(turns: &Turns, subjects: &[Subject], case: &str, report: &mut Report) {
    for subject in subjects {
        if let Some(rate) = turns.median(subject.name, "rate") {
            report.add(subject.name, case, "rate", "requests/s", rate);
        }
        if let Some(cpu) = turns
            .median(subject.name, "cpu")
            .filter(|_| subject.pid().is_some())
        {
            report.add(subject.name, case, "cpu per request", "us", cpu);
        }
    }
}

/// A connection on which one request follows another.
enum Single {
    H1(Box<H1>),
    H2(H2),
}

impl Single {
    async fn open(run: &Run, subject: &Subject, h2: bool) -> Result<Self> {
        Ok(if h2 {
            Self::H2(H2::open(&subject.way, run.upstream.h2).await?)
        } else {
            Self::H1(Box::new(H1::open(&subject.way, run.upstream.h1).await?))
        })
    }

    /// How long each request took, in seconds.
    async fn one_by_one(&mut self, time: Duration) -> Result<Vec<f64>> {
        match self {
            Self::H1(connection) => load::one_by_one(connection, time).await,
            Self::H2(connection) => load::one_by_one_h2(connection, time).await,
        }
    }
}

/// Small requests one after another on one connection, over HTTP/1.1 or HTTP/2, and what is added to going there
/// directly.
pub async fn latencies(run: &Run, subjects: &[Subject], h2: bool, report: &mut Report) -> Result<()> {
    let mut connections = Vec::new();
    for subject in subjects.iter().filter(|subject| subject.speaks_h2 || !h2) {
        let mut connection = Single::open(run, subject, h2).await?;
        connection.one_by_one(WARM_TIME).await?;
        connections.push((subject, connection));
    }
    let mut turns = Turns::default();
    for _ in 0..TURNS {
        let mut direct = HashMap::new();
        for (subject, connection) in &mut connections {
            let mut all = connection.one_by_one(LATENCY_TIME).await?;
            all.sort_by(f64::total_cmp);
            for (percent, metric, added) in [(50, "p50", "added p50"), (99, "p99", "added p99")] {
                let value = all.get(all.len() * percent / 100).copied().unwrap_or(f64::NAN) * 1e3;
                turns.add(subject, metric, value);
                let least = *direct.entry(metric).or_insert(value);
                if subject.pid().is_some() {
                    turns.add(subject, added, value - least);
                }
            }
        }
    }
    let case = if h2 { "latency-h2" } else { "latency-h1" };
    for subject in subjects {
        for metric in ["p50", "p99", "added p50", "added p99"] {
            if let Some(value) = turns.median(subject.name, metric) {
                report.add(subject.name, case, metric, "ms", value);
            }
        }
    }
    Ok(())
}

/// A gibibyte in one response, over HTTP/1.1 or HTTP/2.
pub async fn downloads(run: &Run, subjects: &[Subject], h2: bool, report: &mut Report) -> Result<()> {
    let path = format!("/bytes/{DOWNLOAD}");
    let mut turns = Turns::default();
    let mut slow = Vec::new();
    for _ in 0..DOWNLOADS {
        for subject in subjects {
            if slow.contains(&subject.name) || (h2 && !subject.speaks_h2) {
                continue;
            }
            let before = subject.cpu_seconds()?;
            let started = Instant::now();
            let length = if h2 {
                H2::open(&subject.way, run.upstream.h2).await?.get(&path).await?
            } else {
                let mut connection = H1::open(&subject.way, run.upstream.h1).await?;
                let request = connection.request(&path);
                connection.get(&request, &mut load::buffer()).await?
            };
            let time = started.elapsed();
            if length != DOWNLOAD {
                return Err(format!("{} cut a download to {length} bytes", subject.name).into());
            }
            turns.add(subject, "speed", length as f64 / 1e6 / time.as_secs_f64());
            turns.add(subject, "cpu", subject.cpu_seconds()? - before);
            if time > SLOW_DOWNLOAD {
                slow.push(subject.name);
            }
        }
    }
    let case = if h2 { "download-h2" } else { "download-h1" };
    for subject in subjects {
        if let Some(speed) = turns.median(subject.name, "speed") {
            report.add(subject.name, case, "throughput", "MB/s", speed);
        }
        if let Some(cpu) = turns
            .median(subject.name, "cpu")
            .filter(|_| subject.pid().is_some())
        {
            report.add(subject.name, case, "cpu per GiB", "s", cpu);
        }
    }
    Ok(())
}

/// The machine, in a line.
pub fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    format!(
        "{model}; load and upstream on processor {}, subjects on {}",
        process::LOAD_CPU,
        process::subject_cpu()
    )
}
