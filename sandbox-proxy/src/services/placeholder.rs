//! Placeholders: texts in the form of a key that tools check, and that are none.

use rustls::crypto::SecureRandom;

use crate::defence::holds;

/// Stands for the sandbox's own part in the text of a placeholder.
pub(super) const UNIQUE: &str = "{unique}";
/// Stands for the same in keys of a fixed length that are capitals and digits, as AWS's are.
const CAPITALS: &str = "{UNIQUE}";
/// Characters of that: 45 bits, in what such keys have room for beside a word that says what they are.
const CAPITAL_CHARS: usize = 9;
/// Characters of the sandbox's part: 80 bits.
const TAG_CHARS: usize = 16;
/// 32 characters that every form of key has.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Protects headers and the guest's environment from a placeholder that is none.
const MAX_BYTES: usize = 512;

/// What the placeholders of one sandbox have, and those of no other: a text of 16 lower-case letters and digits. A
/// sandbox that goes on from another's memory must be given the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceholderTag(String);

/// A text that is no [`PlaceholderTag`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a placeholder's tag is 16 lower-case letters and digits: give one that Proxy::placeholder_tag returned"
)]
pub struct InvalidPlaceholderTag;

impl PlaceholderTag {
    /// A fresh one; `None` if the host has no random numbers.
    pub(crate) fn random(random: &dyn SecureRandom) -> Option<Self> {
        let mut bytes = [0; TAG_CHARS];
        if holds("placeholders-differ") {
            random.fill(&mut bytes).ok()?;
        }
        let text = bytes.iter().map(|byte| {
            let character = ALPHABET.get(usize::from(byte & 31)).copied();
            char::from(character.unwrap_or(b'a'))
        });
        Some(Self(text.collect()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A placeholder's text with this tag in it.
    pub(super) fn fill(&self, template: &str) -> String {
        template
            .replace(UNIQUE, &self.0)
            .replace(CAPITALS, &self.capitals())
    }

    /// Its start in the alphabet of RFC 4648 §6: A to Z and 2 to 7. Other starts give other texts.
    fn capitals(&self) -> String {
        let capital = |c: char| match c {
            // What the tag's own alphabet leaves out stands for what this one does.
            '1' | '8' => 'L',
            '0' | '9' => 'O',
            c => c.to_ascii_uppercase(),
        };
        self.0.chars().take(CAPITAL_CHARS).map(capital).collect()
    }
}

impl std::str::FromStr for PlaceholderTag {
    type Err = InvalidPlaceholderTag;

    fn from_str(text: &str) -> Result<Self, InvalidPlaceholderTag> {
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        (text.len() == TAG_CHARS && text.bytes().all(fine))
            .then(|| Self(text.to_owned()))
            .ok_or(InvalidPlaceholderTag)
    }
}

/// Whether a text can be a placeholder: one that a header and both halves of Basic can hold.
pub(super) fn is_valid(text: &str) -> bool {
    (1..=MAX_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capitals_have_the_form_of_aws_keys_and_differ_as_tags_do() {
        let of = |start: &str| {
            let tag: PlaceholderTag = format!("{start:a<16}").parse().unwrap();
            tag.fill("AKIASANDBOX{UNIQUE}")
        };
        let all: std::collections::HashSet<_> = ALPHABET
            .iter()
            .map(|byte| of(&char::from(*byte).to_string()))
            .collect();
        assert_eq!(all.len(), ALPHABET.len());
        for text in all {
            let is_base32 = |b: u8| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b);
            assert!(text.len() == 20 && text.bytes().all(is_base32), "{text}");
        }
    }

    #[test]
    fn tags_differ_and_survive_being_written_down() {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tag = || PlaceholderTag::random(provider.secure_random).unwrap();
        let (one, other) = (tag(), tag());
        assert_ne!(one, other);
        assert_eq!(one.as_str().parse(), Ok(one.clone()));
        assert_eq!(one.fill("a-{unique}"), format!("a-{}", one.as_str()));
        for bad in [
            "",
            "short",
            "ABCDEFGHIJKLMNOP",
            "abcdefghijklmno\n",
            "abcdefghijklmnopq",
        ] {
            assert!(bad.parse::<PlaceholderTag>().is_err(), "{bad:?}");
        }
    }
}
