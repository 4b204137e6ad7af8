//! The matcher against a second one, which is written from the documentation alone and does everything the slow way.

use std::net::IpAddr;

use proptest::prelude::*;
use sandbox_core::SandboxId;
use sandbox_core::policy::RequestLine;

use super::*;

/// A rule as the documentation describes it.
#[derive(Debug, Clone)]
struct Spec {
    /// 0 allow, 1 ask, 2 deny.
    action: u8,
    level: i16,
    methods: Vec<&'static str>,
    scheme: Option<&'static str>,
    host: &'static str,
    ports: Option<(u16, u16)>,
    path: Option<&'static str>,
    special: bool,
}

type Readings = Option<(&'static [&'static str], &'static [&'static str])>;

/// Paths, and how servers may split them: as they stand, and with all decoded and merged; none where unclear.
const PATHS: [(&str, Readings); 14] = [
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
const PATTERNS: [&str; 9] = ["/", "/a", "/a/b", "/*", "/a/*", "/**", "/a/**", "/a/**/c", "/*/b"];
const METHODS: [&str; 4] = ["GET", "POST", "get", "BREW"];
const HOSTS: [&str; 9] = [
    "t.test",
    "a.t.test",
    "b.a.t.test",
    "x.test",
    "test",
    "10.0.0.1",
    "10.1.0.1",
    "8.8.8.8",
    "[2001:db8::1]",
];
const PORTS: [u16; 5] = [1, 80, 443, 444, 65535];

impl Spec {
    fn target(&self) -> String {
        let mut text = String::new();
        if !self.methods.is_empty() {
            text += &self.methods.join(",");
            text += " ";
        }
        if let Some(scheme) = self.scheme {
            text += scheme;
            text += "://";
        }
        text += self.host;
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

    fn depends_on_request(&self) -> bool {
        !self.methods.is_empty() || self.path.is_some()
    }

    fn permits_special(&self) -> bool {
        self.special || self.host.starts_with("10.") || self.host.starts_with("[2001:db8:")
    }

    fn covers(&self, host: &str, port: u16, scheme: &str) -> bool {
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
        match (self.host, address) {
            ("10.0.0.0/8", Some(IpAddr::V4(v4))) => v4.octets()[0] == 10,
            ("0.0.0.0/0", Some(IpAddr::V4(_))) => true,
            ("[2001:db8::]/32", Some(IpAddr::V6(v6))) => v6.segments()[..2] == [0x2001, 0xdb8],
            (own, Some(_)) => own == host,
            (own, None) if own.contains('/') => false,
            ("**", None) => true,
            (own, None) => {
                if let Some(parent) = own.strip_prefix('.') {
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
type Answer = (Verdict, String, bool);

fn by_hand(set: &[Spec], host: &str, port: u16, scheme: &str, method: &str, path: usize) -> Answer {
    let fits = |spec: &&Spec| spec.covers(host, port, scheme) && spec.fits(method, PATHS[path].1);
    match set.iter().filter(fits).max_by_key(|spec| spec.rank()) {
        None => (Verdict::Deny, NOTHING_MATCHED.into(), false),
        Some(spec) => {
            let verdict = [Verdict::Allow, Verdict::Ask, Verdict::Deny][usize::from(spec.action)];
            (verdict, spec.text(), spec.permits_special())
        }
    }
}

fn by_rules(rules: &Rules, host: &str, port: u16, scheme: &str, request: Option<(&str, usize)>) -> Answer {
    let sandbox: SandboxId = "one".parse().unwrap();
    let attempt = Attempt {
        sandbox: &sandbox,
        host: &host.parse().unwrap(),
        port,
        scheme: if scheme == "http" {
            Scheme::Http
        } else {
            Scheme::Tunnel
        },
        request: request.map(|(method, path)| RequestLine {
            method,
            path: PATHS[path].0,
        }),
    };
    let explained = rules.explain(&attempt).decision;
    let decided = rules.decide(&attempt);
    assert_eq!(explained, decided);
    (
        decided.verdict,
        decided.rule.to_owned(),
        decided.permits_special_ranges,
    )
}

fn build(set: &[Spec]) -> Rules {
    let rules = set.iter().fold(Rules::new(), |rules, spec| {
        let rules = rules.level(spec.level);
        match spec.action {
            0 => rules.allow(&spec.target()),
            1 => rules.ask(&spec.target()),
            _ => rules.deny(&spec.target()),
        }
    });
    rules.validate().unwrap_or_else(|error| panic!("{error}"));
    rules
}

fn spec() -> impl Strategy<Value = Spec> {
    let host = prop::sample::select(vec![
        "t.test",
        "a.t.test",
        "*.t.test",
        "**.t.test",
        ".t.test",
        "**.test",
        "*.test",
        "**",
        "b.a.t.test",
        "10.0.0.0/8",
        "10.0.0.1",
        "0.0.0.0/0",
        "[2001:db8::]/32",
    ]);
    let ports = prop::option::of(prop::sample::select(vec![
        (1, 65535),
        (443, 443),
        (80, 80),
        (1, 443),
        (444, 65535),
    ]));
    let methods = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec!["GET"]),
        1 => Just(vec!["GET", "POST"]),
        1 => Just(vec!["POST"]),
    ];
    let path = prop_oneof![2 => Just(None), 1 => prop::sample::select(PATTERNS.to_vec()).prop_map(Some)];
    let scheme = prop_oneof![3 => Just(None), 1 => Just(Some("http")), 1 => Just(Some("https"))];
    (
        0..3u8,
        -1..2i16,
        methods,
        scheme,
        host,
        ports,
        path,
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(action, level, methods, scheme, host, ports, path, special)| Spec {
                action,
                level,
                methods,
                scheme,
                host,
                // After an address, a path follows a port or a length.
                ports: match (ports, path) {
                    (None, Some(_)) if host == "10.0.0.1" => Some((443, 443)),
                    (ports, _) => ports,
                },
                path,
                special,
            },
        )
}

fn attempt() -> impl Strategy<Value = (&'static str, u16, &'static str, &'static str, usize)> {
    (
        prop::sample::select(HOSTS.to_vec()),
        prop::sample::select(PORTS.to_vec()),
        prop::sample::select(vec!["http", "https"]),
        prop::sample::select(METHODS.to_vec()),
        0..PATHS.len(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn explain_is_what_a_second_matcher_says_and_order_changes_nothing(
        set in proptest::collection::vec(spec(), 0..12),
        attempts in proptest::collection::vec(attempt(), 6),
        seed in any::<usize>(),
    ) {
        let rules = build(&set);
        let mut shuffled = set.clone();
        if !set.is_empty() {
            let middle = seed % set.len();
            shuffled.rotate_left(middle);
            shuffled[middle..].reverse();
        }
        let shuffled = build(&shuffled);
        for (host, port, scheme, method, path) in attempts {
            let wanted = by_hand(&set, host, port, scheme, method, path);
            let request = Some((method, path));
            prop_assert_eq!(&by_rules(&rules, host, port, scheme, request), &wanted);
            prop_assert_eq!(&by_rules(&shuffled, host, port, scheme, request), &wanted);
            // Before there is a request, the answer is one that holds for every request, or that says to look.
            let early = by_rules(&rules, host, port, scheme, None);
            prop_assert_eq!(&by_rules(&shuffled, host, port, scheme, None), &early);
            let about: Vec<_> = set.iter().filter(|spec| spec.covers(host, port, scheme)).collect();
            if early.0 == Verdict::Inspect {
                prop_assert!(about.iter().any(|spec| spec.depends_on_request()));
            } else {
                for method in METHODS {
                    for (path, shown) in PATHS.iter().enumerate() {
                        let late = by_hand(&set, host, port, scheme, method, path);
                        prop_assert_eq!(late.0, early.0, "{} {:?}", method, shown);
                        prop_assert!(late.2 == early.2 || late.0 == Verdict::Deny);
                    }
                }
            }
            // A name is looked up where anything at it could be allowed.
            let resolves = rules.explain_name(&host.parse().unwrap()).verdict != Verdict::Deny;
            prop_assert!(resolves || (wanted.0 == Verdict::Deny && early.0 == Verdict::Deny));
        }
    }
}

proptest! {
    #[test]
    fn rules_are_written_as_they_are_read(set in proptest::collection::vec(spec(), 0..12), split in 0..12usize) {
        let split = split.min(set.len());
        let rules = build(&set[..split]).set("rest", 1, build(&set[split..])).otherwise_ask();
        let text = rules.to_string();
        let read: Rules = text.parse().unwrap();
        prop_assert_eq!(read.to_string(), text);
        let mut before: Vec<_> = rules.entries().collect();
        let mut after: Vec<_> = read.entries().collect();
        let key = |entry: &Entry<'_>| (entry.rule.to_owned(), entry.set.map(str::to_owned), entry.level);
        before.sort_by_key(key);
        after.sort_by_key(key);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn parser_never_panics_and_reads_what_it_wrote(text in "\\PC{0,60}") {
        let _ = Rules::new().allow(&text).validate().map_err(|error| error.to_string());
        let _ = Rules::parse(&text).map_err(|error| error.to_string());
    }

    #[test]
    fn lines_near_the_grammar_never_panic_and_are_read_as_written(
        text in "((allow|deny|ask|set|level|otherwise) ?(GET,|POST )?(http://)?[a*]{0,3}[./:\\[\\]0-9-]{0,6}(/[a*%2;. ]{0,5})?( special-ranges)?(#x)?\n?){0,4}",
    ) {
        match Rules::parse(&text) {
            Ok(rules) => {
                let written = rules.to_string();
                let again = Rules::parse(&written).map(|rules| rules.to_string());
                prop_assert_eq!(again.as_deref(), Ok(written.as_str()));
            }
            Err(error) => prop_assert!(text.is_char_boundary(error.offset().min(text.len())) && !error.to_string().is_empty()),
        }
    }
}
