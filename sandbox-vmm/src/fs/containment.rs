//! Whether a file that the guest knows is still below its export.
//!
//! A descriptor goes where its file goes. Were that all, a guest that once looked into a directory or opened a
//! script would keep it when the host moves it elsewhere: into a home directory, onto the search path. So each
//! request but those that let go asks the kernel where the file is now.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::handles::{Handle, Open};
use super::host::{self, FileId, Kind};
use super::nodes::{Node, ROOT};
use super::server::Server;
use super::wire::Name;

/// Directories climbed to find one whose path is short enough to be told; bounds the work of one request.
const MAX_CLIMB: usize = 1024;

impl Server {
    /// The node with this number, still below its export. The virtual root is none: it is answered for elsewhere,
    /// and refuses all else as read-only.
    pub(super) fn node(&self, id: u64) -> Result<Node, Errno> {
        if id == ROOT {
            return Err(Errno::ROFS);
        }
        let node = self.nodes.get(id)?;
        if self.check_node(&node).is_ok() {
            return Ok(node);
        }
        // Perhaps only the name that it was opened by has left, and it has another.
        self.nodes.give_up(id);
        let node = self.nodes.get(id)?;
        self.check_node(&node)?;
        Ok(node)
    }

    /// The directory with this number, still below its export.
    pub(super) fn directory(&self, id: u64) -> Result<Node, Errno> {
        self.node(id)?.directory()
    }

    /// An open file, still below its export; one without any name left is where it last was.
    pub(super) fn opened_file(&self, fh: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handles.get(fh, node)?;
        if let Open::File { fd, export, .. } = &handle.of {
            self.check_contained(*export, node, fd.as_fd(), Kind::Regular)?;
        }
        Ok(handle)
    }

    fn check_node(&self, node: &Node) -> Result<(), Errno> {
        self.check_contained(node.export, node.id, node.fd(), node.kind)
    }

    fn check_contained(&self, export: u32, node: u64, fd: BorrowedFd<'_>, kind: Kind) -> Result<(), Errno> {
        let root = self.exports.root(export).ok_or(Errno::STALE)?;
        let root = self.nodes.get(root)?;
        let above = self.self_fds.location(root.fd())?;
        let here = match self.self_fds.location(fd) {
            Err(Errno::NAMETOOLONG) if kind == Kind::Directory => self.location_above(fd)?,
            Err(Errno::NAMETOOLONG) => return self.check_by_name(node, fd),
            told => told?,
        };
        let below = above == b"/"
            || here
                .strip_prefix(above.as_slice())
                .is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
        if below { Ok(()) } else { Err(Errno::STALE) }
    }

    /// A file whose path is too long to be told is contained if the directory that it was last seen in is, and still
    /// has it. One without any name left is where it last was.
    fn check_by_name(&self, id: u64, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = host::stat(fd)?;
        if stat.stx_nlink == 0 {
            return Ok(());
        }
        let (parent, name) = self.nodes.place(id)?;
        let name = Name::new(&name).map_err(|_| Errno::STALE)?;
        let seen = host::stat_at(self.directory(parent)?.fd(), name).map_err(|_| Errno::STALE)?;
        if FileId::of(&seen) == FileId::of(&stat) {
            Ok(())
        } else {
            Err(Errno::STALE)
        }
    }

    /// Where a directory is whose path is too long to be told, by one above it.
    fn location_above(&self, dir: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let up = |fd: BorrowedFd<'_>| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(fd, c"..", flags, Mode::empty())
        };
        let mut above: OwnedFd = up(dir)?;
        for _ in 0..MAX_CLIMB {
            match self.self_fds.location(above.as_fd()) {
                Err(Errno::NAMETOOLONG) => above = up(above.as_fd())?,
                told => return told,
            }
        }
        Err(Errno::STALE)
    }
}
