//! FUSE messages as they lie in memory: little structs, numbers, and two bounded cursors.
//!
//! Hostile: every request byte. The layout is that of `linux/fuse.h`, protocol 7.31 to 7.38. Nothing here
//! does I/O; [`Request`] and [`Reply`] cannot reach outside the slices they were given.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol major version spoken (`FUSE_KERNEL_VERSION`).
pub(super) const MAJOR: u32 = 7;
/// Newest minor version spoken; nothing later is used.
pub(super) const MINOR: u32 = 38;
/// Oldest minor version accepted: the first with every request of a virtio-fs guest (Linux 5.4).
pub(super) const MIN_MINOR: u32 = 31;

/// Length of `fuse_out_header`, the least any reply needs.
pub(super) const OUT_HEADER: usize = size_of::<OutHeader>();

/// Request numbers (`enum fuse_opcode`).
pub(super) mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// `FUSE_INIT` flags.
pub(super) mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// `FATTR_*`: which fields of [`SetattrIn`] count.
pub(super) mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FUSE_GETATTR_FH`: the handle in [`GetattrIn`] counts.
pub(super) const GETATTR_FH: u32 = 1;
/// `FUSE_OPEN_KILL_SUIDGID`: clear set-id bits when truncating on open.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_WRITE_CACHE`: pages written back from the guest's cache, at fixed offsets.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: clear set-id bits with this write.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`: data only.
pub(super) const FSYNC_DATA_ONLY: u32 = 1;

/// Linux open flags and file types as the guest sends them; the values x86_64 and aarch64 share.
pub(super) mod mode {
    pub const O_ACCMODE: u32 = 0o3;
    pub const O_WRONLY: u32 = 0o1;
    pub const O_RDWR: u32 = 0o2;
    pub const O_EXCL: u32 = 0o200;
    pub const O_TRUNC: u32 = 0o1000;
    pub const O_APPEND: u32 = 0o2000;
    pub const O_DSYNC: u32 = 0o10000;
    pub const O_SYNC: u32 = 0o4010000;

    pub const S_IFMT: u32 = 0o170000;
    pub const S_IFSOCK: u32 = 0o140000;
    pub const S_IFREG: u32 = 0o100000;
    pub const S_IFDIR: u32 = 0o040000;
    pub const S_IFIFO: u32 = 0o010000;
    /// What a guest may set: permissions and the sticky bit, never set-id.
    pub const SETTABLE: u32 = 0o1777;
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(super) struct $name { $(pub $field: $ty),* }
    )*};
}

wire! {
    /// `fuse_in_header`.
    InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, ext_len: u16, padding: u16 }
    /// `fuse_out_header`; `error` is zero or a negated errno.
    OutHeader { len: u32, error: i32, unique: u64 }
    /// `fuse_attr`.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    /// `fuse_entry_out`.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_ns: u32, attr_valid_ns: u32, attr: Attr,
    }
    /// `fuse_attr_out`.
    AttrOut { attr_valid: u64, attr_valid_ns: u32, dummy: u32, attr: Attr }
    /// `fuse_getattr_in`.
    GetattrIn { flags: u32, dummy: u32, fh: u64 }
    /// `fuse_setattr_in`.
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: i64, mtime: i64, ctime: i64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `fuse_mknod_in`.
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `fuse_mkdir_in`.
    MkdirIn { mode: u32, umask: u32 }
    /// `fuse_rename_in`.
    RenameIn { newdir: u64 }
    /// `fuse_rename2_in`.
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `fuse_link_in`.
    LinkIn { oldnodeid: u64 }
    /// `fuse_open_in`.
    OpenIn { flags: u32, open_flags: u32 }
    /// `fuse_create_in`, also of `FUSE_TMPFILE`.
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `fuse_open_out`.
    OpenOut { fh: u64, open_flags: u32, padding: u32 }
    /// `fuse_release_in`.
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `fuse_read_in`.
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_in`.
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_out`.
    WriteOut { size: u32, padding: u32 }
    /// `fuse_statfs_out`.
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// `fuse_fsync_in`.
    FsyncIn { fh: u64, flags: u32, padding: u32 }
    /// `fuse_setxattr_in` in its short form.
    SetxattrIn { size: u32, flags: u32 }
    /// `fuse_getxattr_in`, also of `FUSE_LISTXATTR`.
    GetxattrIn { size: u32, padding: u32 }
    /// `fuse_getxattr_out`.
    GetxattrOut { size: u32, padding: u32 }
    /// `fuse_init_in`, the part every version sends.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// `fuse_init_out`.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
    /// `fuse_forget_in`.
    ForgetIn { nlookup: u64 }
    /// `fuse_batch_forget_in`.
    BatchForgetIn { count: u32, dummy: u32 }
    /// `fuse_forget_one`.
    ForgetOne { nodeid: u64, nlookup: u64 }
    /// `fuse_fallocate_in`.
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `fuse_lseek_in`.
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `fuse_lseek_out`.
    LseekOut { offset: u64 }
    /// `fuse_copy_file_range_in`.
    CopyIn { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    /// `fuse_dirent`, before the name.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
}

/// The arguments of one request, read front to back.
pub(super) struct Request<'a> {
    pub header: InHeader,
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    /// Splits a message into header and arguments.
    ///
    /// `None` if it is shorter than a header or than it says it is: there is nobody to answer.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, rest) = InHeader::read_from_prefix(message).ok()?;
        let arguments = (header.len as usize).checked_sub(size_of::<InHeader>())?;
        // Extensions (7.38) come last and none was negotiated, so they are simply not read.
        Some(Self {
            header,
            rest: rest.get(..arguments)?,
        })
    }

    /// The next fixed-size argument.
    pub fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| Errno::INVAL)?;
        self.rest = rest;
        Ok(value)
    }

    /// The next string argument, up to its NUL; may be empty.
    pub fn string(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| Errno::INVAL)?;
        self.rest = self.rest.get(text.count_bytes() + 1..).unwrap_or_default();
        Ok(text)
    }

    /// The next string argument as a name within a directory.
    pub fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.string()?)
    }

    /// The next `size` bytes.
    pub fn bytes(&mut self, size: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.rest.split_at_checked(size).ok_or(Errno::INVAL)?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// A file name that names an entry of one directory and nothing else: one component of 1 to 255 bytes, no `/`,
/// not `.` or `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'a>(&'a CStr);

/// Longest name (`NAME_MAX`); bounds what the node table keeps per entry.
pub(super) const NAME_MAX: usize = 255;

impl<'a> Name<'a> {
    /// Accepts a single component.
    pub fn new(text: &'a CStr) -> Result<Self, Errno> {
        let bytes = text.to_bytes();
        if bytes.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        Ok(Self(text))
    }

    /// The name, for a system call.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

/// One reply being written, into room that the guest provided.
pub(super) struct Reply<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Reply<'a> {
    /// Starts a reply after the header; `None` if not even that fits.
    pub fn new(buffer: &'a mut [u8]) -> Option<Self> {
        (buffer.len() >= OUT_HEADER).then_some(Self {
            buffer,
            len: OUT_HEADER,
        })
    }

    /// Appends a fixed-size answer.
    pub fn put<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        self.put_bytes(value.as_bytes())
    }

    /// Appends bytes; `ERANGE`-like lack of room is the guest's mistake.
    pub fn put_bytes(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.room()
            .get_mut(..bytes.len())
            .ok_or(Errno::INVAL)?
            .copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// The room left.
    pub fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.len..).unwrap_or_default()
    }

    /// Counts `written` bytes, put into [`Reply::room`], as part of the reply.
    pub fn advance(&mut self, written: usize) {
        self.len = (self.len + written).min(self.buffer.len());
    }

    /// Writes the header and returns the length of the whole; an error's reply is only a header.
    pub fn finish(self, unique: u64, result: Result<(), Errno>) -> usize {
        let (len, error) = match result {
            Ok(()) => (self.len, 0),
            Err(errno) => (OUT_HEADER, -errno.raw_os_error()),
        };
        let header = OutHeader {
            len: u32::try_from(len).unwrap_or(u32::MAX),
            error,
            unique,
        };
        match header.write_to_prefix(self.buffer) {
            Ok(()) => len,
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_sizes_of_the_kernel_header() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<CopyIn>(), 56);
        assert_eq!(size_of::<Dirent>(), 24);
    }

    #[test]
    fn names_that_are_not_one_component_are_refused() {
        for bad in [c"", c".", c"..", c"a/b", c"/", c"../x", c"x/"] {
            assert_eq!(Name::new(bad), Err(Errno::INVAL), "{bad:?}");
        }
        let long = std::ffi::CString::new(vec![b'a'; 256]).unwrap();
        assert_eq!(Name::new(&long), Err(Errno::NAMETOOLONG));
        for good in [c"a", c"...", c".git", c"..a", c"sp ace", c"\xff\xfe"] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_message_that_lies_about_its_length_is_not_read() {
        let header = InHeader {
            len: 100,
            opcode: op::LOOKUP,
            ..InHeader::default()
        };
        assert!(Request::parse(header.as_bytes()).is_none());
        let header = InHeader { len: 39, ..header };
        assert!(Request::parse(header.as_bytes()).is_none());
    }
}
