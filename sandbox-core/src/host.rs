//! Host names and addresses, in the one form that everything compares: parsed once, at the edge.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::defence::holds;

/// Who is to be reached: a name or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A domain name.
    Name(HostName),
    /// An address that was given as such. IPv4-mapped IPv6 is stored as IPv4.
    Address(IpAddr),
}

/// A domain name in the form it is compared in: lower case, IDNA A-labels (RFC 5891), no trailing dot, 1 to
/// 253 bytes, labels of 1 to 63 of `a-z0-9-_`, its last label not all digits (so never an odd IPv4 form).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

impl HostName {
    /// The name as ASCII text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no host. Whoever sent it is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHost {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// Longer than 253 bytes, or a label longer than 63 (RFC 1035 §2.3.4).
    #[error("the host name is too long")]
    TooLong,
    /// An empty label: two dots in a row or a leading dot.
    #[error("the host name has an empty label")]
    EmptyLabel,
    /// A character that no host name has, or a label that IDNA refuses.
    #[error("the host name has a character or label that no host name may have")]
    Character,
    /// An IPv4 address in a form other than four decimal parts, as in `0x7f.1` or `2130706433`.
    #[error("write an IPv4 address as four decimal numbers")]
    OddAddress,
}

impl Host {
    /// The name, where it is one.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

/// Whether a name is that of a zone or of something below it. Both are names as [`HostName`] has them.
pub fn is_in(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        if holds("mapped-addresses") {
            Self::Address(address.to_canonical())
        } else {
            Self::Address(address)
        }
    }
}

impl FromStr for Host {
    type Err = InvalidHost;

    /// Parses a host as it stands in an authority (RFC 3986 §3.2.2): a name, four decimal parts, or IPv6 in
    /// brackets. IPv6 without brackets is also taken.
    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = inner.parse().map_err(|_| InvalidHost::Character)?;
            return Ok(IpAddr::V6(address).into());
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(IpAddr::V4(address).into());
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(IpAddr::V6(address).into());
        }
        text.parse().map(Self::Name)
    }
}

impl FromStr for HostName {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        // Before IDNA, which takes time that grows with length.
        if text.len() > 1024 {
            return Err(InvalidHost::TooLong);
        }
        let ascii = idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::EMPTY)
            .map_err(|_| InvalidHost::Character)?;
        let name = if holds("one-form-of-names") {
            ascii.strip_suffix('.').unwrap_or(&ascii)
        } else {
            text
        };
        if name.is_empty() {
            return Err(InvalidHost::Empty);
        }
        if name.len() > 253 || name.split('.').any(|label| label.len() > 63) {
            return Err(InvalidHost::TooLong);
        }
        if name.split('.').any(str::is_empty) {
            return Err(InvalidHost::EmptyLabel);
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        if !name.bytes().all(allowed) && holds("host-characters") {
            return Err(InvalidHost::Character);
        }
        // What the WHATWG URL standard ("ends in a number") and `inet_aton` would read as an address.
        let last = name.rsplit('.').next().unwrap_or(name);
        let hex = last
            .strip_prefix("0x")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        if (hex || last.bytes().all(|b| b.is_ascii_digit())) && holds("odd-addresses") {
            return Err(InvalidHost::OddAddress);
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Host {
    /// As in an authority: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> String {
        match text.parse::<Host>() {
            Ok(Host::Name(name)) => name.to_string(),
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn names_below_a_zone_are_in_it() {
        assert!(is_in("a.test", "a.test") && is_in("b.c.a.test", "a.test"));
        assert!(!is_in("ba.test", "a.test") && !is_in("test", "a.test") && !is_in("a.test.b", "a.test"));
    }

    #[test]
    fn one_form_for_every_spelling_of_a_name() {
        for spelling in [
            "api.example.com",
            "API.Example.COM",
            "api.example.com.",
            "ａpi。example.com",
        ] {
            assert_eq!(name(spelling), "api.example.com");
        }
        assert_eq!(name("bücher.example"), "xn--bcher-kva.example");
        assert_ne!(
            name("аpi.example.com"),
            "api.example.com",
            "a Cyrillic look-alike is another name"
        );
    }

    #[test]
    fn addresses_are_addresses_and_odd_forms_are_refused() {
        let v4: Host = "127.0.0.1".parse().unwrap();
        assert_eq!(v4, Host::Address("127.0.0.1".parse().unwrap()));
        assert_eq!("[::ffff:127.0.0.1]".parse::<Host>().unwrap(), v4);
        for odd in [
            "0x7f.1",
            "2130706433",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "1.2.3.4.5",
            "0x",
        ] {
            assert_eq!(odd.parse::<Host>(), Err(InvalidHost::OddAddress), "{odd}");
        }
    }

    #[test]
    fn texts_that_are_no_host_are_refused() {
        let long = format!("{}.example", "x".repeat(64));
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "user@host",
            "host:80",
            "a b",
            "a/b",
            "a\r\nb",
            "a%2eb",
            "[::1",
            &long,
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad:?}");
        }
    }

    /// A text as C's `inet_aton` reads it: one to four numbers in decimal, octal or hex, of which the last fills what
    /// the others leave.
    fn by_inet_aton(text: &str) -> Option<Ipv4Addr> {
        let number = |part: &str| {
            let lower = part.to_ascii_lowercase();
            match (lower.strip_prefix("0x"), lower.strip_prefix('0')) {
                (Some(hex), _) => u64::from_str_radix(hex, 16).ok(),
                (None, Some(octal)) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok(),
                _ => lower.parse().ok(),
            }
        };
        let parts: Vec<u64> = text.split('.').map(number).collect::<Option<_>>()?;
        let (last, others) = parts.split_last()?;
        let rest = 32_u32.checked_sub(8 * u32::try_from(others.len()).ok()?)?;
        if rest == 0 || *last >= 1 << rest || others.iter().any(|part| *part > 255) {
            return None;
        }
        let high = others.iter().fold(0, |high, part| high << 8 | part);
        Some(Ipv4Addr::from_bits(u32::try_from(high << rest | last).ok()?))
    }

    const LABEL: &str = "[a-z0-9_]([a-z0-9_-]{0,6}[a-z0-9_])?";

    proptest! {
        #[test]
        fn every_spelling_of_a_name_is_one_and_in_the_documented_form(
            labels in proptest::collection::vec(LABEL, 0..4),
            last in "[a-z][a-z0-9]{0,5}",
            upper in any::<u64>(),
            dots in proptest::collection::vec(prop::sample::select(vec!['.', '\u{3002}', '\u{ff0e}', '\u{ff61}']), 4),
            is_rooted in any::<bool>(),
        ) {
            let plain = labels.iter().map(|label| format!("{label}.")).collect::<String>() + &last;
            let mut dots = dots.into_iter();
            let mut spelt: String = plain
                .chars()
                .enumerate()
                .map(|(at, c)| match c {
                    '.' => dots.next().unwrap_or('.'),
                    c if upper >> (at % 64) & 1 == 1 => c.to_ascii_uppercase(),
                    c => c,
                })
                .collect();
            if is_rooted {
                spelt.push('.');
            }
            // What looks like an A-label and is none is refused, in every spelling.
            match (plain.parse::<Host>(), spelt.parse::<Host>()) {
                (Ok(Host::Name(one)), Ok(Host::Name(other))) => {
                    prop_assert_eq!(one.as_str(), plain);
                    prop_assert_eq!(one, other);
                }
                (one, other) => {
                    prop_assert!(labels.iter().chain([&last]).any(|label| label.contains("--")), "{:?}", one);
                    prop_assert_eq!(one, other);
                }
            }
        }

        #[test]
        fn every_address_is_one_in_each_of_its_forms(v4 in any::<u32>(), v6 in any::<u128>()) {
            let (v4, v6) = (Ipv4Addr::from_bits(v4), Ipv6Addr::from_bits(v6));
            let host = Host::from(IpAddr::V4(v4));
            let [a, b, c, d] = v4.octets();
            let mapped = v4.to_ipv6_mapped();
            for form in [
                v4.to_string(),
                format!("[{mapped}]"),
                mapped.to_string(),
                format!("[::ffff:{a:02x}{b:02x}:{c:02x}{d:02x}]"),
                format!("[0:0:0:0:0:FFFF:{v4}]"),
            ] {
                prop_assert_eq!(form.parse::<Host>(), Ok(host.clone()), "{}", form);
            }
            let host = Host::from(IpAddr::V6(v6));
            let whole = v6.segments().map(|segment| format!("{segment:04X}")).join(":");
            for form in [v6.to_string(), format!("[{v6}]"), format!("[{whole}]"), whole] {
                prop_assert_eq!(form.parse::<Host>(), Ok(host.clone()), "{}", form);
            }
        }

        #[test]
        fn what_c_reads_as_an_address_is_that_address_or_refused(
            text in "((0[xX]?)?[0-9a-fA-F]{0,4}\\.){0,3}(0[xX]?)?[0-9a-fA-F]{1,10}",
        ) {
            if let Some(address) = by_inet_aton(&text) {
                match text.parse::<Host>() {
                    Ok(host) => prop_assert_eq!(host, Host::from(IpAddr::V4(address))),
                    Err(error) => prop_assert_eq!(error, InvalidHost::OddAddress),
                }
            }
        }

        #[test]
        fn parsing_is_idempotent_and_never_panics(text in "\\PC{0,80}") {
            if let Ok(host) = text.parse::<Host>() {
                if let Host::Name(name) = &host {
                    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
                    prop_assert!(name.as_str().len() <= 253 && name.as_str().bytes().all(is_plain), "{}", name);
                    prop_assert!(name.as_str().split('.').all(|label| (1..=63).contains(&label.len())));
                    prop_assert_eq!(by_inet_aton(name.as_str()), None);
                }
                prop_assert_eq!(host.to_string().parse::<Host>(), Ok(host));
            }
        }
    }
}
