//! What of one stream waits in `h2` for its receiver.
//!
//! `h2` itself bounds the bytes that wait and not the frames, of which each takes some 400 beside its own: whoever sends
//! single bytes to somebody who reads none would have the host hold that for each. So both are counted here until they are
//! gone, and `h2`'s own bound is never met.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::defence::holds;
use crate::proxy::limits::H2_SEND_BUFFER;
use crate::proxy::place::Place;

/// Frames of one stream that may wait. Those of usual size are bounded by their bytes before.
const FRAMES: usize = 32;

/// Data that has no more than this is copied: buffers that are read into have twice as much and more.
const SMALL: usize = 4 << 10;

/// The data of one stream that waits, all in one place among the sandbox's requests.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    _place: Option<Place>,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: usize,
    bytes: usize,
    /// Bytes that waited and do so no more.
    left: u64,
    /// Who waits for room.
    writer: Option<Waker>,
}

/// Data in a queue, until it is gone.
struct Held {
    data: Bytes,
    queue: Arc<Queue>,
}

impl Queue {
    pub(super) fn new(place: Option<Place>) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            _place: place.filter(|_| holds("h2-queues-hold-places")),
        })
    }

    /// Waits until there is room for one more frame.
    pub(super) fn poll_free(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.lock();
        if waiting.has_room() {
            return Poll::Ready(());
        }
        waiting.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// How many bytes have left it.
    pub(super) fn left(&self) -> u64 {
        self.lock().left
    }

    /// Waits until nothing of it waits any more.
    pub(super) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.lock();
        if waiting.frames == 0 {
            return Poll::Ready(());
        }
        waiting.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The same data, in the queue until it is gone.
    pub(super) fn hold(self: &Arc<Self>, data: Bytes) -> Bytes {
        // A part of a buffer keeps all of it.
        let data = if data.len() < SMALL {
            Bytes::copy_from_slice(&data)
        } else {
            data
        };
        let mut waiting = self.lock();
        waiting.frames += 1;
        waiting.bytes += data.len();
        drop(waiting);
        Bytes::from_owner(Held {
            data,
            queue: Arc::clone(self),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn has_room(&self) -> bool {
        (self.frames < FRAMES || !holds("h2-queued-frames"))
            && (self.bytes < H2_SEND_BUFFER || !holds("h2-queued-bytes"))
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        waiting.frames -= 1;
        waiting.bytes -= self.data.len();
        waiting.left += self.data.len() as u64;
        if let Some(writer) = waiting.writer.take() {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    /// How many of these may wait.
    fn fill(size: usize) -> Vec<Bytes> {
        let mut cx = Context::from_waker(Waker::noop());
        let queue = Queue::new(None);
        let mut waiting = Vec::new();
        while queue.poll_free(&mut cx).is_ready() && waiting.len() < 1000 {
            waiting.push(queue.hold(vec![b'x'; size].into()));
        }
        // A part of it keeps all of it.
        let part = waiting[0].slice(..1);
        waiting.swap_remove(0);
        assert!(queue.poll_free(&mut cx).is_pending());
        drop(part);
        assert!(queue.poll_free(&mut cx).is_ready());
        waiting.push(queue.hold(vec![b'x'; size].into()));
        waiting
    }

    #[test]
    fn frames_that_wait_are_few_and_one_that_leaves_makes_room() {
        assert_eq!(fill(1).len(), FRAMES);
    }

    #[test]
    fn bytes_that_wait_are_few_and_some_that_leave_make_room() {
        assert_eq!(fill(H2_SEND_BUFFER / 4).len(), 4);
        assert_eq!(fill(3 * H2_SEND_BUFFER).len(), 1);
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
