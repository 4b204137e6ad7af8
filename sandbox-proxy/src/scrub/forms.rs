//! The forms in which a secret is looked for.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// Shorter forms occur by chance: filling them would destroy innocent text and reveal the secret by its gaps.
const MIN_FORM_BYTES: usize = 6;

type Form = Zeroizing<Vec<u8>>;

/// Every form, each once.
pub(super) fn all(secret: &str) -> Vec<Form> {
    let bytes = secret.as_bytes();
    let mut forms: Vec<Form> = vec![
        Zeroizing::new(bytes.to_vec()),
        each(bytes, |byte, out| hex(byte, false, out)),
        each(bytes, |byte, out| hex(byte, true, out)),
        json(bytes, false),
        json(bytes, true),
    ];
    for upper in [false, true] {
        let percent = |byte, out: &mut Vec<u8>| {
            out.push(b'%');
            hex(byte, upper, out);
        };
        forms.push(each(bytes, percent));
        // As in a URI, as in a form, and as in a path, which keeps more characters.
        for kept in [&b"-._~"[..], b"-._~*", b"-._~!$&'()*+,;=:@/", b"-._~!'()*"] {
            forms.push(each(bytes, |byte, out| match byte {
                b' ' if kept == b"-._~*" => out.push(b'+'),
                _ if byte.is_ascii_alphanumeric() || kept.contains(&byte) => out.push(byte),
                _ => percent(byte, out),
            }));
        }
        forms.push(each(bytes, |byte, out| {
            if byte.is_ascii_alphanumeric() {
                out.push(byte);
            } else {
                out.extend_from_slice(b"\\u00");
                hex(byte, upper, out);
            }
        }));
    }
    for alignment in 0..3 {
        for engine in [&BASE64_STANDARD_NO_PAD, &BASE64_URL_SAFE_NO_PAD] {
            let mut padded = Zeroizing::new(vec![0; alignment]);
            padded.extend_from_slice(bytes);
            let encoded = Zeroizing::new(engine.encode(&padded));
            // Characters whose six bits all come from the secret.
            let first = (alignment * 8).div_ceil(6);
            let last = padded.len() * 8 / 6;
            if let Some(inner) = encoded.as_bytes().get(first..last) {
                forms.push(Zeroizing::new(inner.to_vec()));
            }
        }
    }
    forms.retain(|form| form.len() >= MIN_FORM_BYTES);
    forms.sort_by(|a, b| a.as_slice().cmp(b.as_slice()));
    forms.dedup();
    forms
}

fn each(bytes: &[u8], encode: impl Fn(u8, &mut Vec<u8>)) -> Form {
    // Room for the longest encoding, so that growing leaves no copy behind.
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() * 6));
    for byte in bytes {
        encode(*byte, &mut out);
    }
    out
}

fn hex(byte: u8, upper: bool, out: &mut Vec<u8>) {
    let digits = if upper {
        b"0123456789ABCDEF"
    } else {
        b"0123456789abcdef"
    };
    for nibble in [byte >> 4, byte & 15] {
        out.extend(digits.get(usize::from(nibble)));
    }
}

/// As inside a JSON string (RFC 8259 §7); some writers escape the slash, too.
fn json(bytes: &[u8], slash: bool) -> Form {
    each(bytes, |byte, out| {
        if byte == b'"' || byte == b'\\' || (slash && byte == b'/') {
            out.push(b'\\');
        }
        out.push(byte);
    })
}
