//! The host's side: every system call by which a name of the guest becomes a descriptor, and the ids it sees.
//!
//! Nothing follows a symbolic link, and a name is always one component below a descriptor already held. The one
//! magic link allowed is in [`SelfFds`]: re-opening a descriptor that was vetted as a regular file or directory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

use super::wire::{self, Name, mode};

/// Where a name may lead: below the directory, through no link of any sort.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// What the server asks of `statx`: all of `struct stat`, and the birth time that tells reused inodes apart.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// File systems that are interfaces to the host's kernel and not storage (`statfs` magic numbers). A mount of one
/// inside an export is refused whole: `/proc/self/mem` there would be this process's own memory.
const KERNEL_INTERFACES: [u32; 20] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x1cd1,      // devpts
    0x6165_676c, // pstore
    0x6e73_6673, // nsfs
    0x4249_4e4d, // binfmt_misc
    0x0187,      // autofs: a look-up there makes the host mount things
    0x1980_0202, // mqueue
    0x0765_5821, // resctrl
    0x6573_5543, // fusectl
];

/// A directory of this process's open descriptors, as procfs shows it (`/proc/self/fd`).
///
/// A regular file held by an `O_PATH` descriptor can be opened for reading or writing only through procfs: by
/// name it could have been swapped for something else, and it may have no name any more. The link is followed for
/// descriptors of this server alone, whose type was checked when they were made and cannot change.
#[derive(Debug)]
pub struct SelfFds(OwnedFd);

/// Why a descriptor is not this process's descriptor directory.
#[derive(Debug, thiserror::Error)]
pub enum SelfFdsError {
    /// `/proc/self/fd` could not be opened or inspected.
    #[error("cannot use /proc/self/fd; mount procfs on /proc where the VMM process starts")]
    Unavailable(#[source] std::io::Error),
    /// The descriptor is of another file system or another process.
    #[error(
        "the descriptor is not of this process's own /proc/PID/fd; open it for the pid of the VMM process"
    )]
    NotOurs,
}

impl SelfFds {
    /// Opens `/proc/self/fd`. The only path the server ever opens, and fixed: do it before the jail closes.
    ///
    /// # Errors
    /// There is no procfs on `/proc`.
    pub fn open() -> Result<Self, SelfFdsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/proc/self/fd", flags, Mode::empty())
            .map_err(|errno| SelfFdsError::Unavailable(errno.into()))?;
        Self::from_descriptor(fd)
    }

    /// Takes a descriptor of `/proc/PID/fd` that the parent opened for this process's pid, so that this process opens
    /// no path at all. Opened with `O_PATH`, it works also for a process that is not dumpable.
    ///
    /// # Errors
    /// The descriptor is of something else.
    pub fn from_descriptor(fd: OwnedFd) -> Result<Self, SelfFdsError> {
        let unavailable = |errno: Errno| SelfFdsError::Unavailable(errno.into());
        if !is_kernel_interface(fd.as_fd()).map_err(unavailable)? {
            return Err(SelfFdsError::NotOurs);
        }
        // The directory's entry for its own descriptor must be itself, or these are another process's.
        let own = stat(fd.as_fd()).map_err(unavailable)?;
        let this = Self(fd);
        let again = this
            .reopen(this.0.as_fd(), OFlags::PATH)
            .map_err(|_| SelfFdsError::NotOurs)?;
        let same = stat(again.as_fd()).is_ok_and(|seen| FileId::of(&seen) == FileId::of(&own));
        if same {
            Ok(this)
        } else {
            Err(SelfFdsError::NotOurs)
        }
    }

    /// Opens once more what `fd` refers to. The caller has checked that it is a regular file or a directory, unless
    /// `flags` hold `O_PATH`, which opens nothing.
    pub(super) fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(
            &self.0,
            DecInt::from_fd(fd),
            flags | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )
    }

    /// Changes permission bits of what `fd` refers to, which `fchmod` does not do for `O_PATH` descriptors.
    pub(super) fn chmod(&self, fd: BorrowedFd<'_>, bits: u32) -> Result<(), Errno> {
        rustix::fs::chmodat(
            &self.0,
            DecInt::from_fd(fd),
            Mode::from_raw_mode(bits),
            AtFlags::empty(),
        )
    }

    /// Gives what `fd` refers to one more name.
    pub(super) fn link(&self, fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<(), Errno> {
        rustix::fs::linkat(
            &self.0,
            DecInt::from_fd(fd),
            dir,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )
    }

    /// Where the kernel says that `fd` is now, of at most a path's length.
    pub(super) fn location(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let number = fd.as_raw_fd();
        rustix::fs::readlinkat(&self.0, DecInt::new(number), Vec::with_capacity(256))
            .map(|path| path.into_bytes())
    }
}

/// Which file of the host: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    pub dev: u64,
    pub ino: u64,
}

impl FileId {
    pub fn of(stat: &Statx) -> Self {
        Self {
            dev: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            ino: stat.stx_ino,
        }
    }
}

/// Birth time and type: what tells a file from a later one that got its inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    born: (i64, u32),
    pub kind: Kind,
}

impl Origin {
    pub fn of(stat: &Statx) -> Self {
        let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = if known {
            (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)
        } else {
            (0, 0)
        };
        Self {
            born,
            kind: Kind::of(stat),
        }
    }
}

/// What sort of file: only the first two are ever opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Directory,
    /// Symbolic links, FIFOs, sockets, device nodes: looked at, never opened.
    Other,
}

impl Kind {
    pub fn of(stat: &Statx) -> Self {
        match u32::from(stat.stx_mode) & mode::S_IFMT {
            mode::S_IFREG => Self::Regular,
            mode::S_IFDIR => Self::Directory,
            _ => Self::Other,
        }
    }
}

/// Attributes of what a descriptor refers to.
pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, WANTED)
}

/// Attributes of an entry of a directory, links not followed.
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Statx, Errno> {
    rustix::fs::statx(
        dir,
        name.as_c_str(),
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
        WANTED,
    )
}

/// A descriptor that refers to an entry of a directory without opening it.
pub(super) fn open_path(dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, name.as_c_str(), flags, Mode::empty(), RESOLVE)
}

/// Makes and opens a regular file; fails if anything has that name.
pub(super) fn create(
    dir: BorrowedFd<'_>,
    name: Name<'_>,
    flags: OFlags,
    bits: u32,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat2(
        dir,
        name.as_c_str(),
        flags,
        Mode::from_raw_mode(bits & mode::SETTABLE),
        RESOLVE,
    )
}

/// Whether `fd` is on a file system that is an interface to the kernel.
pub(super) fn is_kernel_interface(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let magic = rustix::fs::fstatfs(fd)?.f_type;
    // The magic numbers are 32 bits; the field is wider or signed on some architectures.
    Ok(KERNEL_INTERFACES.contains(&(magic as u32)))
}

/// How owners look on each side: the host user is the guest's unprivileged user, all others are nobody. No file is
/// ever shown as the guest's root's, so no set-user-id file of the host gives a guest process anything.
#[derive(Debug, Clone, Copy)]
pub struct IdMap {
    host_uid: u32,
    host_gid: u32,
    guest_uid: u32,
    guest_gid: u32,
}

/// The owner shown for files of anyone but the host user (`nobody`, `nogroup`).
const NOBODY: u32 = 65534;

impl IdMap {
    /// Maps this process's effective user and group to `guest_uid` and `guest_gid`, and back.
    pub fn of_this_process(guest_uid: u32, guest_gid: u32) -> Self {
        Self {
            host_uid: rustix::process::geteuid().as_raw(),
            host_gid: rustix::process::getegid().as_raw(),
            guest_uid,
            guest_gid,
        }
    }

    /// The guest's attributes for a file of the host, its inode number as given.
    pub(super) fn attr(&self, stat: &Statx, ino: u64) -> wire::Attr {
        wire::Attr {
            ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.tv_sec,
            mtime: stat.stx_mtime.tv_sec,
            ctime: stat.stx_ctime.tv_sec,
            atime_ns: stat.stx_atime.tv_nsec,
            mtime_ns: stat.stx_mtime.tv_nsec,
            ctime_ns: stat.stx_ctime.tv_nsec,
            mode: u32::from(stat.stx_mode),
            nlink: stat.stx_nlink,
            uid: if stat.stx_uid == self.host_uid {
                self.guest_uid
            } else {
                NOBODY
            },
            gid: if stat.stx_gid == self.host_gid {
                self.guest_gid
            } else {
                NOBODY
            },
            // A device node of the host names no device in the guest.
            rdev: 0,
            blksize: stat.stx_blksize,
            flags: 0,
        }
    }

    /// Whether the guest may give a file to `uid` (or `gid`): from the host user to the guest's user or to root, both
    /// of which are the host user, so nothing changes; or from anyone to who has it.
    pub(super) fn may_own(&self, stat: &Statx, uid: Option<u32>, gid: Option<u32>) -> bool {
        let may = |asked: Option<u32>, ours: bool, user: u32| {
            asked.is_none_or(|id| if ours { id == user || id == 0 } else { id == NOBODY })
        };
        may(uid, stat.stx_uid == self.host_uid, self.guest_uid)
            && may(gid, stat.stx_gid == self.host_gid, self.guest_gid)
    }
}
