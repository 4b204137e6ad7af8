//! What programs in the guest rely on.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;

const RDONLY: u32 = 0;
const WRONLY: u32 = mode::O_WRONLY;
const RDWR: u32 = mode::O_RDWR;

#[test]
fn both_sides_see_each_others_changes_at_once() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "from-guest", RDWR).unwrap();
    guest.write(made.nodeid, fh, 0, b"hello").unwrap();
    assert_eq!(fs::read(guest.host("from-guest")).unwrap(), b"hello");

    fs::write(guest.host("from-guest"), b"rewritten by the host").unwrap();
    assert_eq!(
        guest.read(made.nodeid, fh, 0, 100).unwrap(),
        b"rewritten by the host"
    );
    assert_eq!(guest.attr(made.nodeid).unwrap().size, 21);

    assert_eq!(guest.find(TOP, "from-host").unwrap_err(), Errno::NOENT);
    fs::write(guest.host("from-host"), b"x").unwrap();
    assert_eq!(guest.find(TOP, "from-host").unwrap().attr.size, 1);
    fs::remove_file(guest.host("from-host")).unwrap();
    assert_eq!(guest.find(TOP, "from-host").unwrap_err(), Errno::NOENT);
}

#[test]
fn names_are_never_to_be_believed_and_attributes_for_one_tick() {
    let guest = Guest::new();
    let entry = guest.mkdir(TOP, "d").unwrap();
    assert_eq!((entry.entry_valid, entry.entry_valid_ns), (0, 0));
    assert_eq!((entry.attr_valid, entry.attr_valid_ns), (0, 1));
}

#[test]
fn files_of_the_host_user_are_the_guest_users() {
    let guest = Guest::new();
    let (made, _) = guest.create(TOP, "f", RDWR).unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (1000, 1000));
    let owner = |uid, gid| SetattrIn {
        valid: fattr::UID | fattr::GID,
        uid,
        gid,
        ..SetattrIn::default()
    };
    assert_eq!(guest.set(made.nodeid, owner(1000, 1000)).unwrap().uid, 1000);
    // Root in the guest is the host user too: tar and cp -a run as root must not fail.
    assert_eq!(guest.set(made.nodeid, owner(0, 0)).unwrap().uid, 1000);
    assert_eq!(
        guest.set(made.nodeid, owner(1001, 1000)).unwrap_err(),
        Errno::PERM
    );
    let host = fs::metadata(guest.host("f")).unwrap();
    assert_eq!(host.uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn an_open_file_outlives_its_name() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "f", RDWR).unwrap();
    guest.call(op::UNLINK, TOP, &[&text("f")]).unwrap();
    assert!(!guest.host("f").exists());
    guest.write(made.nodeid, fh, 0, b"still here").unwrap();
    assert_eq!(guest.read(made.nodeid, fh, 6, 100).unwrap(), b"here");
    // fstat comes without handle.
    assert_eq!(guest.attr(made.nodeid).unwrap().nlink, 0);
    guest.close(made.nodeid, fh).unwrap();
    guest.forget(made.nodeid, 1);
    assert_eq!(guest.attr(made.nodeid).unwrap_err(), Errno::STALE);
}

#[test]
fn renaming_replaces_exchanges_or_refuses_as_asked() {
    let guest = Guest::new();
    fs::write(guest.host("a"), b"a").unwrap();
    fs::write(guest.host("b"), b"b").unwrap();
    assert_eq!(guest.rename(TOP, "a", TOP, "b", 1).unwrap_err(), Errno::EXIST);
    guest.rename(TOP, "a", TOP, "b", 2).unwrap();
    assert_eq!(fs::read(guest.host("a")).unwrap(), b"b");
    guest.rename(TOP, "a", TOP, "b", 0).unwrap();
    assert_eq!(fs::read(guest.host("b")).unwrap(), b"b");
    assert!(!guest.host("a").exists());
    // A whiteout is a device node.
    assert_eq!(guest.rename(TOP, "b", TOP, "c", 4).unwrap_err(), Errno::INVAL);
    let asked = RenameIn { newdir: TOP };
    guest
        .call(op::RENAME, TOP, &[asked.as_bytes(), &text("b"), &text("c")])
        .unwrap();
    assert!(guest.host("c").exists());
}

#[test]
fn hard_links_are_one_node() {
    let guest = Guest::new();
    let (made, _) = guest.create(TOP, "one", RDWR).unwrap();
    let second = guest.link(made.nodeid, TOP, "two").unwrap();
    assert_eq!((second.nodeid, second.attr.nlink), (made.nodeid, 2));
    assert_eq!(guest.find(TOP, "two").unwrap().attr.ino, made.attr.ino);
}

#[test]
fn sparse_files_keep_their_holes() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "sparse", RDWR).unwrap();
    let far = 64 << 20;
    guest.write(made.nodeid, fh, far, b"end").unwrap();
    let seek = |offset, whence| {
        let asked = LseekIn {
            fh,
            offset,
            whence,
            padding: 0,
        };
        guest
            .call(op::LSEEK, made.nodeid, &[asked.as_bytes()])
            .map(|reply| read::<LseekOut>(&reply).offset)
    };
    assert_eq!(seek(0, 3).unwrap(), far);
    assert_eq!(seek(0, 4).unwrap(), 0);
    assert_eq!(seek(far + 10, 3).unwrap_err(), Errno::NXIO);
    assert_eq!(seek(0, 0).unwrap_err(), Errno::INVAL);
    assert!(guest.attr(made.nodeid).unwrap().blocks < 1024);

    let before = guest.attr(made.nodeid).unwrap().blocks;
    let asked = FallocateIn {
        fh,
        length: 1 << 20,
        ..FallocateIn::default()
    };
    guest
        .call(op::FALLOCATE, made.nodeid, &[asked.as_bytes()])
        .unwrap();
    assert!(guest.attr(made.nodeid).unwrap().blocks >= before + 2048);
}

#[test]
fn a_big_directory_is_listed_whole_whatever_the_page_size() {
    let guest = Guest::new();
    let mut wanted: Vec<String> = (0..1500)
        .map(|n| format!("entry-{n:05}-{}", "x".repeat(n % 60)))
        .collect();
    for name in &wanted {
        fs::write(guest.host(name), b"").unwrap();
    }
    wanted.extend([".".to_owned(), "..".to_owned()]);
    wanted.sort();
    for size in [300, 4096, 32768, 200_000] {
        let mut names = guest.list(TOP, size).unwrap();
        names.sort();
        assert_eq!(names, wanted, "pages of {size}");
    }
}

#[test]
fn an_opened_directory_can_be_read_again_from_the_start() {
    let guest = Guest::new();
    fs::write(guest.host("a"), b"").unwrap();
    let reply = guest
        .call(op::OPENDIR, TOP, &[OpenIn::default().as_bytes()])
        .unwrap();
    let fh = read::<OpenOut>(&reply).fh;
    let page = || {
        let asked = ReadIn {
            fh,
            size: 4096,
            ..ReadIn::default()
        };
        guest.call(op::READDIR, TOP, &[asked.as_bytes()]).unwrap().len()
    };
    let first = page();
    fs::write(guest.host("b"), b"").unwrap();
    assert!(page() > first, "rewinding shows what came since");
}

#[test]
fn exports_are_the_entries_of_the_virtual_root() {
    let guest = Guest::new();
    let second = tempfile::tempdir().unwrap();
    fs::write(second.path().join("here"), b"").unwrap();
    assert_eq!(guest.list(1, 4096).unwrap(), [".", "..", "0"]);
    assert_eq!(guest.find(1, "1").unwrap_err(), Errno::NOENT);
    assert_eq!(
        guest
            .server
            .add_export(open(second.path()), Access::ReadOnly)
            .unwrap(),
        1
    );
    assert_eq!(guest.list(1, 4096).unwrap(), [".", "..", "0", "1"]);
    assert_eq!(guest.list(1, 32).unwrap(), [".", "..", "0", "1"]);
    let root = guest.find(1, "1").unwrap();
    assert!(guest.find(root.nodeid, "here").is_ok());
    for odd in ["00", "+1", "-0", "a", "4294967296", "2"] {
        assert_eq!(guest.find(1, odd).unwrap_err(), Errno::NOENT, "{odd}");
    }
}

#[test]
fn appending_is_done_by_the_host_but_not_for_mapped_pages() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "log", WRONLY | mode::O_APPEND).unwrap();
    let append = WriteIn {
        fh,
        size: 2,
        flags: WRONLY | mode::O_APPEND,
        ..WriteIn::default()
    };
    guest.write_as(made.nodeid, append, b"g1").unwrap();
    let mut host = fs::OpenOptions::new()
        .append(true)
        .open(guest.host("log"))
        .unwrap();
    host.write_all(b"h1").unwrap();
    // The guest's idea of the end is old.
    guest
        .write_as(made.nodeid, WriteIn { offset: 2, ..append }, b"g2")
        .unwrap();
    assert_eq!(fs::read(guest.host("log")).unwrap(), b"g1h1g2");
    let mapped = WriteIn {
        offset: 0,
        write_flags: wire::WRITE_CACHE,
        ..append
    };
    guest.write_as(made.nodeid, mapped, b"G1").unwrap();
    assert_eq!(fs::read(guest.host("log")).unwrap(), b"G1h1g2");
}

#[test]
fn sizes_modes_and_times_can_be_set() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "f", RDWR).unwrap();
    guest.write(made.nodeid, fh, 0, b"0123456789").unwrap();
    let by_node = SetattrIn {
        valid: fattr::SIZE,
        size: 7,
        ..SetattrIn::default()
    };
    assert_eq!(guest.set(made.nodeid, by_node).unwrap().size, 7);
    let by_handle = SetattrIn {
        valid: fattr::SIZE | fattr::FH,
        fh,
        size: 3,
        ..SetattrIn::default()
    };
    assert_eq!(guest.set(made.nodeid, by_handle).unwrap().size, 3);
    let mode = SetattrIn {
        valid: fattr::MODE,
        mode: 0o100600,
        ..SetattrIn::default()
    };
    assert_eq!(guest.set(made.nodeid, mode).unwrap().mode, 0o100600);
    let times = SetattrIn {
        valid: fattr::MTIME,
        mtime: 1_000_000,
        mtime_ns: 5,
        ..SetattrIn::default()
    };
    let attr = guest.set(made.nodeid, times).unwrap();
    assert_eq!((attr.mtime, attr.mtime_ns), (1_000_000, 5));
    let now = SetattrIn {
        valid: fattr::MTIME | fattr::MTIME_NOW,
        ..SetattrIn::default()
    };
    assert!(guest.set(made.nodeid, now).unwrap().mtime > 1_000_000);
    let link = guest.symlink(TOP, "link", "nowhere").unwrap();
    assert_eq!(guest.set(link.nodeid, times).unwrap().mtime, 1_000_000);
}

#[test]
fn user_attributes_are_kept_and_others_do_not_exist() {
    let guest = Guest::new();
    let (made, _) = guest.create(TOP, "f", RDWR).unwrap();
    let set = |name: &str, value: &[u8]| {
        let asked = SetxattrIn {
            size: value.len() as u32,
            flags: 0,
        };
        guest
            .call(op::SETXATTR, made.nodeid, &[asked.as_bytes(), &text(name), value])
            .map(drop)
    };
    let get = |name: &str, size| {
        let asked = GetxattrIn { size, padding: 0 };
        guest.call(op::GETXATTR, made.nodeid, &[asked.as_bytes(), &text(name)])
    };
    for name in [
        "security.capability",
        "trusted.x",
        "system.posix_acl_access",
        "security.selinux",
        "user",
    ] {
        assert_eq!(set(name, b"x").unwrap_err(), Errno::OPNOTSUPP, "{name}");
        assert_eq!(get(name, 100).unwrap_err(), Errno::OPNOTSUPP, "{name}");
    }
    match set("user.note", b"value") {
        // The file system under the temporary directory may have none.
        Err(Errno::OPNOTSUPP) => return,
        other => other.unwrap(),
    }
    assert_eq!(get("user.note", 100).unwrap(), b"value");
    assert_eq!(read::<GetxattrOut>(&get("user.note", 0).unwrap()).size, 5);
    assert_eq!(get("user.note", 3).unwrap_err(), Errno::RANGE);
    let asked = GetxattrIn {
        size: 100,
        padding: 0,
    };
    assert_eq!(
        guest
            .call(op::LISTXATTR, made.nodeid, &[asked.as_bytes()])
            .unwrap(),
        b"user.note\0"
    );
    guest
        .call(op::REMOVEXATTR, made.nodeid, &[&text("user.note")])
        .unwrap();
    assert_eq!(get("user.note", 100).unwrap_err(), Errno::NODATA);
}

#[test]
fn a_file_that_came_in_between_is_opened_and_not_made() {
    let guest = Guest::new();
    fs::write(guest.host("f"), b"host's").unwrap();
    assert_eq!(
        guest.create(TOP, "f", RDWR | mode::O_EXCL).unwrap_err(),
        Errno::EXIST
    );
    let (entry, fh) = guest.create(TOP, "f", RDWR).unwrap();
    assert_eq!(guest.read(entry.nodeid, fh, 0, 10).unwrap(), b"host's");
}

#[test]
fn nameless_files_can_be_given_a_name() {
    let guest = Guest::new();
    let asked = CreateIn {
        flags: RDWR,
        mode: 0o100644,
        ..CreateIn::default()
    };
    let reply = match guest.call(op::TMPFILE, TOP, &[asked.as_bytes(), &text("ignored")]) {
        Err(Errno::OPNOTSUPP) => return,
        other => other.unwrap(),
    };
    let entry: EntryOut = read(&reply);
    let fh = read::<OpenOut>(&reply[size_of::<EntryOut>()..]).fh;
    guest.write(entry.nodeid, fh, 0, b"data").unwrap();
    assert_eq!(guest.list(TOP, 4096).unwrap().len(), 2);
    assert_eq!(
        guest.link(entry.nodeid, TOP, "named").unwrap().nodeid,
        entry.nodeid
    );
    assert_eq!(fs::read(guest.host("named")).unwrap(), b"data");
}

#[test]
fn data_is_copied_within_the_host() {
    let guest = Guest::new();
    let (from, from_fh) = guest.create(TOP, "from", RDWR).unwrap();
    let (to, to_fh) = guest.create(TOP, "to", RDWR).unwrap();
    guest.write(from.nodeid, from_fh, 0, b"0123456789").unwrap();
    let asked = CopyIn {
        fh_in: from_fh,
        off_in: 2,
        nodeid_out: to.nodeid,
        fh_out: to_fh,
        off_out: 1,
        len: u64::MAX,
        flags: 0,
    };
    let reply = guest
        .call(op::COPY_FILE_RANGE, from.nodeid, &[asked.as_bytes()])
        .unwrap();
    assert_eq!(read::<WriteOut>(&reply).size, 8);
    assert_eq!(fs::read(guest.host("to")).unwrap(), b"\x0023456789");
}

#[test]
fn closing_in_the_guest_closes_on_the_host() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "tool", WRONLY).unwrap();
    guest.write(made.nodeid, fh, 0, b"#!/bin/sh\nexit 7\n").unwrap();
    guest
        .set(
            made.nodeid,
            SetattrIn {
                valid: fattr::MODE,
                mode: 0o755,
                ..SetattrIn::default()
            },
        )
        .unwrap();
    guest.close(made.nodeid, fh).unwrap();
    // A file still open for writing could not be run (ETXTBSY).
    let status = std::process::Command::new(guest.host("tool")).status().unwrap();
    assert_eq!(status.code(), Some(7));
}

#[test]
fn more_files_than_descriptors_can_be_known() {
    let guest = Guest::new();
    let deep = guest.host("a/b/c/d");
    fs::create_dir_all(&deep).unwrap();
    let mut known = Vec::new();
    for n in 0..500 {
        fs::write(deep.join(n.to_string()), n.to_string()).unwrap();
        known.push(guest.walk(&format!("a/b/c/d/{n}")).unwrap());
    }
    let (nodes, held) = guest.server.nodes.counts();
    assert!(
        nodes > 500 && held <= LIMITS.node_descriptors,
        "{nodes} nodes, {held} descriptors"
    );
    for (n, entry) in known.iter().enumerate() {
        let fh = guest.open(entry.nodeid, RDONLY).unwrap();
        assert_eq!(
            guest.read(entry.nodeid, fh, 0, 100).unwrap(),
            n.to_string().as_bytes()
        );
        guest.close(entry.nodeid, fh).unwrap();
        assert_eq!(guest.attr(entry.nodeid).unwrap().ino, entry.attr.ino);
    }
    assert!(guest.server.nodes.counts().1 <= LIMITS.node_descriptors);
}

#[test]
fn a_file_without_descriptor_is_found_after_the_guest_renamed_it() {
    let guest = Guest::new();
    fs::create_dir_all(guest.host("dir/sub")).unwrap();
    fs::write(guest.host("dir/sub/f"), b"moved").unwrap();
    let file = guest.walk("dir/sub/f").unwrap();
    guest.rename(TOP, "dir", TOP, "renamed", 0).unwrap();
    for n in 0..200 {
        fs::write(guest.host(&n.to_string()), b"").unwrap();
        guest.find(TOP, &n.to_string()).unwrap();
    }
    let fh = guest.open(file.nodeid, RDONLY).unwrap();
    assert_eq!(guest.read(file.nodeid, fh, 0, 10).unwrap(), b"moved");
}

#[test]
fn space_is_reported() {
    let guest = Guest::new();
    for node in [1, TOP] {
        let space: StatfsOut = read(&guest.call(op::STATFS, node, &[]).unwrap());
        assert_eq!(space.namelen, 255);
        assert_eq!(space.blocks > 0, node == TOP);
    }
}

#[test]
fn syncing_works_for_files_and_directories() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "f", RDWR).unwrap();
    for flags in [0, 1] {
        let asked = FsyncIn {
            fh,
            flags,
            padding: 0,
        };
        guest.call(op::FSYNC, made.nodeid, &[asked.as_bytes()]).unwrap();
    }
    let reply = guest
        .call(op::OPENDIR, TOP, &[OpenIn::default().as_bytes()])
        .unwrap();
    let asked = FsyncIn {
        fh: read::<OpenOut>(&reply).fh,
        ..FsyncIn::default()
    };
    guest.call(op::FSYNCDIR, TOP, &[asked.as_bytes()]).unwrap();
}

#[test]
fn a_file_mapped_on_the_host_shows_the_guests_writes() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "f", RDWR).unwrap();
    guest.write(made.nodeid, fh, 0, b"one").unwrap();
    let mut host = fs::File::options()
        .read(true)
        .write(true)
        .open(guest.host("f"))
        .unwrap();
    guest.write(made.nodeid, fh, 0, b"two").unwrap();
    let mut seen = String::new();
    host.seek(SeekFrom::Start(0)).unwrap();
    host.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "two");
    host.write_all_at(b"3", 0).unwrap();
    assert_eq!(guest.read(made.nodeid, fh, 0, 3).unwrap(), b"3wo");
    assert_eq!(
        fs::metadata(guest.host("f")).unwrap().permissions().mode() & 0o777,
        0o644
    );
}
