//! What of one stream waits in `h2` for its receiver.
//!
//! `h2` bounds the bytes that wait and not the frames, of which each takes some 400 beside its own: whoever sends single
//! bytes to somebody who reads none would have the host hold that for each. So frames are counted until they are gone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::defence::holds;
use crate::proxy::place::Place;

/// Frames of one stream that may wait. Those of usual size are bounded by their bytes before.
const FRAMES: usize = 32;

/// The frames of one stream that wait, all in one place among the sandbox's requests.
#[derive(Debug)]
pub(super) struct Queue {
    frames: AtomicUsize,
    writer: Mutex<Option<Waker>>,
    _place: Option<Place>,
}

/// Data in a queue, until it is gone.
struct Held {
    data: Bytes,
    queue: Arc<Queue>,
}

impl Queue {
    pub(super) fn new(place: Option<Place>) -> Arc<Self> {
        Arc::new(Self {
            frames: AtomicUsize::new(0),
            writer: Mutex::default(),
            _place: place.filter(|_| holds("h2-queues-hold-places")),
        })
    }

    /// Waits until there is room for one more frame.
    pub(super) fn poll_free(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_free() {
            return Poll::Ready(());
        }
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        // One may have gone meanwhile.
        if self.is_free() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn is_free(&self) -> bool {
        self.frames.load(Ordering::Acquire) < FRAMES || !holds("h2-queued-frames")
    }

    /// The same data, in the queue until it is gone.
    pub(super) fn hold(self: &Arc<Self>, data: Bytes) -> Bytes {
        self.frames.fetch_add(1, Ordering::AcqRel);
        Bytes::from_owner(Held {
            data,
            queue: Arc::clone(self),
        })
    }

    fn release(&self) {
        if self.frames.fetch_sub(1, Ordering::AcqRel) == FRAMES
            && let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            writer.wake();
        }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.queue.release();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn frames_that_wait_are_few_and_one_that_leaves_makes_room() {
        let mut cx = Context::from_waker(Waker::noop());
        let queue = Queue::new(None);
        let mut waiting = Vec::new();
        while queue.poll_free(&mut cx).is_ready() && waiting.len() < 1000 {
            waiting.push(queue.hold(Bytes::from_static(b"x")));
        }
        assert_eq!(waiting.len(), FRAMES);
        // A part of it keeps all of it.
        let part = waiting[0].slice(..1);
        waiting.swap_remove(0);
        assert!(queue.poll_free(&mut cx).is_pending());
        drop(part);
        assert!(queue.poll_free(&mut cx).is_ready());
    }

    #[test]
    fn what_waits_holds_its_place() {
        let places = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&places).try_acquire_owned().unwrap();
        let queue = Queue::new(Some(Place::new(permit, None)));
        let waiting = queue.hold(Bytes::from_static(b"x"));
        drop(queue);
        assert_eq!(places.available_permits(), 0);
        drop(waiting);
        assert_eq!(places.available_permits(), 1);
    }
}
