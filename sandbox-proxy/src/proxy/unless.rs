//! Work beside something that rarely happens: a time-out, the end of the sandbox, a new policy.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;

/// Does `work` unless `rare` comes first; `None` then.
///
/// `tokio::select!` polls both whenever either is woken, and to poll a timer or a token takes a lock: for a stream, some
/// of them with each packet. Here `rare` is polled when it was woken itself.
pub(crate) fn unless<W: Future, R: Future<Output = ()>>(work: W, rare: R) -> Unless<W, R> {
    Unless {
        work,
        rare,
        bell: None,
    }
}

pin_project! {
    /// See [`unless`]. No `async fn`, which would have room for each of its arguments twice.
    pub(crate) struct Unless<W, R> {
        #[pin]
        work: W,
        #[pin]
        rare: R,
        bell: Option<Arc<Bell>>,
    }
}

impl<W: Future, R: Future<Output = ()>> Future for Unless<W, R> {
    type Output = Option<W::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // The task may be another than last time.
        let known = this.bell.take().filter(|bell| bell.task.will_wake(cx.waker()));
        let bell = this.bell.insert(known.unwrap_or_else(|| {
            Arc::new(Bell {
                rang: AtomicBool::new(true),
                task: cx.waker().clone(),
            })
        }));
        // Before the poll: what rings while it goes on is heard next time.
        if bell.rang.swap(false, Ordering::AcqRel) {
            let waker = Waker::from(Arc::clone(bell));
            if this.rare.poll(&mut Context::from_waker(&waker)).is_ready() {
                return Poll::Ready(None);
            }
        }
        this.work.poll(cx).map(Some)
    }
}

/// Wakes the task, and says that it was for what is rare.
struct Bell {
    rang: AtomicBool,
    task: Waker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::sync::Notify;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whichever_comes_first_decides() {
        let soon = || sleep(Duration::from_secs(1));
        let late = || sleep(Duration::from_secs(2));
        assert_eq!(unless(soon(), late()).await, Some(()));
        assert_eq!(unless(late(), soon()).await, None);
        assert_eq!(unless(async { 1 }, std::future::ready(())).await, None);
    }

    #[tokio::test]
    async fn what_is_rare_is_polled_only_when_it_was_woken() {
        let (polls, rare) = (Cell::new(0), Notify::new());
        let work = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            rare.notify_one();
            std::future::pending::<()>().await;
        };
        let mut notified = pin!(rare.notified());
        let counted = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            notified.as_mut().poll(cx)
        });
        assert_eq!(unless(work, counted).await, None);
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test]
    async fn future_that_changes_its_task_is_still_woken() {
        let rare = Arc::new(Notify::new());
        let waits = Arc::clone(&rare);
        let mut future = Box::pin(unless(std::future::pending::<()>(), async move {
            waits.notified().await
        }));
        let first = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending()));
        assert!(first.await);
        let other = tokio::spawn(future);
        tokio::task::yield_now().await;
        rare.notify_one();
        assert_eq!(other.await.unwrap(), None);
    }
}
