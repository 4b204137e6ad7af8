//! What goes out of a body, and when.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::*;
use bytes::Bytes;
use proptest::prelude::*;
use sandbox_core::credential::Credential;

use super::super::FILLER;
use super::*;

const SECRET: &str = "sk-ant-\"4f/9+Zq=x7.Kd~";

fn scrubber(secrets: &[&str], framing: Framing) -> Scrubber {
    let memory = Arc::<Secrets>::default();
    for secret in secrets {
        memory.remember(&"x".into(), &Credential::Token((*secret).to_owned().into()));
    }
    Scrubber::new(memory, framing)
}

fn scrub(secrets: &[&str], chunks: &[&[u8]]) -> Vec<u8> {
    let mut scrubber = scrubber(secrets, Framing::Unknown);
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&scrubber.data(Bytes::copy_from_slice(chunk)).concat());
    }
    out.extend_from_slice(&scrubber.last(Bytes::new()).concat());
    out
}

fn stars(out: &[u8]) -> usize {
    out.iter().filter(|byte| **byte == FILLER).count()
}

#[test]
fn secret_is_filled_in_every_form_at_every_alignment() {
    let json = serde_json::to_string(SECRET).unwrap();
    let hex = |upper: bool, before: &str| -> String {
        SECRET
            .bytes()
            .map(|b| {
                format!(
                    "{before}{}",
                    if upper {
                        format!("{b:02X}")
                    } else {
                        format!("{b:02x}")
                    }
                )
            })
            .collect()
    };
    let html = SECRET.replace('"', "&quot;");
    let go = SECRET.replace('"', "&#34;").replace('+', "&#43;");
    for form in [
        SECRET,
        json.trim_matches('"'),
        &hex(false, "%"),
        &hex(true, "%"),
        &hex(false, ""),
        &hex(true, ""),
        &hex(false, "\\u00"),
        &hex(true, "\\u00"),
        &hex(false, "\\x"),
        &SECRET.to_ascii_uppercase(),
        &html,
        &go,
    ] {
        let text = format!("before {form} after");
        let out = scrub(&[SECRET], &[text.as_bytes()]);
        assert_eq!(out.len(), text.len());
        let stars = "*".repeat(form.len());
        assert_eq!(String::from_utf8(out).unwrap(), format!("before {stars} after"));
    }
    for before in ["", "u", "us", "usr", "user:"] {
        for after in ["", "a", "ab"] {
            let text = BASE64_STANDARD.encode(format!("{before}{SECRET}{after}"));
            let out = scrub(&[SECRET], &[text.as_bytes()]);
            assert_eq!(out.len(), text.len());
            // At most the two characters on either border that share bits with the neighbours remain.
            assert!(
                stars(&out) * 3 >= (SECRET.len() - 2) * 4,
                "{text} {}",
                String::from_utf8_lossy(&out)
            );
            let url = BASE64_URL_SAFE_NO_PAD.encode(format!("{before}{SECRET}{after}"));
            let out = scrub(&[SECRET], &[url.as_bytes()]);
            assert!(stars(&out) * 3 >= (SECRET.len() - 2) * 4);
        }
    }
}

#[test]
fn stream_of_single_bytes_is_not_searched_for_each_of_them() {
    let mut scrubber = scrubber(&[SECRET], Framing::Unknown);
    let sizes: Vec<_> = (0..10_000)
        .map(|_| scrubber.data(Bytes::from_static(b"x")).concat().len())
        .filter(|size| *size > 0)
        .collect();
    assert!(sizes.iter().all(|size| *size > 50), "{sizes:?}");
    assert!(sizes.iter().sum::<usize>() > 9_000);
}

#[test]
fn secret_is_filled_in_both_orders_of_utf16() {
    for order in [u16::to_le_bytes, u16::to_be_bytes] {
        let text: Vec<u8> = format!("<{SECRET}>").encode_utf16().flat_map(order).collect();
        let out = scrub(&[SECRET], &[&text]);
        let visible: Vec<u8> = out
            .iter()
            .copied()
            .filter(|byte| !b"\0*".contains(byte))
            .collect();
        assert_eq!(visible, b"<>");
        assert_eq!(out.len(), text.len());
    }
}

#[test]
fn json_escapes_of_what_is_not_ascii_are_found() {
    let secret = "schlüssel-𝄞-value";
    for text in [
        "schl\\u00fcssel-\\ud834\\udd1e-value",
        "schl\\u00FCssel-\\uD834\\uDD1E-value",
    ] {
        assert_eq!(stars(&scrub(&[secret], &[text.as_bytes()])), text.len(), "{text}");
    }
}

#[test]
fn encodings_broken_into_lines_are_found() {
    let secret = format!("sk-{}-end", "aB3/".repeat(30));
    let plain = format!("user:{secret}!");
    let base64 = BASE64_STANDARD.encode(&plain);
    let hex: String = plain.bytes().map(|b| format!("{b:02x}")).collect();
    for (text, least) in [(&base64, secret.len() * 4 / 3 - 4), (&hex, secret.len() * 2)] {
        for width in [60, 64, 76] {
            for line_break in ["\n", "\r\n", "\\n", "\\r\\n"] {
                let lines: Vec<_> = text
                    .as_bytes()
                    .chunks(width)
                    .map(|line| std::str::from_utf8(line).unwrap())
                    .collect();
                let text = lines.join(line_break);
                for size in [text.len(), 7, 1] {
                    let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
                    let out = scrub(&[&secret], &chunks);
                    assert!(
                        stars(&out) >= least,
                        "{} {}",
                        String::from_utf8_lossy(&out),
                        width
                    );
                }
            }
        }
    }
}

#[test]
fn what_waits_does_not_depend_on_what_it_says() {
    // The attack: whoever knows the answer's content sees from its pieces whether a guess is a start of the secret.
    for framing in [Framing::Unknown, Framing::Lines] {
        let mut sizes = Vec::new();
        for guess in [&SECRET[..9], "sk-ant-X\\", "unrelated"] {
            let mut scrubber = scrubber(&[SECRET], framing.clone());
            let text = format!("{}{guess}", "x\n".repeat(600));
            let first = scrubber.data(text.into_bytes().into());
            let second = scrubber.data(Bytes::from(guess.to_owned()));
            sizes.push((first.map(|b| b.len()), second.map(|b| b.len()), scrubber.pause()));
        }
        assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]), "{sizes:?}");
    }
}

#[test]
fn events_go_out_when_they_come() {
    let mut scrubber = scrubber(&[SECRET], Framing::Lines);
    for event in [
        "data: {\"text\":\"hello!\"}\n\n",
        ": ping\r\n\r\n",
        "data: sk-ant-\n\n",
    ] {
        assert_eq!(scrubber.data(Bytes::from(event)).concat(), event.as_bytes());
        assert_eq!(scrubber.pause(), None);
    }
    assert_eq!(scrubber.data(Bytes::from("data: sk-a")).concat(), b"");
    assert_eq!(scrubber.data(Bytes::from("nt-\n")).concat(), b"data: sk-ant-\n");
}

#[test]
fn silent_stream_gives_its_lines_and_keeps_the_rest() {
    let mut scrubber = scrubber(&[SECRET], Framing::Unknown);
    assert_eq!(scrubber.data(Bytes::from("one\ntwo\nsk-ant-")).concat(), b"");
    assert_eq!(scrubber.pause(), Some(LINE_PAUSE));
    assert_eq!(scrubber.paused(), "one\ntwo\n");
    // However long: a guest could have stopped it in the middle of the secret.
    assert_eq!(scrubber.pause(), None);
    assert_eq!(scrubber.paused(), "");
    assert_eq!(scrubber.last(Bytes::new()).concat(), b"sk-ant-");
}

#[test]
fn without_a_secret_nothing_waits_and_nothing_is_copied() {
    let memory = Arc::<Secrets>::default();
    let mut scrubber = Scrubber::new(memory.clone(), Framing::Unknown);
    let chunk = Bytes::from_static(b"as it came");
    let [out, none] = scrubber.data(chunk.clone());
    assert!(none.is_empty());
    assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len()));
    // Put into a request while this stream was open.
    memory.remember(&"x".into(), &Credential::Token(SECRET.to_owned().into()));
    assert_eq!(scrubber.data(Bytes::from(SECRET)).concat(), b"");
    assert_eq!(stars(&scrubber.last(Bytes::new()).concat()), SECRET.len());
}

#[test]
fn overlapping_secrets_leave_nothing() {
    let out = scrub(&["abcdefgh", "efghijkl"], &[b"1abcdefghijkl2"]);
    assert_eq!(out, b"1************2");
    let out = scrub(&["abcdefgh", "abcdefghijkl"], &[b"abcdef", b"ghij", b"kl2"]);
    assert_eq!(out, b"************2");
}

proptest! {
    #[test]
    fn any_split_gives_the_same_bytes(
        text in "([ab]|abaab[ab]|aabb|\n){0,60}",
        cuts in proptest::collection::vec(0..200usize, 0..12),
    ) {
        let secrets = ["abaabaab", "aabbaabb", "abaaba"];
        let whole = scrub(&secrets, &[text.as_bytes()]);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let chunks: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        let split = scrub(&secrets, &chunks);
        prop_assert_eq!(&split, &whole);
        prop_assert_eq!(split.len(), text.len());
        for secret in secrets {
            prop_assert!(!String::from_utf8_lossy(&whole).contains(secret));
        }
    }

    #[test]
    fn sizes_of_what_goes_out_depend_on_sizes_and_lines_alone(
        text in "([ab]|abaab[ab]|\n|aabbaabbaabb){0,200}",
        cuts in proptest::collection::vec(0..2000usize, 0..12),
        lines: bool,
    ) {
        let blank: String = text.chars().map(|c| if c == '\n' { c } else { '.' }).collect();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let framing = if lines { Framing::Lines } else { Framing::Unknown };
        let mut sizes = [&text, &blank].map(|text| {
            let mut scrubber = scrubber(&["abaabaab", "aabbaabb"], framing.clone());
            let out = cuts.windows(2).map(|pair| {
                let out = scrubber.data(Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]]));
                (out.map(|b| b.len()), scrubber.pause())
            });
            out.collect::<Vec<_>>()
        });
        prop_assert_eq!(std::mem::take(&mut sizes[0]), std::mem::take(&mut sizes[1]));
    }

    #[test]
    fn secret_in_any_form_and_mix_of_escapes_is_filled_however_it_is_cut(
        secret in "[a-zA-Z0-9][a-zA-Z0-9._/+=-]{14,60}",
        kind in 0..8usize,
        styles in proptest::collection::vec(0..9usize, 64),
        before in "[ a-z\\n\"%&\\\\]{0,3000}",
        cuts in proptest::collection::vec(0..9000usize, 0..12),
    ) {
        let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
        let form: Vec<u8> = match kind {
            0 => secret.clone().into_bytes(),
            1 => hex.into_bytes(),
            2 => hex.to_ascii_uppercase().into_bytes(),
            3 => BASE64_STANDARD.encode(format!("u:{secret}!")).into_bytes(),
            4 => BASE64_URL_SAFE_NO_PAD.encode(format!("{secret}??")).into_bytes(),
            5 => secret.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            6 => BASE64_STANDARD.encode(format!("usr:{secret}")).replace('/', "\\/").replace('+', "%2B").into_bytes(),
            _ => secret.chars().zip(&styles).map(|(c, style)| mixed(c, *style)).collect::<String>().into_bytes(),
        };
        let text = [before.as_bytes(), b" ", &form, b" ", before.as_bytes()].concat();
        let whole = scrub(&[&secret], &[&text]);
        let around = &whole[before.len() + 1..before.len() + 1 + form.len()];
        // Of base64, up to two characters on either border share bits with the neighbours, and what is before or
        // after the secret stands there, too; of UTF-16, a zero; of an escaped escape, its first backslash.
        let left = around.iter().filter(|byte| **byte != FILLER).count();
        prop_assert!(left <= [0, 0, 0, 14, 14, 14, 14, 1][kind], "{}", String::from_utf8_lossy(around));
        prop_assert_eq!(whole.len(), text.len());
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let chunks: Vec<_> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(scrub(&[&secret], &chunks), whole);
    }

    #[test]
    fn what_holds_no_secret_passes_byte_for_byte(
        bytes in proptest::collection::vec(any::<u8>(), 0..6000),
        cuts in proptest::collection::vec(0..6000usize, 0..6),
    ) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(scrub(&[SECRET], &chunks), bytes);
    }
}

/// A character as some writer escapes it.
fn mixed(c: char, style: usize) -> String {
    let code = u32::from(c);
    match style {
        0 => format!("%{code:02x}"),
        1 => format!("%{code:02X}"),
        2 => format!("%25{code:02X}"),
        3 => format!("\\u{code:04x}"),
        4 => format!("\\\\u{code:04X}"),
        5 => format!("&#{code};"),
        6 => format!("&#x{code:X};"),
        7 => format!("\\x{code:02x}"),
        _ => c.to_string(),
    }
}

#[test]
fn large_chunk_without_a_secret_is_not_copied() {
    let mut scrubber = scrubber(&[SECRET], Framing::Unknown);
    for _ in 0..3 {
        let chunk = Bytes::from(vec![b'x'; 16 << 10]);
        let [_, out] = scrubber.data(chunk.clone());
        assert_eq!(out.as_ptr(), chunk.as_ptr());
    }
    // What waited and what starts the next chunk are one secret.
    let (start, end) = SECRET.split_at(9);
    let chunk = Bytes::from([&vec![b'x'; 16 << 10], start.as_bytes()].concat());
    let first = scrubber.data(chunk).concat();
    let chunk = Bytes::from([end.as_bytes(), &vec![b'y'; 16 << 10]].concat());
    let rest = [first, scrubber.last(chunk).concat()].concat();
    assert_eq!(stars(&rest), SECRET.len());
}
