//! What comes out of coded streams, how much of it at a time, and what does not.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;

use super::*;

fn budget() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MEMORY_UNITS))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn brotli(bytes: &[u8], window: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = brotli::CompressorWriter::new(&mut out, 4096, 4, window);
    encoder.write_all(bytes).unwrap();
    drop(encoder);
    out
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    zstd_safe::compress(&mut out, bytes, 3).unwrap();
    out
}

/// In each coding.
fn all(bytes: &[u8]) -> Vec<(Coding, Vec<u8>)> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(bytes).unwrap();
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
    raw.write_all(bytes).unwrap();
    vec![
        (Coding::Gzip, gzip(bytes)),
        (Coding::Deflate, zlib.finish().unwrap()),
        (Coding::Deflate, raw.finish().unwrap()),
        (Coding::Brotli, brotli(bytes, 18)),
        (Coding::Zstd, zstd(bytes)),
    ]
}

fn decode(decoder: &mut Decoder, chunks: &[&[u8]]) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    for chunk in chunks {
        let mut input = Bytes::copy_from_slice(chunk);
        loop {
            match decoder.step(&mut input)? {
                Step::Data(data) => {
                    // Gzip gives what is left of its window on top.
                    assert!(data.len() <= 2 * STEP_BYTES, "{}", data.len());
                    out.extend_from_slice(&data);
                }
                Step::Hungry => break,
                Step::Yield => {}
            }
        }
        assert!(input.is_empty());
    }
    out.extend_from_slice(&decoder.finish()?);
    Ok(out)
}

proptest! {
    #[test]
    fn any_split_gives_the_same_bytes(
        text in "([a-z]{1,8} ){0,600}",
        cuts in proptest::collection::vec(0..4000usize, 0..12),
        blocks: bool,
    ) {
        for (coding, coded) in all(text.as_bytes()) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| (*cut).min(coded.len())).collect();
            cuts.extend([0, coded.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &coded[pair[0]..pair[1]]).collect();
            let mut decoder = Decoder::new(&[coding], &budget(), blocks);
            prop_assert_eq!(decode(&mut decoder, &chunks).unwrap(), text.as_bytes(), "{:?}", coding);
        }
    }

    #[test]
    fn hostile_bytes_end_in_an_error_or_in_nothing(bytes in proptest::collection::vec(any::<u8>(), 1..400), flip in 0..200usize) {
        for (coding, mut coded) in all(&bytes) {
            let mut decoder = Decoder::new(&[coding], &budget(), false);
            let _ = decode(&mut decoder, &[&bytes]);
            let at = flip % coded.len();
            coded[at] ^= 1 << (flip % 8);
            let mut decoder = Decoder::new(&[coding, Coding::Gzip], &budget(), true);
            let _ = decode(&mut decoder, &[&gzip(&coded)]);
        }
    }
}

#[test]
fn what_was_flushed_comes_out_before_the_stream_goes_on() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(b"data: one\n\n").unwrap();
    gzip.flush().unwrap();
    let gzip = gzip.get_ref().clone();
    let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4096, 4, 18);
    brotli.write_all(b"data: one\n\n").unwrap();
    brotli.flush().unwrap();
    let brotli = brotli.get_ref().clone();
    let mut context = zstd_safe::CCtx::create();
    let mut zstd = Vec::with_capacity(1024);
    let mut out = zstd_safe::OutBuffer::around(&mut zstd);
    context
        .compress_stream(&mut out, &mut zstd_safe::InBuffer::around(b"data: one\n\n"))
        .unwrap();
    context.flush_stream(&mut out).unwrap();
    for (coding, coded) in [
        (Coding::Gzip, gzip),
        (Coding::Brotli, brotli),
        (Coding::Zstd, zstd),
    ] {
        let mut decoder = Decoder::new(&[coding], &budget(), false);
        let mut input = Bytes::from(coded);
        let mut out = Vec::new();
        while let Step::Data(data) = decoder.step(&mut input).unwrap() {
            out.extend_from_slice(&data);
        }
        assert_eq!(out, b"data: one\n\n", "{coding:?}");
        assert_eq!(decoder.finish(), Err(DecodeError::Truncated(coding)));
    }
}

#[test]
fn bombs_come_in_small_steps_and_take_little_memory() {
    let zeros = vec![0; 32 << 20];
    for (coding, coded) in all(&zeros) {
        let memory = budget();
        let mut decoder = Decoder::new(&[coding], &memory, false);
        let (mut input, mut total, mut steps) = (Bytes::from(coded), 0, 0);
        while let Step::Data(data) = decoder.step(&mut input).unwrap() {
            assert!(data.len() <= 2 * STEP_BYTES);
            total += data.len();
            steps += 1;
        }
        assert_eq!(total, zeros.len(), "{coding:?}");
        assert!(steps >= (32 << 20) / (2 * STEP_BYTES));
        let taken = MEMORY_UNITS - memory.available_permits();
        assert!((100..9 << 10).contains(&taken), "{coding:?} {taken}");
        drop(decoder);
        assert_eq!(memory.available_permits(), MEMORY_UNITS);
    }
}

#[test]
fn others_get_their_turn_while_a_stream_decodes_to_nothing() {
    for empty in [gzip(b""), zstd(b"")] {
        let coding = if empty.starts_with(&[0x1f]) {
            Coding::Gzip
        } else {
            Coding::Zstd
        };
        let mut decoder = Decoder::new(&[coding], &budget(), false);
        let mut input = Bytes::from(empty.repeat(20_000));
        assert_eq!(decoder.step(&mut input), Ok(Step::Yield), "{coding:?}");
        assert!(!input.is_empty());
        while decoder.step(&mut input).unwrap() != Step::Hungry {}
        assert_eq!(decoder.finish().unwrap(), "");
    }
}

#[test]
fn stacked_codings_are_undone_in_turn_and_bounded() {
    let names = |text: &'static str| Coding::all(text.split(", "));
    let text = "some text ".repeat(5000);
    let coded = brotli(&gzip(text.as_bytes()), 18);
    let mut decoder = Decoder::new(&names("gzip, br").unwrap(), &budget(), false);
    let chunks: Vec<_> = coded.chunks(5).collect();
    assert_eq!(decode(&mut decoder, &chunks).unwrap(), text.as_bytes());
    assert_eq!(names("gzip, br, zstd"), None);
    assert_eq!(names("identity, X-GZIP"), Some(vec![Coding::Gzip]));
    assert_eq!(names("gzip, compress"), None);
    assert_eq!(names("dcz"), None);
}

#[test]
fn stream_that_ends_too_early_or_holds_something_else_is_an_error() {
    let text = "some text, more or less ".repeat(50);
    for (coding, coded) in all(text.as_bytes()) {
        let mut decoder = Decoder::new(&[coding], &budget(), false);
        let cut = &coded[..coded.len() - 1];
        assert_eq!(decode(&mut decoder, &[cut]), Err(DecodeError::Truncated(coding)));
        let mut decoder = Decoder::new(&[coding], &budget(), false);
        assert_eq!(
            decode(&mut decoder, &[b"\xff\xff<html>", &[0xff; 40]]),
            Err(DecodeError::Broken(coding))
        );
        let mut decoder = Decoder::new(&[coding], &budget(), false);
        let more = [&coded[..], b"and what is this?"].concat();
        assert_eq!(
            decode(&mut decoder, &[&more]),
            Err(DecodeError::Broken(coding)),
            "{coding:?}"
        );
        assert_eq!(
            decode(&mut Decoder::new(&[coding], &budget(), false), &[]).unwrap(),
            b""
        );
    }
}

#[test]
fn windows_are_bounded() {
    // A frame that wants 16 MiB, and one that wants 8.
    let frame = |exponent: u8| {
        [
            &[0x28, 0xb5, 0x2f, 0xfd, 0x00, (exponent - 10) << 3][..],
            &[1, 0, 0],
        ]
        .concat()
    };
    let mut decoder = Decoder::new(&[Coding::Zstd], &budget(), false);
    assert_eq!(
        decode(&mut decoder, &[&frame(24)]),
        Err(DecodeError::Broken(Coding::Zstd))
    );
    let mut decoder = Decoder::new(&[Coding::Zstd], &budget(), false);
    assert_eq!(decode(&mut decoder, &[&frame(23)]).unwrap(), b"");
    // Brotli's windows of up to a gigabyte, which are no part of the standard.
    let mut decoder = Decoder::new(&[Coding::Brotli], &budget(), false);
    assert_eq!(
        decode(&mut decoder, &[&[0x11, 30, 0, 0]]),
        Err(DecodeError::Broken(Coding::Brotli))
    );
}

#[test]
fn decoders_of_a_sandbox_share_their_memory() {
    let budget = Arc::new(Semaphore::new(5 << 10));
    let wide = brotli(&b"text ".repeat(100), 22);
    let mut first = Decoder::new(&[Coding::Brotli], &budget, false);
    assert!(decode(&mut first, &[&wide]).is_ok());
    let mut second = Decoder::new(&[Coding::Brotli], &budget, false);
    assert_eq!(decode(&mut second, &[&wide]), Err(DecodeError::Busy));
    drop(first);
    let mut third = Decoder::new(&[Coding::Brotli], &budget, false);
    assert!(decode(&mut third, &[&wide]).is_ok());
}

#[test]
fn blocks_hide_how_well_a_stream_was_compressed() {
    let text: Vec<u8> = (0..200_000u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes())
        .collect();
    let coded = gzip(&text);
    let mut decoder = Decoder::new(&[Coding::Gzip], &budget(), true);
    for chunk in coded.chunks(1000) {
        let mut input = Bytes::copy_from_slice(chunk);
        while let Step::Data(data) = decoder.step(&mut input).unwrap() {
            assert_eq!(data.len(), STEP_BYTES);
        }
    }
    assert_eq!(decoder.finish().unwrap().len(), text.len() % STEP_BYTES);
}
