//! The engine alone, against a pretended guest.

use proptest::prelude::*;

use super::*;
use crate::devices::vsock::connection::WINDOW;

const GUEST: u64 = 3;
const PORT: u32 = 1024;

pub(in super::super) fn from_guest(op: u16, guest_port: u32, len: u32) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: PORT,
        len,
        kind: TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
    }
}

fn key(guest_port: u32) -> Key {
    Key {
        host_port: PORT,
        guest_port,
    }
}

fn control(engine: &mut Engine) -> Header {
    match engine.next() {
        Some(Outgoing::Control(header)) => header,
        other => panic!("{other:?}"),
    }
}

fn open() -> Engine {
    let mut engine = Engine::new(GUEST, vec![PORT]);
    assert_eq!(
        engine.packet(&from_guest(OP_REQUEST, 9, 0), 0),
        [Action::Open(key(9))]
    );
    assert_eq!(control(&mut engine).op, OP_RESPONSE);
    engine
}

#[test]
fn a_port_nobody_offers_is_refused() {
    let mut engine = Engine::new(GUEST, vec![PORT]);
    let request = Header {
        dst_port: 22,
        ..from_guest(OP_REQUEST, 9, 0)
    };
    assert_eq!(engine.packet(&request, 0), []);
    assert_eq!(control(&mut engine).op, OP_RESET);
    assert_eq!(engine.counts().0, 0);
}

#[test]
fn packets_of_other_addresses_are_dropped_without_an_answer() {
    let mut engine = Engine::new(GUEST, vec![PORT]);
    for (src_cid, dst_cid) in [
        (4, HOST_CID),
        (GUEST, 1),
        (GUEST, GUEST),
        (HOST_CID, HOST_CID),
        (u64::MAX, 0),
    ] {
        let forged = Header {
            src_cid,
            dst_cid,
            ..from_guest(OP_REQUEST, 9, 0)
        };
        assert_eq!(engine.packet(&forged, 0), []);
    }
    assert_eq!(engine.next(), None);
}

#[test]
fn data_beyond_the_window_resets_the_stream() {
    let mut engine = open();
    assert_eq!(
        engine.packet(&from_guest(OP_DATA, 9, WINDOW), WINDOW as usize),
        [Action::Data(key(9), WINDOW as usize)]
    );
    engine.keep(key(9), &vec![0; WINDOW as usize]);
    assert_eq!(
        engine.packet(&from_guest(OP_DATA, 9, 1), 1),
        [Action::Close(key(9))]
    );
    assert_eq!(control(&mut engine).op, OP_RESET);
    assert_eq!(engine.counts(), (0, 0, 0));
}

#[test]
fn credit_comes_back_once_the_host_has_taken_half_a_window() {
    let mut engine = open();
    let half = WINDOW as usize / 2;
    engine.packet(&from_guest(OP_DATA, 9, WINDOW / 2), half);
    engine.keep(key(9), &vec![0; half]);
    while engine
        .next()
        .is_some_and(|out| matches!(out, Outgoing::Control(_)))
    {}
    assert_eq!(engine.flushed(key(9), half), []);
    engine.drained(key(9), false);
    let update = control(&mut engine);
    assert_eq!(
        (update.op, update.fwd_cnt, update.buf_alloc),
        (OP_CREDIT_UPDATE, WINDOW / 2, WINDOW)
    );
}

#[test]
fn the_guests_window_is_never_overrun() {
    let mut engine = open();
    assert_eq!(engine.next(), Some(Outgoing::Data(key(9), 1 << 16)));
    assert_eq!(engine.sent(key(9), 1 << 16).unwrap().len, 1 << 16);
    // Out of credit: one request for more, then silence.
    assert_eq!(control(&mut engine).op, OP_CREDIT_REQUEST);
    assert_eq!(engine.next(), None);
    let update = Header {
        fwd_cnt: 100,
        ..from_guest(OP_CREDIT_UPDATE, 9, 0)
    };
    engine.packet(&update, 0);
    assert_eq!(engine.next(), Some(Outgoing::Data(key(9), 100)));
}

#[test]
fn a_half_closed_stream_still_carries_the_other_direction() {
    let mut engine = open();
    let shutdown = Header {
        flags: NO_SEND,
        ..from_guest(OP_SHUTDOWN, 9, 0)
    };
    assert_eq!(engine.packet(&shutdown, 0), [Action::EndOfInput(key(9))]);
    assert_eq!(engine.next(), Some(Outgoing::Data(key(9), 1 << 16)));
    engine.sent(key(9), 5);
    engine.next();
    engine.drained(key(9), true);
    let end = control(&mut engine);
    assert_eq!((end.op, end.flags), (OP_SHUTDOWN, NO_SEND));
}

#[test]
fn the_end_of_input_waits_for_data_before_it() {
    let mut engine = open();
    engine.packet(&from_guest(OP_DATA, 9, 3), 3);
    engine.keep(key(9), b"abc");
    let shutdown = Header {
        flags: NO_SEND,
        ..from_guest(OP_SHUTDOWN, 9, 0)
    };
    assert_eq!(engine.packet(&shutdown, 0), []);
    assert_eq!(engine.waiting(key(9)), b"abc");
    assert_eq!(engine.flushed(key(9), 3), [Action::EndOfInput(key(9))]);
}

#[test]
fn data_sent_before_a_close_still_reaches_a_slow_host() {
    let mut engine = open();
    engine.packet(&from_guest(OP_DATA, 9, 3), 3);
    engine.keep(key(9), b"abc");
    let shutdown = Header {
        flags: NO_SEND | NO_RECEIVE,
        ..from_guest(OP_SHUTDOWN, 9, 0)
    };
    assert_eq!(engine.packet(&shutdown, 0), [Action::EndOfOutput(key(9))]);
    // The guest stops waiting for our answer.
    assert_eq!(engine.packet(&from_guest(OP_RESET, 9, 0), 0), []);
    assert_eq!(engine.waiting(key(9)), b"abc");
    assert_eq!(engine.flushed(key(9), 3), [Action::Close(key(9))]);
    assert_eq!(engine.counts(), (0, 0, 0));
}

#[test]
fn a_full_close_by_the_guest_is_answered_with_a_reset() {
    let mut engine = open();
    let shutdown = Header {
        flags: NO_SEND | NO_RECEIVE,
        ..from_guest(OP_SHUTDOWN, 9, 0)
    };
    assert_eq!(
        engine.packet(&shutdown, 0),
        [Action::EndOfOutput(key(9)), Action::Close(key(9))]
    );
    assert_eq!(control(&mut engine).op, OP_RESET);
}

#[test]
fn a_call_the_guest_takes_is_connected_and_one_it_resets_is_refused() {
    let mut engine = Engine::new(GUEST, vec![]);
    for (answer, expected) in [(OP_RESPONSE, true), (OP_RESET, false)] {
        let key = engine.dial(1025, &mut Vec::new()).unwrap();
        let request = control(&mut engine);
        assert_eq!(
            (request.op, request.dst_port, request.src_port),
            (OP_REQUEST, 1025, key.host_port)
        );
        let packet = Header {
            src_port: 1025,
            dst_port: key.host_port,
            ..from_guest(answer, 1025, 0)
        };
        let action = if expected {
            Action::Connected(key)
        } else {
            Action::Refused(key)
        };
        assert_eq!(engine.packet(&packet, 0), [action]);
        engine.drained(key, false);
    }
}

#[test]
fn streams_are_bounded_and_streams_whose_host_is_gone_make_way() {
    let mut engine = Engine::new(GUEST, vec![PORT]);
    for port in 0..MAX_OF_GUEST as u32 {
        assert_eq!(
            engine.packet(&from_guest(OP_REQUEST, port, 0), 0),
            [Action::Open(key(port))]
        );
    }
    assert_eq!(engine.packet(&from_guest(OP_REQUEST, 70_000, 0), 0), []);
    for _ in MAX_OF_GUEST..MAX_CONNECTIONS {
        assert!(
            engine.dial(1025, &mut Vec::new()).is_some(),
            "the host still dials"
        );
    }
    assert_eq!(engine.dial(1025, &mut Vec::new()), None);
    engine.readable(key(7), true);
    engine.drained(key(7), true);
    while engine.next().is_some() {}
    assert_eq!(
        engine.packet(&from_guest(OP_REQUEST, 70_001, 0), 0),
        [Action::Close(key(7)), Action::Open(key(70_001))]
    );
}

#[test]
fn streams_opened_and_closed_without_end_leave_nothing_behind() {
    let mut engine = Engine::new(GUEST, vec![PORT]);
    for _ in 0..3 {
        for port in [9, 10] {
            engine.packet(&from_guest(OP_REQUEST, port, 0), 0);
        }
        assert_eq!(engine.queued(), 2);
        for port in [9, 10] {
            engine.packet(&from_guest(OP_RESET, port, 0), 0);
        }
        assert_eq!(engine.queued(), 0);
    }
    assert_eq!(engine.next(), None);
}

#[test]
fn the_answers_to_a_flood_are_bounded() {
    let mut engine = Engine::new(GUEST, vec![PORT]);
    for port in 0..100_000 {
        engine.packet(&from_guest(OP_DATA, port, 0), 0);
    }
    assert!(engine.counts().1 <= MAX_RESETS);
}

proptest! {
    #[test]
    fn no_sequence_of_packets_and_events_panics_or_grows_without_bound(
        steps in proptest::collection::vec((0u16..9, 0u32..4, 0u32..300_000, 0u32..4, any::<u32>(), any::<u32>(), 0u8..8), 0..200)
    ) {
        let mut engine = Engine::new(GUEST, vec![PORT]);
        for (op, port, len, flags, buf_alloc, fwd_cnt, event) in steps {
            let header = Header { flags, buf_alloc, fwd_cnt, ..from_guest(op, port, len) };
            for action in engine.packet(&header, len as usize) {
                if let Action::Data(key, len) = action {
                    if event & 1 == 0 { engine.keep(key, &vec![0; len]); } else { engine.delivered(key, len); }
                }
            }
            let key = key(port);
            match event {
                0 => { engine.readable(key, false); }
                1 => { engine.readable(key, true); }
                2 => engine.drained(key, len % 2 == 0),
                3 => { engine.flushed(key, len as usize); }
                4 => { engine.deaf(key); }
                5 => { engine.dial(port, &mut Vec::new()); }
                _ => {}
            }
            if let Some(Outgoing::Data(key, max)) = engine.next() {
                engine.sent(key, max.min(4096));
            }
            let (connections, resets, waiting) = engine.counts();
            prop_assert!(connections <= MAX_CONNECTIONS && resets <= MAX_RESETS && waiting <= MAX_WAITING);
        }
    }
}
