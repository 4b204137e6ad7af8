//! What a WebSocket's server sends: any stream is read without a panic, and it makes no difference how it is cut into
//! pieces. The secret never comes through in a message, nothing changes in length, and little waits.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// With characters that encoders write in several ways.
const SECRET: &str = "sk-9f+Q2/x\"Zk=&7";
/// More than the search for it holds back.
const TAIL_BYTES: usize = 1 << 10;
/// So many frames may wait at once, however the stream is cut, and the stream goes on.
const MAX_FRAMES: usize = 2000;
/// Ends whatever message is under way.
const END: [u8; 2] = [0x80, 0];

fuzz_target!(|input: (Vec<u8>, Vec<(u8, bool, &[u8])>, &[u8])| {
    let (pieces, frames, raw) = input;
    // As they should be; what is planted is in one frame.
    let (mut stream, mut most) = (Vec::new(), TAIL_BYTES);
    for (first, plant, payload) in frames.into_iter().take(MAX_FRAMES) {
        let mut payload = payload.to_vec();
        if plant {
            payload.extend_from_slice(SECRET.as_bytes());
        }
        let first = first & 0x81;
        stream.push(first);
        match u8::try_from(payload.len()) {
            Ok(length @ ..126) => stream.push(length),
            _ => {
                stream.push(127);
                stream.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        stream.extend_from_slice(&payload);
        // Heads wait behind what is before them.
        most += 10;
    }
    stream.extend_from_slice(&END);
    let (whole, _) = sandbox_proxy::fuzzing::websocket(SECRET, &stream, &[]).expect("these are frames");
    let (cut, waited) =
        sandbox_proxy::fuzzing::websocket(SECRET, &stream, &pieces).expect("these are frames");
    assert!(waited <= most, "{waited} bytes wait");
    assert_eq!(whole.len(), stream.len());
    assert_eq!(whole, cut);
    assert!(!whole.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()));

    // Whatever comes.
    let raw = &raw[..raw.len().min(MAX_FRAMES)];
    let whole = sandbox_proxy::fuzzing::websocket(SECRET, raw, &[]);
    let cut = sandbox_proxy::fuzzing::websocket(SECRET, raw, &pieces);
    assert_eq!(whole.is_some(), cut.is_some());
    if let (Some((whole, _)), Some((cut, _))) = (whole, cut) {
        let common = whole.len().min(cut.len());
        assert_eq!(whole[..common], cut[..common]);
        assert!(whole.iter().zip(raw).all(|(now, was)| now == was || *now == b'*'));
    }
});
