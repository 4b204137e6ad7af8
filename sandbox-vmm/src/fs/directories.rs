//! Requests about names: look up, make, remove, rename, link, list.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Statx};
use rustix::io::Errno;

use super::handles::{Handle, Open};
use super::host::{self, FileId, Kind};
use super::nodes::{Node, ROOT};
use super::server::Server;
use super::wire::{
    Dirent, LinkIn, MkdirIn, MknodIn, Name, OpenOut, ReadIn, ReleaseIn, Rename2In, RenameIn, Reply, Request,
    mode,
};

/// Longest target of a symbolic link (`PATH_MAX` less its NUL).
const MAX_TARGET: usize = 4095;

/// Bytes of directory entries taken from the host at a time, on the stack of the worker.
const LISTING_BYTES: usize = 16 << 10;

impl Server {
    pub(super) fn lookup(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let name = request.name()?;
        if request.header.nodeid == ROOT {
            let id = self.exports.find(name.as_c_str().to_bytes())?;
            let stat = host::stat(self.nodes.get(id)?.fd())?;
            return reply.put(&self.entry(id, &stat));
        }
        let dir = self.directory(request.header.nodeid)?;
        self.reply_entry(&dir, name, reply)
    }

    pub(super) fn symlink(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let name = request.name()?;
        let target = request.string()?;
        if target.is_empty() {
            return Err(Errno::NOENT);
        }
        if target.count_bytes() > MAX_TARGET {
            return Err(Errno::NAMETOOLONG);
        }
        let dir = self.directory(request.header.nodeid)?.writable()?;
        // Any target: it is text here, and the guest's own tree is where it leads.
        rustix::fs::symlinkat(target, dir.fd(), name.as_c_str())?;
        self.reply_entry(&dir, name, reply)
    }

    pub(super) fn mknod(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: MknodIn = request.take()?;
        let name = request.name()?;
        let kind = match asked.mode & mode::S_IFMT {
            0 | mode::S_IFREG => FileType::RegularFile,
            mode::S_IFIFO => FileType::Fifo,
            mode::S_IFSOCK => FileType::Socket,
            // A device node would be one of the host's.
            _ => return Err(Errno::PERM),
        };
        let dir = self.directory(request.header.nodeid)?.writable()?;
        let bits = Mode::from_raw_mode(asked.mode & mode::SETTABLE);
        rustix::fs::mknodat(dir.fd(), name.as_c_str(), kind, bits, 0)?;
        self.reply_entry(&dir, name, reply)
    }

    pub(super) fn mkdir(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: MkdirIn = request.take()?;
        let name = request.name()?;
        let dir = self.directory(request.header.nodeid)?.writable()?;
        rustix::fs::mkdirat(
            dir.fd(),
            name.as_c_str(),
            Mode::from_raw_mode(asked.mode & mode::SETTABLE),
        )?;
        self.reply_entry(&dir, name, reply)
    }

    pub(super) fn unlink(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = request.name()?;
        let dir = self.directory(request.header.nodeid)?.writable()?;
        rustix::fs::unlinkat(dir.fd(), name.as_c_str(), AtFlags::empty())
    }

    pub(super) fn rmdir(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = request.name()?;
        let dir = self.directory(request.header.nodeid)?.writable()?;
        rustix::fs::unlinkat(dir.fd(), name.as_c_str(), AtFlags::REMOVEDIR)
    }

    pub(super) fn rename(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let asked: RenameIn = request.take()?;
        self.rename_to(request, asked.newdir, RenameFlags::empty())
    }

    pub(super) fn rename2(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let asked: Rename2In = request.take()?;
        let flags = RenameFlags::from_bits_retain(asked.flags);
        // Not WHITEOUT, which makes a device node.
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        self.rename_to(request, asked.newdir, flags)
    }

    fn rename_to(&self, request: &mut Request<'_>, newdir: u64, flags: RenameFlags) -> Result<(), Errno> {
        let (old, new) = (request.name()?, request.name()?);
        let from = self.directory(request.header.nodeid)?.writable()?;
        let to = self.directory(newdir)?.writable()?;
        if from.export != to.export {
            return Err(Errno::XDEV);
        }
        rustix::fs::renameat_with(from.fd(), old.as_c_str(), to.fd(), new.as_c_str(), flags)?;
        // Nodes whose descriptor was given up are found again by their place.
        if let Ok(stat) = host::stat_at(to.fd(), new) {
            self.nodes.relocate(&to, new, &stat);
        }
        if flags.contains(RenameFlags::EXCHANGE)
            && let Ok(stat) = host::stat_at(from.fd(), old)
        {
            self.nodes.relocate(&from, old, &stat);
        }
        Ok(())
    }

    pub(super) fn link(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: LinkIn = request.take()?;
        let name = request.name()?;
        if asked.oldnodeid == ROOT {
            return Err(Errno::PERM);
        }
        let old = self.node(asked.oldnodeid)?;
        let dir = self.directory(request.header.nodeid)?.writable()?;
        // Else a link into a writable export would unlock a file of a read-only one.
        if old.export != dir.export {
            return Err(Errno::XDEV);
        }
        if old.kind == Kind::Directory {
            return Err(Errno::PERM);
        }
        self.self_fds.link(old.fd(), dir.fd(), name)?;
        self.reply_entry(&dir, name, reply)
    }

    pub(super) fn opendir(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let id = request.header.nodeid;
        let of = if id == ROOT {
            Open::VirtualRoot
        } else {
            let dir = self.directory(id)?;
            self.handles.check_room()?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir.fd(), c".", flags, Mode::empty())?;
            let is_export = self.exports.root(dir.export) == Some(id);
            Open::Directory {
                fd,
                dir: dir.file,
                is_export,
                position: Mutex::new(0),
            }
        };
        let fh = self.add_handle(Handle { node: id, of })?;
        reply.put(&OpenOut {
            fh,
            ..OpenOut::default()
        })
    }

    pub(super) fn readdir(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: ReadIn = request.take()?;
        let handle = self.handles.get(asked.fh, request.header.nodeid)?;
        let size = (asked.size as usize).min(reply.room().len());
        match &handle.of {
            Open::VirtualRoot => {
                self.exports.list(asked.offset, size, reply);
                Ok(())
            }
            Open::Directory {
                fd,
                dir,
                is_export,
                position,
            } => {
                self.directory(request.header.nodeid)?;
                let mut position = position.lock().unwrap_or_else(PoisonError::into_inner);
                self.list(
                    fd.as_fd(),
                    *dir,
                    *is_export,
                    &mut position,
                    asked.offset,
                    size,
                    reply,
                )
            }
            Open::File { .. } => Err(Errno::NOTDIR),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one caller; a struct for it would only rename the arguments"
    )]
    fn list(
        &self,
        fd: BorrowedFd<'_>,
        dir: FileId,
        is_export: bool,
        position: &mut u64,
        offset: u64,
        size: usize,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        if *position != offset || offset == 0 {
            // Any offset is safe: a wrong one lists from elsewhere in the same directory.
            let target = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
            rustix::fs::seek(fd, SeekFrom::Start(target as u64))?;
            *position = offset;
        }
        let mut buffer = [MaybeUninit::uninit(); LISTING_BYTES];
        let mut entries = RawDir::new(fd, &mut buffer);
        let mut left = size;
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What was listed so far is good.
                Err(_) if any => break,
                Err(error) => return Err(error),
            };
            let ino = match entry.file_name().to_bytes() {
                // What is above an export is not the guest's to know.
                b".." if is_export => ROOT,
                _ => self.guest_ino(FileId {
                    dev: dir.dev,
                    ino: entry.ino(),
                }),
            };
            let next = entry.next_entry_cookie();
            let kind = directory_type(entry.file_type());
            if !put_entry(
                reply,
                &mut left,
                Dirent {
                    ino,
                    off: next,
                    namelen: 0,
                    kind,
                },
                entry.file_name(),
            ) {
                // The host's position is past entries that were not told: seek next time.
                *position = u64::MAX;
                return if any { Ok(()) } else { Err(Errno::INVAL) };
            }
            any = true;
            *position = next;
        }
        Ok(())
    }

    pub(super) fn release(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let asked: ReleaseIn = request.take()?;
        let node = request.header.nodeid;
        self.handles.remove(asked.fh, node)?;
        self.nodes.closed(node);
        Ok(())
    }

    /// Registers a handle and pins its node.
    pub(super) fn add_handle(&self, handle: Handle) -> Result<u64, Errno> {
        let node = handle.node;
        // Pinned first: once the number is out, a release may come at any time.
        self.nodes.opened(node);
        self.handles.add(handle).inspect_err(|_| self.nodes.closed(node))
    }

    /// Looks a name up, counts it, and answers with the entry.
    fn reply_entry(&self, dir: &Node, name: Name<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (id, stat) = self.know(dir, name)?;
        reply.put(&self.entry(id, &stat))
    }

    /// Makes the file of this name known to the guest, or counts one more look-up of it.
    pub(super) fn know(&self, dir: &Node, name: Name<'_>) -> Result<(u64, Statx), Errno> {
        let stat = host::stat_at(dir.fd(), name)?;
        if let Some(id) = self.nodes.revisit(dir, name, &stat) {
            return Ok((id, stat));
        }
        let fd = host::open_path(dir.fd(), name)?;
        let (id, stat) = self.know_fd(dir, name.as_c_str(), fd)?;
        Ok((id, stat))
    }

    /// Makes the file behind an `O_PATH` descriptor known to the guest.
    pub(super) fn know_fd(&self, dir: &Node, name: &CStr, fd: OwnedFd) -> Result<(u64, Statx), Errno> {
        let stat = host::stat(fd.as_fd())?;
        // A mount begins here, so the type of file system may differ from the directory's.
        if FileId::of(&stat).dev != dir.file.dev && host::is_kernel_interface(fd.as_fd())? {
            return Err(Errno::ACCESS);
        }
        let id = self.nodes.insert(dir, name, &stat, fd)?;
        Ok((id, stat))
    }
}

/// Appends one directory entry, padded as FUSE wants it; false if it does not fit.
pub(super) fn put_entry(reply: &mut Reply<'_>, left: &mut usize, mut entry: Dirent, name: &CStr) -> bool {
    let name = name.to_bytes();
    let padding = name.len().next_multiple_of(8) - name.len();
    let whole = size_of::<Dirent>() + name.len() + padding;
    if whole > *left || whole > reply.room().len() {
        return false;
    }
    *left -= whole;
    entry.namelen = u32::try_from(name.len()).unwrap_or(0);
    let pad = [0; 8];
    reply.put(&entry).and_then(|()| reply.put_bytes(name)).is_ok()
        && reply.put_bytes(pad.get(..padding).unwrap_or_default()).is_ok()
}

/// The `DT_*` number of a type of file.
fn directory_type(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    }
}
