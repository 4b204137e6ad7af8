//! Bytes as text: percent-encoding and hexadecimal digits.

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3) and those of `kept`.
pub(crate) fn percent_encode(bytes: impl AsRef<[u8]>, kept: &[u8], to: &mut String) {
    for byte in bytes.as_ref() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || kept.contains(byte) {
            to.push(char::from(*byte));
        } else {
            to.push('%');
            to.extend(digits(*byte).map(|digit| digit.to_ascii_uppercase()));
        }
    }
}

/// The byte that an escape stands for and what follows it, its percent sign taken already (RFC 3986 §2.1). `None`: it is
/// no escape.
pub(crate) fn unescape(text: &[u8]) -> Option<(u8, &[u8])> {
    let ([high, low], rest) = text.split_first_chunk()?;
    let value = |digit: &u8| char::from(*digit).to_digit(16);
    let byte = u8::try_from(value(high)? * 16 + value(low)?).ok()?;
    Some((byte, rest))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| digits(*byte)).collect()
}

fn digits(byte: u8) -> [char; 2] {
    [byte >> 4, byte & 15].map(|value| char::from_digit(u32::from(value), 16).unwrap_or('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back_from_its_escape() {
        for byte in 0..=u8::MAX {
            let mut text = String::new();
            percent_encode([byte], b"/", &mut text);
            let is_kept = byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
            if is_kept {
                assert_eq!(text.as_bytes(), [byte]);
                continue;
            }
            assert_eq!(text, format!("%{byte:02X}"));
            let lower = [hex(&[byte]).as_str(), "rest"].concat();
            assert_eq!(unescape(&text.as_bytes()[1..]), Some((byte, &b""[..])));
            assert_eq!(unescape(lower.as_bytes()), Some((byte, &b"rest"[..])));
        }
        for bad in ["", "4", "4g", "g4", "+4", "é"] {
            assert_eq!(unescape(bad.as_bytes()), None, "{bad}");
        }
    }
}
