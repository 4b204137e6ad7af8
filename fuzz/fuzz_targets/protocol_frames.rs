//! What a guest's agent may send: any bytes are messages or an error, on both kinds of stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_protocol::control::AgentMessage;
use sandbox_protocol::exec::{HostSide, Spawn};
use sandbox_protocol::frame::{self, Decoder};

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    control(bytes, usize::from(piece).max(1));
    exec(bytes, usize::from(piece).max(1));
});

/// Each message that is read says the same when it is written and read again.
fn control(bytes: &[u8], piece: usize) {
    let mut decoder = Decoder::<AgentMessage>::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        while let Ok(Some(message)) = decoder.next() {
            let mut out = Vec::new();
            frame::encode_into(&message, &mut out).expect("what came in a frame fits a frame");
            let mut again = Decoder::<AgentMessage>::new();
            again.push(&out);
            assert_eq!(again.next(), Ok(Some(message)));
            assert_eq!(again.finish(), Ok(()));
        }
    }
    let _ends_inside_a_frame = decoder.finish();
}

/// A command's host side ends at the first fault, and holds no more than was sent.
fn exec(bytes: &[u8], piece: usize) {
    let Ok(mut host) = HostSide::new(Spawn::new(["true"])) else {
        return;
    };
    for piece in bytes.chunks(piece) {
        host.received(piece);
        loop {
            match host.next_event() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_violation) => return,
            }
        }
    }
    let _ends_before_the_command = host.end_of_stream();
}
