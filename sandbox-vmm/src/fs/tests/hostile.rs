//! A guest kernel that breaks the protocol.

use std::fs;

use proptest::prelude::*;

use super::*;

const RDWR: u32 = mode::O_RDWR;

#[test]
fn nothing_is_served_before_init() {
    let guest = Guest::new();
    guest.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.find(1, "0").unwrap_err(), Errno::IO);
    let old = InitIn {
        major: 7,
        minor: 30,
        ..InitIn::default()
    };
    assert_eq!(
        guest.call(op::INIT, 0, &[old.as_bytes()]).unwrap_err(),
        Errno::PROTO
    );
    assert_eq!(guest.find(1, "0").unwrap_err(), Errno::IO);
    let newer = InitIn {
        major: 8,
        ..InitIn::default()
    };
    assert_eq!(
        read::<InitOut>(&guest.call(op::INIT, 0, &[newer.as_bytes()]).unwrap()).major,
        7
    );
    assert_eq!(guest.find(1, "0").unwrap_err(), Errno::IO);
}

#[test]
fn only_features_both_sides_have_are_agreed_on() {
    let guest = Guest::new();
    let asked = InitIn {
        major: 7,
        minor: 41,
        max_readahead: 4096,
        flags: init::ASYNC_READ | 1 << 16,
    };
    let answer: InitOut = read(&guest.call(op::INIT, 0, &[asked.as_bytes()]).unwrap());
    assert_eq!((answer.flags, answer.max_readahead), (init::ASYNC_READ, 4096));
}

#[test]
fn a_reset_device_knows_nothing_but_its_exports() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "f", RDWR).unwrap();
    let init = InitIn {
        major: 7,
        minor: 41,
        ..InitIn::default()
    };
    guest.call(op::INIT, 0, &[init.as_bytes()]).unwrap();
    assert_eq!(guest.attr(made.nodeid).unwrap_err(), Errno::STALE);
    assert_eq!(guest.read(made.nodeid, fh, 0, 1).unwrap_err(), Errno::BADF);
    assert_eq!(guest.server.nodes.counts(), (1, 0));
    let found = guest.find(TOP, "f").unwrap();
    assert!(found.nodeid > made.nodeid, "numbers are never reused");
}

#[test]
fn forgetting_more_than_was_told_is_harmless() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "f", RDWR).unwrap();
    guest.forget(made.nodeid, u64::MAX);
    guest.forget(made.nodeid, 1);
    guest.forget(TOP, u64::MAX);
    guest.forget(1, u64::MAX);
    guest.forget(12345, 1);
    assert_eq!(guest.write(made.nodeid, fh, 0, b"open").unwrap(), 4);
    guest.close(made.nodeid, fh).unwrap();
    assert_eq!(guest.attr(made.nodeid).unwrap_err(), Errno::STALE);
    assert!(guest.find(TOP, "f").is_ok());
}

#[test]
fn a_batch_that_lies_about_its_length_ends_with_the_message() {
    let guest = Guest::new();
    let (made, _) = guest.create(TOP, "f", RDWR).unwrap();
    let one = ForgetOne {
        nodeid: made.nodeid,
        nlookup: 1,
    };
    let batch = BatchForgetIn {
        count: u32::MAX,
        dummy: 0,
    };
    guest.tell(
        op::BATCH_FORGET,
        0,
        &[batch.as_bytes(), one.as_bytes(), one.as_bytes()],
    );
    assert!(guest.find(TOP, "f").is_ok());
}

#[test]
fn handles_belong_to_one_node_and_are_not_reused() {
    let guest = Guest::new();
    let (one, fh) = guest.create(TOP, "one", RDWR).unwrap();
    let (two, _) = guest.create(TOP, "two", RDWR).unwrap();
    assert_eq!(guest.read(two.nodeid, fh, 0, 1).unwrap_err(), Errno::BADF);
    assert_eq!(guest.close(two.nodeid, fh).unwrap_err(), Errno::BADF);
    let asked = ReadIn {
        fh,
        size: 4096,
        ..ReadIn::default()
    };
    assert_eq!(
        guest
            .call(op::READDIR, one.nodeid, &[asked.as_bytes()])
            .unwrap_err(),
        Errno::NOTDIR
    );
    guest.close(one.nodeid, fh).unwrap();
    assert_eq!(guest.close(one.nodeid, fh).unwrap_err(), Errno::BADF);
    assert_eq!(guest.read(one.nodeid, fh, 0, 1).unwrap_err(), Errno::BADF);
    assert_ne!(guest.open(one.nodeid, 0).unwrap(), fh);
    let dir = guest
        .call(op::OPENDIR, TOP, &[OpenIn::default().as_bytes()])
        .unwrap();
    let fh = read::<OpenOut>(&dir).fh;
    assert_eq!(guest.read(TOP, fh, 0, 1).unwrap_err(), Errno::BADF);
}

#[test]
fn handles_are_bounded() {
    let guest = Guest::new();
    fs::write(guest.host("f"), b"").unwrap();
    let file = guest.find(TOP, "f").unwrap();
    let open: Vec<u64> = (0..LIMITS.handles)
        .map(|_| guest.open(file.nodeid, 0).unwrap())
        .collect();
    assert_eq!(guest.open(file.nodeid, 0).unwrap_err(), Errno::NFILE);
    // Nothing is made that could then not be opened.
    assert_eq!(guest.create(TOP, "new", RDWR).unwrap_err(), Errno::NFILE);
    assert!(!guest.host("new").exists());
    guest.close(file.nodeid, open[0]).unwrap();
    assert!(guest.open(file.nodeid, 0).is_ok());
}

#[test]
fn nodes_are_bounded() {
    let guest = Guest::with(Access::ReadWrite, Limits { nodes: 10, ..LIMITS });
    for n in 0..12 {
        fs::write(guest.host(&n.to_string()), b"").unwrap();
    }
    let known: Vec<_> = (0..9).map(|n| guest.find(TOP, &n.to_string()).unwrap()).collect();
    assert_eq!(guest.find(TOP, "10").unwrap_err(), Errno::NFILE);
    assert!(guest.find(TOP, "0").is_ok());
    guest.forget(known[1].nodeid, 1);
    assert!(guest.find(TOP, "10").is_ok());
}

#[test]
fn looking_up_and_forgetting_for_ever_holds_nothing() {
    let guest = Guest::new();
    fs::write(guest.host("f"), b"").unwrap();
    for _ in 0..10_000 {
        let file = guest.find(TOP, "f").unwrap();
        guest.forget(file.nodeid, 1);
    }
    assert_eq!(guest.server.nodes.counts(), (1, 0));
}

#[test]
fn offsets_and_lengths_past_all_bounds_are_errors() {
    let guest = Guest::new();
    let (made, fh) = guest.create(TOP, "f", RDWR).unwrap();
    for offset in [u64::MAX, 1 << 63, i64::MAX as u64] {
        assert!(guest.write(made.nodeid, fh, offset, b"x").is_err(), "{offset:#x}");
        assert!(
            guest
                .read(made.nodeid, fh, offset, u32::MAX)
                .is_ok_and(|data| data.is_empty())
                || offset > 1 << 62
        );
        let size = SetattrIn {
            valid: fattr::SIZE,
            size: offset,
            ..SetattrIn::default()
        };
        // A file system in memory takes the largest size there is.
        let set = guest.set(made.nodeid, size);
        assert!(set.is_err() || i64::try_from(offset).is_ok(), "{offset:#x}");
        let asked = FallocateIn {
            fh,
            offset,
            length: offset,
            ..FallocateIn::default()
        };
        assert!(
            guest
                .call(op::FALLOCATE, made.nodeid, &[asked.as_bytes()])
                .is_err()
        );
        let reply = guest
            .call(op::OPENDIR, TOP, &[OpenIn::default().as_bytes()])
            .unwrap();
        let asked = ReadIn {
            fh: read::<OpenOut>(&reply).fh,
            offset,
            size: u32::MAX,
            ..ReadIn::default()
        };
        _ = guest.call(op::READDIR, TOP, &[asked.as_bytes()]);
    }
    // A write that claims more than it carries.
    let asked = WriteIn {
        fh,
        size: 1000,
        ..WriteIn::default()
    };
    assert_eq!(
        guest.write_as(made.nodeid, asked, b"short").unwrap_err(),
        Errno::INVAL
    );
    let asked = SetxattrIn {
        size: u32::MAX,
        flags: 0,
    };
    let error = guest
        .call(
            op::SETXATTR,
            made.nodeid,
            &[asked.as_bytes(), &text("user.a"), b"x"],
        )
        .unwrap_err();
    assert_eq!(error, Errno::INVAL);
    let times = SetattrIn {
        valid: fattr::MTIME,
        mtime_ns: 0x3fff_ffff,
        ..SetattrIn::default()
    };
    assert_eq!(guest.set(made.nodeid, times).unwrap_err(), Errno::INVAL);
    assert_eq!(guest.open(made.nodeid, 3).unwrap_err(), Errno::INVAL);
}

#[test]
fn a_reply_never_exceeds_the_room_the_guest_gave() {
    let guest = Guest::new();
    fs::write(guest.host("f"), vec![b'x'; 5000]).unwrap();
    let file = guest.find(TOP, "f").unwrap();
    let fh = guest.open(file.nodeid, 0).unwrap();
    let asked = ReadIn {
        fh,
        size: 4096,
        ..ReadIn::default()
    };
    let data = guest
        .call_with_room(op::READ, file.nodeid, &[asked.as_bytes()], OUT_HEADER + 100)
        .unwrap();
    assert_eq!(data.len(), 100);
    let short = guest.call_with_room(op::LOOKUP, TOP, &[&text("f")], OUT_HEADER + 10);
    assert_eq!(short.unwrap_err(), Errno::INVAL);
    assert_eq!(
        guest.server.handle(
            InHeader {
                len: 40,
                ..InHeader::default()
            }
            .as_bytes(),
            &mut [0; 15]
        ),
        0
    );
}

#[test]
fn unknown_requests_are_answered_so() {
    let guest = Guest::new();
    for opcode in [
        0,
        7,
        19,
        25,
        31,
        32,
        33,
        34,
        37,
        39,
        40,
        44,
        48,
        49,
        50,
        52,
        4096,
        u32::MAX,
    ] {
        assert_eq!(
            guest.call(opcode, TOP, &[&[0; 64]]).unwrap_err(),
            Errno::NOSYS,
            "{opcode}"
        );
    }
}

#[test]
fn many_threads_may_ask_at_once() {
    let guest = Guest::new();
    for n in 0..100 {
        fs::write(guest.host(&n.to_string()), b"x").unwrap();
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in (0..100).cycle().take(2000) {
                    let file = guest.find(TOP, &n.to_string()).unwrap();
                    let fh = guest.open(file.nodeid, 0).unwrap();
                    assert_eq!(guest.read(file.nodeid, fh, 0, 10).unwrap(), b"x");
                    guest.close(file.nodeid, fh).unwrap();
                    guest.forget(file.nodeid, 1);
                }
            });
        }
    });
    assert_eq!(guest.server.nodes.counts(), (1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_never_panic_and_stay_inside(
        requests in prop::collection::vec(
            (0u32..60, 0u64..8, prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..120), 0usize..400),
            1..60,
        ),
    ) {
        let guest = Guest::new();
        fs::write(guest.outside("secret"), b"secret").unwrap();
        fs::create_dir(guest.host("d")).unwrap();
        fs::write(guest.host("f"), b"data").unwrap();
        guest.find(TOP, "d").unwrap();
        let file = guest.find(TOP, "f").unwrap();
        guest.open(file.nodeid, RDWR).unwrap();
        for (opcode, node, body, room) in requests {
            let len = (size_of::<InHeader>() + body.len()) as u32;
            let header = InHeader { len, opcode, nodeid: node, ..InHeader::default() };
            let mut reply = vec![0; room];
            let answered = guest.server.handle(&[header.as_bytes(), &body].concat(), &mut reply);
            prop_assert!(answered <= room);
        }
        let beside: Vec<_> = fs::read_dir(guest.outside("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert_eq!(beside.len(), 2);
        prop_assert_eq!(fs::read(guest.outside("secret")).unwrap(), b"secret");
    }

    #[test]
    fn random_bytes_never_panic(message in prop::collection::vec(any::<u8>(), 0..300), room in 0usize..300) {
        let guest = Guest::new();
        let mut reply = vec![0; room];
        prop_assert!(guest.server.handle(&message, &mut reply) <= room);
    }
}
