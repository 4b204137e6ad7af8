//! Text from outside in a form that no terminal, no line-based tool and no log trips over: printable ASCII of bounded
//! length. What else a guest wrote is shown as an escape (`\u{202e}`), so that it is still seen to be there.

use std::borrow::Cow;

use crate::defence::holds;

/// Bounds what a guest can write into the log with one text of one attempt.
pub(crate) const MAX_TEXT_BYTES: usize = 1024;

/// This text, as it may be shown.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let most = if holds("audit-text-bound") {
        MAX_TEXT_BYTES
    } else {
        usize::MAX
    };
    if text.len() <= most && text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(MAX_TEXT_BYTES));
    for c in text.chars() {
        if out.len() >= most {
            out.push_str("...");
            break;
        }
        if u8::try_from(c).is_ok_and(is_plain) || !holds("audit-escapes-control") {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    Cow::Owned(out)
}

/// The same in place.
pub(crate) fn show(text: &mut String) {
    if let Cow::Owned(shown) = shown(text) {
        *text = shown;
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_and_what_turns_text_around_are_shown_as_escapes() {
        for (text, expected) in [
            ("plain /path?x", "plain /path?x"),
            ("a\r\nb", "a\\u{d}\\u{a}b"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("\u{2028}\u{2029}\u{85}\u{7f}", "\\u{2028}\\u{2029}\\u{85}\\u{7f}"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_one_short_line_of_printable_ascii(text in any::<String>(), repeat in 1_usize..3000) {
            let shown = shown(&text.repeat(repeat.min(200_000 / text.len().max(1)))).into_owned();
            prop_assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert!(shown.len() <= MAX_TEXT_BYTES + 16);
        }
    }
}
