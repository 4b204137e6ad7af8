//! The second matcher, written from the documentation alone. It does everything the slow way.

use std::net::IpAddr;

use sandbox_core::policy::Verdict;

use crate::policy::NOTHING_MATCHED;

/// A rule as the documentation describes it.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    /// 0 allow, 1 ask, 2 deny.
    pub(super) action: u8,
    pub(super) level: i16,
    pub(super) methods: Vec<&'static str>,
    pub(super) scheme: Option<&'static str>,
    pub(super) host: String,
    pub(super) ports: Option<(u16, u16)>,
    pub(super) path: Option<&'static str>,
    pub(super) special: bool,
}

pub(super) type Readings = Option<(&'static [&'static str], &'static [&'static str])>;

/// Paths, and how servers may split them: as they stand, and with all decoded and merged; none where unclear.
pub(super) const PATHS: [(&str, Readings); 14] = [
    ("/", Some((&[], &[]))),
    ("/a", Some((&["a"], &["a"]))),
    ("/A", Some((&["A"], &["A"]))),
    ("/b", Some((&["b"], &["b"]))),
    ("/a/", Some((&["a"], &["a"]))),
    ("/a/b", Some((&["a", "b"], &["a", "b"]))),
    ("/a/B", Some((&["a", "B"], &["a", "B"]))),
    ("/a/b/c", Some((&["a", "b", "c"], &["a", "b", "c"]))),
    ("/%61/b", Some((&["a", "b"], &["a", "b"]))),
    ("/a%2fb", Some((&["a/b"], &["a", "b"]))),
    ("/a//b", Some((&["a", "", "b"], &["a", "b"]))),
    ("/a/b;x", Some((&["a", "b;x"], &["a", "b"]))),
    ("/a/../b", None),
    ("/a/%2e%2e%2fb", None),
];

impl Spec {
    pub(super) fn target(&self) -> String {
        let mut text = String::new();
        if !self.methods.is_empty() {
            text += &self.methods.join(",");
            text += " ";
        }
        if let Some(scheme) = self.scheme {
            text += scheme;
            text += "://";
        }
        text += &self.host;
        if let Some((first, last)) = self.ports {
            text += &format!(":{first}-{last}");
        }
        text += self.path.unwrap_or("");
        if self.special {
            text += " special-ranges";
        }
        text
    }

    fn text(&self) -> String {
        format!(
            "{} {}",
            ["allow", "ask", "deny"][usize::from(self.action)],
            self.target()
        )
    }

    pub(super) fn depends_on_request(&self) -> bool {
        !self.methods.is_empty() || self.path.is_some()
    }

    fn permits_special(&self) -> bool {
        self.special || self.host.starts_with("10.") || self.host.starts_with("[2001:db8:")
    }

    pub(super) fn covers(&self, host: &str, port: u16, scheme: &str) -> bool {
        let (first, last, only) = match (self.ports, self.scheme, self.action) {
            (Some((443, 443)), None, 0 | 1) => (443, 443, Some("https")),
            (Some((first, last)), scheme, _) => (first, last, scheme),
            (None, Some("http"), _) => (80, 80, Some("http")),
            (None, None, 2) => (1, 65535, None),
            (None, ..) => (443, 443, Some("https")),
        };
        (first..=last).contains(&port) && only.is_none_or(|only| only == scheme) && self.is_about(host)
    }

    fn is_about(&self, host: &str) -> bool {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let below = |parent: &str| {
            host.strip_suffix(parent)?
                .strip_suffix('.')
                .map(|rest| rest.split('.').count())
        };
        let own = self.host.as_str();
        match (own.split_once('/'), address) {
            (Some((first, bits)), Some(address)) => is_in(address, first, bits),
            (Some(_), None) => false,
            (None, Some(_)) => own == host,
            (None, None) => {
                if own == "**" {
                    true
                } else if let Some(parent) = own.strip_prefix('.') {
                    host == parent || below(parent).is_some()
                } else if let Some(parent) = own.strip_prefix("**.") {
                    below(parent).is_some()
                } else if let Some(parent) = own.strip_prefix("*.") {
                    below(parent) == Some(1)
                } else {
                    own == host
                }
            }
        }
    }

    fn fits(&self, method: &str, path: Readings) -> bool {
        let strictly = self.action == 0;
        let same = |one: &str, other: &str| {
            if strictly {
                one == other
            } else {
                one.eq_ignore_ascii_case(other)
            }
        };
        let method = self.methods.is_empty() || self.methods.iter().any(|own| same(own, method));
        let path = match (self.path, path) {
            (None, _) => true,
            (Some(_), None) => !strictly,
            (Some(own), Some((stands, most))) => {
                let own: Vec<_> = own.split('/').filter(|segment| !segment.is_empty()).collect();
                let (one, other) = (glob(&own, stands, &same), glob(&own, most, &same));
                if strictly { one && other } else { one || other }
            }
        };
        method && path
    }

    fn rank(&self) -> impl Ord + use<> {
        (
            self.level,
            self.action,
            self.permits_special(),
            std::cmp::Reverse(self.text()),
        )
    }
}

fn is_in(address: IpAddr, first: &str, bits: &str) -> bool {
    let same_bits = match (first.trim_matches(['[', ']']).parse(), address) {
        (Ok(IpAddr::V4(first)), IpAddr::V4(v4)) => (first.to_bits() ^ v4.to_bits()).leading_zeros(),
        (Ok(IpAddr::V6(first)), IpAddr::V6(v6)) => (first.to_bits() ^ v6.to_bits()).leading_zeros(),
        _ => return false,
    };
    bits.parse().is_ok_and(|bits: u32| same_bits >= bits)
}

fn glob(pattern: &[&str], path: &[&str], same: &dyn Fn(&str, &str) -> bool) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**", rest @ ..], _) => (0..=path.len()).any(|skip| glob(rest, &path[skip..], same)),
        (["*", rest @ ..], [first, after @ ..]) => !first.is_empty() && glob(rest, after, same),
        ([own, rest @ ..], [first, after @ ..]) => same(own, first) && glob(rest, after, same),
        _ => false,
    }
}

/// Verdict, rule, and whether special ranges are permitted.
pub(super) type Answer = (Verdict, String, bool);

pub(super) fn by_hand(
    set: &[Spec],
    host: &str,
    port: u16,
    scheme: &str,
    method: &str,
    path: usize,
) -> Answer {
    let fits = |spec: &&Spec| spec.covers(host, port, scheme) && spec.fits(method, PATHS[path].1);
    match set.iter().filter(fits).max_by_key(|spec| spec.rank()) {
        None => (Verdict::Deny, NOTHING_MATCHED.into(), false),
        Some(spec) => {
            let verdict = [Verdict::Allow, Verdict::Ask, Verdict::Deny][usize::from(spec.action)];
            (verdict, spec.text(), spec.permits_special())
        }
    }
}
