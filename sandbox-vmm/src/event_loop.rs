//! The event thread: waits for doorbells and host descriptors of all devices that never wait themselves.
//! Sleeps for as long as nothing happens: no timer, no polling.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll;

use crate::devices::virtio::{Dispatch, MmioTransport};

/// A slot's device, shared between the vCPU threads (registers) and the thread that serves its queues.
pub type SharedTransport = Arc<Mutex<MmioTransport>>;

/// Called with the index of a device after it was served, to pick up what it has to report.
pub type AfterDispatch = Arc<dyn Fn(usize, &mut MmioTransport) + Send + Sync>;

/// Events taken from the kernel at once.
const BATCH: usize = 32;

/// Waits for a set of descriptors and serves their devices. Made on one thread, run on another.
pub struct EventLoop {
    epoll: OwnedFd,
    sources: Vec<Source>,
    after: AfterDispatch,
}

struct Source {
    slot: usize,
    transport: SharedTransport,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Doorbell(u16),
    Host(u32),
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop")
            .field("sources", &self.sources.len())
            .finish_non_exhaustive()
    }
}

impl EventLoop {
    /// A loop that serves nothing yet.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(after: AfterDispatch) -> std::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: Vec::new(),
            after,
        })
    }

    /// Serves the device of `slot` from now on.
    ///
    /// # Errors
    /// The host refused to watch a descriptor.
    pub fn add(&mut self, slot: usize, transport: &SharedTransport) -> std::io::Result<()> {
        let guard = transport.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, bell) in guard.doorbells().iter().enumerate() {
            let kind = Kind::Doorbell(u16::try_from(queue).unwrap_or(u16::MAX));
            self.watch(bell.as_fd(), slot, transport, kind)?;
        }
        if guard.device().dispatch() == Dispatch::EventThread {
            for (fd, token) in guard.device().host_sources() {
                self.watch(fd, slot, transport, Kind::Host(token))?;
            }
        }
        Ok(())
    }

    fn watch(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        slot: usize,
        transport: &SharedTransport,
        kind: Kind,
    ) -> std::io::Result<()> {
        let data = epoll::EventData::new_u64(self.sources.len() as u64);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?;
        self.sources.push(Source {
            slot,
            transport: transport.clone(),
            kind,
        });
        Ok(())
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// Waiting failed, which only a bug of ours can cause.
    pub fn run(self) -> std::io::Result<std::convert::Infallible> {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let Some(source) = usize::try_from(event.data.u64())
                    .ok()
                    .and_then(|at| self.sources.get(at))
                else {
                    continue;
                };
                self.serve(source);
            }
        }
    }

    fn serve(&self, source: &Source) {
        let mut transport = source.transport.lock().unwrap_or_else(PoisonError::into_inner);
        match source.kind {
            Kind::Doorbell(queue) => {
                // Drained before the device looks, so a ring during the look is a new one.
                if let Some(bell) = transport.doorbells().get(usize::from(queue)) {
                    bell.drain();
                }
                transport.notify(queue);
            }
            Kind::Host(token) => transport.host_event(token),
        }
        (self.after)(source.slot, &mut transport);
    }
}
