//! Sums of a log for its report. Everything that a log names is hostile: each table has a bound, and what does not fit is
//! summed up.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::SystemTime;

use sandbox_core::audit::{AuditDecision, AuditEvent};

use crate::audit::chain::{Body, Note, presentable};
use crate::audit::totals::Totals;
use crate::defence::holds;

/// Rows of the table of hosts: those that were reached, and as many that were only asked for. Apart, so that a guest
/// that asks for ever new names hides none that it reached.
const HOSTS: usize = 500;
/// Rows of the other tables: bound the page's size and what a browser bears.
const DENIALS: usize = 200;
const NAMES: usize = 100;
const LATEST: usize = 500;
const NOTES: usize = 100;
/// Rules and credentials that are named in the row of one host.
const NAMED: usize = 4;
/// Bars of the timeline.
const BARS: u64 = 96;
/// How long a bar is, in milliseconds: the first of these with which all fit.
const STEPS: [u64; 21] = [
    100,
    250,
    500,
    SECOND,
    2 * SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    7 * DAY,
    30 * DAY,
];
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// From the first attempt to the last, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    times: Option<(u64, u64)>,
}

/// Sums over attempts that have something in common.
#[derive(Debug, Clone, Default)]
pub(super) struct Sum {
    pub(super) totals: Totals,
    /// Allowed, and then something went wrong.
    pub(super) failed: u64,
    pub(super) rules: BTreeSet<String>,
    pub(super) credentials: BTreeSet<String>,
    pub(super) last: u64,
}

/// One bar of the timeline.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bar {
    pub(super) allowed: u64,
    pub(super) denied: u64,
}

/// What is not told one by one.
#[derive(Debug, Default)]
pub(super) struct Table<K> {
    pub(super) rows: HashMap<K, Sum>,
    bound: usize,
    /// All that found no place.
    pub(super) rest: Sum,
    /// Whether there were any.
    pub(super) is_over: bool,
}

/// What a denial has in common with others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Denial {
    pub(super) target: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) rule: String,
    pub(super) outcome: String,
}

/// All that a report shows.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) sum: Sum,
    /// Lines that say something that this version does not know, or nothing.
    pub(super) unknown: u64,
    /// Time of the first bar's start, a bar's length, and the bars.
    pub(super) start: u64,
    pub(super) step: u64,
    pub(super) bars: Vec<Bar>,
    pub(super) span: Option<(u64, u64)>,
    pub(super) reached: Table<String>,
    pub(super) refused: Table<String>,
    pub(super) denials: Table<Denial>,
    pub(super) rules: Table<String>,
    pub(super) credentials: Table<String>,
    pub(super) sandboxes: Table<String>,
    pub(super) latest: VecDeque<AuditEvent>,
    pub(super) notes: VecDeque<Note>,
}

impl Span {
    pub(super) fn take(&mut self, body: Body) {
        if let Body::Event(event) = body {
            let time = millis(event.time);
            let (first, last) = self.times.unwrap_or((time, time));
            self.times = Some((first.min(time), last.max(time)));
        }
    }
}

impl Gathered {
    pub(super) fn new(span: Span) -> Self {
        let (first, last) = span.times.unwrap_or_default();
        let fits = |step: &&u64| last / **step - first / **step < BARS;
        // A log with times that are centuries apart gets bars that are, too.
        let step = STEPS
            .iter()
            .find(fits)
            .copied()
            .unwrap_or((last - first) / (BARS - 1) + 1);
        let count = if span.times.is_some() {
            last / step - first / step + 1
        } else {
            0
        };
        Self {
            sum: Sum::default(),
            unknown: 0,
            start: first / step * step,
            step,
            bars: vec![Bar::default(); usize::try_from(count).unwrap_or(0)],
            span: span.times,
            reached: Table::new(HOSTS),
            refused: Table::new(HOSTS),
            denials: Table::new(DENIALS),
            rules: Table::new(NAMES),
            credentials: Table::new(NAMES),
            sandboxes: Table::new(NAMES),
            latest: VecDeque::new(),
            notes: VecDeque::new(),
        }
    }

    pub(super) fn take(&mut self, body: Body) {
        match body {
            Body::Event(event) => self.attempt(presentable(&event).into_owned()),
            Body::Note(Note::File { .. }) => {}
            Body::Note(note) => keep(&mut self.notes, note, NOTES),
            Body::Unknown => self.unknown += 1,
        }
    }

    fn attempt(&mut self, event: AuditEvent) {
        self.sum.add(&event);
        let bar = millis(event.time).saturating_sub(self.start) / self.step.max(1);
        let bar = usize::try_from(bar)
            .unwrap_or(usize::MAX)
            .min(self.bars.len().saturating_sub(1));
        // Before the first, or after the last: written since the log was read first.
        if let Some(bar) = self.bars.get_mut(bar) {
            match event.decision {
                AuditDecision::Allowed => bar.allowed = bar.allowed.saturating_add(event.attempts),
                AuditDecision::Denied => bar.denied = bar.denied.saturating_add(event.attempts),
            }
        }
        let host = target(&event);
        match event.decision {
            AuditDecision::Allowed => self.reached.add(host, &event),
            AuditDecision::Denied => {
                self.refused.add(host.clone(), &event);
                let denial = Denial {
                    target: host,
                    method: event.method.clone().unwrap_or_default(),
                    path: event.path.clone().unwrap_or_default(),
                    rule: event.rule.clone(),
                    outcome: event.outcome.clone(),
                };
                self.denials.add(denial, &event);
            }
        }
        self.rules.add(event.rule.clone(), &event);
        if let Some(credential) = &event.credential {
            self.credentials.add(credential.clone(), &event);
        }
        self.sandboxes.add(event.sandbox.to_string(), &event);
        keep(&mut self.latest, event, LATEST);
    }
}

impl<K: std::hash::Hash + Eq + Ord + Clone> Table<K> {
    fn new(bound: usize) -> Self {
        Self {
            rows: HashMap::new(),
            bound,
            rest: Sum::default(),
            is_over: false,
        }
    }

    fn add(&mut self, key: K, event: &AuditEvent) {
        if let Some(row) = self.rows.get_mut(&key) {
            row.add(event);
        } else if self.rows.len() < self.bound || !holds("audit-report-bounded") {
            self.rows.entry(key).or_default().add(event);
        } else {
            self.is_over = true;
            self.rest.add(event);
        }
    }

    /// Those with most attempts first.
    pub(super) fn sorted(&self) -> Vec<(&K, &Sum)> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by(|(key, sum), (other_key, other)| {
            let by_count = other.totals.attempts().cmp(&sum.totals.attempts());
            by_count.then_with(|| key.cmp(other_key))
        });
        rows
    }
}

impl Sum {
    fn add(&mut self, event: &AuditEvent) {
        self.totals.add(event);
        if is_failure(event) {
            self.failed = self.failed.saturating_add(event.attempts);
        }
        self.last = self.last.max(millis(event.time));
        if self.rules.len() < NAMED && !event.rule.is_empty() && !self.rules.contains(&event.rule) {
            self.rules.insert(event.rule.clone());
        }
        if let Some(credential) = &event.credential
            && self.credentials.len() < NAMED
            && !self.credentials.contains(credential)
        {
            self.credentials.insert(credential.clone());
        }
    }
}

/// Whether something went wrong after it was allowed.
pub(super) fn is_failure(event: &AuditEvent) -> bool {
    event.decision == AuditDecision::Allowed
        && (!event.outcome.is_empty() || event.status.is_some_and(|status| status >= 400))
}

pub(super) fn target(event: &AuditEvent) -> String {
    match (event.host.as_str(), event.port) {
        ("", 0) => String::new(),
        (host, 0) => host.to_owned(),
        (host, port) => format!("{host}:{port}"),
    }
}

pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn keep<T>(ring: &mut VecDeque<T>, item: T, bound: usize) {
    if ring.len() >= bound {
        ring.pop_front();
    }
    ring.push_back(item);
}
