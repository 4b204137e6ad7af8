//! Requests about what surrounds a file's bytes: attributes, links' texts, extended attributes, space.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::files::{drop_set_id, offset};
use super::host::{self, Kind};
use super::nodes::{Node, ROOT};
use super::server::Server;
use super::wire::{
    self, GetattrIn, GetxattrIn, GetxattrOut, Reply, Request, SetattrIn, SetxattrIn, StatfsOut, fattr, mode,
};

/// Largest value of an extended attribute, and longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_XATTR: usize = 64 << 10;

/// The only extended attributes the guest has. Others mean something to the host: capabilities, security labels,
/// access lists with the host's ids.
const USER: &[u8] = b"user.";

impl Server {
    pub(super) fn getattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: GetattrIn = request.take()?;
        let id = request.header.nodeid;
        if id == ROOT {
            return reply.put(&self.attr_out(self.exports.attr()));
        }
        let stat = if asked.flags & wire::GETATTR_FH != 0 {
            host::stat(self.opened_file(asked.fh, id)?.file()?)?
        } else {
            host::stat(self.node(id)?.fd())?
        };
        reply.put(&self.attr_out(self.attr(&stat)))
    }

    pub(super) fn setattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: SetattrIn = request.take()?;
        let id = request.header.nodeid;
        if id == ROOT {
            return Err(Errno::ROFS);
        }
        let node = self.node(id)?.writable()?;
        let has = |flag| asked.valid & flag != 0;
        if has(fattr::UID) || has(fattr::GID) {
            let uid = has(fattr::UID).then_some(asked.uid);
            let gid = has(fattr::GID).then_some(asked.gid);
            if !self.ids.may_own(&host::stat(node.fd())?, uid, gid) {
                return Err(Errno::PERM);
            }
        }
        if has(fattr::SIZE) {
            self.truncate(
                &node,
                has(fattr::FH).then_some(asked.fh),
                asked.size,
                has(fattr::KILL_SUIDGID),
            )?;
        }
        if has(fattr::MODE) {
            // Set-group-id on a directory only means whose group new files get.
            let settable = if node.kind == Kind::Directory {
                mode::SETTABLE | 0o2000
            } else {
                mode::SETTABLE
            };
            self.self_fds.chmod(node.fd(), asked.mode & settable)?;
        }
        if has(fattr::ATIME) || has(fattr::MTIME) {
            let times = Timestamps {
                last_access: time(
                    has(fattr::ATIME),
                    has(fattr::ATIME_NOW),
                    asked.atime,
                    asked.atime_ns,
                )?,
                last_modification: time(
                    has(fattr::MTIME),
                    has(fattr::MTIME_NOW),
                    asked.mtime,
                    asked.mtime_ns,
                )?,
            };
            rustix::fs::utimensat(node.fd(), c"", &times, AtFlags::EMPTY_PATH)?;
        }
        reply.put(&self.attr_out(self.attr(&host::stat(node.fd())?)))
    }

    fn truncate(&self, node: &Node, fh: Option<u64>, size: u64, kill_set_id: bool) -> Result<(), Errno> {
        let size = offset(size)?;
        let by_handle;
        let by_node;
        let fd = match fh {
            Some(fh) => {
                by_handle = self.opened_file(fh, node.id)?;
                by_handle.writable_file()?
            }
            None => {
                by_node = self.open_node(node, mode::O_WRONLY)?;
                by_node.as_fd()
            }
        };
        rustix::fs::ftruncate(fd, size)?;
        if kill_set_id { drop_set_id(fd) } else { Ok(()) }
    }

    pub(super) fn readlink(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        if request.header.nodeid == ROOT {
            return Err(Errno::INVAL);
        }
        let node = self.node(request.header.nodeid)?;
        // On a descriptor of anything but a link the host would answer ENOENT.
        if node.kind != Kind::Other {
            return Err(Errno::INVAL);
        }
        let target = rustix::fs::readlinkat(node.fd(), c"", Vec::with_capacity(256))?;
        reply.put_bytes(target.as_bytes())
    }

    pub(super) fn statfs(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        if request.header.nodeid == ROOT {
            return reply.put(&StatfsOut {
                bsize: 4096,
                frsize: 4096,
                namelen: 255,
                ..StatfsOut::default()
            });
        }
        let node = self.node(request.header.nodeid)?;
        let space = rustix::fs::fstatvfs(node.fd())?;
        let narrow = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
        reply.put(&StatfsOut {
            blocks: space.f_blocks,
            bfree: space.f_bfree,
            bavail: space.f_bavail,
            files: space.f_files,
            ffree: space.f_ffree,
            bsize: narrow(space.f_bsize),
            namelen: narrow(space.f_namemax),
            frsize: narrow(space.f_frsize),
            ..StatfsOut::default()
        })
    }

    pub(super) fn setxattr(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let asked: SetxattrIn = request.take()?;
        let name = user_attribute(request.string()?)?;
        let value = request.bytes(asked.size as usize)?;
        if value.len() > MAX_XATTR {
            return Err(Errno::TOOBIG);
        }
        let flags = XattrFlags::from_bits(asked.flags).ok_or(Errno::INVAL)?;
        let fd = self.for_xattr(request.header.nodeid, true)?;
        rustix::fs::fsetxattr(fd, name, value, flags)
    }

    pub(super) fn getxattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: GetxattrIn = request.take()?;
        let name = user_attribute(request.string()?)?;
        let fd = self.for_xattr(request.header.nodeid, false)?;
        let mut value = vec![0; MAX_XATTR];
        let len = rustix::fs::fgetxattr(fd, name, &mut value[..])?;
        put_sized(value.get(..len).unwrap_or_default(), asked.size, reply)
    }

    pub(super) fn listxattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked: GetxattrIn = request.take()?;
        let mut names = vec![0; MAX_XATTR];
        let len = match self.for_xattr(request.header.nodeid, false) {
            Ok(fd) => rustix::fs::flistxattr(fd, &mut names[..])?,
            // Links and the like have no user attributes.
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error),
        };
        let mut list = Vec::new();
        for name in names
            .get(..len)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == 0)
        {
            if name.starts_with(USER) {
                list.extend_from_slice(name);
            }
        }
        put_sized(&list, asked.size, reply)
    }

    pub(super) fn removexattr(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = user_attribute(request.string()?)?;
        let fd = self.for_xattr(request.header.nodeid, true)?;
        rustix::fs::fremovexattr(fd, name)
    }

    /// A descriptor that extended attributes can be asked of, which `O_PATH` ones cannot.
    fn for_xattr(&self, id: u64, change: bool) -> Result<OwnedFd, Errno> {
        if id == ROOT {
            return Err(Errno::OPNOTSUPP);
        }
        let mut node = self.node(id)?;
        if change {
            node = node.writable()?;
        }
        if node.kind == Kind::Other {
            return Err(Errno::OPNOTSUPP);
        }
        self.self_fds
            .reopen(node.fd(), OFlags::RDONLY | OFlags::NONBLOCK)
            .or_else(|error| match error {
                // A file that may be written but not read.
                Errno::ACCESS if node.kind == Kind::Regular && !node.read_only => {
                    self.self_fds.reopen(node.fd(), OFlags::WRONLY | OFlags::NONBLOCK)
                }
                _ => Err(error),
            })
    }
}

fn user_attribute(name: &CStr) -> Result<&CStr, Errno> {
    if name.to_bytes().len() > wire::NAME_MAX {
        return Err(Errno::RANGE);
    }
    if name.to_bytes().starts_with(USER) {
        Ok(name)
    } else {
        Err(Errno::OPNOTSUPP)
    }
}

/// Answers with a value, or with its size if the guest asks for that by a size of 0.
fn put_sized(value: &[u8], size: u32, reply: &mut Reply<'_>) -> Result<(), Errno> {
    if size == 0 {
        return reply.put(&GetxattrOut {
            size: u32::try_from(value.len()).unwrap_or(u32::MAX),
            padding: 0,
        });
    }
    if value.len() > size as usize {
        return Err(Errno::RANGE);
    }
    reply.put_bytes(value)
}

/// A time to set: none, the host's now, or the given one.
fn time(set: bool, now: bool, seconds: i64, nanoseconds: u32) -> Result<Timespec, Errno> {
    match (set, now) {
        (false, _) => Ok(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        }),
        (true, true) => Ok(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        }),
        (true, false) if nanoseconds < 1_000_000_000 => Ok(Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        }),
        (true, false) => Err(Errno::INVAL),
    }
}
