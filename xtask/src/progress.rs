//! Shows long work: one moving line on a terminal, a line now and then in a log.

use std::{
    cell::RefCell,
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use sandbox_artifacts::build::Progress;

/// In a log: how often a line says that work goes on. CI systems stop jobs that are silent for minutes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Longest part of a program's output line that is shown.
const SHOWN: usize = 90;

/// Progress on standard error.
pub(crate) struct Terminal {
    now: RefCell<State>,
}

struct State {
    bar: Option<ProgressBar>,
    begun: Instant,
    shown: Instant,
    lines: u64,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            now: RefCell::new(State {
                bar: None,
                begun: now,
                shown: now,
                lines: 0,
            }),
        }
    }
}

impl Progress for Terminal {
    fn begin(&self, what: &str) {
        let mut now = self.now.borrow_mut();
        (now.begun, now.shown, now.lines) = (Instant::now(), Instant::now(), 0);
        if stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            now.bar = Some(bar);
        } else {
            eprintln!("{what} ...");
        }
    }

    fn line(&self, line: &str) {
        let mut now = self.now.borrow_mut();
        now.lines += 1;
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let line: String = line.chars().map(printable).take(SHOWN).collect();
        if let Some(bar) = &now.bar {
            bar.set_message(line);
        } else if now.shown.elapsed() >= SIGN_OF_LIFE {
            now.shown = Instant::now();
            eprintln!(
                "  {:>4} s, {} lines: {line}",
                now.begun.elapsed().as_secs(),
                now.lines
            );
        }
    }

    fn done(&self, what: &str) {
        let mut now = self.now.borrow_mut();
        if let Some(bar) = now.bar.take() {
            bar.finish_and_clear();
        }
        eprintln!("{what}: done in {} s", now.begun.elapsed().as_secs());
    }
}
