//! Bodies: the secret never comes through, nothing else is changed in length, and it makes no difference how the body
//! is cut into pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// With characters that encoders write in several ways.
const SECRET: &str = "sk-9f+Q2/x\"Zk=&7";
/// One for each way in which bodies are framed.
const CONTENT_TYPES: [&str; 5] = [
    "text/plain",
    "text/event-stream",
    "application/x-ndjson",
    "application/grpc",
    "application/vnd.amazon.eventstream",
];

fuzz_target!(|input: (u8, bool, Vec<u8>, &[u8])| {
    let (kind, plant, pieces, body) = input;
    let content_type = CONTENT_TYPES[usize::from(kind) % CONTENT_TYPES.len()];
    let mut body = body.to_vec();
    if plant {
        let middle = body.len() / 2;
        body.splice(middle..middle, SECRET.bytes());
    }
    let whole = sandbox_proxy::fuzzing::scrub(SECRET, content_type, &body, &[]);
    let cut = sandbox_proxy::fuzzing::scrub(SECRET, content_type, &body, &pieces);
    assert_eq!(whole.len(), body.len());
    assert!(!whole.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()));
    assert_eq!(whole, cut);
});
