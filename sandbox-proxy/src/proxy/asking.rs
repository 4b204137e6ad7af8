//! Questions to the approver: one for all attempts that ask the same, a bounded number of them, each for a bounded
//! time, and answers that are remembered where the approver says so. Whatever goes wrong is a no.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sandbox_core::policy::{Approver, Holds, Question};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::defence;

/// Questions of one sandbox that are open at the same time. Protects whoever answers: a guest can ask for as many
/// names as it can think of.
const MAX_OPEN: usize = 32;
/// Remembered answers of one sandbox; further ones hold once. Bounds memory where paths are asked about.
const MAX_REMEMBERED: usize = 4096;
/// Method and path of a question whose answer is remembered, in bytes; that to a longer one holds once. Bounds the same
/// memory: a head may be 32 times as long.
const MAX_REMEMBERED_BYTES: usize = 2 << 10;

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Yes,
    No,
    /// There is no approver.
    NobodyThere,
    TooLate,
    /// The approver panicked.
    Failed,
    /// Too many other questions are open.
    TooMany,
}

/// The questions of one sandbox.
pub(super) struct Asking {
    approver: Option<Arc<dyn Approver>>,
    limit: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: HashMap<Question, Weak<Open>>,
    /// Answers, by what they hold for: a question of [`Holds::Target`] has no request.
    remembered: HashMap<(Holds, Question), bool>,
}

/// A question that somebody waits for. Gone with the last who does, and the approver's work with it.
struct Open {
    answer: watch::Receiver<Option<Told>>,
    deadline: Instant,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asking {
    pub(super) fn new(approver: Option<Arc<dyn Approver>>, limit: Duration) -> Self {
        Self {
            approver,
            limit,
            state: Arc::default(),
        }
    }

    /// Asks, unless the answer is known. Needs a tokio runtime.
    pub(super) async fn ask(&self, question: Question) -> Told {
        let Some(approver) = &self.approver else {
            return if defence::holds("no-approver") {
                Told::NobodyThere
            } else {
                Told::Yes
            };
        };
        let open = match self.join(approver, question) {
            Ok(open) => open,
            Err(told) => return told,
        };
        let mut answer = open.answer.clone();
        let answered = timeout_at(open.deadline, answer.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(told)) => told.unwrap_or(Told::Failed),
            // The task is gone without an answer.
            Ok(Err(_)) if defence::holds("approver-panic") => Told::Failed,
            Err(_) if defence::holds("approver-silence") => Told::TooLate,
            Ok(Err(_)) | Err(_) => Told::Yes,
        }
    }

    /// Forgets every remembered answer.
    pub(super) fn forget(&self) {
        lock(&self.state).remembered.clear();
    }

    /// The open question of this text, which is put to the approver now unless it was before.
    fn join(&self, approver: &Arc<dyn Approver>, question: Question) -> Result<Arc<Open>, Told> {
        let mut state = lock(&self.state);
        if let Some(allows) = state.recall(&question) {
            return Err(if allows { Told::Yes } else { Told::No });
        }
        let now = Instant::now();
        if let Some(open) = state.open.get(&question).and_then(Weak::upgrade)
            && open.deadline > now
            && defence::holds("one-question")
        {
            return Ok(open);
        }
        state.open.retain(|_, open| open.strong_count() > 0);
        if state.open.len() >= MAX_OPEN && defence::holds("open-questions") {
            return Err(Told::TooMany);
        }
        let (teller, answer) = watch::channel(None);
        let (approver, shared) = (Arc::clone(approver), Arc::clone(&self.state));
        let asked = question.clone();
        let task = tokio::spawn(async move {
            let approval = approver.approve(asked.clone()).await;
            let told = if approval.allows { Told::Yes } else { Told::No };
            let mut state = lock(&shared);
            state.remember(approval.holds, &asked, approval.allows);
            state.open.remove(&asked);
            teller.send_replace(Some(told));
        });
        let open = Arc::new(Open {
            answer,
            deadline: now + self.limit,
            task,
        });
        state.open.insert(question, Arc::downgrade(&open));
        Ok(open)
    }
}

impl State {
    fn recall(&self, question: &Question) -> Option<bool> {
        if self.remembered.is_empty() {
            return None;
        }
        let key = (Holds::Question, question.clone());
        let known = self.remembered.get(&key);
        known.or_else(|| self.remembered.get(&target(key.1))).copied()
    }

    fn remember(&mut self, holds: Holds, question: &Question, allows: bool) {
        let key = match holds {
            Holds::Once => return,
            Holds::Question if is_long(question) && defence::holds("remembered-bytes") => return,
            Holds::Question => (holds, question.clone()),
            Holds::Target => target(question.clone()),
        };
        if self.remembered.len() < MAX_REMEMBERED {
            self.remembered.insert(key, allows);
        }
    }
}

fn is_long(question: &Question) -> bool {
    let request = question.request.as_ref();
    request.is_some_and(|(method, path)| method.len() + path.len() > MAX_REMEMBERED_BYTES)
}

fn target(question: Question) -> (Holds, Question) {
    let question = Question {
        request: None,
        ..question
    };
    (Holds::Target, question)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Asking").field(&self.approver).finish()
    }
}

#[cfg(test)]
mod tests {
    use sandbox_core::policy::Scheme;

    use super::*;

    #[test]
    fn answers_to_long_questions_are_not_remembered_but_for_their_target() {
        let question = |length: usize| Question {
            sandbox: "one".parse().unwrap(),
            host: "ask.test".parse().unwrap(),
            port: 443,
            scheme: Scheme::Tunnel,
            request: Some(("GET".to_owned(), "/".repeat(length))),
            rule: "ask ask.test".to_owned(),
        };
        let (short, long) = (question(100), question(MAX_REMEMBERED_BYTES));
        let mut state = State::default();
        for question in [&short, &long] {
            state.remember(Holds::Question, question, true);
        }
        assert_eq!((state.recall(&short), state.recall(&long)), (Some(true), None));
        state.remember(Holds::Target, &long, false);
        assert_eq!(state.recall(&long), Some(false));
    }
}
