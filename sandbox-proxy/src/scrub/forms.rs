//! The forms in which a secret is looked for, beside the escapes that [`view`](super::view) undoes.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::view;
use crate::defence::holds;

/// Shorter forms occur by chance: filling them would destroy innocent text and reveal the secret by its gaps.
const MIN_FORM_BYTES: usize = 6;

pub(super) type Form = Zeroizing<Vec<u8>>;

/// Every form, each once.
pub(super) fn all(secret: &str) -> Vec<Form> {
    let bytes = secret.as_bytes();
    let mut forms: Vec<Form> = vec![
        Zeroizing::new(bytes.to_vec()),
        // What is left of a secret that looks escaped itself, once escapes are undone.
        view::plain(bytes),
        // As a form has it.
        each(bytes, |byte, out| {
            out.push(if byte == b' ' { b'+' } else { byte })
        }),
    ];
    if holds("scrub-letter-case") {
        // As a name, which some servers write in one case; a hexadecimal secret is all told by that.
        forms.push(Zeroizing::new(bytes.to_ascii_lowercase()));
        forms.push(Zeroizing::new(bytes.to_ascii_uppercase()));
    }
    if holds("scrub-hex") {
        forms.push(each(bytes, |byte, out| hex(byte, false, out)));
        forms.push(each(bytes, |byte, out| hex(byte, true, out)));
    }
    if holds("scrub-utf16") {
        forms.push(utf16(secret));
    }
    if holds("scrub-base64") {
        base64(bytes, &mut forms);
    }
    forms.retain(|form| form.len() >= MIN_FORM_BYTES);
    forms.sort_by(|a, b| a.as_slice().cmp(b.as_slice()));
    forms.dedup();
    forms
}

fn each(bytes: &[u8], encode: impl Fn(u8, &mut Vec<u8>)) -> Form {
    // Room for the longest encoding, so that growing leaves no copy behind.
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() * 2));
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

/// What UTF-16 has in both of its byte orders: the zero before the first or after the last character is left out.
/// Secrets that are not ASCII are not looked for in it.
fn utf16(secret: &str) -> Form {
    let mut out = each(secret.as_bytes(), |byte, out| out.extend([byte, 0]));
    out.pop();
    out
}

/// In both alphabets, wherever the secret begins among the groups of three.
fn base64(bytes: &[u8], forms: &mut Vec<Form>) {
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
}
