//! Which service a request is of, and where in it the credential goes: by hosts, ports, what is spoken, and requests.

use sandbox_core::policy::RequestLine;

use super::super::directory::Directory;
use super::super::*;
use super::{directory, get};
use crate::sources;

#[test]
fn the_most_specific_hosts_decide_and_other_ports_and_plain_http_get_nothing() {
    let directory = directory([
        Service::custom("wide").bearer("**.a.test"),
        Service::custom("child").bearer("*.a.test"),
        Service::custom("exact")
            .bearer("x.a.test")
            .bearer("x.a.test:8443"),
        Service::custom("plain")
            .bearer("plain.test:80")
            .plain_http_allowed(),
    ]);
    let explain = |tls, host: &str, port| {
        directory
            .explain(tls, &host.parse().unwrap(), port, get("/"))
            .to_string()
    };
    let bearer = "injected in header authorization after \"Bearer\"";
    for (host, name) in [
        ("x.a.test", "exact"),
        ("y.a.test", "child"),
        ("z.y.a.test", "wide"),
    ] {
        assert_eq!(explain(true, host, 443), format!("{name}: {bearer}"));
    }
    assert_eq!(explain(true, "x.a.test", 8443), format!("exact: {bearer}"));
    assert_eq!(explain(false, "plain.test", 80), format!("plain: {bearer}"));
    assert_eq!(
        explain(true, "a.test", 443),
        "not injected: no service has this host"
    );
    assert_eq!(
        explain(true, "xa.test", 443),
        "not injected: no service has this host"
    );
    let plain = "exact: not injected: the service takes TLS only, and this is plain HTTP";
    assert_eq!(explain(false, "x.a.test", 80), plain);
    assert_eq!(explain(false, "x.a.test", 443), plain);
    let port = "exact: not injected: the service has this host on other ports only: 443 8443";
    assert_eq!(explain(true, "x.a.test", 22), port);
    assert!(directory.has_host(&"deep.y.a.test".parse().unwrap()));
    assert!(!directory.has_host(&"a.test".parse().unwrap()));
}

/// The same attempts, asked of a rule of the policy and of a service with its target.
#[test]
fn targets_mean_what_they_mean_in_rules() {
    use sandbox_core::policy::{Attempt, Policy, Scheme, Verdict};
    let hosts = [
        "a.test",
        "b.a.test",
        "c.b.a.test",
        "10.1.2.3",
        "11.1.2.3",
        "[2001:db8::1]",
    ];
    let requests = [
        "GET /",
        "POST /v1/a",
        "GET /v1/a/b",
        "GET /v1/../v2",
        "GET /v1%2Fa",
        "GET /V1/a",
        "GET /v1/%e9",
    ];
    let mut allowed = 0;
    for target in [
        "a.test",
        "*.a.test",
        "**.a.test",
        ".a.test",
        "a.test:8443",
        "a.test:8000-9000",
        "a.test:*",
        "10.0.0.0/8:8443",
        "10.1.2.3",
        "[2001:db8::]/32:443",
        "a.test/v1/**",
        "**.a.test:8443/v1/*",
        "GET a.test",
        "POST,PUT a.test/v1/*",
    ] {
        let rules = crate::Rules::new().allow(target);
        let directory = directory([Service::custom("x").bearer(target)]);
        for (host, port) in hosts
            .iter()
            .flat_map(|host| [443, 8443, 9001].map(|port| (host, port)))
        {
            let host = host.parse().unwrap();
            for line in requests.map(|text| text.split_once(' ').unwrap()) {
                let line = RequestLine {
                    method: line.0,
                    path: line.1,
                };
                let attempt = Attempt {
                    sandbox: &"one".parse().unwrap(),
                    host: &host,
                    port,
                    scheme: Scheme::Tunnel,
                    request: Some(line),
                };
                let is_allowed = rules.decide(&attempt).verdict == Verdict::Allow;
                let is_injected = directory.explain(true, &host, port, line).is_injected();
                assert_eq!(is_injected, is_allowed, "{target} {host}:{port} {line:?}");
                allowed += usize::from(is_allowed);
            }
        }
    }
    assert!(allowed > 50, "{allowed}");
}

#[test]
fn ports_and_requests_of_one_host_lead_to_different_places() {
    let directory = directory([
        Service::custom("net")
            .header("10.0.0.0/8:8000-8010", "x-net")
            .header("10.1.0.0/16:8000", "x-near"),
        Service::custom("api")
            .header("POST,PUT a.test/v1/**", "x-writes")
            .header("a.test/v1/**", "x-reads")
            .header("a.test:9000-9009", "x-range"),
        Service::custom("other").header("a.test:9010", "x-other"),
    ]);
    let explain = |host: &str, port, method, path| {
        let line = RequestLine { method, path };
        directory
            .explain(true, &host.parse().unwrap(), port, line)
            .to_string()
    };
    for (host, port, method, path, told) in [
        ("10.2.3.4", 8000, "GET", "/", "net: injected in header x-net"),
        ("10.1.3.4", 8000, "GET", "/", "net: injected in header x-near"),
        ("10.1.3.4", 8001, "GET", "/", "net: injected in header x-net"),
        (
            "10.1.3.4",
            443,
            "GET",
            "/",
            "net: not injected: the service has this host on other ports only: 8000 8000-8010",
        ),
        ("a.test", 443, "PUT", "/v1/x", "api: injected in header x-writes"),
        ("a.test", 443, "put", "/v1/x", "api: injected in header x-reads"),
        ("a.test", 443, "GET", "/v1/x", "api: injected in header x-reads"),
        (
            "a.test",
            443,
            "GET",
            "/v2",
            "api: not injected: the service takes no credential with this method and path",
        ),
        ("a.test", 9009, "GET", "/v2", "api: injected in header x-range"),
        ("a.test", 9010, "GET", "/v2", "other: injected in header x-other"),
        (
            "11.0.0.1",
            8000,
            "GET",
            "/",
            "not injected: no service has this host",
        ),
    ] {
        assert_eq!(
            explain(host, port, method, path),
            told,
            "{host}:{port} {method} {path}"
        );
    }
    let bind = |name: &str, target| {
        let service = Service::custom(name).bearer(target);
        bound::Bound::new(service, std::sync::Arc::new(sources::Static::new("x")))
    };
    let conflict =
        Directory::new(vec![bind("one", "a.test:400-500"), bind("two", "a.test/v1/**")]).unwrap_err();
    assert_eq!(
        (conflict.first.as_str(), conflict.second.as_str()),
        ("one", "two")
    );
    Directory::new(vec![bind("one", "a.test:400-442"), bind("two", "a.test")]).unwrap();
}

#[test]
fn wildcards_of_hosts_mean_what_they_mean_in_rules() {
    let matches = |pattern: &str, host: &str| {
        directory([Service::custom("x").bearer(pattern)]).has_host(&host.parse().unwrap())
    };
    for (pattern, host, wanted) in [
        ("a.test", "a.test", true),
        ("A.TEST.", "a.test", true),
        ("a.test", "b.a.test", false),
        ("*.a.test", "b.a.test", true),
        ("*.a.test", "a.test", false),
        ("*.a.test", "c.b.a.test", false),
        ("*.a.test", "ba.test", false),
        ("*.a.test", "xa.test", false),
        ("**.a.test", "c.b.a.test", true),
        ("**.a.test", "b.a.test", true),
        ("**.a.test", "a.test", false),
        ("**.a.test", "evila.test", false),
        ("**.a.test", "a.test.evil.test", false),
        ("127.0.0.1", "127.0.0.1", true),
        ("[::ffff:127.0.0.1]", "127.0.0.1", true),
    ] {
        assert_eq!(matches(pattern, host), wanted, "{pattern} {host}");
    }
    for bad in [
        "*.com",
        "**.com",
        "*",
        "**",
        "a.*.test",
        "*.",
        "***.a.test",
        "*.1.2.3.4",
    ] {
        assert!(Service::custom("x").bearer(bad).validate().is_err(), "{bad}");
    }
}

#[test]
fn target_of_tls_gets_nothing_over_plain_http_on_the_same_port() {
    let service = Service::custom("x")
        .header("https://a.test:*", "x-secret")
        .header("http://a.test:*/public/**", "x-public")
        .plain_http_allowed();
    let directory = directory([service]);
    let explain = |tls, path| {
        directory
            .explain(tls, &"a.test".parse().unwrap(), 8080, get(path))
            .to_string()
    };
    assert_eq!(explain(true, "/public/a"), "x: injected in header x-secret");
    assert_eq!(explain(false, "/public/a"), "x: injected in header x-public");
    assert!(explain(false, "/secret").contains("no credential with this method"));
}

#[test]
fn host_that_gets_keys_and_signatures_is_one_that_gets_keys() {
    for service in [
        Service::custom("x").bearer("a.test:8443").sigv4("a.test:*"),
        Service::custom("x").sigv4("a.test:*").bearer("a.test:8443"),
        Service::custom("x").bearer("a.test/api/**").sigv4("a.test"),
    ] {
        assert!(directory([service]).has_host(&"a.test".parse().unwrap()));
    }
    assert!(!directory([Service::custom("x").sigv4("a.test")]).has_host(&"a.test".parse().unwrap()));
}
