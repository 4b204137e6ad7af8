//! Bodies in signed chunks: however one is cut, the same goes out or the same is wrong with it; nothing but signatures
//! changes, and no more is held than a chunk may have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_proxy::fuzzing::sign_chunks;

/// A chunk, and the line before it; buffers grow by doubling.
const MOST_HELD: usize = 2 << 20;

fuzz_target!(|input: (bool, Vec<u8>, &[u8])| {
    let (has_trailer, pieces, body) = input;
    let sign = |pieces: &[u8]| sign_chunks(has_trailer, body, pieces).expect("chunks");
    let (whole, cut) = (sign(&[]), sign(&pieces));
    for signed in [&whole, &cut] {
        assert!(signed.most_held <= MOST_HELD, "{}", signed.most_held);
        assert!(signed.out.len() <= body.len());
        assert!(signed.error.is_some() || signed.out.len() == body.len());
        let is_kept =
            |(now, was): (&u8, &u8)| now == was || (now.is_ascii_hexdigit() && was.is_ascii_hexdigit());
        assert!(signed.out.iter().zip(body).all(is_kept));
    }
    assert_eq!(whole.error, cut.error);
    assert_eq!(whole.out, cut.out);
});
