//! Services as they are written, in code and as documents: what they say, how they move, which mistakes are told.

use super::super::*;
use super::{basic, directory, get, request, send};

#[test]
fn definitions_say_all_that_a_service_can_and_mistakes_are_told() {
    let service = Service::from_toml(
        r#"
        format = 1
        revision = 7
        name = "acme"
        client-credential = "reject"
        plain-http-allowed = true
        allow-compression = true
        [[endpoint]]
        targets = ["api.acme.test/v1/**"]
        put = { prefixed = { header = "authorization", prefix = "Token token=" } }
        [[endpoint]]
        targets = ["api.acme.test", "**.acme.test:8443"]
        put = { basic-password = "x" }
        [placeholders]
        ACME = "acme-{unique}"
        "#,
    )
    .unwrap();
    assert_eq!((service.name(), service.revision()), ("acme", 7));
    assert!(service.allows_compression());
    let sent = |path: &str| {
        let mut parts = request(path, &[]);
        send(&mut parts, &service, "api.acme.test", "k").unwrap();
        parts.headers["authorization"].to_str().unwrap().to_owned()
    };
    assert_eq!(sent("/v1/a"), "Token token=k");
    assert_eq!(sent("/v2/a"), basic("k:x"));
    let start = "format = 1\nname = \"x\"\n";
    let endpoint = "[[endpoint]]\ntargets = [\"a.test\"]\nput = \"bearer\"\n";
    for (text, told) in [
        (
            "format = 2\nname = \"x\"\nendpoint = []".to_owned(),
            "this version reads 1",
        ),
        ("name = \"x\"\nendpoint = []".to_owned(), "format"),
        (format!("{start}endpoint = []"), "has no host"),
        (format!("{start}hots = 1\n{endpoint}"), "hots"),
        (format!("{start}{endpoint}paths = [\"a\"]"), "paths"),
        (
            format!("{start}[[endpoint]]\ntargets = [\"*.test\"]\nput = \"bearer\""),
            "nobody owns all",
        ),
        (
            format!("{start}[[endpoint]]\ntargets = [\"a.test\"]\nput = {{ header = \"host\" }}"),
            "cannot be the header",
        ),
        (
            format!("{start}[[endpoint]]\ntargets = [\"a.test\"]\nput = \"cookie\""),
            "cookie",
        ),
        (
            format!("{start}{endpoint}[placeholders]\nX = \"a b\""),
            "placeholder of X",
        ),
        (
            format!("{start}[[endpoint]]\ntargets = [\"a.test\"]\nput = \"sigv4\"\nissues-tokens = true"),
            "issues-tokens is for hosts that take a credential",
        ),
        (
            format!(
                "{start}[[endpoint]]\ntargets = [\"**.amazonaws.com\", \"a.test\"]\nput = \"sigv4-of-aws\""
            ),
            "a.test: sigv4-of-aws is for hosts of AWS alone",
        ),
        (
            format!("{start}allow-compression = \"yes\"\n{endpoint}"),
            "allow-compression",
        ),
        ("x".repeat(300_000), "256 KiB"),
    ] {
        let error = Service::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains(told), "{told}: {error}");
    }
}

#[test]
fn mistakes_in_a_service_are_told() {
    let no_host = Service::custom("x").validate().unwrap_err();
    assert!(matches!(no_host, InvalidService::NoHost { .. }));
    for host in [
        "",
        "a b",
        "a.test:x",
        "a.test:0",
        "a.test:",
        "*",
        "a.*.test",
        "a.test/a?b",
        "a.test special-ranges",
    ] {
        let error = Service::custom("x").bearer(host).validate().unwrap_err();
        assert!(matches!(error, InvalidService::Target { .. }), "{host}");
    }
    for wide in ["*.test", "**.test", ".test", "**", "0.0.0.0/0", "10.0.0.0/7:443"] {
        let error = Service::custom("x").bearer(wide).validate().unwrap_err();
        assert!(matches!(error, InvalidService::TooWide { .. }), "{wide}");
    }
    for plain in ["http://a.test", "http://a.test:8080", "a.test:80"] {
        let plain = Service::custom("x").bearer(plain);
        assert!(matches!(plain.validate(), Err(InvalidService::PlainHttp { .. })));
        plain.plain_http_allowed().validate().unwrap();
    }
    for header in ["", "a b", "host", "content-length", "proxy-authorization"] {
        let error = Service::custom("x")
            .header("a.test", header)
            .validate()
            .unwrap_err();
        assert!(matches!(error, InvalidService::Header { .. }), "{header}");
    }
    for placeholder in ["", "a b", "a:b", "ä"] {
        let service = Service::custom("x")
            .bearer("a.test")
            .environment("X", placeholder);
        assert!(
            matches!(service.validate(), Err(InvalidService::Placeholder { .. })),
            "{placeholder}"
        );
    }
}

#[test]
fn services_move_to_hosts_of_ones_own() {
    let service = Service::gitlab().moved("gitlab.com", "git.acme.test:8443");
    let directory = directory([service]);
    let at = |port, path: &str| directory.explain(true, &"git.acme.test".parse().unwrap(), port, get(path));
    assert!(at(8443, "/api/v4/user").to_string().contains("Bearer"));
    assert!(at(8443, "/a.git/info/refs").to_string().contains("Basic"));
    assert!(!at(443, "/").is_injected());
    assert!(
        directory
            .select(true, &"gitlab.com".parse().unwrap(), 443)
            .is_none()
    );
}

#[test]
fn moved_endpoints_keep_their_port_and_mistakes_are_told() {
    let service = || {
        Service::custom("x")
            .bearer("a.test:8443")
            .bearer("a.test")
            .bearer("b.test")
    };
    let ports = |service: Service| -> Vec<_> {
        service.validate().unwrap();
        let shown = |endpoint: &Endpoint| endpoint.pattern.to_string();
        service.endpoints.iter().map(shown).collect()
    };
    let moved = ports(service().moved("a.test", "own.test"));
    assert_eq!(moved, ["own.test:8443", "own.test:443", "b.test:443"]);
    let one = ports(service().moved("A.test:443", "own.test:4443"));
    assert_eq!(one, ["a.test:8443", "own.test:4443", "b.test:443"]);
    for wrong in ["c.test", "a.test:444", "*.a.test", ""] {
        let error = service().moved(wrong, "own.test").validate().unwrap_err();
        assert!(
            matches!(&error, InvalidService::NotThere { text, .. } if text == wrong),
            "{error}"
        );
    }
    for wrong in ["no host", "own.test/path"] {
        let error = service().moved("a.test", wrong).validate().unwrap_err();
        assert!(matches!(error, InvalidService::Target { .. }), "{error}");
    }
}

#[test]
fn moved_endpoints_speak_what_their_new_ports_do() {
    let explain = |service: Service, tls, port| {
        let directory = directory([service.plain_http_allowed()]);
        directory
            .explain(tls, &"own.test".parse().unwrap(), port, get("/"))
            .is_injected()
    };
    let service = |at: &str| Service::custom("x").bearer(at);
    assert!(explain(
        service("a.test").moved("a.test", "own.test:8080"),
        false,
        8080
    ));
    assert!(!explain(
        service("a.test").moved("a.test", "own.test"),
        false,
        443
    ));
    assert!(!explain(
        service("a.test:8443").moved("a.test", "own.test:443"),
        false,
        443
    ));
    assert!(explain(
        service("http://a.test").moved("a.test", "own.test:81"),
        false,
        81
    ));
    assert!(!explain(
        service("http://a.test").moved("a.test", "own.test:81"),
        true,
        81
    ));
}

#[test]
fn user_name_with_a_colon_is_a_mistake_of_the_service() {
    let error = Service::custom("x")
        .basic("a.test", "a:b")
        .validate()
        .unwrap_err();
    assert!(matches!(error, InvalidService::UserName { .. }), "{error}");
    let definition =
        "format = 1\nname = \"x\"\n[[endpoint]]\ntargets = [\"a.test\"]\nput = { basic-user = \"a:b\" }";
    let error = Service::from_toml(definition).unwrap_err();
    assert!(matches!(error, InvalidService::UserName { .. }), "{error}");
}
