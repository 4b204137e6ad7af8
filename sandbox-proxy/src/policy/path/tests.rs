use proptest::prelude::*;

use super::*;

fn fits(pattern: &str, path: &str) -> (bool, bool) {
    let Ok(pattern) = PathPattern::parse(pattern) else {
        panic!("{pattern} is no pattern");
    };
    match Forms::of(path) {
        Some(forms) => (pattern.fits(&forms, true), pattern.fits(&forms, false)),
        None => (false, true),
    }
}

fn shown(path: &str) -> Option<(String, String)> {
    let forms = Forms::of(path)?;
    Some((forms.as_it_stands.as_str().into(), forms.at_most.as_str().into()))
}

fn starts(path: &str, depths: &[usize]) -> Vec<String> {
    let mut found = Vec::new();
    Forms::of(path)
        .unwrap()
        .for_starts(depths, &mut |start| found.push(start.to_owned()));
    found
}

#[test]
fn stars_match_one_segment_and_two_any_number() {
    for (pattern, path, wanted) in [
        ("/", "/", true),
        ("/", "/a", false),
        ("/a", "/a", true),
        ("/a", "/a/", true),
        ("/a/", "/a", true),
        ("/a", "/a/b", false),
        ("/a", "/ab", false),
        ("/*", "/a", true),
        ("/*", "/", false),
        ("/*", "/a/b", false),
        ("/a/*/c", "/a/b/c", true),
        ("/a/*/c", "/a/c", false),
        ("/**", "/", true),
        ("/**", "/a/b/c", true),
        ("/a/**", "/a", true),
        ("/a/**", "/a/b/c", true),
        ("/a/**", "/ab", false),
        ("/a/**/z", "/a/z", true),
        ("/a/**/z", "/a/b/c/z", true),
        ("/a/**/z", "/a/b/c", false),
        ("/a/**/a", "/a", false),
        ("/m/*:run", "/m/x:run", true),
        ("/m/*:run", "/m/x:stop", false),
        ("/m/v*.tar.*", "/m/v1.tar.gz", false),
        ("/*.json", "/a.json", true),
        ("/aba*aba", "/aba", false),
        ("/%40scope/x", "/@scope/x", true),
        ("/caf%C3%A9", "/café", true),
        ("/%2A", "/a", false),
        ("/%2A", "/*", true),
    ] {
        if pattern == "/m/v*.tar.*" {
            assert!(PathPattern::parse(pattern).is_err());
            continue;
        }
        assert_eq!(fits(pattern, path), (wanted, wanted), "{pattern} {path}");
    }
}

#[test]
fn what_servers_read_differently_is_allowed_only_where_both_readings_are() {
    for (pattern, path, allow, deny) in [
        // Another spelling of the same.
        ("/admin", "/%61dmin", true, true),
        ("/admin", "/%61%64%6D%69%6e", true, true),
        // One segment for some, two for others.
        ("/a/*", "/a/b%2Fc", false, true),
        ("/a/**", "/a/b%2Fc", true, true),
        ("/a/b", "/a%2fb", false, true),
        ("/a/b", "/a\\b", false, true),
        ("/a/b", "/a%5Cb", false, true),
        ("/a/b", "/a//b", false, true),
        ("/a/b", "//a/b", false, true),
        ("/a/**", "/a//b", true, true),
        // Parameters, and what some file systems drop.
        ("/admin", "/admin;x=1", false, true),
        ("/admin/users", "/admin;x=1/users", false, true),
        ("/admin", "/admin.", false, true),
        ("/admin", "/admin%20", false, true),
        ("/admin", "/admin%3b", false, true),
        // Case.
        ("/admin", "/Admin", false, true),
        ("/É/*.txt", "/%c3%a9/X.TXT", false, true),
        // Characters that become ASCII ones for some.
        ("/kiss", "/%E2%84%AAi%C5%BFs", false, true),
        ("/kiss/x", "/k%C4%B1ss/x", false, true),
        ("/admin/**", "/%EF%BD%81dmin/x", false, true),
        ("/a/b", "/a%EF%BC%8Fb", false, true),
        ("/a/b", "/a%E2%88%95b", false, true),
        ("/wiki/**", "/wiki/%EF%BC%A1", true, true),
        // Some drop a segment's parameters, some all that follows.
        ("/admin", "/admin;x/y", false, true),
        ("/a/*/c", "/a/b;/c", false, true),
        ("/a/**", "/a/b;x=1/c", true, true),
        // A percent sign by itself.
        ("/100%25%20off", "/100%25%20off", true, true),
        // Nothing to do with it.
        ("/admin", "/adm", false, false),
    ] {
        assert_eq!(fits(pattern, path), (allow, deny), "{pattern} {path}");
    }
}

#[test]
fn unclear_paths_have_no_form() {
    for path in [
        "",
        "*",
        "a",
        "/.",
        "/..",
        "/a/../b",
        "/a/./b",
        "/a/%2e%2e/b",
        "/a/.%2E/b",
        "/a/..%2fb",
        "/a/..%5cb",
        "/a/..;/b",
        "/a/..;x=1/b",
        "/a/%2e%2e%3b/b",
        "/a/..../b",
        "/a/%20/b",
        "/a/.. /b",
        "/a/%",
        "/a/%4",
        "/a/%zz",
        "/a/%+1",
        "/a%00",
        "/a%0d%0a",
        "/a%7f",
        "/%c0%ae%c0%ae/",
        "/%c0%af",
        "/%e0%80%af",
        "/%ff",
        "/%c3",
        "/%c3x",
        "/%252e%252e",
        "/a%252fb",
        // The escape is put together of escapes, or half of them.
        "/%25%36%31dmin",
        "/%256%31dmin",
        "/%25%61%62",
        "/public/%25%32%65%25%32%65/secret",
        "/%25u0061dmin",
        "/%EF%BC%852e%EF%BC%852e/x",
        "/a/%EF%BC%8E%EF%BC%8E/b",
        "/a/%E2%80%A5/b",
        "/a%EF%BC%8F..%EF%BC%8Fb",
        "/a%3fb",
        "/a%23b",
        "/a\u{7f}",
    ] {
        assert_eq!(shown(path), None, "{path:?}");
    }
    assert_eq!(shown(&format!("/{}", "a".repeat(MAX_PATH_BYTES))), None);
}

#[test]
fn both_forms_are_as_described() {
    let both = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
    assert_eq!(shown("/"), both("", ""));
    assert_eq!(shown("//"), both("", ""));
    assert_eq!(shown("/a//b;c/d"), both("a//b;c/d", "a/b/d"));
    assert_eq!(shown("/a%2Fb"), both("a\u{1}b", "a/b"));
    assert_eq!(shown("/100%25"), both("100%", "100%"));
    assert_eq!(shown("/v1/x:run"), both("v1/x:run", "v1/x:run"));
}

#[test]
fn bad_patterns_say_where() {
    for (pattern, offset) in [
        ("//", 1),
        ("/a//b", 3),
        ("/a/**/b/**", 8),
        ("/a/b**", 4),
        ("/a/*x*", 3),
        ("/../a", 1),
        ("/a/%2e", 3),
        ("/a/b?c", 3),
        ("/a/b;c", 3),
        ("/a/b\\c", 3),
        ("/a/%2f", 3),
        ("/a/%", 3),
        ("/a/b.", 3),
    ] {
        match PathPattern::parse(pattern) {
            Err(bad) => assert_eq!(bad.offset, offset, "{pattern}"),
            Ok(found) => panic!("{pattern} {found:?}"),
        }
    }
}

#[test]
fn patterns_are_found_by_their_plain_start() {
    let key = |pattern: &str| PathPattern::parse(pattern).map(|p| p.key).ok();
    assert_eq!(key("/Repos/Acme/**/x"), Some((2, "repos/acme".into())));
    assert_eq!(key("/*/a"), Some((0, "".into())));
    assert_eq!(key("/a/é"), Some((1, "a".into())));
    assert_eq!(
        starts("/Repos/acme/x", &[0, 1, 3, 4]),
        ["", "repos", "repos/acme/x"]
    );
    assert_eq!(starts("/", &[0, 1]), [""]);
}

proptest! {
    #[test]
    fn neither_paths_nor_patterns_panic(text in "[/a%2eEfF.*;\\\\é\\PC]{0,30}") {
        let forms = Forms::of(&text);
        if let (Ok(pattern), Some(forms)) = (PathPattern::parse(&text), forms) {
            let _ = pattern.fits(&forms, true);
            prop_assert!(pattern.fits(&forms, false) || !pattern.fits(&forms, true));
        }
    }

    /// What a pattern allows can be written without escapes, stars aside: then it fits itself.
    #[test]
    fn patterns_without_stars_fit_themselves(text in "(/[a-zA-Z0-9_~-]{1,5}){1,5}") {
        prop_assert_eq!(fits(&text, &text), (true, true));
        let (depth, key) = PathPattern::parse(&text).map(|p| p.key).unwrap_or_default();
        prop_assert_eq!(starts(&text, &[depth]), [key.as_ref()]);
    }
}
