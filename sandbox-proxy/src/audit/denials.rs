//! Puts denials of the same kind together, so that a guest that asks for what it may not have, over and over, writes
//! no endless log. Takes events and the time, gives the events to write; owns no clock and no timer.
//!
//! Up to [`ONE_BY_ONE`] denials in a [`WINDOW`] each have an event of their own. Beyond that, the first of a kind is told
//! at once, and those that follow within a window are counted, and told as one event when it ends. No attempt is left
//! uncounted.

use std::collections::HashMap;
use std::time::Duration;

use sandbox_core::audit::{AuditEvent, AuditKind};
use tokio::time::Instant;

/// How long denials of a kind are put together.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Denials in a window that are told one by one: more than an agent at work has, and a log that a disk bears.
const ONE_BY_ONE: u32 = 250;
/// Kinds that are told apart at a time. Protects the log from a guest that asks for ever new names: what is beyond
/// it is told apart by rule and status alone.
const MAX_KINDS: usize = 256;
/// The same for rules, which a policy of one's own can make up as it goes.
const MAX_RULES: usize = 64;

/// The outcome of events that stand for denials of many kinds.
const MANY_KINDS: &str = "denials of many targets, more than are told one by one";

/// What was denied lately.
#[derive(Debug, Default)]
pub(super) struct Denials {
    /// When the window began in which this many were told one by one.
    one_by_one: Option<(Instant, u32)>,
    kinds: HashMap<Kind, Window>,
    rules: HashMap<Kind, Window>,
}

/// What denials have in common that are put together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    kind: AuditKind,
    host: String,
    port: u16,
    method: Option<String>,
    path: Option<String>,
    rule: String,
    outcome: String,
    status: Option<u16>,
}

/// One kind's time.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// Those after the first.
    counted: Option<Counted>,
}

#[derive(Debug)]
struct Counted {
    event: AuditEvent,
    started: Instant,
}

impl Denials {
    /// Takes a denial; gives it back if it is to be written now.
    pub(super) fn take(&mut self, event: AuditEvent, now: Instant) -> Option<AuditEvent> {
        match &mut self.one_by_one {
            Some((since, told)) if now.duration_since(*since) < WINDOW => {
                if *told < ONE_BY_ONE {
                    *told += 1;
                    return Some(event);
                }
            }
            over => {
                *over = Some((now, 1));
                return Some(event);
            }
        }
        let kind = Kind::of(&event);
        if let Some(window) = self.kinds.get_mut(&kind) {
            window.count(event, now);
            return None;
        }
        if self.kinds.len() < MAX_KINDS {
            self.kinds.insert(kind, Window::new(now));
            return Some(event);
        }
        let event = of_many_kinds(event, self.rules.len() < MAX_RULES);
        match self.rules.get_mut(&Kind::of(&event)) {
            Some(window) => {
                window.count(event, now);
                None
            }
            // One more than the limit, for all rules that are not told apart.
            None => {
                self.rules.insert(Kind::of(&event), Window::new(now));
                Some(event)
            }
        }
    }

    /// What was counted in windows that have ended. A kind that went on gets another window, others are forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<AuditEvent> {
        let mut due = Vec::new();
        for windows in [&mut self.kinds, &mut self.rules] {
            windows.retain(|_, window| {
                if now.duration_since(window.since) < WINDOW {
                    return true;
                }
                let counted = window.counted.take();
                window.since = now;
                let goes_on = counted.is_some();
                due.extend(counted.map(|counted| counted.event));
                goes_on
            });
        }
        due
    }

    /// Everything that was counted: nothing will come any more.
    pub(super) fn drain(&mut self) -> Vec<AuditEvent> {
        let windows = self.kinds.drain().chain(self.rules.drain());
        windows
            .filter_map(|(_, window)| Some(window.counted?.event))
            .collect()
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.rules.is_empty()
    }
}

impl Kind {
    fn of(event: &AuditEvent) -> Self {
        Self {
            kind: event.kind,
            host: event.host.clone(),
            port: event.port,
            method: event.method.clone(),
            path: event.path.clone(),
            rule: event.rule.clone(),
            outcome: event.outcome.clone(),
            status: event.status,
        }
    }
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            counted: None,
        }
    }

    fn count(&mut self, event: AuditEvent, now: Instant) {
        match &mut self.counted {
            None => {
                let started = now.checked_sub(event.duration).unwrap_or(now);
                self.counted = Some(Counted { event, started });
            }
            Some(counted) => {
                let all = &mut counted.event;
                all.attempts = all.attempts.saturating_add(event.attempts);
                all.bytes_out = all.bytes_out.saturating_add(event.bytes_out);
                all.bytes_in = all.bytes_in.saturating_add(event.bytes_in);
                all.duration = now.duration_since(counted.started);
            }
        }
    }
}

/// What is left of a denial that is put together with those of other targets.
fn of_many_kinds(event: AuditEvent, by_rule: bool) -> AuditEvent {
    AuditEvent {
        kind: AuditKind::Stream,
        host: String::new(),
        port: 0,
        method: None,
        path: None,
        credential_reason: None,
        rule: if by_rule { event.rule } else { String::new() },
        outcome: MANY_KINDS.to_owned(),
        ..event
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use sandbox_core::audit::AuditDecision;

    use super::*;

    fn denial(host: &str) -> AuditEvent {
        AuditEvent {
            time: SystemTime::now(),
            sandbox: "one".parse().unwrap(),
            kind: AuditKind::Tunnel,
            host: host.to_owned(),
            port: 443,
            method: Some("CONNECT".to_owned()),
            path: None,
            decision: AuditDecision::Denied,
            rule: "default".to_owned(),
            credential: None,
            credential_reason: None,
            status: Some(403),
            bytes_out: 1,
            bytes_in: 0,
            duration: Duration::ZERO,
            outcome: "denied".to_owned(),
            attempts: 1,
        }
    }

    /// As after so many denials that no more are told one by one.
    fn after_many(now: Instant) -> Denials {
        let mut denials = Denials::default();
        for _ in 0..ONE_BY_ONE {
            assert!(denials.take(denial("many.test"), now).is_some());
        }
        denials
    }

    #[test]
    fn each_is_told_until_there_are_many_and_again_in_the_next_window() {
        let start = Instant::now();
        let mut denials = after_many(start);
        assert!(denials.is_empty());
        assert!(
            denials.take(denial("many.test"), start).is_some(),
            "the first of its kind"
        );
        assert!(denials.take(denial("many.test"), start).is_none());
        assert_eq!(denials.due(start + WINDOW).len(), 1);
        assert!(denials.take(denial("many.test"), start + WINDOW).is_some());
        assert!(denials.take(denial("many.test"), start + WINDOW).is_some());
    }

    #[test]
    fn first_of_each_kind_is_told_at_once_and_the_rest_as_one() {
        let start = Instant::now();
        let mut denials = after_many(start);
        assert!(denials.take(denial("a.test"), start).is_some());
        assert!(denials.take(denial("b.test"), start).is_some());
        for second in 1..=9 {
            let at = start + Duration::from_secs(second);
            assert!(denials.take(denial("a.test"), at).is_none());
            assert!(denials.due(at).is_empty());
        }
        let due = denials.due(start + WINDOW);
        assert_eq!(due.len(), 1);
        let event = &due[0];
        assert_eq!(
            (event.host.as_str(), event.attempts, event.bytes_out),
            ("a.test", 9, 9)
        );
        assert_eq!(event.duration, Duration::from_secs(8));
        // It went on, so the next is not the first once there are many again; the other kind is new.
        for _ in 0..ONE_BY_ONE {
            assert!(denials.take(denial("many.test"), start + WINDOW).is_some());
        }
        assert!(denials.take(denial("a.test"), start + WINDOW).is_none());
        assert!(denials.take(denial("b.test"), start + WINDOW).is_some());
        assert_eq!(denials.drain().len(), 1);
        assert!(denials.is_empty());
    }

    #[test]
    fn kinds_without_end_are_told_by_rule_and_none_is_lost() {
        let now = Instant::now();
        let mut denials = after_many(now);
        let mut told = Vec::new();
        for index in 0..10_000 {
            let mut event = denial(&format!("n{index}.test"));
            event.rule = format!("rule {}", index % 100);
            told.extend(denials.take(event, now));
        }
        assert!(told.len() <= MAX_KINDS + MAX_RULES + 1, "{}", told.len());
        told.extend(denials.due(now + WINDOW));
        assert!(told.len() <= 2 * (MAX_KINDS + MAX_RULES + 1), "{}", told.len());
        assert_eq!(told.iter().map(|event| event.attempts).sum::<u64>(), 10_000);
        assert!(told.iter().any(|event| event.host == "n255.test"));
    }
}
