//! The server itself: its state, its limits, and which function answers which request.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::Statx;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::exports::{Access, ExportError, Exports};
use super::handles::{Handle, Handles};
use super::host::{FileId, IdMap, SelfFds};
use super::nodes::{Forgotten, Nodes};
use super::wire::{
    self, BatchForgetIn, EntryOut, ForgetIn, ForgetOne, InHeader, InitIn, InitOut, Reply, Request, WriteIn,
    init, op,
};

/// Most data in one read or write. Bounds the buffers each worker keeps; past it, larger requests gain little.
pub(super) const MAX_DATA: u32 = 256 << 10;

/// Longest request understood: a full write, or two names and a link target.
pub const MAX_REQUEST: usize = MAX_DATA as usize + size_of::<InHeader>() + size_of::<WriteIn>();

/// Longest reply given.
pub const MAX_REPLY: usize = MAX_DATA as usize + wire::OUT_HEADER;

/// Nodes one guest may keep known, at a few hundred bytes each: what a big monorepo needs, and a bound on what a
/// hostile guest makes this process allocate (under 300 MiB, with the longest names).
const MAX_NODES: usize = 1 << 19;

/// Descriptors kept for nodes, where the limit of open files allows: enough that a build re-opens little. Each
/// holds an inode in the host kernel's memory.
const MAX_NODE_DESCRIPTORS: usize = 8192;

/// Files open at once in the guest, where the limit of open files allows; each costs one of this process's.
const MAX_HANDLES: usize = 65_536;

/// Devices told apart in inode numbers; an export with more file systems mounted below it shares the last place.
const MAX_DEVICES: usize = 255;

/// How long the guest may believe attributes, in nanoseconds: its kernel rounds up to one tick. It saves asking for
/// them again right after the look-up that brought them, and is shorter than any hand-over between host and guest.
/// Names are never believed.
const ATTR_VALID_NS: u32 = 1;

/// How much one guest may keep in use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files known by number at once.
    pub nodes: usize,
    /// Of these, about how many hold a descriptor.
    pub node_descriptors: usize,
    /// Files and directories open at once.
    pub handles: usize,
}

impl Limits {
    /// What this process's limit of open files allows, leaving a quarter for all other devices.
    pub fn of_this_process() -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        Self {
            nodes: MAX_NODES,
            node_descriptors: (files / 2).min(MAX_NODE_DESCRIPTORS),
            handles: (files / 4).min(MAX_HANDLES),
        }
    }
}

/// What a guest had known and open when its driver went. Closing files can wait for the disk: drop it where waiting
/// is harmless.
#[must_use = "dropping this may wait for the disk; choose where"]
pub struct Remains {
    handles: HashMap<u64, Arc<Handle>>,
    nodes: Forgotten,
}

impl Remains {
    /// Whether there is nothing to close.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty() && self.nodes.is_empty()
    }
}

/// A FUSE server for one guest: any number of exported directories under one virtual root.
pub struct Server {
    pub(super) self_fds: SelfFds,
    pub(super) ids: IdMap,
    pub(super) exports: Exports,
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
    /// Devices seen, in order: the place is part of the inode number that the guest sees.
    devices: Mutex<Vec<u64>>,
    ready: AtomicBool,
}

impl Server {
    /// A server without exports.
    pub fn new(self_fds: SelfFds, ids: IdMap, limits: Limits) -> Self {
        Self {
            self_fds,
            ids,
            exports: Exports::new(),
            nodes: Nodes::new(limits.nodes, limits.node_descriptors),
            handles: Handles::new(limits.handles),
            devices: Mutex::new(Vec::new()),
            ready: AtomicBool::new(false),
        }
    }

    /// Exports a directory, also while the guest runs, and returns its number: its name in the virtual root, in
    /// decimal. Numbers start at 0 and are given in order.
    ///
    /// # Errors
    /// It is no directory, not one of files, or one too many; nothing is exported then.
    pub fn add_export(&self, directory: OwnedFd, access: Access) -> Result<u32, ExportError> {
        self.exports.add(&self.nodes, directory, access)
    }

    /// Answers one request, writing into `reply` what fits, and returns the reply's length: 0 for requests that
    /// have none and for those too short to answer. Blocks as long as the host's file system does.
    pub fn handle(&self, message: &[u8], reply: &mut [u8]) -> usize {
        let Some(mut request) = Request::parse(message) else {
            tracing::debug!(bytes = message.len(), "file request shorter than it says");
            return 0;
        };
        match request.header.opcode {
            op::FORGET | op::BATCH_FORGET => {
                if self.forget(&mut request).is_err() {
                    tracing::debug!("guest forgets what it was not told");
                }
                return 0;
            }
            // Nothing here waits for anything but the disk, so nothing is interrupted.
            op::INTERRUPT => return 0,
            _ => {}
        }
        let Some(mut out) = Reply::new(reply) else {
            return 0;
        };
        let unique = request.header.unique;
        let result = self.answer(&mut request, &mut out);
        if let Err(error) = result {
            tracing::trace!(opcode = request.header.opcode, node = request.header.nodeid, %error, "file request");
        }
        out.finish(unique, result)
    }

    /// Forgets what the guest knew and closes what it had open, as when its driver resets the device. The exports
    /// stay. Does not wait, but dropping what it returns may.
    pub fn reset(&self) -> Remains {
        self.ready.store(false, Ordering::Release);
        Remains {
            handles: self.handles.clear(),
            nodes: self.nodes.clear(),
        }
    }

    fn answer(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let opcode = request.header.opcode;
        if opcode == op::INIT {
            return self.init(request, reply);
        }
        if !self.ready.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        match opcode {
            op::LOOKUP => self.lookup(request, reply),
            op::SYMLINK => self.symlink(request, reply),
            op::MKNOD => self.mknod(request, reply),
            op::MKDIR => self.mkdir(request, reply),
            op::UNLINK => self.unlink(request),
            op::RMDIR => self.rmdir(request),
            op::RENAME => self.rename(request),
            op::RENAME2 => self.rename2(request),
            op::LINK => self.link(request, reply),
            op::OPENDIR => self.opendir(request, reply),
            op::READDIR => self.readdir(request, reply),
            op::RELEASEDIR | op::RELEASE => self.release(request),
            op::FSYNCDIR | op::FSYNC => self.fsync(request),

            op::GETATTR => self.getattr(request, reply),
            op::SETATTR => self.setattr(request, reply),
            op::READLINK => self.readlink(request, reply),
            op::STATFS => self.statfs(request, reply),
            op::SETXATTR => self.setxattr(request),
            op::GETXATTR => self.getxattr(request, reply),
            op::LISTXATTR => self.listxattr(request, reply),
            op::REMOVEXATTR => self.removexattr(request),

            op::OPEN => self.open(request, reply),
            op::CREATE => self.create(request, reply),
            op::TMPFILE => self.tmpfile(request, reply),
            op::READ => self.read(request, reply),
            op::WRITE => self.write(request, reply),
            op::FALLOCATE => self.fallocate(request),
            op::LSEEK => self.lseek(request, reply),
            op::COPY_FILE_RANGE => self.copy_file_range(request, reply),

            op::DESTROY => {
                drop(self.reset());
                Ok(())
            }
            // Among these FLUSH: nothing is held back here, and after this answer the guest's kernel saves itself
            // the request at each close. And ACCESS: the guest's kernel checks modes itself, as always in virtio-fs.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: InitIn = request.take()?;
        if asked.major < wire::MAJOR || (asked.major == wire::MAJOR && asked.minor < wire::MIN_MINOR) {
            return Err(Errno::PROTO);
        }
        drop(self.reset());
        let mut answer = InitOut {
            major: wire::MAJOR,
            minor: wire::MINOR,
            ..InitOut::default()
        };
        // A newer major version is told ours, and asks again in it.
        if asked.major == wire::MAJOR {
            let wanted = init::ASYNC_READ
                | init::ATOMIC_O_TRUNC
                | init::BIG_WRITES
                | init::AUTO_INVAL_DATA
                | init::ASYNC_DIO
                | init::PARALLEL_DIROPS
                | init::MAX_PAGES
                | init::HANDLE_KILLPRIV_V2;
            answer.flags = wanted & asked.flags;
            answer.max_readahead = asked.max_readahead.min(MAX_DATA);
            answer.max_background = 64;
            answer.congestion_threshold = 48;
            answer.max_write = MAX_DATA;
            answer.max_pages = (MAX_DATA >> 12) as u16;
            answer.time_gran = 1;
            self.ready.store(true, Ordering::Release);
        }
        reply.put(&answer)
    }

    fn forget(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let honest = if request.header.opcode == op::FORGET {
            let one: ForgetIn = request.take()?;
            self.nodes.forget(request.header.nodeid, one.nlookup)
        } else {
            let batch: BatchForgetIn = request.take()?;
            let mut honest = true;
            // The count is the guest's word; the message's end is what ends this.
            for _ in 0..batch.count {
                let one: ForgetOne = request.take()?;
                honest &= self.nodes.forget(one.nodeid, one.nlookup);
            }
            honest
        };
        if honest { Ok(()) } else { Err(Errno::INVAL) }
    }

    /// What a look-up answers: the node's number and attributes.
    pub(super) fn entry(&self, id: u64, stat: &Statx) -> EntryOut {
        EntryOut {
            nodeid: id,
            attr_valid_ns: ATTR_VALID_NS,
            attr: self.attr(stat),
            ..EntryOut::default()
        }
    }

    /// A file's attributes, good for one tick.
    pub(super) fn attr_out(&self, attr: wire::Attr) -> wire::AttrOut {
        wire::AttrOut {
            attr_valid: 0,
            attr_valid_ns: ATTR_VALID_NS,
            dummy: 0,
            attr,
        }
    }

    /// A file's attributes as the guest sees them.
    pub(super) fn attr(&self, stat: &Statx) -> wire::Attr {
        self.ids.attr(stat, self.guest_ino(FileId::of(stat)))
    }

    /// An inode number that is unique on this device, although several host file systems may lie below it.
    pub(super) fn guest_ino(&self, file: FileId) -> u64 {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let place = devices
            .iter()
            .position(|dev| *dev == file.dev)
            .unwrap_or_else(|| {
                if devices.len() < MAX_DEVICES {
                    devices.push(file.dev);
                }
                devices.len() - 1
            });
        file.ino ^ (place as u64) << 48
    }
}
