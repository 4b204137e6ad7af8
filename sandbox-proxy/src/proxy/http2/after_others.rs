//! Connections write when all who have something for them had their turn.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

/// Does `work`, each time it is woken after whatever else is ready.
///
/// tokio runs a task that was woken by another right after that one: each of many requests on a connection would be
/// written by itself, with a system call and a TLS record of its own. A task that wakes itself goes behind the others.
pub(super) fn after_others<W: Future>(work: W) -> AfterOthers<W> {
    AfterOthers {
        work,
        has_let_others_go: false,
    }
}

pin_project! {
    /// See [`after_others`].
    pub(super) struct AfterOthers<W> {
        #[pin]
        work: W,
        has_let_others_go: bool,
    }
}

impl<W: Future> Future for AfterOthers<W> {
    type Output = W::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<W::Output> {
        let this = self.project();
        *this.has_let_others_go = !*this.has_let_others_go;
        if *this.has_let_others_go {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.work.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Notify;

    use super::*;

    // With several threads tokio runs what was woken last next.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_woken_by_the_first_of_many_comes_after_the_last() {
        tokio::spawn(first_of_many()).await.unwrap();
    }

    async fn first_of_many() {
        let order = Arc::<Mutex<Vec<&str>>>::default();
        let bell = Arc::<Notify>::default();
        let connection = {
            let (order, bell) = (Arc::clone(&order), Arc::clone(&bell));
            tokio::spawn(after_others(async move {
                bell.notified().await;
                order.lock().unwrap().push("connection");
            }))
        };
        // It waits.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        for _ in 0..3 {
            let (order, bell) = (Arc::clone(&order), Arc::clone(&bell));
            tokio::spawn(async move {
                order.lock().unwrap().push("request");
                bell.notify_one();
            });
        }
        connection.await.unwrap();
        assert_eq!(
            *order.lock().unwrap(),
            ["request", "request", "request", "connection"]
        );
    }
}
