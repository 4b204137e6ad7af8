//! The forms in which a secret is looked for.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// Shorter forms occur by chance: filling them would destroy innocent text and reveal the secret by its gaps.
const MIN_FORM_BYTES: usize = 6;

type Form = Zeroizing<Vec<u8>>;

/// What writers of HTML put for a quote, an apostrophe and a plus sign; `<`, `>` and `&` are written by all of them
/// in the same way.
const HTML_STYLES: [[&[u8]; 3]; 4] = [
    [b"&quot;", b"&#x27;", b"+"],
    [b"&quot;", b"&#39;", b"+"],
    [b"&#34;", b"&#39;", b"+"],
    [b"&#34;", b"&#39;", b"&#43;"],
];

/// Every form, each once.
pub(super) fn all(secret: &str) -> Vec<Form> {
    let bytes = secret.as_bytes();
    let mut forms: Vec<Form> = vec![
        Zeroizing::new(bytes.to_vec()),
        // As a name, which some servers write in one case; a hexadecimal secret is all told by that.
        Zeroizing::new(bytes.to_ascii_lowercase()),
        Zeroizing::new(bytes.to_ascii_uppercase()),
        each(bytes, |byte, out| hex(byte, false, out)),
        each(bytes, |byte, out| hex(byte, true, out)),
        json(bytes, false),
        json(bytes, true),
        utf16(secret),
    ];
    for style in &HTML_STYLES {
        forms.push(html(bytes, style));
    }
    for upper in [false, true] {
        let percent = |byte, out: &mut Vec<u8>| {
            out.push(b'%');
            hex(byte, upper, out);
        };
        forms.push(each(bytes, percent));
        forms.push(each(bytes, |byte, out| {
            out.extend_from_slice(b"\\x");
            hex(byte, upper, out);
        }));
        // As in a URI, as in a form, and as in a path, which keeps more characters.
        for kept in [&b"-._~"[..], b"-._~*", b"-._~!$&'()*+,;=:@/", b"-._~!'()*"] {
            forms.push(each(bytes, |byte, out| match byte {
                b' ' if kept == b"-._~*" => out.push(b'+'),
                _ if byte.is_ascii_alphanumeric() || kept.contains(&byte) => out.push(byte),
                _ => percent(byte, out),
            }));
        }
        // A URI within a parameter of another.
        forms.push(each(bytes, |byte, out| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(byte);
            } else {
                out.extend_from_slice(b"%25");
                hex(byte, upper, out);
            }
        }));
        // All of it, all but letters and digits, what HTML would trip over, what is not ASCII.
        let kept: [fn(char) -> bool; 4] = [
            |_| false,
            |c| c.is_ascii_alphanumeric(),
            |c| c.is_ascii() && !"<>&'\"\\".contains(c),
            |c| c.is_ascii() && !"\"\\".contains(c),
        ];
        for kept in kept {
            forms.push(json_escapes(secret, upper, kept));
        }
        forms.push(json_of_go(secret, upper));
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

/// With `\uXXXX` for every character that is not kept (RFC 8259 §7).
fn json_escapes(secret: &str, upper: bool, kept: impl Fn(char) -> bool) -> Form {
    let mut out = Zeroizing::new(Vec::with_capacity(secret.len() * 6));
    for c in secret.chars() {
        if kept(c) {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escape(*unit, upper, &mut out);
            }
        }
    }
    out
}

/// As Go, Rails and others write JSON that may stand in a page: quote and backslash the short way, the three
/// characters of markup the long way.
fn json_of_go(secret: &str, upper: bool) -> Form {
    each(secret.as_bytes(), |byte, out| match byte {
        b'"' | b'\\' => out.extend([b'\\', byte]),
        b'<' | b'>' | b'&' => escape(u16::from(byte), upper, out),
        _ => out.push(byte),
    })
}

fn escape(unit: u16, upper: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\u");
    for byte in unit.to_be_bytes() {
        hex(byte, upper, out);
    }
}

/// What UTF-16 has in both of its byte orders: the zero before the first or after the last character is left out.
/// Secrets that are not ASCII are not looked for in it.
fn utf16(secret: &str) -> Form {
    let mut out = each(secret.as_bytes(), |byte, out| out.extend([byte, 0]));
    out.pop();
    out
}

/// As text of an HTML page.
fn html(bytes: &[u8], [quote, apostrophe, plus]: &[&[u8]; 3]) -> Form {
    each(bytes, |byte, out| match byte {
        b'<' => out.extend_from_slice(b"&lt;"),
        b'>' => out.extend_from_slice(b"&gt;"),
        b'&' => out.extend_from_slice(b"&amp;"),
        b'"' => out.extend_from_slice(quote),
        b'\'' => out.extend_from_slice(apostrophe),
        b'+' => out.extend_from_slice(plus),
        _ => out.push(byte),
    })
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
