//! Framing under any cut of the stream and any bytes.

#![allow(clippy::unwrap_used)] // the helpers are tests too

use proptest::prelude::*;
use sandbox_protocol::{
    control::{AgentMessage, Call, Configure, EntropySeed, Export, Failure, Hello, Response, WallClock},
    control::{Request as ControlRequest, Request},
    exec,
    frame::{self, Decoder, EncodeError, FrameError, Message},
};

fn replies() -> impl Strategy<Value = exec::Reply> {
    use exec::{Exit, ExitStatus, Output, Reply};
    let output = prop_oneof![Just(Output::Stdout), Just(Output::Stderr)];
    prop_oneof![
        any::<u32>().prop_map(|pid| Reply::Spawned { pid }),
        (output.clone(), prop::collection::vec(any::<u8>(), 0..3000)).prop_map(|(output, data)| {
            Reply::Output {
                output,
                data: data.into(),
            }
        }),
        output.prop_map(Reply::OutputClose),
        any::<u32>().prop_map(|bytes| Reply::Credit { bytes }),
        Just(Reply::StdinGone),
        (any::<i32>(), any::<bool>()).prop_map(|(code, timed_out)| Reply::Exited(Exit {
            status: ExitStatus::Code(code),
            timed_out
        })),
    ]
}

proptest! {
    #[test]
    fn messages_survive_any_cut_of_the_stream(
        messages in prop::collection::vec(replies(), 0..12),
        cuts in prop::collection::vec(1usize..700, 1..20),
    ) {
        let mut stream = Vec::new();
        for message in &messages {
            frame::encode_into(message, &mut stream).unwrap();
        }
        let mut decoder = Decoder::<exec::Reply>::new();
        let mut decoded = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            rest = after;
            decoder.push(piece);
            while let Some(message) = decoder.next().unwrap() {
                decoded.push(message);
            }
        }
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(decoded, messages);
    }

    #[test]
    fn random_bytes_end_in_an_error_or_a_message_and_never_a_panic(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
    ) {
        fn feed<M: Message>(pieces: &[Vec<u8>]) {
            let mut decoder = Decoder::<M>::new();
            for piece in pieces {
                decoder.push(piece);
                while let Ok(Some(_)) = decoder.next() {}
            }
            let _ = decoder.finish();
        }
        feed::<exec::Reply>(&pieces);
        feed::<exec::Request>(&pieces);
        feed::<AgentMessage>(&pieces);
        feed::<Request>(&pieces);
    }

    #[test]
    fn random_frame_bodies_never_panic_either_side(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut stream = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        stream.extend_from_slice(&body);
        let mut host = exec::HostSide::new(exec::Spawn::new(["true"])).unwrap();
        host.received(&stream);
        let _ = host.next_event();
        let mut agent = exec::AgentSide::new();
        agent.received(&stream);
        let _ = agent.next_event();
    }
}

#[test]
fn announced_length_over_the_limit_is_refused_before_its_bytes_arrive() {
    let mut decoder = Decoder::<exec::Reply>::new();
    decoder.push(&u32::MAX.to_le_bytes());
    let error = FrameError::TooLong {
        len: u32::MAX,
        max: exec::Reply::MAX_FRAME,
    };
    assert_eq!(decoder.next(), Err(error.clone()));
    decoder.push(&[0; 4096]);
    assert_eq!(decoder.next(), Err(error));
}

#[test]
fn inner_length_beyond_the_frame_is_malformed_and_allocates_nothing() {
    // `Output` of `Stdout` that claims 2^63 bytes.
    let body = [2, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let mut stream = 11u32.to_le_bytes().to_vec();
    stream.extend_from_slice(&body);
    let mut decoder = Decoder::<exec::Reply>::new();
    decoder.push(&stream);
    assert_eq!(decoder.next(), Err(FrameError::Malformed { len: 11 }));
}

#[test]
fn bytes_after_the_message_in_its_frame_are_malformed() {
    let mut stream = frame::encode(&exec::Reply::StdinGone).unwrap();
    stream.push(0);
    stream[0] += 1;
    let mut decoder = Decoder::<exec::Reply>::new();
    decoder.push(&stream);
    assert!(matches!(decoder.next(), Err(FrameError::Malformed { .. })));
}

#[test]
fn empty_frame_is_malformed() {
    let mut decoder = Decoder::<exec::Reply>::new();
    decoder.push(&[0; 4]);
    assert_eq!(decoder.next(), Err(FrameError::Malformed { len: 0 }));
}

#[test]
fn end_inside_a_frame_is_truncation() {
    let stream = frame::encode(&exec::Reply::StdinGone).unwrap();
    let mut decoder = Decoder::<exec::Reply>::new();
    decoder.push(&stream[..3]);
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.finish(), Err(FrameError::Truncated { held: 3 }));
}

#[test]
fn message_over_the_limit_is_refused_by_its_sender_and_nothing_is_queued() {
    let long = vec![b'x'; exec::Request::MAX_FRAME];
    let message = exec::Request::Spawn(Box::new(exec::Spawn::new([long])));
    let mut out = b"before".to_vec();
    assert!(matches!(
        frame::encode_into(&message, &mut out),
        Err(EncodeError::TooLong { .. })
    ));
    assert_eq!(out, b"before");
}

#[test]
fn largest_chunk_fits_a_frame() {
    let data = vec![0; exec::MAX_CHUNK].into();
    frame::encode(&exec::Reply::Output {
        output: exec::Output::Stderr,
        data,
    })
    .unwrap();
}

#[test]
fn control_messages_survive_the_wire() {
    let request = ControlRequest {
        id: 7,
        call: Call::Configure(Box::new(Configure {
            hostname: "box".into(),
            machine_id: [3; 16],
            wall_clock: WallClock {
                seconds: 1_800_000_000,
                nanoseconds: 5,
            },
            entropy: EntropySeed([9; 32]),
            user: "agent".into(),
            env: vec![("A".into(), b"\xff"[..].into())],
            ca_pem: Some("-----BEGIN".into()),
            proxy: true,
            exports: vec![Export {
                index: 0,
                path: "/home/me/project".into(),
                read_only: false,
            }],
        })),
    };
    let mut decoder = Decoder::new();
    decoder.push(&frame::encode(&request).unwrap());
    assert_eq!(decoder.next().unwrap(), Some(request.clone()));
    assert!(!format!("{request:?}").contains("9, 9"), "entropy is not printed");

    let failure = Failure {
        what: "mount".into(),
        errno: Some(5),
        message: "bad\u{1b}[2J".into(),
    };
    assert!(!failure.to_string().contains('\u{1b}'));
    for message in [
        AgentMessage::Hello(Hello {
            protocol: 1,
            build: "ab".into(),
            kernel: "6.12".into(),
        }),
        AgentMessage::Response(Response {
            id: 7,
            result: Err(failure),
        }),
    ] {
        let mut decoder = Decoder::new();
        decoder.push(&frame::encode(&message).unwrap());
        assert_eq!(decoder.next().unwrap(), Some(message));
    }
}

#[test]
fn greeting_keeps_its_layout() {
    let hello = AgentMessage::Hello(Hello {
        protocol: 1,
        build: "ab".into(),
        kernel: "6".into(),
    });
    assert_eq!(
        frame::encode(&hello).unwrap(),
        [7, 0, 0, 0, 0, 1, 2, b'a', b'b', 1, b'6']
    );
}
