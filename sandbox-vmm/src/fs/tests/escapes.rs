//! A guest that wants out of its export, or more out of it than it may have.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

use super::*;

const RDWR: u32 = mode::O_RDWR;

/// Everything that changes something under a name, with one that is `name`.
fn changes(guest: &Guest, dir: u64, file: u64, name: &str) -> Vec<(&'static str, Errno)> {
    let node = MknodIn {
        mode: 0o100644,
        ..MknodIn::default()
    };
    vec![
        ("mkdir", guest.mkdir(dir, name).unwrap_err()),
        ("create", guest.create(dir, name, RDWR).unwrap_err()),
        ("symlink", guest.symlink(dir, name, "x").unwrap_err()),
        (
            "mknod",
            guest
                .call(op::MKNOD, dir, &[node.as_bytes(), &text(name)])
                .unwrap_err(),
        ),
        ("link", guest.link(file, dir, name).unwrap_err()),
        ("unlink", guest.call(op::UNLINK, dir, &[&text(name)]).unwrap_err()),
        ("rmdir", guest.call(op::RMDIR, dir, &[&text(name)]).unwrap_err()),
        ("rename from", guest.rename(dir, name, dir, "new", 0).unwrap_err()),
        (
            "rename to",
            guest.rename(dir, "inside", dir, name, 0).unwrap_err(),
        ),
    ]
}

#[test]
fn names_that_lead_elsewhere_are_refused_by_every_request() {
    let guest = Guest::new();
    fs::write(guest.outside("secret"), b"secret").unwrap();
    fs::create_dir(guest.host("d")).unwrap();
    let (file, _) = guest.create(TOP, "inside", RDWR).unwrap();
    for name in ["..", ".", "", "../secret", "d/../../secret", "/etc/passwd", "d/x"] {
        assert_eq!(guest.find(TOP, name).unwrap_err(), Errno::INVAL, "{name:?}");
        for (request, error) in changes(&guest, TOP, file.nodeid, name) {
            assert_eq!(error, Errno::INVAL, "{request} of {name:?}");
        }
    }
    assert_eq!(fs::read(guest.outside("secret")).unwrap(), b"secret");
    assert!(guest.host("inside").exists());
}

#[test]
fn links_are_text_and_never_followed() {
    let guest = Guest::new();
    fs::write(guest.outside("secret"), b"secret").unwrap();
    fs::create_dir(guest.outside("dir")).unwrap();
    symlink(guest.outside("secret"), guest.host("file-link")).unwrap();
    symlink("..", guest.host("dir-link")).unwrap();

    let link = guest.find(TOP, "file-link").unwrap();
    assert_eq!(link.attr.mode & mode::S_IFMT, 0o120000);
    let target = guest.call(op::READLINK, link.nodeid, &[]).unwrap();
    assert_eq!(target, guest.outside("secret").as_os_str().as_encoded_bytes());
    assert_eq!(guest.open(link.nodeid, 0).unwrap_err(), Errno::NXIO);
    // Also where the guest pretends that there is no link.
    assert_eq!(guest.create(TOP, "file-link", RDWR).unwrap_err(), Errno::STALE);
    let truncate = SetattrIn {
        valid: fattr::SIZE,
        size: 0,
        ..SetattrIn::default()
    };
    assert_eq!(guest.set(link.nodeid, truncate).unwrap_err(), Errno::NXIO);
    assert!(
        guest
            .set(
                link.nodeid,
                SetattrIn {
                    valid: fattr::MODE,
                    mode: 0o777,
                    ..SetattrIn::default()
                }
            )
            .is_err()
    );

    let dir = guest.find(TOP, "dir-link").unwrap();
    assert_eq!(guest.find(dir.nodeid, "secret").unwrap_err(), Errno::NOTDIR);
    assert_eq!(guest.list(dir.nodeid, 4096).unwrap_err(), Errno::NOTDIR);
    assert_eq!(
        guest.create(dir.nodeid, "planted", RDWR).unwrap_err(),
        Errno::NOTDIR
    );
    assert_eq!(
        guest
            .rename(TOP, "file-link", dir.nodeid, "moved", 0)
            .unwrap_err(),
        Errno::NOTDIR
    );
    assert_eq!(fs::read(guest.outside("secret")).unwrap(), b"secret");
}

#[test]
fn a_directory_swapped_for_a_link_between_look_up_and_use_leads_nowhere() {
    let guest = Guest::new();
    fs::create_dir(guest.outside("victim")).unwrap();
    fs::write(guest.outside("victim/f"), b"victim").unwrap();
    fs::create_dir(guest.host("d")).unwrap();
    fs::write(guest.host("d/f"), b"ours").unwrap();
    let dir = guest.find(TOP, "d").unwrap();
    let file = guest.find(dir.nodeid, "f").unwrap();

    fs::rename(guest.host("d"), guest.host("aside")).unwrap();
    symlink(guest.outside("victim"), guest.host("d")).unwrap();

    let fh = guest.open(file.nodeid, RDWR).unwrap();
    assert_eq!(guest.read(file.nodeid, fh, 0, 10).unwrap(), b"ours");
    guest.create(dir.nodeid, "planted", RDWR).unwrap();
    assert!(guest.host("aside/planted").exists());
    assert!(!guest.outside("victim/planted").exists());

    // The same when the server has to find them again by name.
    for n in 0..200 {
        fs::write(guest.host(&n.to_string()), b"").unwrap();
        guest.find(TOP, &n.to_string()).unwrap();
    }
    guest.close(file.nodeid, fh).unwrap();
    for n in 0..200 {
        guest.find(TOP, &n.to_string()).unwrap();
    }
    match guest.find(dir.nodeid, "f") {
        Ok(found) => assert_eq!(found.nodeid, file.nodeid),
        Err(error) => assert_eq!(error, Errno::STALE),
    }
    assert_eq!(fs::read(guest.outside("victim/f")).unwrap(), b"victim");
}

#[test]
fn a_file_replaced_while_its_descriptor_was_given_up_is_stale_and_not_the_new_one() {
    let guest = Guest::new();
    fs::write(guest.host("f"), b"old").unwrap();
    let file = guest.find(TOP, "f").unwrap();
    for n in 0..200 {
        fs::write(guest.host(&n.to_string()), b"").unwrap();
        guest.find(TOP, &n.to_string()).unwrap();
    }
    fs::remove_file(guest.host("f")).unwrap();
    fs::write(guest.host("f"), b"new").unwrap();
    assert_eq!(guest.open(file.nodeid, 0).unwrap_err(), Errno::STALE);
    let new = guest.find(TOP, "f").unwrap();
    assert_ne!(new.nodeid, file.nodeid);
    assert!(guest.open(new.nodeid, 0).is_ok());
}

#[test]
fn a_directory_moved_out_of_the_export_is_out_of_reach() {
    let guest = Guest::new();
    fs::create_dir_all(guest.host("d/sub")).unwrap();
    let dir = guest.find(TOP, "d").unwrap();
    let sub = guest.find(dir.nodeid, "sub").unwrap();
    // Beside it, under a name that begins like the export's.
    fs::rename(guest.host("d"), guest.outside("export-private")).unwrap();
    fs::write(guest.outside("export-private/secret"), b"later").unwrap();

    for node in [dir.nodeid, sub.nodeid] {
        assert_eq!(guest.find(node, "secret").unwrap_err(), Errno::STALE);
        assert_eq!(guest.list(node, 4096).unwrap_err(), Errno::STALE);
        assert_eq!(guest.create(node, "planted", RDWR).unwrap_err(), Errno::STALE);
        assert_eq!(guest.mkdir(node, "planted").unwrap_err(), Errno::STALE);
    }
    fs::rename(guest.outside("export-private"), guest.host("back")).unwrap();
    assert_eq!(guest.find(TOP, "back").unwrap().nodeid, dir.nodeid);
    assert!(guest.find(dir.nodeid, "secret").is_ok());
}

#[test]
fn a_file_moved_out_of_the_export_is_out_of_reach_even_where_it_is_open() {
    let guest = Guest::new();
    let (file, fh) = guest.create(TOP, "tool", RDWR).unwrap();
    guest.write(file.nodeid, fh, 0, b"harmless").unwrap();
    let copy = CopyIn {
        fh_in: fh,
        nodeid_out: file.nodeid,
        fh_out: fh,
        off_out: 100,
        len: 8,
        ..CopyIn::default()
    };
    let shorter = SetattrIn {
        valid: fattr::SIZE,
        ..SetattrIn::default()
    };
    let mode = SetattrIn {
        valid: fattr::MODE,
        mode: 0o777,
        ..SetattrIn::default()
    };
    fs::rename(guest.host("tool"), guest.outside("tool")).unwrap();

    assert_eq!(
        guest.write(file.nodeid, fh, 0, b"evil").unwrap_err(),
        Errno::STALE
    );
    assert_eq!(guest.read(file.nodeid, fh, 0, 8).unwrap_err(), Errno::STALE);
    assert_eq!(guest.open(file.nodeid, RDWR).unwrap_err(), Errno::STALE);
    assert_eq!(guest.link(file.nodeid, TOP, "back").unwrap_err(), Errno::STALE);
    assert_eq!(guest.set(file.nodeid, shorter).unwrap_err(), Errno::STALE);
    assert_eq!(guest.set(file.nodeid, mode).unwrap_err(), Errno::STALE);
    let error = guest
        .call(op::COPY_FILE_RANGE, file.nodeid, &[copy.as_bytes()])
        .unwrap_err();
    assert_eq!(error, Errno::STALE);
    assert_eq!(fs::read(guest.outside("tool")).unwrap(), b"harmless");
    guest.close(file.nodeid, fh).unwrap();
}

#[test]
fn what_was_moved_out_of_the_export_is_not_looked_at_either() {
    let guest = Guest::new();
    let (file, fh) = guest.create(TOP, "f", RDWR).unwrap();
    guest.symlink(TOP, "link", "target").unwrap();
    let link = guest.find(TOP, "link").unwrap();
    let by_handle = GetattrIn {
        flags: wire::GETATTR_FH,
        fh,
        ..GetattrIn::default()
    };
    let ask = |node, asked: GetattrIn| guest.call(op::GETATTR, node, &[asked.as_bytes()]).map(drop);
    assert_eq!(ask(file.nodeid, by_handle), Ok(()));
    assert_eq!(guest.call(op::READLINK, link.nodeid, &[]).unwrap(), b"target");
    for name in ["f", "link"] {
        fs::rename(guest.host(name), guest.outside(name)).unwrap();
    }

    assert_eq!(ask(file.nodeid, by_handle), Err(Errno::STALE));
    assert_eq!(ask(file.nodeid, GetattrIn::default()), Err(Errno::STALE));
    assert_eq!(
        guest.call(op::STATFS, file.nodeid, &[]).unwrap_err(),
        Errno::STALE
    );
    assert_eq!(
        guest.call(op::READLINK, link.nodeid, &[]).unwrap_err(),
        Errno::STALE
    );
    guest.close(file.nodeid, fh).unwrap();
}

#[test]
fn a_file_too_deep_for_a_path_is_out_of_reach_once_it_is_elsewhere() {
    let guest = Guest::new();
    let name = "n".repeat(200);
    let (mut at, mut inside) = (TOP, open(&guest.host("")));
    let mut elsewhere = open(guest.directory.path());
    for _ in 0..25 {
        at = guest.mkdir(at, &name).unwrap().nodeid;
        inside = below(&inside, &name);
        rustix::fs::mkdirat(&elsewhere, name.as_str(), rustix::fs::Mode::RWXU).unwrap();
        elsewhere = below(&elsewhere, &name);
    }
    let (file, fh) = guest.create(at, "f", RDWR).unwrap();
    guest.write(file.nodeid, fh, 0, b"ours").unwrap();
    let unlinked = guest.create(at, "unlinked", RDWR).unwrap();
    guest.call(op::UNLINK, at, &[&text("unlinked")]).unwrap();
    guest.write(unlinked.0.nodeid, unlinked.1, 0, b"x").unwrap();
    guest.rename(at, "f", at, "g", 0).unwrap();
    assert_eq!(guest.read(file.nodeid, fh, 0, 4).unwrap(), b"ours");

    rustix::fs::renameat(&inside, "g", &elsewhere, "g").unwrap();
    assert_eq!(
        guest.write(file.nodeid, fh, 0, b"evil").unwrap_err(),
        Errno::STALE
    );
    assert_eq!(guest.open(file.nodeid, RDWR).unwrap_err(), Errno::STALE);
    assert_eq!(guest.link(file.nodeid, at, "back").unwrap_err(), Errno::STALE);
}

fn below(dir: &OwnedFd, name: &str) -> OwnedFd {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty()).unwrap()
}

#[test]
fn a_file_whose_other_name_left_the_export_stays_usable() {
    let guest = Guest::new();
    fs::write(guest.host("one"), b"data").unwrap();
    fs::hard_link(guest.host("one"), guest.host("two")).unwrap();
    let file = guest.find(TOP, "one").unwrap();
    fs::rename(guest.host("one"), guest.outside("one")).unwrap();
    assert_eq!(guest.open(file.nodeid, 0).unwrap_err(), Errno::STALE);
    assert_eq!(guest.find(TOP, "two").unwrap().nodeid, file.nodeid);
    let fh = guest.open(file.nodeid, 0).unwrap();
    assert_eq!(guest.read(file.nodeid, fh, 0, 10).unwrap(), b"data");
}

#[test]
fn the_export_itself_may_move() {
    let guest = Guest::new();
    fs::create_dir(guest.host("d")).unwrap();
    let dir = guest.find(TOP, "d").unwrap();
    fs::rename(guest.host(""), guest.outside("elsewhere")).unwrap();
    guest.create(dir.nodeid, "f", RDWR).unwrap();
    assert!(guest.outside("elsewhere/d/f").exists());
}

#[test]
fn directories_too_deep_for_a_path_still_work() {
    let guest = Guest::new();
    let name = "n".repeat(200);
    let mut at = TOP;
    for _ in 0..40 {
        at = guest.mkdir(at, &name).unwrap().nodeid;
    }
    guest.create(at, "f", RDWR).unwrap();
    assert!(guest.list(at, 4096).unwrap().contains(&"f".to_owned()));
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let guest = Guest::with(Access::ReadOnly, LIMITS);
    fs::write(guest.host("inside"), b"fixed").unwrap();
    fs::create_dir(guest.host("d")).unwrap();
    let file = guest.find(TOP, "inside").unwrap();
    let before = fs::metadata(guest.host("inside")).unwrap();

    for name in ["new", "inside", "d"] {
        for (request, error) in changes(&guest, TOP, file.nodeid, name) {
            assert_eq!(error, Errno::ROFS, "{request} of {name}");
        }
    }
    for flags in [
        mode::O_WRONLY,
        RDWR,
        mode::O_TRUNC,
        RDWR | mode::O_TRUNC | mode::O_APPEND,
    ] {
        assert_eq!(guest.open(file.nodeid, flags).unwrap_err(), Errno::ROFS);
    }
    for valid in [fattr::MODE, fattr::SIZE, fattr::MTIME, fattr::UID, 0] {
        let asked = SetattrIn {
            valid,
            uid: 1000,
            ..SetattrIn::default()
        };
        assert_eq!(guest.set(file.nodeid, asked).unwrap_err(), Errno::ROFS);
    }
    let asked = SetxattrIn { size: 1, flags: 0 };
    let error = guest
        .call(
            op::SETXATTR,
            file.nodeid,
            &[asked.as_bytes(), &text("user.a"), b"x"],
        )
        .unwrap_err();
    assert_eq!(error, Errno::ROFS);
    assert_eq!(
        guest
            .call(op::REMOVEXATTR, file.nodeid, &[&text("user.a")])
            .unwrap_err(),
        Errno::ROFS
    );
    let tmp = CreateIn {
        flags: RDWR,
        ..CreateIn::default()
    };
    assert_eq!(
        guest
            .call(op::TMPFILE, TOP, &[tmp.as_bytes(), &text("t")])
            .unwrap_err(),
        Errno::ROFS
    );

    let fh = guest.open(file.nodeid, 0).unwrap();
    assert_eq!(guest.read(file.nodeid, fh, 0, 10).unwrap(), b"fixed");
    assert_eq!(guest.write(file.nodeid, fh, 0, b"x").unwrap_err(), Errno::BADF);
    let grow = FallocateIn {
        fh,
        length: 100,
        ..FallocateIn::default()
    };
    assert_eq!(
        guest
            .call(op::FALLOCATE, file.nodeid, &[grow.as_bytes()])
            .unwrap_err(),
        Errno::BADF
    );
    let copy = CopyIn {
        fh_in: fh,
        fh_out: fh,
        nodeid_out: file.nodeid,
        len: 1,
        ..CopyIn::default()
    };
    assert_eq!(
        guest
            .call(op::COPY_FILE_RANGE, file.nodeid, &[copy.as_bytes()])
            .unwrap_err(),
        Errno::BADF
    );
    let after = fs::metadata(guest.host("inside")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
}

#[test]
fn a_link_or_rename_between_exports_is_refused() {
    let guest = Guest::new();
    let fixed = tempfile::tempdir_in(guest.host("")).unwrap();
    fs::write(fixed.path().join("f"), b"fixed").unwrap();
    guest
        .server
        .add_export(open(fixed.path()), Access::ReadOnly)
        .unwrap();
    let root = guest.find(1, "1").unwrap();
    let file = guest.find(root.nodeid, "f").unwrap();
    assert_eq!(guest.link(file.nodeid, TOP, "unlocked").unwrap_err(), Errno::XDEV);
    let plain = tempfile::tempdir().unwrap();
    guest
        .server
        .add_export(open(plain.path()), Access::ReadWrite)
        .unwrap();
    let other = guest.find(1, "2").unwrap();
    guest.create(TOP, "mine", RDWR).unwrap();
    assert_eq!(
        guest.rename(TOP, "mine", other.nodeid, "mine", 0).unwrap_err(),
        Errno::XDEV
    );
    assert_eq!(
        guest.rename(TOP, "mine", root.nodeid, "mine", 0).unwrap_err(),
        Errno::ROFS
    );
}

#[test]
fn the_virtual_root_cannot_be_changed() {
    let guest = Guest::new();
    for (request, error) in changes(&guest, 1, TOP, "new") {
        assert!(matches!(error, Errno::ROFS | Errno::PERM), "{request}: {error}");
    }
    assert_eq!(
        guest
            .set(
                1,
                SetattrIn {
                    valid: fattr::MODE,
                    ..SetattrIn::default()
                }
            )
            .unwrap_err(),
        Errno::ROFS
    );
    guest.create(TOP, "f", RDWR).unwrap();
    assert_eq!(guest.rename(TOP, "f", 1, "1", 0).unwrap_err(), Errno::ROFS);
    assert_eq!(guest.link(1, TOP, "root").unwrap_err(), Errno::PERM);
    assert_eq!(guest.open(1, 0).unwrap_err(), Errno::ISDIR);
}

#[test]
fn device_nodes_are_not_made_and_pipes_never_opened() {
    let guest = Guest::new();
    let make = |name: &str, mode| {
        let asked = MknodIn {
            mode,
            rdev: 0x0103,
            ..MknodIn::default()
        };
        guest
            .call(op::MKNOD, TOP, &[asked.as_bytes(), &text(name)])
            .map(|reply| read::<EntryOut>(&reply))
    };
    assert_eq!(make("char", 0o020666).unwrap_err(), Errno::PERM);
    assert_eq!(make("block", 0o060666).unwrap_err(), Errno::PERM);
    assert_eq!(make("dir", 0o040755).unwrap_err(), Errno::PERM);
    for (name, mode) in [("fifo", 0o010644), ("socket", 0o140644)] {
        let node = make(name, mode).unwrap();
        assert_eq!(node.attr.mode, mode);
        // A host that opened the pipe would wait here for ever.
        assert_eq!(guest.open(node.nodeid, mode::O_WRONLY).unwrap_err(), Errno::NXIO);
        assert_eq!(guest.create(TOP, name, mode::O_WRONLY).unwrap_err(), Errno::STALE);
        let truncate = SetattrIn {
            valid: fattr::SIZE,
            ..SetattrIn::default()
        };
        assert_eq!(guest.set(node.nodeid, truncate).unwrap_err(), Errno::NXIO);
        let asked = GetxattrIn { size: 10, padding: 0 };
        let error = guest
            .call(op::GETXATTR, node.nodeid, &[asked.as_bytes(), &text("user.a")])
            .unwrap_err();
        assert_eq!(error, Errno::OPNOTSUPP);
    }
    assert!(
        fs::symlink_metadata(guest.host("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert!(make("plain", 0o100644).is_ok());
}

#[test]
fn set_id_bits_are_never_set() {
    let guest = Guest::new();
    let bits = |name: &str| fs::metadata(guest.host(name)).unwrap().permissions().mode() & 0o7000;
    let asked = CreateIn {
        flags: RDWR,
        mode: 0o106755,
        ..CreateIn::default()
    };
    let reply = guest
        .call(op::CREATE, TOP, &[asked.as_bytes(), &text("created")])
        .unwrap();
    let node = read::<EntryOut>(&reply).nodeid;
    assert_eq!(bits("created"), 0);
    guest
        .set(
            node,
            SetattrIn {
                valid: fattr::MODE,
                mode: 0o106755,
                ..SetattrIn::default()
            },
        )
        .unwrap();
    assert_eq!(bits("created"), 0);
    let asked = MknodIn {
        mode: 0o106755,
        ..MknodIn::default()
    };
    guest
        .call(op::MKNOD, TOP, &[asked.as_bytes(), &text("made")])
        .unwrap();
    assert_eq!(bits("made"), 0);
    let dir = guest.mkdir(TOP, "dir").unwrap();
    let asked = SetattrIn {
        valid: fattr::MODE,
        mode: 0o047777,
        ..SetattrIn::default()
    };
    guest.set(dir.nodeid, asked).unwrap();
    assert_eq!(bits("dir"), 0o3000, "directories keep what only concerns groups");
}

#[test]
fn set_id_bits_of_the_host_go_when_the_guest_writes() {
    let guest = Guest::new();
    fs::write(guest.host("tool"), b"old").unwrap();
    fs::set_permissions(guest.host("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    let file = guest.find(TOP, "tool").unwrap();
    let fh = guest.open(file.nodeid, RDWR).unwrap();
    let asked = WriteIn {
        fh,
        size: 3,
        write_flags: wire::WRITE_KILL_SUIDGID,
        ..WriteIn::default()
    };
    guest.write_as(file.nodeid, asked, b"new").unwrap();
    assert_eq!(
        fs::metadata(guest.host("tool")).unwrap().permissions().mode() & 0o7777,
        0o755
    );
}

#[test]
fn kernel_interfaces_cannot_be_exported() {
    let guest = Guest::new();
    for path in ["/proc", "/proc/self/fd", "/sys"] {
        let error = guest
            .server
            .add_export(open(Path::new(path)), Access::ReadWrite)
            .unwrap_err();
        assert!(
            matches!(error, super::super::ExportError::KernelInterface),
            "{path}"
        );
    }
    let file = guest.outside("file");
    fs::write(&file, b"").unwrap();
    let error = guest
        .server
        .add_export(open(&file), Access::ReadWrite)
        .unwrap_err();
    assert!(matches!(error, super::super::ExportError::NotADirectory));
}

#[test]
fn kernel_interfaces_mounted_below_an_export_are_refused() {
    let guest = Guest::new();
    guest
        .server
        .add_export(open(Path::new("/")), Access::ReadOnly)
        .unwrap();
    let root = guest.find(1, "1").unwrap();
    assert_eq!(guest.find(root.nodeid, "proc").unwrap_err(), Errno::ACCESS);
    assert_eq!(guest.find(root.nodeid, "sys").unwrap_err(), Errno::ACCESS);
    assert!(guest.find(root.nodeid, "etc").is_ok());
}

#[test]
fn what_is_above_an_export_is_not_told() {
    use std::os::unix::fs::MetadataExt;
    let guest = Guest::new();
    let reply = guest
        .call(op::OPENDIR, TOP, &[OpenIn::default().as_bytes()])
        .unwrap();
    let asked = ReadIn {
        fh: read::<OpenOut>(&reply).fh,
        size: 4096,
        ..ReadIn::default()
    };
    let page = guest.call(op::READDIR, TOP, &[asked.as_bytes()]).unwrap();
    let above = fs::metadata(guest.directory.path()).unwrap().ino().to_le_bytes();
    assert!(!page.windows(8).any(|window| window == above));
}

#[test]
fn another_processs_descriptors_are_not_taken_for_ours() {
    let parent = std::os::unix::process::parent_id();
    if let Ok(dir) = fs::File::open(format!("/proc/{parent}/fd")) {
        assert!(SelfFds::from_descriptor(dir.into()).is_err());
    }
    assert!(SelfFds::from_descriptor(open(Path::new("/"))).is_err());
    assert!(SelfFds::from_descriptor(open(Path::new("/proc/self/fd"))).is_ok());
}
