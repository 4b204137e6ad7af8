use sandbox_core::SandboxId;
use sandbox_core::policy::RequestLine;

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
        ("example.com//", 12),
        ("example.com/a/../b", 14),
        ("example.com:443/path?x", 16),
        ("example.com/a b", 14),
        ("GET", 3),
        ("GET,,POST example.com", 4),
        ("GET, example.com", 4),
        ("GET,CONNECT example.com", 4),
        ("get example.com", 4),
        ("example.com\nallow evil.test", 11),
        ("10.0.0.0/8x", 9),
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
fn a_leading_dot_is_the_domain_and_all_below() {
    let rules = Rules::new().allow(".example.com").deny(".evil.example.com");
    for host in ["example.com", "a.example.com", "b.a.example.com"] {
        assert!(tunnel(&rules, host, 443), "{host}");
    }
    for host in ["notexample.com", "com", "evil.example.com", "x.evil.example.com"] {
        assert!(!tunnel(&rules, host, 443), "{host}");
    }
    for bad in [".", "..example.com", ".*.example.com", ".10.0.0.1"] {
        assert!(Rules::new().allow(bad).validate().is_err(), "{bad}");
    }
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
    let (answer, rule, special) = decide(&Rules::balanced(), Scheme::Tunnel, "crates.io", 443);
    assert_eq!((answer, special), (Verdict::Allow, false));
    assert_eq!(rule, "allow .crates.io (balanced)");
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

fn request(rules: &Rules, method: &str, path: &str) -> Verdict {
    let sandbox: SandboxId = "one".parse().unwrap();
    let decision = rules.decide(&Attempt {
        sandbox: &sandbox,
        host: &"api.test".parse().unwrap(),
        port: 443,
        scheme: Scheme::Tunnel,
        request: Some(RequestLine { method, path }),
    });
    decision.verdict
}

#[test]
fn method_and_path_rules_want_to_see_requests() {
    let rules = Rules::new()
        .allow("GET,HEAD api.test/repos/acme/**")
        .deny("api.test/repos/acme/secret");
    assert_eq!(verdict(&rules, Scheme::Tunnel, "api.test", 443), Verdict::Inspect);
    for (method, path, wanted) in [
        ("GET", "/repos/acme/x", Verdict::Allow),
        ("HEAD", "/repos/acme", Verdict::Allow),
        ("get", "/repos/acme/x", Verdict::Deny),
        ("POST", "/repos/acme/x", Verdict::Deny),
        ("GET", "/repos/other", Verdict::Deny),
        ("GET", "/repos/acme/secret", Verdict::Deny),
        ("GET", "/repos/acme/%73ecret", Verdict::Deny),
        ("GET", "/repos/acme/../other", Verdict::Deny),
    ] {
        assert_eq!(request(&rules, method, path), wanted, "{method} {path}");
    }
}

#[test]
fn streams_are_read_only_where_a_request_could_matter() {
    let at = |rules: &Rules, port| verdict(rules, Scheme::Tunnel, "api.test", port);
    // What a rule denies as a whole needs no reading; nor what all allow alike.
    let denied = Rules::new().allow("GET api.test").deny("api.test");
    assert_eq!(at(&denied, 443), Verdict::Deny);
    let nothing_else = Rules::new().deny("POST api.test");
    assert_eq!(at(&nothing_else, 443), Verdict::Deny);
    let alike = Rules::new().allow("api.test").allow("GET api.test");
    assert_eq!(at(&alike, 443), Verdict::Allow);
    // Lower levels do not matter once a higher one has spoken.
    let above = Rules::new().deny("POST api.test").level(1).allow("api.test");
    assert_eq!(at(&above, 443), Verdict::Allow);
    // Another port, another host.
    let elsewhere = Rules::new().allow("**:*").deny("POST https://api.test");
    assert_eq!(at(&elsewhere, 443), Verdict::Inspect);
    assert_eq!(at(&elsewhere, 22), Verdict::Allow);
    assert_eq!(verdict(&elsewhere, Scheme::Tunnel, "b.test", 443), Verdict::Allow);
    // Whether special ranges are permitted is a difference, too.
    let special = Rules::new()
        .allow("api.test")
        .allow("GET api.test special-ranges");
    assert_eq!(at(&special, 443), Verdict::Inspect);
}

#[test]
fn what_denies_or_asks_is_not_got_around_by_case() {
    let rules = Rules::new()
        .allow("api.test")
        .deny("DELETE api.test")
        .ask("api.test/admin/**");
    for (method, path, wanted) in [
        ("GET", "/x", Verdict::Allow),
        ("delete", "/x", Verdict::Deny),
        ("Delete", "/x", Verdict::Deny),
        ("GET", "/Admin/x", Verdict::Ask),
        ("GET", "/x/../admin", Verdict::Ask),
        ("GET", "/admin%2Fx", Verdict::Ask),
    ] {
        assert_eq!(request(&rules, method, path), wanted, "{method} {path}");
    }
}

#[test]
fn sets_are_named_replaced_and_taken_out() {
    let rules = Rules::balanced()
        .set("team", 0, Rules::new().allow("a.test").level(2).deny("b.test"))
        .allow("c.test");
    let explained = |rules: &Rules, host: &str| {
        let sandbox: SandboxId = "one".parse().unwrap();
        let explanation = rules.explain(&Attempt {
            sandbox: &sandbox,
            host: &host.parse().unwrap(),
            port: 443,
            scheme: Scheme::Tunnel,
            request: None,
        });
        (
            explanation.decision.rule.to_owned(),
            explanation.set.map(str::to_owned),
            explanation.level,
        )
    };
    let team = Some("team".to_owned());
    assert_eq!(
        explained(&rules, "a.test"),
        ("allow a.test (team)".into(), team.clone(), Some(0))
    );
    assert_eq!(
        explained(&rules, "b.test"),
        ("deny b.test (team)".into(), team.clone(), Some(2))
    );
    assert_eq!(
        explained(&rules, "c.test"),
        ("allow c.test".into(), None, Some(0))
    );
    assert_eq!(explained(&rules, "x.test"), (NOTHING_MATCHED.into(), None, None));
    let replaced = rules.clone().set("team", 5, Rules::new().allow("d.test"));
    assert!(!tunnel(&replaced, "a.test", 443));
    assert_eq!(
        explained(&replaced, "d.test"),
        ("allow d.test (team)".into(), team, Some(5))
    );
    assert!(tunnel(&replaced, "c.test", 443) && tunnel(&replaced, "crates.io", 443));
    let without = replaced.without_set("team").without_set("balanced");
    assert_eq!(without.iter().collect::<Vec<_>>(), ["allow c.test"]);
    for bad in ["", "Team", "a b", &"x".repeat(65)] {
        assert!(
            Rules::new().set(bad, 0, Rules::new()).validate().is_err(),
            "{bad}"
        );
    }
    let inner = Rules::new().set("team", 0, Rules::new().allow("not a rule"));
    assert!(
        inner.validate().is_err(),
        "a mistake inside a set is one of the whole"
    );
}

#[test]
fn preset_that_does_not_parse_allows_nothing_and_says_so() {
    let preset = Preset {
        name: "broken",
        version: 1,
        text: "allow a.test\nno rule at all\n",
    };
    let rules = preset.rules().allow("b.test");
    assert!(!tunnel(&rules, "a.test", 443) && !tunnel(&rules, "b.test", 443));
    assert!(rules.validate().is_err());
}

#[test]
fn presets_can_be_listed_and_trimmed() {
    for preset in Preset::ALL {
        assert!(preset.version > 0);
        let rules = preset.rules();
        rules.validate().unwrap();
        assert!(rules.entries().all(|entry| entry.set == Some(preset.name)));
        // Every line that is a rule is one in the list.
        let lines = preset
            .text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert_eq!(lines.count(), rules.entries().count());
    }
    let trimmed = Rules::balanced().without("allow bitbucket.org");
    trimmed.validate().unwrap();
    assert!(!tunnel(&trimmed, "bitbucket.org", 443));
    assert!(tunnel(&trimmed, "github.com", 443));
    assert!(trimmed.without("allow no-such.test").validate().is_err());
}

#[test]
fn balanced_has_what_development_needs() {
    let rules = Rules::balanced();
    for host in [
        "any.npmjs.org",
        "any.pypi.org",
        "any.pythonhosted.org",
        "any.crates.io",
        "proxy.golang.org",
        "repo.maven.apache.org",
        "rubygems.org",
        "api.nuget.org",
        "registry-1.docker.io",
        "ghcr.io",
        "github.com",
        "raw.githubusercontent.com",
        "gitlab.com",
        "api.anthropic.com",
        "api.openai.com",
        "docs.python.org",
        "developer.mozilla.org",
        "docs.rs",
        "any.debian.org",
    ] {
        assert!(tunnel(&rules, host, 443), "{host}");
    }
    for host in ["example.com", "pastebin.com", "169.254.169.254", "localhost"] {
        assert!(!tunnel(&rules, host, 443), "{host}");
    }
    assert!(!tunnel(&rules, "github.com", 22), "no port but 443");
    let broad = rules.entries().filter(|entry| entry.rule.contains("**"));
    assert_eq!(broad.count(), 0, "no preset of a list allows whole zones");
}

#[test]
fn rule_files_know_levels_and_sets() {
    let text = "\
otherwise ask
allow a.test
level 3
deny b.test # tail
set team level -2
allow GET c.test/x
set other
ask d.test
level 7
allow e.test
";
    let rules: Rules = text.parse().unwrap();
    let listed: Vec<_> = rules
        .entries()
        .map(|entry| (entry.rule, entry.set, entry.level))
        .collect();
    assert_eq!(
        listed,
        [
            ("allow a.test", None, 0),
            ("deny b.test", None, 3),
            ("allow GET c.test/x", Some("team"), -2),
            ("ask d.test", Some("other"), 0),
            ("allow e.test", Some("other"), 7),
        ]
    );
    assert_eq!(
        rules.to_string().parse::<Rules>().unwrap().to_string(),
        rules.to_string()
    );
    for (line, offset) in [
        ("level", 5),
        ("level x", 6),
        ("level 1 2", 6),
        ("set", 3),
        ("set A", 4),
        ("set a levels 1", 6),
        ("set a level", 11),
        ("otherwise", 9),
        ("otherwise deny", 10),
        ("  allow", 7),
    ] {
        assert_eq!(Rules::parse(line).unwrap_err().offset(), offset, "{line:?}");
    }
}

#[test]
fn deny_rules_for_networks_find_embedded_addresses_and_obey_levels() {
    let rules = Rules::new()
        .deny("203.0.113.0/24")
        .deny("8.8.8.8:443/x")
        .level(1)
        .allow("203.0.113.7:443");
    let refused = |address: &str| rules.refuses_address(address.parse().unwrap(), 443).is_some();
    for address in [
        "203.0.113.1",
        "::ffff:203.0.113.1",
        "64:ff9b::203.0.113.1",
        "2002:cb00:7101::1",
        // What depends on a request cannot be told by an address.
        "8.8.8.8",
    ] {
        assert!(refused(address), "{address}");
    }
    assert!(!refused("203.0.113.7"), "an exception of a higher level");
    assert!(!refused("203.0.114.1"));
}

#[test]
fn exception_for_some_requests_to_an_address_opens_it_to_no_name() {
    let rules = Rules::new()
        .deny("203.0.113.0/24")
        .level(1)
        .allow("GET 203.0.113.7:443/public/**");
    assert!(
        rules
            .refuses_address("203.0.113.7".parse().unwrap(), 443)
            .is_some()
    );
}

#[test]
fn thousands_of_rules_on_one_name_are_one_look_up() {
    // Not a question of time, but of every port having its best rule.
    let rules = (1..3000u16).fold(Rules::new(), |rules, n| {
        let rules = rules.allow(&format!("a.test:{n}-{}", 2 * n));
        rules.deny(&format!("a.test:{}", 3 * n))
    });
    for port in [1u16, 2, 3, 6, 700, 701, 2999, 5000, 5998, 6000] {
        let denied = port.is_multiple_of(3) && port / 3 < 3000;
        let allowed = (1..3000).any(|n| (n..=2 * n).contains(&port));
        assert_eq!(tunnel(&rules, "a.test", port), allowed && !denied, "{port}");
    }
}
