//! Open files and directories of the guest.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::host::FileId;

/// Something the guest has open.
pub(super) struct Handle {
    pub node: u64,
    pub of: Open,
}

pub(super) enum Open {
    /// A regular file, opened for what the guest asked.
    File {
        fd: OwnedFd,
        export: u32,
        writable: bool,
    },
    /// A directory of an export.
    Directory {
        fd: OwnedFd,
        dir: FileId,
        is_export: bool,
        position: Mutex<u64>,
    },
    /// The virtual root, of which there is nothing to hold.
    VirtualRoot,
}

impl Handle {
    /// The open regular file, or `EBADF`.
    pub fn file(&self) -> Result<BorrowedFd<'_>, Errno> {
        match &self.of {
            Open::File { fd, .. } => Ok(fd.as_fd()),
            _ => Err(Errno::BADF),
        }
    }

    /// The regular file if it is open for writing, or `EBADF`.
    pub fn writable_file(&self) -> Result<BorrowedFd<'_>, Errno> {
        match &self.of {
            Open::File {
                fd, writable: true, ..
            } => Ok(fd.as_fd()),
            _ => Err(Errno::BADF),
        }
    }
}

/// All handles of one device.
pub(super) struct Handles {
    table: Mutex<Table>,
    max: usize,
}

struct Table {
    open: HashMap<u64, Arc<Handle>>,
    next: u64,
}

impl Handles {
    pub fn new(max: usize) -> Self {
        Self {
            table: Mutex::new(Table {
                open: HashMap::new(),
                next: 1,
            }),
            max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more may be opened; asked before the host is, so that nothing is made in vain.
    pub fn check_room(&self) -> Result<(), Errno> {
        if self.lock().open.len() < self.max {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    /// Adds a handle and returns its number, which is never reused.
    pub fn add(&self, handle: Handle) -> Result<u64, Errno> {
        let mut table = self.lock();
        if table.open.len() >= self.max {
            return Err(Errno::NFILE);
        }
        let fh = table.next;
        table.next += 1;
        table.open.insert(fh, Arc::new(handle));
        Ok(fh)
    }

    /// The handle, if it is one of this node; `EBADF` otherwise.
    pub fn get(&self, fh: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.lock().open.get(&fh).cloned().ok_or(Errno::BADF)?;
        if handle.node == node {
            Ok(handle)
        } else {
            Err(Errno::BADF)
        }
    }

    /// Closes a handle of this node. Its descriptor goes when the last request that uses it is done.
    pub fn remove(&self, fh: u64, node: u64) -> Result<(), Errno> {
        let handle = {
            let mut table = self.lock();
            if table.open.get(&fh).is_none_or(|handle| handle.node != node) {
                return Err(Errno::BADF);
            }
            table.open.remove(&fh)
        };
        // Closing can wait for the disk, so not under the lock.
        drop(handle);
        Ok(())
    }

    /// Takes out everything. Dropping it closes files and may wait for the disk.
    pub fn clear(&self) -> HashMap<u64, Arc<Handle>> {
        std::mem::take(&mut self.lock().open)
    }
}
