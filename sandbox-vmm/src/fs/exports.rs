//! The virtual root: a synthetic, read-only directory with one entry per export, named by number.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{PoisonError, RwLock};

use rustix::io::Errno;

use super::host::{self, Kind};
use super::nodes::{Nodes, ROOT};
use super::wire::{self, Dirent, Reply, mode};

/// Most exports of one device; each pins a descriptor for as long as the device lives.
pub const MAX_EXPORTS: usize = 256;

/// What the guest may do with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look and read; every change is answered with `EROFS`.
    ReadOnly,
    /// All that the host user may do.
    ReadWrite,
}

/// Why a directory was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The descriptor is not of a directory.
    #[error("the descriptor is not of a directory; export a directory and name files within it")]
    NotADirectory,
    /// The directory is an interface to the host's kernel.
    #[error("the directory is on procfs, sysfs or the like, which would hand the host's kernel to the guest")]
    KernelInterface,
    /// Too many exports.
    #[error("a sandbox has at most {MAX_EXPORTS} exported directories; export a common parent instead")]
    TooMany,
    /// The host refused to look at the directory.
    #[error("cannot inspect the directory to export")]
    Host(#[source] std::io::Error),
}

/// The exports' root nodes, in order of their names.
pub(super) struct Exports {
    roots: RwLock<Vec<u64>>,
}

impl Exports {
    pub fn new() -> Self {
        Self {
            roots: RwLock::new(Vec::new()),
        }
    }

    /// Adds a directory and returns its number.
    pub fn add(&self, nodes: &Nodes, dir: OwnedFd, access: Access) -> Result<u32, ExportError> {
        let host = |errno: Errno| ExportError::Host(errno.into());
        let stat = host::stat(dir.as_fd()).map_err(host)?;
        if Kind::of(&stat) != Kind::Directory {
            return Err(ExportError::NotADirectory);
        }
        if host::is_kernel_interface(dir.as_fd()).map_err(host)? {
            return Err(ExportError::KernelInterface);
        }
        let mut roots = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        if roots.len() >= MAX_EXPORTS {
            return Err(ExportError::TooMany);
        }
        let number = u32::try_from(roots.len()).map_err(|_| ExportError::TooMany)?;
        roots.push(nodes.add_root(number, access == Access::ReadOnly, &stat, dir));
        Ok(number)
    }

    /// The root node of an export.
    pub fn root(&self, number: u32) -> Option<u64> {
        self.roots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(number as usize)
            .copied()
    }

    /// The root node of the export with this name, in its one spelling.
    pub fn find(&self, name: &[u8]) -> Result<u64, Errno> {
        let number: u32 = str::from_utf8(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(Errno::NOENT)?;
        if number.to_string().as_bytes() != name {
            return Err(Errno::NOENT);
        }
        self.root(number).ok_or(Errno::NOENT)
    }

    /// How the virtual root looks.
    pub fn attr(&self) -> wire::Attr {
        let count = self.roots.read().unwrap_or_else(PoisonError::into_inner).len();
        wire::Attr {
            ino: ROOT,
            mode: mode::S_IFDIR | 0o555,
            nlink: u32::try_from(count).unwrap_or(u32::MAX).saturating_add(2),
            blksize: 4096,
            ..wire::Attr::default()
        }
    }

    /// Lists the virtual root from `offset` on, as far as the reply has room.
    pub fn list(&self, offset: u64, size: usize, reply: &mut Reply<'_>) {
        let count = self.roots.read().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let mut left = size;
        for at in offset..count.saturating_add(2) {
            let name = match at {
                0 => CString::from(c"."),
                1 => CString::from(c".."),
                // A number has no NUL.
                entry => CString::new((entry - 2).to_string()).unwrap_or_default(),
            };
            let entry = Dirent {
                ino: if at < 2 { ROOT } else { at },
                off: at + 1,
                kind: 4,
                namelen: 0,
            };
            if !super::directories::put_entry(reply, &mut left, entry, &name) {
                return;
            }
        }
    }
}
