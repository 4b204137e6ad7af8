//! Memory: what a proxy's process grows by for tunnels in which nothing happens any more.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Result;
use super::load::{self, H1};
use super::process::descriptors;
use super::subjects::{Run, Subject};
use crate::report::Report;

/// How many tunnels, and the case's name.
const STEPS: [(usize, &str); 2] = [(1000, "idle-1000"), (8000, "idle-8000")];

/// Opened before anything is measured, so that what a process makes once is made.
const FIRST: usize = 50;

/// Opened at once.
const AT_ONCE: usize = 25;

/// For one subject: who is slower to open tunnels than this has no row.
const PATIENCE: Duration = Duration::from_secs(25);

/// Until buffers are given back and threads are done.
const SETTLE: Duration = Duration::from_millis(500);

/// The load's own buffer for such a connection.
const BUFFER: usize = 1 << 10;

/// Descriptors per tunnel: one to each side, and as many again are what our proxy leaves to others.
const DESCRIPTORS: u64 = 4;

/// Opens tunnels through fresh processes of each subject; in each one request is answered, then it stays open.
pub async fn tunnels(run: &Run, names: &[&'static str], report: &mut Report) -> Result<()> {
    let most = STEPS.iter().map(|(count, _)| *count).max().unwrap_or(0);
    // A process may not open as many files everywhere: then some share the tunnels.
    let each = usize::try_from(descriptors() / DESCRIPTORS).unwrap_or(most);
    let processes = most.div_ceil(each.max(1));
    if processes > 1 {
        println!(
            "{most} idle tunnels are spread over {processes} processes of each subject: one may open {} files here",
            descriptors()
        );
    }
    for name in names.iter().filter(|name| **name != "direct") {
        let mut subjects = Vec::new();
        for _ in 0..processes {
            subjects.extend(run.subject(name)?);
        }
        if subjects.is_empty() {
            continue;
        }
        // One that leaves a request without an answer must not hold up the run.
        match tokio::time::timeout(2 * PATIENCE, grow(run, &subjects, report)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => println!("{name}: no more idle tunnels: {error}"),
            Err(_) => println!("{name}: no more idle tunnels: it stopped to answer"),
        }
    }
    Ok(())
}

async fn grow(run: &Run, subjects: &[Subject], report: &mut Report) -> Result<()> {
    let started = Instant::now();
    let mut held = Vec::new();
    for subject in subjects {
        open(run, subject, FIRST, &mut held).await?;
    }
    let before = resident(subjects).await?;
    let first = held.len();
    for (count, case) in STEPS {
        let mut turns = subjects.iter().cycle();
        while held.len() < first + count {
            if started.elapsed() > PATIENCE {
                return Err(format!("only {} opened in {} s", held.len(), PATIENCE.as_secs()).into());
            }
            let next = (first + count - held.len()).min(AT_ONCE);
            if let Some(subject) = turns.next() {
                open(run, subject, next, &mut held).await?;
            }
        }
        let grown = resident(subjects).await?.saturating_sub(before);
        let name = subjects.first().map_or("", |subject| subject.name);
        report.add(
            name,
            case,
            "memory per tunnel",
            "KiB",
            grown as f64 / count as f64,
        );
    }
    Ok(())
}

/// What all of them hold once they are done.
async fn resident(subjects: &[Subject]) -> Result<u64> {
    tokio::time::sleep(SETTLE).await;
    subjects.iter().map(Subject::resident_kib).sum()
}

async fn open(run: &Run, subject: &Subject, count: usize, held: &mut Vec<H1>) -> Result<()> {
    let mut opening = JoinSet::new();
    for _ in 0..count {
        let (way, port) = (subject.way.clone(), run.upstream.h1);
        opening.spawn(async move {
            let mut connection = H1::open_with(&way, port, BUFFER).await?;
            let request = connection.request("/small");
            connection.get(&request, &mut load::buffer()).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(connection)
        });
        if opening.len() == AT_ONCE
            && let Some(opened) = opening.join_next().await
        {
            held.push(opened??);
        }
    }
    while let Some(opened) = opening.join_next().await {
        held.push(opened??);
    }
    Ok(())
}
