//! The matcher against a second one.

mod by_hand;
mod enforced;

use std::net::Ipv4Addr;

use by_hand::{Answer, PATHS, Spec, by_hand};
use proptest::prelude::*;
use sandbox_core::SandboxId;
use sandbox_core::policy::RequestLine;

use super::*;

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

/// The same rules, where the hash of every name is the same.
fn colliding(rules: &Rules) -> Rules {
    let rules = rules.clone().without_set("none");
    rules
        .matcher
        .set(Arc::new(Matcher::colliding(&rules.rules)))
        .unwrap();
    rules
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
    spec_about(prop::sample::select(vec![
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
    ]))
}

fn spec_about<S: ToString + fmt::Debug>(host: impl Strategy<Value = S>) -> impl Strategy<Value = Spec> {
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
        host.prop_map(|host| host.to_string()),
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
                // After an address, a path follows a port or a length.
                ports: match (ports, path) {
                    (None, Some(_)) if host == "10.0.0.1" => Some((443, 443)),
                    (ports, _) => ports,
                },
                host,
                path,
                special,
            },
        )
}

type Asked = (String, u16, &'static str, &'static str, usize);

fn attempt() -> impl Strategy<Value = Asked> {
    attempt_at(prop::sample::select(HOSTS.to_vec()))
}

fn attempt_at<S: ToString + fmt::Debug>(host: impl Strategy<Value = S>) -> impl Strategy<Value = Asked> {
    (
        host.prop_map(|host| host.to_string()),
        prop::sample::select(PORTS.to_vec()),
        prop::sample::select(vec!["http", "https"]),
        prop::sample::select(METHODS.to_vec()),
        0..PATHS.len(),
    )
}

/// Names that have much in common: up to as long and as deep as names go, the same label at all levels, labels that
/// others begin or end with.
fn deep_name() -> impl Strategy<Value = String> {
    let label = "[ab]|[ab]?a{6,9}|[ab]?a{14,17}|a{62,63}";
    let same = Just(vec!["a".to_owned(); 126]);
    let spine = prop_oneof![
        2 => same,
        1 => Just([7usize, 8, 1, 63, 16, 9, 8, 15].map(|length| "a".repeat(length)).to_vec()),
        1 => Just(vec!["a".repeat(63); 3]),
    ];
    let depth = prop_oneof![3 => 0..12usize, 1 => 0..127usize];
    (spine, depth, prop::option::weighted(0.3, label)).prop_map(|(spine, depth, first)| {
        let below = spine.iter().take(depth).rev();
        let name = first
            .iter()
            .chain(below)
            .map(|label| format!("{label}."))
            .collect::<String>()
            + "a";
        // Cut to the limit, between or inside labels.
        let kept = name.get(name.len().saturating_sub(253)..).unwrap_or("");
        kept.trim_start_matches('.').to_owned()
    })
}

fn deep_target() -> impl Strategy<Value = String> {
    let wild = prop::sample::select(vec!["", "*.", "**.", "**.", "."]);
    prop_oneof![
        4 => (wild, deep_name()).prop_map(|(wild, name)| wild.to_owned() + &name),
        1 => prop_oneof![1 => Just(0), 8 => 8..=32u32].prop_map(|bits| {
            let address = Ipv4Addr::from_bits(0x0a01_0203 & u32::MAX.checked_shl(32 - bits).unwrap_or(0));
            format!("{address}/{bits}")
        }),
    ]
}

/// A set, and the same in any other order.
fn in_two_orders(set: impl Strategy<Value = Vec<Spec>>) -> impl Strategy<Value = (Vec<Spec>, Vec<Spec>)> {
    set.prop_flat_map(|set| (Just(set.clone()), Just(set).prop_shuffle()))
}

/// Compares everything that a set answers to these attempts, in both orders, with what the second matcher says.
fn compare((set, shuffled): &(Vec<Spec>, Vec<Spec>), attempts: &[Asked]) -> Result<(), TestCaseError> {
    let (rules, shuffled) = (build(set), build(shuffled));
    let colliding = colliding(&rules);
    for (host, port, scheme, method, path) in attempts {
        let (port, method, path) = (*port, *method, *path);
        let wanted = by_hand(set, host, port, scheme, method, path);
        let request = Some((method, path));
        prop_assert_eq!(&by_rules(&rules, host, port, scheme, request), &wanted);
        prop_assert_eq!(&by_rules(&shuffled, host, port, scheme, request), &wanted);
        prop_assert_eq!(&by_rules(&colliding, host, port, scheme, request), &wanted);
        // Before there is a request, the answer is one that holds for every request, or that says to look.
        let early = by_rules(&rules, host, port, scheme, None);
        prop_assert_eq!(&by_rules(&shuffled, host, port, scheme, None), &early);
        let about: Vec<_> = set
            .iter()
            .filter(|spec| spec.covers(host, port, scheme))
            .collect();
        if early.0 == Verdict::Inspect {
            prop_assert!(about.iter().any(|spec| spec.depends_on_request()));
        } else {
            for method in METHODS {
                for (path, shown) in PATHS.iter().enumerate() {
                    let late = by_hand(set, host, port, scheme, method, path);
                    prop_assert_eq!(late.0, early.0, "{} {:?}", method, shown);
                    prop_assert!(late.2 == early.2 || late.0 == Verdict::Deny);
                }
            }
        }
        // A name is looked up where anything at it could be allowed.
        let resolves = rules.explain_name(&host.parse().unwrap()).verdict != Verdict::Deny;
        prop_assert!(resolves || (wanted.0 == Verdict::Deny && early.0 == Verdict::Deny));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn explain_is_what_a_second_matcher_says_and_order_changes_nothing(
        orders in in_two_orders(proptest::collection::vec(spec(), 0..12)),
        attempts in proptest::collection::vec(attempt(), 6),
    ) {
        compare(&orders, &attempts)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn rules_on_many_levels_are_as_a_second_matcher_says(
        orders in in_two_orders(proptest::collection::vec(spec_about(deep_target()), 0..40)),
        names in proptest::collection::vec(attempt_at(deep_name()), 4),
        addresses in proptest::collection::vec(attempt_at(prop::sample::select(vec!["10.1.2.3", "10.1.3.1", "11.0.0.1"])), 2),
    ) {
        compare(&orders, &names)?;
        compare(&orders, &addresses)?;
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
