//! Threads that take requests off the rings, have them answered, and put the answers back.
//!
//! The rings are under one lock, which is never held while a file system is at work. A request is copied out of
//! guest memory before it is read, and its answer copied in under the lock, and only if the driver that asked is
//! still there: so after [`Workers::deactivate`] nothing is written to guest memory any more.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::devices::virtio::{Activation, Chain, GuestFault, Interrupt, VirtQueue};
use crate::doorbell::Doorbell;
use crate::fs::{MAX_REPLY, MAX_REQUEST, Remains, Server};

/// Stack of a worker: a directory listing's buffer and a few calls.
const STACK: usize = 256 << 10;

/// How long an idle worker keeps its buffers, so that a burst of requests pays for them once and an idle sandbox
/// not at all.
const KEEP_BUFFERS: Duration = Duration::from_secs(1);

/// The workers' end is when this is dropped; one that waits for a file system then ends by itself.
pub(super) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    active: Option<Active>,
    /// Counts activations: tells answers for this driver from those for an earlier one.
    generation: u64,
    /// Files of earlier drivers, to be closed. A driver must have had something open to add to it, and that was the
    /// workers' doing, so this stays short.
    remains: Vec<Remains>,
    /// Threads waiting for work.
    idle: usize,
    ended: bool,
}

struct Active {
    rings: Vec<Ring>,
    interrupt: Interrupt,
    /// What the driver did wrong, until the transport comes to hear it.
    fault: Option<GuestFault>,
    doorbell: Option<Doorbell>,
}

struct Ring {
    queue: Option<VirtQueue>,
    /// The doorbell rang and the ring was not found empty since.
    waiting: bool,
}

/// A request taken off its ring.
struct Job {
    chain: Chain,
    ring: usize,
    generation: u64,
}

impl Workers {
    /// Starts `threads` idle threads.
    pub fn start(server: &Arc<Server>, threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                active: None,
                generation: 0,
                remains: Vec::new(),
                idle: 0,
                ended: false,
            }),
            work: Condvar::new(),
        });
        // Made first: should a thread fail to start, dropping it ends the others.
        let workers = Self { shared };
        for number in 0..threads {
            let shared = Arc::clone(&workers.shared);
            let server = Arc::clone(server);
            thread::Builder::new()
                .name(format!("fs-{number}"))
                .stack_size(STACK)
                .spawn(move || shared.run(&server))?;
        }
        Ok(workers)
    }

    /// Serves these rings from now on.
    pub fn activate(&self, activation: Activation) {
        let rings = activation
            .queues
            .into_iter()
            // What the driver put there before is not announced again.
            .map(|queue| Ring { queue, waiting: true })
            .collect();
        let mut state = self.shared.lock();
        state.generation += 1;
        state.active = Some(Active {
            rings,
            interrupt: activation.interrupt,
            fault: None,
            doorbell: activation.doorbells.into_iter().next(),
        });
        drop(state);
        self.shared.work.notify_one();
    }

    /// Looks at a ring soon, or says what was found wrong with any of them.
    pub fn wake(&self, queue: u16) -> Result<(), GuestFault> {
        let mut state = self.shared.lock();
        let Some(active) = &mut state.active else {
            return Ok(());
        };
        if let Some(fault) = active.fault.take() {
            return Err(fault);
        }
        if let Some(ring) = active.rings.get_mut(usize::from(queue)) {
            ring.waiting = true;
        }
        let idle = state.idle > 0;
        drop(state);
        if idle {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// Leaves the rings alone from now on and has the server forget this driver. Does not wait: answers to come are
    /// thrown away, and a worker closes the files.
    pub fn deactivate(&self, server: &Server) {
        let mut state = self.shared.lock();
        state.generation += 1;
        state.active = None;
        let remains = server.reset();
        if !remains.is_empty() {
            state.remains.push(remains);
            drop(state);
            self.shared.work.notify_one();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.active = None;
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, server: &Server) {
        let mut request = Vec::new();
        let mut reply = Vec::new();
        while let Some(mut job) = self.next(&mut request, &mut reply) {
            let written = serve(server, &mut job.chain, &mut request, &mut reply);
            self.finish(job, written.map(|len| reply.get(..len).unwrap_or_default()));
        }
    }

    /// Waits for the next request; `None` at the end. Lets go of the buffers if it takes long.
    fn next(&self, request: &mut Vec<u8>, reply: &mut Vec<u8>) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(remains) = state.remains.pop() {
                drop(state);
                drop(remains);
                state = self.lock();
                continue;
            }
            if let Some(job) = state.take() {
                let more = state.idle > 0 && state.has_work();
                drop(state);
                if more {
                    self.work.notify_one();
                }
                return Some(job);
            }
            state.idle += 1;
            if request.capacity() == 0 && reply.capacity() == 0 {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                let waited = self.work.wait_timeout(state, KEEP_BUFFERS);
                let (guard, outcome) = waited.unwrap_or_else(PoisonError::into_inner);
                state = guard;
                if outcome.timed_out() {
                    *request = Vec::new();
                    *reply = Vec::new();
                }
            }
            state.idle -= 1;
        }
    }

    /// Gives the answer to the driver that asked, if it is still there.
    fn finish(&self, job: Job, answer: Result<&[u8], GuestFault>) {
        let mut state = self.lock();
        if state.generation != job.generation {
            return;
        }
        let Some(active) = &mut state.active else { return };
        if let Err(fault) = answer.and_then(|answer| active.put(job, answer)) {
            active.fail(fault);
        }
    }
}

/// Copies the request out and has it answered; returns the length of the answer in `reply`.
fn serve(
    server: &Server,
    chain: &mut Chain,
    request: &mut Vec<u8>,
    reply: &mut Vec<u8>,
) -> Result<usize, GuestFault> {
    let len = chain.reader.remaining();
    if len > MAX_REQUEST {
        return Err(GuestFault::BadRequest("a file request longer than was agreed on"));
    }
    let room = chain.writer.remaining().min(MAX_REPLY);
    grow(request, len);
    grow(reply, room);
    let message = request.get_mut(..len).unwrap_or_default();
    chain.reader.read(message)?;
    Ok(server.handle(message, reply.get_mut(..room).unwrap_or_default()))
}

/// Makes a buffer at least `len` long, in few steps. Never shrinks: what is past the end is simply not used.
fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        // Fresh and zeroed by the kernel page by page, so that an unused rest costs no memory.
        *buffer = vec![
            0;
            len.next_power_of_two()
                .clamp(4096, MAX_REQUEST.max(MAX_REPLY).next_power_of_two())
        ];
    }
}

impl State {
    /// The next request of any ring. A broken ring is noted for the transport and left alone.
    fn take(&mut self) -> Option<Job> {
        let generation = self.generation;
        let active = self.active.as_mut().filter(|active| active.fault.is_none())?;
        for (ring, Ring { queue, waiting }) in active.rings.iter_mut().enumerate() {
            let Some(queue) = queue.as_mut().filter(|_| *waiting) else {
                continue;
            };
            match pop(queue) {
                Ok(Some(chain)) => {
                    return Some(Job {
                        chain,
                        ring,
                        generation,
                    });
                }
                Ok(None) => *waiting = false,
                Err(fault) => {
                    active.fail(fault);
                    return None;
                }
            }
        }
        None
    }

    fn has_work(&self) -> bool {
        self.active.as_ref().is_some_and(|active| {
            active.rings.iter().any(|ring| {
                ring.waiting
                    && ring
                        .queue
                        .as_ref()
                        .is_some_and(|queue| queue.has_available() == Ok(true))
            })
        })
    }
}

/// Takes a chain; if there is none, the doorbell is armed before that is believed.
fn pop(queue: &mut VirtQueue) -> Result<Option<Chain>, GuestFault> {
    match queue.pop()? {
        Some(chain) => Ok(Some(chain)),
        None if queue.arm()? => queue.pop(),
        None => Ok(None),
    }
}

impl Active {
    fn put(&mut self, mut job: Job, answer: &[u8]) -> Result<(), GuestFault> {
        job.chain.writer.write(answer)?;
        let Some(queue) = self.rings.get_mut(job.ring).and_then(|ring| ring.queue.as_mut()) else {
            return Ok(());
        };
        queue.push(job.chain.head(), job.chain.written())?;
        self.interrupt.used(queue)
    }

    /// Notes what the driver did wrong and has the transport come for it.
    fn fail(&mut self, fault: GuestFault) {
        self.fault.get_or_insert(fault);
        if let Some(doorbell) = &self.doorbell {
            doorbell.ring();
        }
    }
}
