//! The server driven as a guest kernel would, and as a hostile one would, on real directories.

mod escapes;
mod hostile;
mod posix;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::wire::{self, *};
use super::{Access, IdMap, Limits, MAX_REPLY, SelfFds, Server};

/// A small machine's limits, so that tests reach them.
const LIMITS: Limits = Limits {
    nodes: 4000,
    node_descriptors: 64,
    handles: 32,
};

/// The export's root: the first node after the virtual root.
const TOP: u64 = 2;

/// A guest with one export and the host's view of it.
struct Guest {
    server: Server,
    directory: tempfile::TempDir,
}

/// What `LOOKUP` and its like answer.
type Found = Result<EntryOut, Errno>;

impl Guest {
    fn new() -> Self {
        Self::with(Access::ReadWrite, LIMITS)
    }

    fn with(access: Access, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("export")).unwrap();
        let server = Server::new(
            SelfFds::open().unwrap(),
            IdMap::of_this_process(1000, 1000),
            limits,
        );
        let guest = Self { server, directory };
        assert_eq!(guest.server.add_export(open(&guest.host("")), access).unwrap(), 0);
        let flags = u32::MAX;
        let init = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 1 << 20,
            flags,
        };
        let answer: InitOut = read(&guest.call(op::INIT, 0, &[init.as_bytes()]).unwrap());
        assert_eq!((answer.major, answer.minor), (7, 38));
        assert_eq!(guest.find(wire_root(), "0").unwrap().nodeid, TOP);
        guest
    }

    /// A path of the host inside the export.
    fn host(&self, path: &str) -> PathBuf {
        self.directory.path().join("export").join(path)
    }

    /// A path of the host beside the export.
    fn outside(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn call(&self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Result<Vec<u8>, Errno> {
        self.call_with_room(opcode, nodeid, parts, MAX_REPLY)
    }

    fn call_with_room(
        &self,
        opcode: u32,
        nodeid: u64,
        parts: &[&[u8]],
        room: usize,
    ) -> Result<Vec<u8>, Errno> {
        let body = parts.concat();
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader {
            len,
            opcode,
            unique: 77,
            nodeid,
            ..InHeader::default()
        };
        let mut reply = vec![0; room];
        let message = [header.as_bytes(), &body].concat();
        let len = self.server.handle(&message, &mut reply);
        reply.truncate(len);
        let (header, body) = OutHeader::read_from_prefix(&reply).expect("a reply");
        assert_eq!((header.len as usize, header.unique), (len, 77));
        match header.error {
            0 => Ok(body.to_vec()),
            error => {
                assert!(body.is_empty());
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    /// Sends a request that has no reply.
    fn tell(&self, opcode: u32, nodeid: u64, parts: &[&[u8]]) {
        let body = parts.concat();
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader {
            len,
            opcode,
            nodeid,
            ..InHeader::default()
        };
        let message = [header.as_bytes(), &body].concat();
        assert_eq!(self.server.handle(&message, &mut [0; 256]), 0);
    }

    fn find(&self, dir: u64, name: &str) -> Found {
        self.call(op::LOOKUP, dir, &[&text(name)])
            .map(|reply| read(&reply))
    }

    /// Looks a path up, component by component.
    fn walk(&self, path: &str) -> Found {
        let mut at = EntryOut {
            nodeid: TOP,
            ..EntryOut::default()
        };
        for name in path.split('/') {
            at = self.find(at.nodeid, name)?;
        }
        Ok(at)
    }

    fn forget(&self, node: u64, count: u64) {
        self.tell(op::FORGET, node, &[ForgetIn { nlookup: count }.as_bytes()]);
    }

    fn mkdir(&self, dir: u64, name: &str) -> Found {
        let asked = MkdirIn {
            mode: 0o755,
            umask: 0o22,
        };
        self.call(op::MKDIR, dir, &[asked.as_bytes(), &text(name)])
            .map(|reply| read(&reply))
    }

    fn create(&self, dir: u64, name: &str, flags: u32) -> Result<(EntryOut, u64), Errno> {
        let asked = CreateIn {
            flags,
            mode: 0o100644,
            ..CreateIn::default()
        };
        let reply = self.call(op::CREATE, dir, &[asked.as_bytes(), &text(name)])?;
        let opened: OpenOut = read(&reply[size_of::<EntryOut>()..]);
        Ok((read(&reply), opened.fh))
    }

    fn open(&self, node: u64, flags: u32) -> Result<u64, Errno> {
        let asked = OpenIn { flags, open_flags: 0 };
        self.call(op::OPEN, node, &[asked.as_bytes()])
            .map(|reply| read::<OpenOut>(&reply).fh)
    }

    fn close(&self, node: u64, fh: u64) -> Result<(), Errno> {
        let asked = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.call(op::RELEASE, node, &[asked.as_bytes()]).map(drop)
    }

    fn read(&self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let asked = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(op::READ, node, &[asked.as_bytes()])
    }

    fn write(&self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let asked = WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            ..WriteIn::default()
        };
        self.write_as(node, asked, data)
    }

    fn write_as(&self, node: u64, asked: WriteIn, data: &[u8]) -> Result<u32, Errno> {
        let reply = self.call(op::WRITE, node, &[asked.as_bytes(), data])?;
        Ok(read::<WriteOut>(&reply).size)
    }

    fn attr(&self, node: u64) -> Result<Attr, Errno> {
        let reply = self.call(op::GETATTR, node, &[GetattrIn::default().as_bytes()])?;
        Ok(read::<AttrOut>(&reply).attr)
    }

    fn set(&self, node: u64, asked: SetattrIn) -> Result<Attr, Errno> {
        let reply = self.call(op::SETATTR, node, &[asked.as_bytes()])?;
        Ok(read::<AttrOut>(&reply).attr)
    }

    fn rename(&self, from: u64, old: &str, to: u64, new: &str, flags: u32) -> Result<(), Errno> {
        let asked = Rename2In {
            newdir: to,
            flags,
            padding: 0,
        };
        self.call(op::RENAME2, from, &[asked.as_bytes(), &text(old), &text(new)])
            .map(drop)
    }

    fn link(&self, old: u64, dir: u64, name: &str) -> Found {
        let asked = LinkIn { oldnodeid: old };
        self.call(op::LINK, dir, &[asked.as_bytes(), &text(name)])
            .map(|reply| read(&reply))
    }

    fn symlink(&self, dir: u64, name: &str, target: &str) -> Found {
        self.call(op::SYMLINK, dir, &[&text(name), &text(target)])
            .map(|reply| read(&reply))
    }

    /// Lists a directory in pages of `size` bytes.
    fn list(&self, node: u64, size: u32) -> Result<Vec<String>, Errno> {
        let reply = self.call(op::OPENDIR, node, &[OpenIn::default().as_bytes()])?;
        let fh = read::<OpenOut>(&reply).fh;
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let asked = ReadIn {
                fh,
                offset,
                size,
                ..ReadIn::default()
            };
            let page = self.call(op::READDIR, node, &[asked.as_bytes()])?;
            if page.is_empty() {
                break;
            }
            assert!(page.len() <= size as usize);
            let mut rest = page.as_slice();
            while !rest.is_empty() {
                let (entry, after) = Dirent::read_from_prefix(rest).unwrap();
                let len = entry.namelen as usize;
                names.push(OsStr::from_bytes(&after[..len]).to_string_lossy().into_owned());
                rest = &after[len.next_multiple_of(8)..];
                offset = entry.off;
            }
        }
        let asked = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.call(op::RELEASEDIR, node, &[asked.as_bytes()])?;
        Ok(names)
    }
}

fn wire_root() -> u64 {
    super::nodes::ROOT
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn read<T: FromBytes + FromZeros + KnownLayout + Immutable>(reply: &[u8]) -> T {
    T::read_from_prefix(reply).expect("a reply of this type").0
}
