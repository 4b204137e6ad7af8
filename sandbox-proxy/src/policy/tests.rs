use proptest::prelude::*;
use sandbox_core::SandboxId;
use sandbox_core::policy::Scheme;

use super::*;

fn verdict(rules: &Rules, scheme: Scheme, host: &str, port: u16) -> Verdict {
    decide(rules, scheme, host, port).0
}

fn decide(rules: &Rules, scheme: Scheme, host: &str, port: u16) -> (Verdict, String, bool) {
    let sandbox: SandboxId = "one".parse().unwrap();
    let attempt = Attempt {
        sandbox: &sandbox,
        host: &host.parse().unwrap(),
        port,
        scheme,
        request: None,
    };
    let decision = rules.decide(&attempt);
    (
        decision.verdict,
        decision.rule.to_owned(),
        decision.permits_special_ranges,
    )
}

fn tunnel(rules: &Rules, host: &str, port: u16) -> bool {
    verdict(rules, Scheme::Tunnel, host, port) == Verdict::Allow
}

#[test]
fn empty_rules_deny_everything() {
    let (answer, rule, _) = decide(&Rules::new(), Scheme::Tunnel, "example.com", 443);
    assert_eq!(answer, Verdict::Deny);
    assert_eq!(rule, NOTHING_MATCHED);
    assert!(!tunnel(&Rules::locked_down(), "example.com", 443));
}

#[test]
fn rule_without_port_means_443_through_a_tunnel() {
    let rules = Rules::new().allow("example.com");
    assert!(tunnel(&rules, "example.com", 443));
    for port in [22, 80, 9999] {
        assert!(!tunnel(&rules, "example.com", port), "{port}");
    }
    assert_eq!(verdict(&rules, Scheme::Http, "example.com", 443), Verdict::Deny);
    assert_eq!(verdict(&rules, Scheme::Http, "example.com", 80), Verdict::Deny);
}

#[test]
fn plain_http_needs_its_prefix_or_port() {
    for rule in ["http://example.com", "example.com:80"] {
        let rules = Rules::new().allow(rule);
        assert_eq!(
            verdict(&rules, Scheme::Http, "example.com", 80),
            Verdict::Allow,
            "{rule}"
        );
        assert!(!tunnel(&rules, "example.com", 443), "{rule}");
    }
    let rules = Rules::new().allow("http://example.com:8080");
    assert_eq!(verdict(&rules, Scheme::Http, "example.com", 8080), Verdict::Allow);
    assert!(!tunnel(&rules, "example.com", 8080));
}

#[test]
fn wildcards_match_below_and_never_the_apex() {
    let one = Rules::new().allow("*.example.com");
    let any = Rules::new().allow("**.example.com");
    for rules in [&one, &any] {
        assert!(tunnel(rules, "a.example.com", 443));
        for other in [
            "example.com",
            "aexample.com",
            "a.example.com.evil.test",
            "example.org",
        ] {
            assert!(!tunnel(rules, other, 443), "{other}");
        }
    }
    assert!(!tunnel(&one, "a.b.example.com", 443));
    assert!(tunnel(&any, "a.b.example.com", 443));
}

#[test]
fn network_rules_match_addresses_and_no_names() {
    let rules = Rules::new()
        .allow("203.0.113.0/24")
        .allow("[2001:db8::]/32:8443")
        .allow("**");
    assert!(tunnel(&rules, "203.0.113.9", 443));
    assert!(tunnel(&rules, "::ffff:203.0.113.9", 443));
    assert!(!tunnel(&rules, "203.0.114.9", 443));
    assert!(tunnel(&rules, "[2001:db8::7]", 8443));
    assert!(!tunnel(&rules, "[2001:db9::7]", 8443));
    let only_network = Rules::new().allow("0.0.0.0/0");
    assert!(!tunnel(&only_network, "example.com", 443));
    assert!(!tunnel(&Rules::open(), "8.8.8.8", 443), "** is about names");
}

#[test]
fn deny_rules_also_refuse_what_a_name_resolves_to() {
    let rules = Rules::new().allow("**").deny("203.0.113.0/24");
    assert_eq!(
        rules.refuses_address("203.0.113.1".parse().unwrap(), 443),
        Some("deny 203.0.113.0/24")
    );
    assert_eq!(rules.refuses_address("203.0.112.1".parse().unwrap(), 443), None);
}

#[test]
fn special_ranges_are_permitted_by_option_or_by_their_own_rule() {
    let rules = Rules::new()
        .allow("a.test special-ranges")
        .allow("b.test")
        .allow("10.0.0.0/8")
        .allow("127.0.0.1:8080")
        .allow("0.0.0.0/0:81");
    assert!(decide(&rules, Scheme::Tunnel, "a.test", 443).2);
    assert!(!decide(&rules, Scheme::Tunnel, "b.test", 443).2);
    assert!(decide(&rules, Scheme::Tunnel, "10.1.2.3", 443).2);
    assert!(decide(&rules, Scheme::Tunnel, "127.0.0.1", 8080).2);
    assert!(
        !decide(&rules, Scheme::Tunnel, "127.0.0.1", 81).2,
        "a wide network names nothing special"
    );
}

#[test]
fn deny_beats_ask_beats_allow_and_level_beats_all() {
    let rules = Rules::new().allow("a.test").ask("a.test").deny("*.test");
    assert_eq!(verdict(&rules, Scheme::Tunnel, "a.test", 443), Verdict::Deny);
    let rules = Rules::new().ask("*.test").allow("a.test");
    assert_eq!(verdict(&rules, Scheme::Tunnel, "a.test", 443), Verdict::Ask);
    let rules = Rules::new().deny("**").level(1).allow("a.test");
    assert_eq!(verdict(&rules, Scheme::Tunnel, "a.test", 443), Verdict::Allow);
    assert_eq!(verdict(&rules, Scheme::Tunnel, "b.test", 443), Verdict::Deny);
}

#[test]
fn deny_without_port_means_every_port() {
    let rules = Rules::new().allow("**:*").deny("a.test");
    for port in [1, 80, 443, 65535] {
        assert!(!tunnel(&rules, "a.test", port));
        assert!(tunnel(&rules, "b.test", port));
    }
}

#[test]
fn unmatched_attempts_can_ask() {
    let rules = Rules::new().deny("a.test").otherwise_ask();
    assert_eq!(verdict(&rules, Scheme::Tunnel, "b.test", 1), Verdict::Ask);
    assert_eq!(verdict(&rules, Scheme::Tunnel, "a.test", 1), Verdict::Deny);
}

#[test]
fn errors_point_at_the_character() {
    for (rule, offset) in [
        ("", 0),
        ("*", 0),
        ("exa*mple.com", 3),
        ("*.*.example.com", 2),
        ("example.com:", 12),
        ("example.com:0", 12),
        ("example.com:70000", 12),
        ("example.com:90-80", 17),
        ("example.com/path", 11),
        ("example.com:443/path", 15),
        ("example.com please", 12),
        ("user@example.com", 4),
        ("10.0.0.1/8", 9),
        ("10.0.0.0/33", 9),
        ("[::1", 4),
        ("[zz]", 1),
        ("2130706433", 0),
        ("https://", 8),
        ("a..b", 0),
    ] {
        let error = Rules::new().allow(rule).validate().expect_err(rule);
        assert_eq!(error.offset(), offset, "{error}");
    }
    let error = Rules::parse("allow a.test\n  deny b.test:x # no").unwrap_err();
    assert_eq!(error.offset(), 14);
    assert_eq!(Rules::parse("permit a.test").unwrap_err().offset(), 0);
}

#[test]
fn a_set_with_a_mistake_allows_nothing_and_says_so() {
    let rules = Rules::new().allow("good.test").allow("bad test");
    assert!(!tunnel(&rules, "good.test", 443));
    assert!(rules.check().is_err());
}

#[test]
fn presets_are_valid_and_mark_their_rules() {
    for rules in [Rules::open(), Rules::balanced(), Rules::locked_down()] {
        rules.validate().unwrap();
    }
    let (answer, rule, special) = decide(&Rules::balanced(), Scheme::Tunnel, "static.crates.io", 443);
    assert_eq!((answer, special), (Verdict::Allow, false));
    assert_eq!(rule, "allow *.crates.io (balanced)");
    assert!(!tunnel(&Rules::balanced(), "example.com", 443));
}

#[test]
fn rule_files_take_comments_and_all_actions() {
    let rules: Rules = "# head\nallow a.test # tail\n\n deny b.test\nask c.test:1-2\n"
        .parse()
        .unwrap();
    assert_eq!(
        rules.iter().collect::<Vec<_>>(),
        ["allow a.test", "deny b.test", "ask c.test:1-2"]
    );
}

fn any_rule() -> impl Strategy<Value = (u8, String)> {
    let target = prop_oneof![
        "(\\*\\.|\\*\\*\\.)?[ab]\\.[cd]",
        "[ab]\\.[cd]:(1|443|1-443|\\*)",
        Just("**".to_owned()),
        "10\\.0\\.0\\.[0-3]/32",
        Just("10.0.0.0/8 special-ranges".to_owned()),
    ];
    (0..3u8, target)
}

proptest! {
    #[test]
    fn order_of_rules_changes_nothing(
        mut set in proptest::collection::vec(any_rule(), 0..12),
        host in prop_oneof!["([xy]\\.)?[ab]\\.[cd]", "10\\.0\\.0\\.[0-3]"],
        port in prop_oneof![Just(443u16), Just(1)],
        seed in any::<usize>(),
    ) {
        let build = |set: &[(u8, String)]| set.iter().fold(Rules::new(), |rules, (action, target)| match action {
            0 => rules.allow(target),
            1 => rules.ask(target),
            _ => rules.deny(target),
        });
        let before = build(&set);
        before.validate().unwrap();
        let answer = decide(&before, Scheme::Tunnel, &host, port);
        if !set.is_empty() {
            let middle = seed % set.len();
            set.rotate_left(middle);
            set[middle..].reverse();
        }
        prop_assert_eq!(answer, decide(&build(&set), Scheme::Tunnel, &host, port));
    }

    #[test]
    fn parser_never_panics(text in "\\PC{0,40}") {
        let _ = Rules::new().allow(&text).validate().map_err(|error| error.to_string());
        let _ = Rules::parse(&text).map_err(|error| error.to_string());
    }
}

#[test]
fn name_resolves_where_some_port_is_let_through_and_no_rule_denies_all_of_it() {
    let rules = Rules::new()
        .allow("api.example")
        .allow("db.example:5432")
        .allow("http://web.example")
        .ask("asked.example:22")
        .allow("**.zone.example")
        .deny("bad.zone.example")
        .deny("part.zone.example:22")
        .level(1)
        .allow("fine.bad.zone.example:443")
        .deny("**.bad.zone.example");
    let answer = |name: &str| {
        let decision = rules.explain_name(&name.parse().unwrap());
        (decision.verdict, decision.rule.to_owned())
    };
    for (name, verdict, rule) in [
        ("api.example", Verdict::Allow, "allow api.example"),
        ("db.example", Verdict::Allow, "allow db.example:5432"),
        ("web.example", Verdict::Allow, "allow http://web.example"),
        ("asked.example", Verdict::Ask, "ask asked.example:22"),
        ("a.zone.example", Verdict::Allow, "allow **.zone.example"),
        ("part.zone.example", Verdict::Allow, "allow **.zone.example"),
        ("bad.zone.example", Verdict::Deny, "deny bad.zone.example"),
        ("fine.bad.zone.example", Verdict::Deny, "deny **.bad.zone.example"),
        ("x.example", Verdict::Deny, NOTHING_MATCHED),
    ] {
        assert_eq!(answer(name), (verdict, rule.to_owned()), "{name}");
    }
    let asks = Rules::new().deny("bad.example").otherwise_ask();
    let verdict = |name: &str| asks.explain_name(&name.parse().unwrap()).verdict;
    assert_eq!(
        (verdict("any.example"), verdict("bad.example")),
        (Verdict::Ask, Verdict::Deny)
    );
    let broken = Rules::open().allow("not a rule");
    assert_eq!(
        broken.explain_name(&"any.example".parse().unwrap()).verdict,
        Verdict::Deny
    );
}
