//! The device itself: configuration, and handing rings to the workers.

use std::sync::Arc;

use super::wire::{self, Tag};
use super::workers::Workers;
use super::{MAX_WORKERS, QUEUE_SIZE, URGENT_QUEUE_SIZE};
use crate::devices::virtio::{
    ActivateError, Activation, GuestFault, Progress, VirtioDevice, device_id, read_space,
};
use crate::fs::Server;

/// First request queue (virtio 1.2 §5.11.2).
const FIRST_REQUEST_QUEUE: u16 = 1;

/// A virtio-fs device.
pub struct FsDevice {
    config: Vec<u8>,
    server: Arc<Server>,
    workers: Workers,
}

impl FsDevice {
    /// A device that serves the exports of `server` with `threads` threads (at least 1, at most 4). Exports can
    /// still be added to the server later.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn new(tag: Tag, server: Arc<Server>, threads: usize) -> std::io::Result<Self> {
        let workers = Workers::start(&server, threads.clamp(1, MAX_WORKERS))?;
        Ok(Self {
            config: wire::config(tag).to_vec(),
            server,
            workers,
        })
    }
}

impl std::fmt::Debug for FsDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FsDevice").finish_non_exhaustive()
    }
}

impl VirtioDevice for FsDevice {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn device_id(&self) -> u32 {
        device_id::FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &[URGENT_QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation
            .queues
            .get(usize::from(FIRST_REQUEST_QUEUE))
            .is_none_or(Option::is_none)
        {
            return Err(ActivateError::MissingQueue(FIRST_REQUEST_QUEUE));
        }
        self.workers.activate(activation);
        Ok(())
    }

    fn notify(&mut self, queue: u16) -> Result<Progress, GuestFault> {
        self.workers.wake(queue)?;
        Ok(Progress::Idle)
    }

    fn reset(&mut self) {
        self.workers.deactivate(&self.server);
    }
}
