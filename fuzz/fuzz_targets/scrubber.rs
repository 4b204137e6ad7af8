//! Bodies: the secret never comes through, nothing changes in length, and it makes no difference how the body is cut
//! into pieces. But for bodies of framed messages: those go out message by message, so that what a message tells in part
//! and the next one ends is found only where both come at once.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// With characters that encoders write in several ways.
const SECRET: &str = "sk-9f+Q2/x\"Zk=&7";
/// One for each way in which bodies are framed; from [`FRAMED`] on in messages.
const CONTENT_TYPES: [&str; 5] = [
    "text/plain",
    "text/event-stream",
    "application/x-ndjson",
    "application/grpc",
    "application/vnd.amazon.eventstream",
];
const FRAMED: usize = 3;

fuzz_target!(|input: (u8, bool, Vec<u8>, &[u8])| {
    let (kind, plant, pieces, body) = input;
    let kind = usize::from(kind) % CONTENT_TYPES.len();
    let content_type = CONTENT_TYPES[kind];
    let mut body = body.to_vec();
    if plant {
        let middle = body.len() / 2;
        body.splice(middle..middle, SECRET.bytes());
    }
    let whole = sandbox_proxy::fuzzing::scrub(SECRET, content_type, &body, &[]);
    let cut = sandbox_proxy::fuzzing::scrub(SECRET, content_type, &body, &pieces);
    for scrubbed in [&whole, &cut] {
        assert_eq!(scrubbed.len(), body.len());
        assert!(
            scrubbed
                .iter()
                .zip(&body)
                .all(|(now, was)| now == was || *now == b'*')
        );
    }
    if kind < FRAMED {
        assert!(!whole.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()));
        assert_eq!(whole, cut);
    }
});
