//! Files the guest knows by number, each with a descriptor or the way to get it back.
//!
//! A guest kernel keeps as many nodes as its memory allows, far more than a process may hold descriptors. So the
//! least used lose theirs, and are found again by parent and name, and checked to be the same file.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::Statx;
use rustix::io::Errno;

use super::host::{self, FileId, Kind, Origin};
use super::wire::Name;

/// The synthetic directory that holds one entry per export.
pub(super) const ROOT: u64 = 1;

/// Deepest directory found again after its descriptor was given up; bounds the work a single request can cause.
const MAX_DEPTH: usize = 1024;

/// A node in use by one request. Holding it keeps the descriptor open.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub id: u64,
    pub export: u32,
    pub read_only: bool,
    pub kind: Kind,
    pub file: FileId,
    fd: Arc<OwnedFd>,
}

impl Node {
    /// The node's own descriptor, of `O_PATH`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The node as a directory, or `ENOTDIR`.
    pub fn directory(self) -> Result<Self, Errno> {
        if self.kind == Kind::Directory {
            Ok(self)
        } else {
            Err(Errno::NOTDIR)
        }
    }

    /// The node, for a change of it or below it; `EROFS` on a read-only export.
    pub fn writable(self) -> Result<Self, Errno> {
        if self.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(self)
        }
    }
}

/// All nodes of one device.
pub(super) struct Nodes {
    table: Mutex<Table>,
}

/// Nodes of a driver that is gone.
pub(super) struct Forgotten(HashMap<u64, Entry>);

impl Forgotten {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct Table {
    entries: HashMap<u64, Entry>,
    /// The exports' roots.
    roots: Vec<u64>,
    by_file: HashMap<(u32, FileId), u64>,
    /// Entries that hold a descriptor, oldest first, and some that are gone; the clock of the eviction.
    clock: VecDeque<u64>,
    held: usize,
    next: u64,
    max_nodes: usize,
    max_held: usize,
}

struct Entry {
    export: u32,
    read_only: bool,
    file: FileId,
    origin: Origin,
    fd: Option<Arc<OwnedFd>>,
    /// Where it was last seen; an empty name for files that never had one.
    parent: u64,
    name: Box<CStr>,
    /// Times the guest was told of it and has not forgotten.
    lookups: u64,
    /// Open handles; such a node may have lost its name and keeps its descriptor.
    opens: u32,
    used: bool,
    /// An export's root: never forgotten, never without descriptor.
    permanent: bool,
}

impl Nodes {
    /// No nodes yet; at most `max_nodes`, of which about `max_held` hold a descriptor.
    pub fn new(max_nodes: usize, max_held: usize) -> Self {
        Self {
            table: Mutex::new(Table {
                entries: HashMap::new(),
                roots: Vec::new(),
                by_file: HashMap::new(),
                clock: VecDeque::new(),
                held: 0,
                next: ROOT + 1,
                max_nodes,
                max_held,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an export's root, which stays until the device goes.
    pub fn add_root(&self, export: u32, read_only: bool, stat: &Statx, fd: OwnedFd) -> u64 {
        let mut table = self.lock();
        let id = table.new_id();
        let entry = Entry {
            export,
            read_only,
            file: FileId::of(stat),
            origin: Origin::of(stat),
            fd: Some(Arc::new(fd)),
            parent: ROOT,
            name: Box::from(c""),
            lookups: 0,
            opens: 0,
            used: true,
            permanent: true,
        };
        table.by_file.insert((export, entry.file), id);
        table.entries.insert(id, entry);
        table.roots.push(id);
        id
    }

    /// The node with this number, its descriptor found again if need be; `ESTALE` if it is not what it was.
    pub fn get(&self, id: u64) -> Result<Node, Errno> {
        let mut missing = Vec::new();
        let mut at = id;
        let mut node = loop {
            match self.lock().visit(at)? {
                Ok(node) => break node,
                Err(parent) if missing.len() < MAX_DEPTH => {
                    missing.push(at);
                    at = parent;
                }
                Err(_) => return Err(Errno::STALE),
            }
        };
        for id in missing.into_iter().rev() {
            node = self.find_again(&node, id)?;
        }
        Ok(node)
    }

    /// Opens node `id` below `parent` by the name it was last seen under, and checks that it is the same file.
    fn find_again(&self, parent: &Node, id: u64) -> Result<Node, Errno> {
        let name = self.lock().entries.get(&id).ok_or(Errno::STALE)?.name.clone();
        let name = Name::new(&name).map_err(|_| Errno::STALE)?;
        let fd = host::open_path(parent.fd(), name).map_err(|errno| match errno {
            Errno::NFILE | Errno::MFILE | Errno::NOMEM => errno,
            _ => Errno::STALE,
        })?;
        let stat = host::stat(fd.as_fd())?;
        let mut table = self.lock();
        let entry = table.entries.get(&id).ok_or(Errno::STALE)?;
        if entry.file != FileId::of(&stat) || entry.origin != Origin::of(&stat) {
            return Err(Errno::STALE);
        }
        table.give(id, fd)
    }

    /// The directory that a node was last seen in, and its name there.
    pub fn place(&self, id: u64) -> Result<(u64, Box<CStr>), Errno> {
        let table = self.lock();
        let entry = table.entries.get(&id).ok_or(Errno::STALE)?;
        Ok((entry.parent, entry.name.clone()))
    }

    /// Counts a look-up of a file that is already known, and remembers where it was seen; `None` if it is not.
    pub fn revisit(&self, parent: &Node, name: Name<'_>, stat: &Statx) -> Option<u64> {
        let mut table = self.lock();
        let id = table.known(parent.export, stat)?;
        let entry = table.entries.get_mut(&id)?;
        entry.lookups = entry.lookups.saturating_add(1);
        entry.moved_to(parent.id, name.as_c_str());
        Some(id)
    }

    /// Counts a look-up of the file behind `fd`, making it known if need be. `name` is empty for a file without
    /// name. `ENFILE` if the guest keeps too many.
    pub fn insert(&self, parent: &Node, name: &CStr, stat: &Statx, fd: OwnedFd) -> Result<u64, Errno> {
        let mut table = self.lock();
        let id = match table.known(parent.export, stat) {
            Some(id) => id,
            None => {
                if table.entries.len() >= table.max_nodes {
                    return Err(Errno::NFILE);
                }
                let id = table.new_id();
                let entry = Entry {
                    export: parent.export,
                    read_only: parent.read_only,
                    file: FileId::of(stat),
                    origin: Origin::of(stat),
                    fd: None,
                    parent: parent.id,
                    name: Box::from(name),
                    lookups: 0,
                    opens: 0,
                    used: false,
                    permanent: false,
                };
                table.by_file.insert((parent.export, entry.file), id);
                table.entries.insert(id, entry);
                id
            }
        };
        table.give(id, fd)?;
        let entry = table.entries.get_mut(&id).ok_or(Errno::STALE)?;
        entry.lookups = entry.lookups.saturating_add(1);
        entry.moved_to(parent.id, name);
        Ok(id)
    }

    /// Notes that a known file got another place, after a rename.
    pub fn relocate(&self, parent: &Node, name: Name<'_>, stat: &Statx) {
        let mut table = self.lock();
        if let Some(entry) = table
            .known(parent.export, stat)
            .and_then(|id| table.entries.get_mut(&id))
        {
            entry.moved_to(parent.id, name.as_c_str());
        }
    }

    /// Takes back `count` look-ups. False if the guest was not told so many times; then all are taken back.
    pub fn forget(&self, id: u64, count: u64) -> bool {
        if id == ROOT {
            return true;
        }
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(&id) else {
            return false;
        };
        let honest = entry.permanent || count <= entry.lookups;
        entry.lookups = entry.lookups.saturating_sub(count);
        let unused = table.take_unused(id);
        // Its descriptor may be a big file's last, which takes long to close: not under the lock.
        drop(table);
        drop(unused);
        honest
    }

    /// Takes a node's descriptor away, so that it is found again by the name it was last seen under.
    pub fn give_up(&self, id: u64) {
        let mut table = self.lock();
        if let Some(entry) = table.entries.get_mut(&id).filter(|entry| !entry.permanent)
            && entry.fd.take().is_some()
        {
            table.held -= 1;
        }
    }

    /// Counts an open handle; the node keeps its descriptor until [`Nodes::closed`].
    pub fn opened(&self, id: u64) {
        if let Some(entry) = self.lock().entries.get_mut(&id) {
            entry.opens = entry.opens.saturating_add(1);
        }
    }

    /// Takes back one [`Nodes::opened`].
    pub fn closed(&self, id: u64) {
        let mut table = self.lock();
        if let Some(entry) = table.entries.get_mut(&id) {
            entry.opens = entry.opens.saturating_sub(1);
            let unused = table.take_unused(id);
            drop(table);
            drop(unused);
        }
    }

    /// Forgets all but the exports' roots, as when the guest's driver resets the device.
    ///
    /// Dropping what is returned closes descriptors and may wait for the disk.
    pub fn clear(&self) -> Forgotten {
        let mut table = self.lock();
        let mut entries = std::mem::take(&mut table.entries);
        table.by_file.clear();
        table.by_file.shrink_to_fit();
        table.clock = VecDeque::new();
        table.held = 0;
        for id in table.roots.clone() {
            if let Some(mut entry) = entries.remove(&id) {
                entry.opens = 0;
                table.by_file.insert((entry.export, entry.file), id);
                table.entries.insert(id, entry);
            }
        }
        Forgotten(entries)
    }

    /// Number of nodes, and of those that hold a descriptor.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize) {
        let table = self.lock();
        (table.entries.len(), table.held)
    }
}

impl Entry {
    fn moved_to(&mut self, parent: u64, name: &CStr) {
        if self.permanent || (self.parent == parent && *self.name == *name) {
            return;
        }
        self.parent = parent;
        self.name = Box::from(name);
    }

    fn node(&self, id: u64, fd: &Arc<OwnedFd>) -> Node {
        Node {
            id,
            export: self.export,
            read_only: self.read_only,
            kind: self.origin.kind,
            file: self.file,
            fd: Arc::clone(fd),
        }
    }
}

impl Table {
    fn new_id(&mut self) -> u64 {
        // Never reused, so a stale number of the guest's cannot come to mean another file.
        let id = self.next;
        self.next += 1;
        id
    }

    /// The node with its descriptor, or the number of the parent to find it again from.
    fn visit(&mut self, id: u64) -> Result<Result<Node, u64>, Errno> {
        let entry = self.entries.get_mut(&id).ok_or(Errno::STALE)?;
        entry.used = true;
        match &entry.fd {
            Some(fd) => Ok(Ok(entry.node(id, fd))),
            None => Ok(Err(entry.parent)),
        }
    }

    /// The node of this very file; one of an earlier file with the same inode number is retired.
    fn known(&mut self, export: u32, stat: &Statx) -> Option<u64> {
        let key = (export, FileId::of(stat));
        let id = *self.by_file.get(&key)?;
        let entry = self.entries.get(&id)?;
        // A held descriptor keeps the inode number from being reused; the rest is compared by birth and type.
        if entry.fd.is_some() || entry.origin == Origin::of(stat) {
            return Some(id);
        }
        self.by_file.remove(&key);
        None
    }

    /// Gives a node its descriptor, unless it has one, and takes others' if there are now too many.
    fn give(&mut self, id: u64, fd: OwnedFd) -> Result<Node, Errno> {
        let entry = self.entries.get_mut(&id).ok_or(Errno::STALE)?;
        entry.used = true;
        if let Some(held) = &entry.fd {
            return Ok(entry.node(id, held));
        }
        let fd = Arc::new(fd);
        let node = entry.node(id, &fd);
        entry.fd = Some(fd);
        self.held += 1;
        self.clock.push_back(id);
        self.evict();
        Ok(node)
    }

    fn evict(&mut self) {
        // Two turns find every node that was not used in between; if all are open, being over is right.
        let mut steps = 2 * self.clock.len();
        while steps > 0 && (self.held > self.max_held || self.clock.len() > 2 * self.max_held.max(1)) {
            steps -= 1;
            let Some(id) = self.clock.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.fd.is_some()) else {
                continue;
            };
            if entry.opens > 0 || entry.used {
                entry.used = false;
                self.clock.push_back(id);
            } else {
                entry.fd = None;
                self.held -= 1;
            }
        }
    }

    /// Takes out a node that nobody refers to any more.
    fn take_unused(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.get(&id)?;
        if entry.permanent || entry.lookups > 0 || entry.opens > 0 {
            return None;
        }
        let key = (entry.export, entry.file);
        self.held -= usize::from(entry.fd.is_some());
        let entry = self.entries.remove(&id);
        // A retired node's place may be another's by now.
        if self.by_file.get(&key) == Some(&id) {
            self.by_file.remove(&key);
        }
        entry
    }
}
