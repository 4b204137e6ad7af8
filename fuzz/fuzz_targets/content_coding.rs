//! Coded bodies: however one is cut, the same comes out of it, or it fails in the same way; little at a time, and within
//! the memory that there is for it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_proxy::fuzzing::{Decoded, End, decode_pieces};

/// All that can be read, alone and one inside the other.
const CODINGS: [&str; 9] = [
    "gzip",
    "deflate",
    "br",
    "zstd",
    "gzip, deflate",
    "deflate, br",
    "br, zstd",
    "zstd, gzip",
    "zstd, zstd",
];
/// From here on two.
const STACKED: usize = 4;
/// A few bytes can decode to gigabytes, which nobody waits for.
const MOST: usize = 1 << 20;
/// What one step gives at most: 64 KiB, and what gzip then has left of its window.
const STEP: usize = 128 << 10;

fuzz_target!(|input: (u8, bool, Vec<u8>, &[u8])| {
    let (coding, blocks, pieces, body) = input;
    let coding = usize::from(coding) % CODINGS.len();
    let decode = |pieces: &[u8]| {
        decode_pieces(CODINGS[coding], blocks, body, pieces, MOST).expect("a coding that is known")
    };
    let (whole, cut) = (decode(&[]), decode(&pieces));
    for decoded in [&whole, &cut] {
        assert!(decoded.largest_step <= STEP, "{}", decoded.largest_step);
        assert_ne!(decoded.end, End::Busy, "one body gets the memory that it needs");
    }
    let common = whole.content.len().min(cut.content.len());
    assert!(
        whole.content[..common] == cut.content[..common],
        "the content differs"
    );
    match (whole.end, cut.end) {
        (End::TooLong, End::TooLong) => {}
        (End::TooLong, _) => assert_fails_there(&cut, coding),
        (_, End::TooLong) => assert_fails_there(&whole, coding),
        (End::Whole, End::Whole) => assert_eq!(whole.content.len(), cut.content.len()),
        (one, other) => assert_eq!(one, other),
    }
});

/// One that fails where the other was left. What had not come out yet is lost, which is a step's worth of one coding; that of
/// a coding outside of another can be anything.
fn assert_fails_there(failed: &Decoded, coding: usize) {
    assert!(
        matches!(failed.end, End::Broken | End::Truncated),
        "{:?}",
        failed.end
    );
    assert!(coding >= STACKED || failed.content.len() + STEP > MOST);
}
