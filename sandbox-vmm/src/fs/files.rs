//! Requests about a file's bytes: open, create, read, write, allocate, seek, copy, sync.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, Statx};
use rustix::io::{Errno, ReadWriteFlags};

use super::handles::{Handle, Open};
use super::host::{self, Kind};
use super::nodes::{Node, ROOT};
use super::server::{MAX_DATA, Server};
use super::wire::{
    self, CopyIn, CreateIn, FallocateIn, FsyncIn, LseekIn, LseekOut, OpenIn, OpenOut, ReadIn, Reply, Request,
    WriteIn, WriteOut, mode,
};

/// Most bytes copied by one request, so that none keeps a worker for long; the guest asks on.
const MAX_COPY: usize = 16 << 20;

/// `SEEK_DATA` and `SEEK_HOLE`; all other kinds the guest's kernel works out itself.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Server {
    pub(super) fn open(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: OpenIn = request.take()?;
        let id = request.header.nodeid;
        if id == ROOT {
            return Err(Errno::ISDIR);
        }
        let node = self.node(id)?;
        let fd = self.open_node(&node, asked.flags)?;
        if asked.flags & mode::O_TRUNC != 0 && asked.open_flags & wire::OPEN_KILL_SUIDGID != 0 {
            drop_set_id(fd.as_fd())?;
        }
        let fh = self.add_file(node.export, id, fd, asked.flags)?;
        reply.put(&OpenOut {
            fh,
            ..OpenOut::default()
        })
    }

    pub(super) fn create(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: CreateIn = request.take()?;
        let name = request.name()?;
        let dir = self.directory(request.header.nodeid)?.writable()?;
        self.handles.check_room()?;
        let flags = access(asked.flags)?;
        // Always exclusive on the host: what is there already could be a FIFO or a device, which must not be opened.
        let (id, stat, fd) = match host::create(dir.fd(), name, flags, asked.mode) {
            Ok(fd) => {
                // The node's descriptor must not keep the file open for writing after the guest has closed it.
                let path = self.self_fds.reopen(fd.as_fd(), OFlags::PATH)?;
                let (id, stat) = self.know_fd(&dir, name.as_c_str(), path)?;
                (id, stat, fd)
            }
            Err(Errno::EXIST) if asked.flags & mode::O_EXCL == 0 => {
                let (id, _) = self.know(&dir, name)?;
                let opened = self.node(id).and_then(|node| match node.kind {
                    Kind::Regular => self.open_node(&node, asked.flags),
                    // A link or the like came between: the guest's kernel looks again and does it right.
                    _ => Err(Errno::STALE),
                });
                let opened = opened.and_then(|fd| host::stat(fd.as_fd()).map(|stat| (stat, fd)));
                // The guest is not told of the node, so it will not forget it either.
                let (stat, fd) = opened.inspect_err(|_| _ = self.nodes.forget(id, 1))?;
                (id, stat, fd)
            }
            Err(error) => return Err(error),
        };
        self.reply_opened(dir.export, id, &stat, fd, asked.flags, reply)
    }

    pub(super) fn tmpfile(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: CreateIn = request.take()?;
        let dir = self.directory(request.header.nodeid)?.writable()?;
        self.handles.check_room()?;
        let flags = access(asked.flags)? | OFlags::TMPFILE | OFlags::CLOEXEC;
        // With O_EXCL it can never get a name; the guest decides, as it does locally.
        let flags = if asked.flags & mode::O_EXCL != 0 {
            flags | OFlags::EXCL
        } else {
            flags
        };
        let bits = Mode::from_raw_mode(asked.mode & mode::SETTABLE);
        let fd = rustix::fs::openat(dir.fd(), c".", flags, bits)?;
        let path = self.self_fds.reopen(fd.as_fd(), OFlags::PATH)?;
        let (id, stat) = self.know_fd(&dir, c"", path)?;
        self.reply_opened(dir.export, id, &stat, fd, asked.flags, reply)
    }

    pub(super) fn read(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: ReadIn = request.take()?;
        let handle = self.opened_file(asked.fh, request.header.nodeid)?;
        let size = asked.size.min(MAX_DATA) as usize;
        let room = reply.room();
        let room = if room.len() > size {
            room.get_mut(..size).unwrap_or_default()
        } else {
            room
        };
        let read = rustix::io::pread(handle.file()?, room, offset(asked.offset)?)?;
        reply.advance(read);
        Ok(())
    }

    pub(super) fn write(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: WriteIn = request.take()?;
        let data = request.bytes(asked.size as usize)?;
        let handle = self.opened_file(asked.fh, request.header.nodeid)?;
        let fd = handle.writable_file()?;
        let at = offset(asked.offset)?;
        // Appending is the host's to do, so that both sides may append to one file. But pages from the guest's cache
        // belong where they were mapped, also if they come through a handle that appends.
        let appends = asked.flags & mode::O_APPEND != 0 && asked.write_flags & wire::WRITE_CACHE == 0;
        let written = if appends {
            rustix::io::pwritev2(fd, &[IoSlice::new(data)], at, ReadWriteFlags::APPEND)?
        } else {
            rustix::io::pwrite(fd, data, at)?
        };
        if asked.write_flags & wire::WRITE_KILL_SUIDGID != 0 {
            drop_set_id(fd)?;
        }
        reply.put(&WriteOut {
            size: u32::try_from(written).map_err(|_| Errno::IO)?,
            padding: 0,
        })
    }

    pub(super) fn fallocate(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let asked: FallocateIn = request.take()?;
        let handle = self.opened_file(asked.fh, request.header.nodeid)?;
        let flags = FallocateFlags::from_bits_retain(asked.mode);
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(flags) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::fallocate(
            handle.writable_file()?,
            flags,
            offset(asked.offset)?,
            offset(asked.length)?,
        )
    }

    pub(super) fn lseek(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: LseekIn = request.take()?;
        let handle = self.opened_file(asked.fh, request.header.nodeid)?;
        let at = offset(asked.offset)?;
        let from = match asked.whence {
            SEEK_DATA => SeekFrom::Data(at),
            SEEK_HOLE => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL),
        };
        // The descriptor's own position is used by nothing else: reads and writes carry theirs.
        reply.put(&LseekOut {
            offset: rustix::fs::seek(handle.file()?, from)?,
        })
    }

    pub(super) fn copy_file_range(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked: CopyIn = request.take()?;
        let from = self.opened_file(asked.fh_in, request.header.nodeid)?;
        let to = self.opened_file(asked.fh_out, asked.nodeid_out)?;
        if asked.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (mut read_at, mut write_at) = (offset(asked.off_in)?, offset(asked.off_out)?);
        let len = usize::try_from(asked.len).unwrap_or(usize::MAX).min(MAX_COPY);
        let (input, output) = (from.file()?, to.writable_file()?);
        let copied =
            rustix::fs::copy_file_range(input, Some(&mut read_at), output, Some(&mut write_at), len)?;
        reply.put(&WriteOut {
            size: u32::try_from(copied).map_err(|_| Errno::IO)?,
            padding: 0,
        })
    }

    /// Answers for files and directories alike.
    pub(super) fn fsync(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let asked: FsyncIn = request.take()?;
        let handle = self.opened_file(asked.fh, request.header.nodeid)?;
        match &handle.of {
            Open::File { fd, .. } if asked.flags & wire::FSYNC_DATA_ONLY != 0 => rustix::fs::fdatasync(fd),
            Open::File { fd, .. } | Open::Directory { fd, .. } => rustix::fs::fsync(fd),
            Open::VirtualRoot => Ok(()),
        }
    }

    /// Opens a node's file as the guest's flags say; regular files only.
    pub(super) fn open_node(&self, node: &Node, flags: u32) -> Result<OwnedFd, Errno> {
        match node.kind {
            Kind::Regular => {}
            Kind::Directory => return Err(Errno::ISDIR),
            Kind::Other => return Err(Errno::NXIO),
        }
        let mut host = access(flags)?;
        if flags & mode::O_TRUNC != 0 {
            host |= OFlags::TRUNC;
        }
        if node.read_only && (writes(flags) || host.contains(OFlags::TRUNC)) {
            return Err(Errno::ROFS);
        }
        self.handles.check_room()?;
        self.self_fds.reopen(node.fd(), host)
    }

    /// Answers with a new node and its opened file.
    fn reply_opened(
        &self,
        export: u32,
        id: u64,
        stat: &Statx,
        fd: OwnedFd,
        flags: u32,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let fh = self
            .add_file(export, id, fd, flags)
            // The guest is not told of the node, so it will not forget it either.
            .inspect_err(|_| _ = self.nodes.forget(id, 1))?;
        reply.put(&self.entry(id, stat))?;
        reply.put(&OpenOut {
            fh,
            ..OpenOut::default()
        })
    }

    fn add_file(&self, export: u32, node: u64, fd: OwnedFd, flags: u32) -> Result<u64, Errno> {
        self.add_handle(Handle {
            node,
            of: Open::File {
                export,
                fd,
                writable: writes(flags),
            },
        })
    }
}

/// A position or length as the host's system calls take it.
pub(super) fn offset(asked: u64) -> Result<u64, Errno> {
    if i64::try_from(asked).is_ok() {
        Ok(asked)
    } else {
        Err(Errno::INVAL)
    }
}

/// Takes set-id bits away, for a host user whose writes do not do so by themselves (root's).
pub(super) fn drop_set_id(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let bits = u32::from(host::stat(fd)?.stx_mode);
    // Set-group-id without group execution is not a set-id bit but mandatory locking, and stays.
    let group = bits & 0o2010 == 0o2010;
    if bits & 0o4000 == 0 && !group {
        return Ok(());
    }
    let keep = if group { 0o1777 } else { 0o3777 };
    rustix::fs::fchmod(fd, Mode::from_raw_mode(bits & keep))
}

fn writes(flags: u32) -> bool {
    matches!(flags & mode::O_ACCMODE, mode::O_WRONLY | mode::O_RDWR)
}

/// The host's flags for what the guest may choose: reading or writing, and whether writes wait for the disk. All
/// else is the guest kernel's business or would change what later requests do.
fn access(flags: u32) -> Result<OFlags, Errno> {
    let mut host = match flags & mode::O_ACCMODE {
        0 => OFlags::RDONLY,
        mode::O_WRONLY => OFlags::WRONLY,
        mode::O_RDWR => OFlags::RDWR,
        _ => return Err(Errno::INVAL),
    };
    if flags & mode::O_SYNC == mode::O_SYNC {
        host |= OFlags::SYNC;
    } else if flags & mode::O_DSYNC != 0 {
        host |= OFlags::DSYNC;
    }
    Ok(host)
}
