//! How texts, numbers and times look on the page.

use std::fmt::Write;

use time::OffsetDateTime;

use crate::audit::text::shown;
use crate::defence::holds;

/// Text as HTML, in an element or an attribute. A log that is read may hold anything.
pub(super) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in shown(text).chars() {
        match entity(c).filter(|_| holds("audit-escapes-html")) {
            Some(entity) => out.push_str(entity),
            None => out.push(c),
        }
    }
    out
}

/// What stands for a character that would be markup.
const fn entity(c: char) -> Option<&'static str> {
    match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '"' => Some("&quot;"),
        '\'' => Some("&#39;"),
        _ => None,
    }
}

/// `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.5 MiB`.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 10.0 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// `12 ms`, `3.4 s`, `2 min`.
pub(super) fn duration(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..60_000 => format!("{:.1} s", millis as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min", millis / 60_000),
        3_600_000..172_800_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} days", millis / 86_400_000),
    }
}

/// `2026-11-21 08:30:12`, in UTC.
pub(super) fn moment(millis: u64) -> String {
    let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
    let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else {
        return "out of time".to_owned();
    };
    let mut out = String::new();
    let (date, clock) = (time.date(), time.time());
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    );
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(
            [count(7), count(1234), count(1_234_567)],
            ["7", "1,234", "1,234,567"]
        );
        assert_eq!(
            [bytes(1023), bytes(1536), bytes(15 << 20), bytes(u64::MAX)],
            ["1023 B", "1.5 KiB", "15 MiB", "16 EiB"]
        );
        assert_eq!(
            [duration(5), duration(2500), duration(120_000)],
            ["5 ms", "2.5 s", "2 min"]
        );
        assert_eq!(moment(1_795_249_812_000), "2026-11-21 08:30:12");
        assert_eq!(moment(u64::MAX), "out of time");
    }

    proptest! {
        #[test]
        fn no_text_is_markup(input in any::<String>()) {
            let shown = text(&input);
            prop_assert!(!shown.contains(['<', '>', '"', '\'']));
            prop_assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            for after in shown.split('&').skip(1) {
                let is_ours = ["amp;", "lt;", "gt;", "quot;", "#39;"].iter().any(|e| after.starts_with(e));
                prop_assert!(is_ours, "{}", shown);
            }
        }
    }
}
