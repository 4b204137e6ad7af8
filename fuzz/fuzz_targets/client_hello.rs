//! The start of a tunnel: however it is cut into pieces, the same thing is seen in it, within bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = sandbox_proxy::fuzzing::client_hello(bytes, bytes.len().max(1));
    let pieces = sandbox_proxy::fuzzing::client_hello(bytes, usize::from(piece).max(1));
    assert_eq!(whole.is_some(), pieces.is_some());
    if let (Some(Some(whole)), Some(Some(pieces))) = (whole, pieces) {
        assert_eq!(whole, pieces, "the name asked for");
    }
});
