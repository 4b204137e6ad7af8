//! Injection as a whole: what a service's definition says is what leaves the host, whatever the client sent.

mod builtin;
mod properties;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Request;
use http::request::Parts;
use sandbox_core::credential::{
    Credential, CredentialError, CredentialRequest, CredentialSource, Issued, SecretString,
};

use sandbox_core::policy::RequestLine;

use super::directory::{Directory, Managed};
use super::inject::{self, InjectError, Injected};
use super::*;
use crate::sources;

const SECRET: &str = "s3cr3t/+ä?&";

fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut builder = Request::builder().uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

fn directory(services: impl IntoIterator<Item = Service>) -> Directory {
    let tag: PlaceholderTag = "0123456789abcdef".parse().unwrap();
    let bind =
        |service| bound::Bound::new(service, std::sync::Arc::new(sources::Static::new("x"))).tagged(&tag);
    Directory::new(services.into_iter().map(bind).collect()).unwrap()
}

fn get(path: &str) -> RequestLine<'_> {
    RequestLine { method: "GET", path }
}

fn chosen<'m>(managed: &'m Managed, parts: &Parts) -> Option<&'m Endpoint> {
    let line = RequestLine {
        method: parts.method.as_str(),
        path: parts.uri.path(),
    };
    managed.choose(line).map(|chosen| chosen.endpoint)
}

fn managed(service: &Service, host: &str) -> Option<Managed> {
    directory([service.clone()]).select(true, &host.parse().unwrap(), 443)
}

/// What the proxy does with a request to this host, with a token as credential.
fn send(parts: &mut Parts, service: &Service, host: &str, secret: &str) -> Result<Injected, InjectError> {
    let managed = managed(service, host).unwrap();
    let service = &managed.bound.service;
    let endpoint = chosen(&managed, parts);
    if let Some(injected) = inject::prepare(parts, service, endpoint, &managed.bound.tokens)? {
        return Ok(injected);
    }
    let endpoint = endpoint.unwrap();
    let token = Credential::Token(SecretString::from(secret));
    let credential = inject::shaped(token, service, endpoint)?;
    inject::replace(parts, service, endpoint, &credential)?;
    Ok(Injected::Managed)
}

fn inject(parts: &mut Parts, service: &Service, secret: &str) -> Result<Injected, InjectError> {
    send(parts, service, "api.test", secret)
}

#[test]
fn duplicates_in_any_case_are_replaced_by_one() {
    let service = Service::custom("x").header("api.test", "X-Api-Key");
    let sent = &[
        ("X-API-KEY", "mine"),
        ("x-api-key", "mine too"),
        ("x_api_key", "mine"),
        ("X_Api-Key", "mine"),
        ("Authorization", "Bearer mine, Bearer mine"),
        ("cookie", "a=mine"),
        ("cookie", "b=mine"),
    ];
    let mut parts = request("/", sent);
    inject(&mut parts, &service, "managed").unwrap();
    let values: Vec<_> = parts.headers.get_all("x-api-key").iter().collect();
    assert_eq!(values, ["managed"]);
    assert!(values[0].is_sensitive());
    assert_eq!(parts.headers.len(), 1);
    assert!(!format!("{parts:?}").contains("managed"));
}

#[test]
fn query_parameter_replaces_every_spelling_of_itself() {
    let service = Service::custom("x").query("api.test", "key");
    let mut parts = request(
        "/v1?a=1;key=mine&%6bey=mine&b=2;c=3&&KEY=mine&key[]=mine&key%00=mine",
        &[],
    );
    inject(&mut parts, &service, SECRET).unwrap();
    assert_eq!(
        parts.uri.to_string(),
        "/v1?a=1;b=2;c=3&key=s3cr3t%2F%2B%C3%A4%3F%26"
    );
}

#[test]
fn credential_in_the_query_does_not_stay_beside_that_in_a_header() {
    let service = Service::custom("x")
        .bearer("api.test")
        .also_strips_parameter("api_key");
    let mut parts = request(
        "/?api_key=mine&api.key=mine&q=1",
        &[("authorization", "Bearer mine")],
    );
    inject(&mut parts, &service, "managed").unwrap();
    assert_eq!(parts.uri, "/?q=1");
    assert_eq!(parts.headers["authorization"], "Bearer managed");
}

#[test]
fn headers_that_name_another_host_do_not_go_out_with_a_credential() {
    let service = Service::custom("x").bearer("api.test");
    let sent = &[
        ("x-forwarded-host", "evil.test"),
        ("forwarded", "host=evil.test"),
        ("x-original-url", "/admin"),
        ("x-original-uri", "/admin"),
        ("x_forwarded_host", "evil.test"),
        ("x.rewrite_url", "/admin"),
        ("accept", "*/*"),
    ];
    let mut parts = request("/", sent);
    inject(&mut parts, &service, "managed").unwrap();
    let names: Vec<_> = parts.headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["accept", "authorization"]);
}

#[test]
fn header_of_a_service_is_found_whatever_stands_between_its_words() {
    let service = Service::custom("x").header("api.test", "api_key");
    for name in ["api-key", "api_key", "api.key", "api~key"] {
        let mut parts = request("/", &[(name, "mine"), ("apiXkey", "else")]);
        inject(&mut parts, &service, "managed").unwrap();
        assert_eq!(parts.headers.len(), 2, "{name}");
        assert_eq!(parts.headers["api_key"], "managed");
    }
}

#[test]
fn trailers_hold_no_credential_either() {
    let service = Service::custom("x").header("api.test", "x-api-key");
    let sent = &[
        ("X-API-Key", "mine"),
        ("x_api_key", "mine"),
        ("authorization", "mine"),
        ("x-forwarded-host", "evil.test"),
        ("grpc-status", "0"),
    ];
    let mut trailers = request("/", sent).headers;
    places::strip_trailers(&mut trailers, &service);
    assert_eq!(trailers.keys().collect::<Vec<_>>(), ["grpc-status"]);
}

#[test]
fn credentials_among_subprotocols_are_stripped_or_left_as_the_service_says() {
    let service = Service::custom("x")
        .bearer("api.test")
        .also_strips_protocol("api-key.")
        .environment("X", "holder");
    let mut parts = request(
        "/",
        &[
            ("sec-websocket-protocol", "realtime, API-KEY.mine"),
            ("Sec-WebSocket-Protocol", "api-key.mine,v1"),
        ],
    );
    inject(&mut parts, &service, "managed").unwrap();
    let left: Vec<_> = parts.headers.get_all("sec-websocket-protocol").iter().collect();
    assert_eq!(left, ["realtime, v1"]);
    // Bytes that are no text hide nothing beside them.
    let value = http::HeaderValue::from_bytes(b"v1, api-key.mine, \xff").unwrap();
    parts.headers.insert("sec-websocket-protocol", value);
    inject(&mut parts, &service, "managed").unwrap();
    assert_eq!(parts.headers["sec-websocket-protocol"].as_bytes(), b"v1, \xff");
    let alone = &[("sec-websocket-protocol", "api-key.mine")];
    let mut parts = request("/", alone);
    inject(&mut parts, &service, "managed").unwrap();
    assert!(!parts.headers.contains_key("sec-websocket-protocol"));
    let service = service.client_credential(ClientCredential::Reject);
    assert!(inject(&mut request("/", alone), &service, "managed").is_err());
    let mut placeholder = request("/", &[("sec-websocket-protocol", "v1, api-key.holder")]);
    assert_eq!(
        inject(&mut placeholder, &service, "managed"),
        Ok(Injected::Managed)
    );
}

#[test]
fn secret_with_line_break_is_refused_without_being_told() {
    let service = Service::custom("x").bearer("api.test");
    let error = inject(&mut request("/", &[]), &service, "a\r\nhost: evil").unwrap_err();
    assert!(!error.to_string().contains("evil"));
    // A query could hold one, encoded; the scrubber relies on there being none.
    let service = Service::custom("x").query("api.test", "key");
    assert!(inject(&mut request("/", &[]), &service, "a\nb").is_err());
}

#[test]
fn placeholders_are_known_bare_after_a_scheme_and_in_both_halves_of_basic() {
    let service = Service::custom("x")
        .bearer("api.test")
        .environment("X", "holder")
        .client_credential(ClientCredential::Reject);
    let fine = [
        "holder",
        " holder ",
        "Bearer holder",
        "token holder",
        "bearer  holder",
    ]
    .map(str::to_owned);
    let mut halves = ["user:holder", "holder:", "holder:x-oauth-basic"].map(basic);
    halves[0] = halves[0].trim_end_matches('=').to_owned();
    for value in fine.iter().chain(&halves) {
        let mut parts = request("/", &[("authorization", value)]);
        assert_eq!(
            inject(&mut parts, &service, "managed"),
            Ok(Injected::Managed),
            "{value}"
        );
        assert_eq!(parts.headers["authorization"], "Bearer managed", "{value}");
    }
    let own = [
        "Bearer mine",
        "Bearer holder mine",
        "holder, mine",
        "Bearer holder, Bearer mine",
        "holderholder",
        "HOLDER",
    ];
    let halves = ["user:mine", "user:holderx", "user:x:holder"].map(basic);
    let broken = ["Basic holder", "Basic !!!", ""].map(str::to_owned);
    for value in own.map(str::to_owned).iter().chain(&halves).chain(&broken) {
        let mut parts = request("/", &[("authorization", value)]);
        let rejected = Err(InjectError::Rejected("x".to_owned()));
        assert_eq!(inject(&mut parts, &service, "managed"), rejected, "{value}");
    }
    // One of each is one of the client's own.
    let both = &[("authorization", "Bearer holder"), ("cookie", "a=b")];
    assert!(inject(&mut request("/", both), &service, "managed").is_err());
    let service = service.client_credential(ClientCredential::Pass);
    let mut own = request("/", &[("authorization", "Bearer mine")]);
    assert_eq!(inject(&mut own, &service, "managed"), Ok(Injected::Own));
    assert_eq!(own.headers["authorization"], "Bearer mine");
    assert_eq!(
        inject(&mut request("/", &[]), &service, "managed"),
        Ok(Injected::Managed)
    );
}

#[test]
fn in_place_replaces_placeholders_where_they_stand_and_strips_the_rest() {
    let service = Service::custom("x")
        .in_place("api.test")
        .also_strips("x-api-key")
        .also_strips_parameter("key")
        .environment("X", "holder");
    for (header, sent, wanted) in [
        ("x-api-key", "holder".to_owned(), Some("managed".to_owned())),
        (
            "authorization",
            "token holder".to_owned(),
            Some("token managed".to_owned()),
        ),
        (
            "authorization",
            basic("holder:x-oauth-basic"),
            Some(basic("managed:x-oauth-basic")),
        ),
        ("authorization", basic("me:holder"), Some(basic("me:managed"))),
        ("authorization", basic("me:mine"), None),
        ("authorization", "Bearer holder, Bearer mine".to_owned(), None),
        ("x-other", "holder".to_owned(), Some("holder".to_owned())),
    ] {
        let mut parts = request("/?q=holder", &[(header, &sent), ("cookie", "mine")]);
        let injected = inject(&mut parts, &service, "managed").unwrap();
        let sent_on = parts
            .headers
            .get(header)
            .map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(sent_on, wanted, "{sent}");
        let asked = header != "x-other" && wanted.is_some();
        assert_eq!(
            injected,
            if asked {
                Injected::Managed
            } else {
                Injected::NotAsked
            },
            "{sent}"
        );
        assert!(!parts.headers.contains_key("cookie"));
        assert_eq!(parts.uri, "/?q=holder", "not a place of the service");
    }
    let mut parts = request("/?key=mine&q=1&key=hol%64er", &[]);
    inject(&mut parts, &service, "ma&naged").unwrap();
    assert_eq!(parts.uri, "/?q=1&key=ma%26naged");
}

#[test]
fn only_a_lone_bearer_token_passes_to_a_registry_that_issued_it() {
    let managed = managed(&Service::docker_io(), "registry-1.docker.io").unwrap();
    let bound = &managed.bound;
    bound.tokens.note(br#"{"token": "eyJ.a-b_c.d="}"#);
    let to = |parts: &mut Parts| {
        let endpoint = chosen(&managed, parts);
        inject::prepare(parts, &bound.service, endpoint, &bound.tokens)
            .unwrap()
            .unwrap()
    };
    let issued = "Bearer eyJ.a-b_c.d=";
    let mut parts = request("/v2/", &[("authorization", issued), ("cookie", "mine")]);
    assert_eq!(to(&mut parts), Injected::Issued);
    assert_eq!(parts.headers["authorization"], issued);
    assert!(parts.headers["authorization"].is_sensitive());
    assert_eq!(parts.headers.len(), 1);
    for headers in [
        &[("authorization", "Basic dTpw")][..],
        &[("authorization", "Bearer eyJ.a-b_c.d=, Basic dTpw")],
        &[("authorization", issued), ("authorization", "Bearer b")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Bearer mine")],
    ] {
        let mut parts = request("/v2/", headers);
        assert_eq!(to(&mut parts), Injected::NotIssued, "{headers:?}");
        assert!(parts.headers.is_empty(), "{headers:?}");
    }
}

#[test]
fn header_that_a_source_chooses_is_alone_too() {
    let managed = managed(&Service::custom("x").bearer("api.test"), "api.test").unwrap();
    let mut parts = request(
        "/",
        &[
            ("x_own_key", "mine"),
            ("X-Own-Key", "mine"),
            ("x-own_key", "mine"),
        ],
    );
    let credential = Credential::Header {
        name: "X-Own-Key".to_owned(),
        value: "managed".to_owned().into(),
    };
    let endpoint = managed.choose(get("/")).unwrap().endpoint;
    inject::replace(&mut parts, &managed.bound.service, endpoint, &credential).unwrap();
    assert_eq!(parts.headers.len(), 1);
    assert_eq!(parts.headers["x-own-key"], "managed");
}

#[test]
fn pairs_must_be_pairs_and_their_password_is_a_secret_of_its_own() {
    let service = Service::docker_io();
    let error = send(
        &mut request("/token", &[]),
        &service,
        "auth.docker.io",
        "no-colon",
    )
    .unwrap_err();
    assert!(matches!(error, InjectError::Pair(_)) && !error.to_string().contains("no-colon"));
    let managed = managed(&service, "auth.docker.io").unwrap();
    let token = Credential::Token(SecretString::from("user:pass:word"));
    let shaped = inject::shaped(token, &service, managed.choose(get("/token")).unwrap().endpoint).unwrap();
    assert!(matches!(&shaped, Credential::Basic { username, .. } if username == "user"));
    use sandbox_core::credential::ExposeSecret;
    assert_eq!(shaped.secrets().next().unwrap().expose_secret(), "pass:word");
}

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

/// Gives what it has, or never answers.
#[derive(Debug, Clone)]
struct Gives(Option<Issued>);

#[async_trait::async_trait]
impl CredentialSource for Gives {
    fn describe(&self) -> String {
        "a source".to_owned()
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        match &self.0 {
            Some(issued) => Ok(issued.clone()),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn credential_that_can_never_be_sent_is_told_at_launch() {
    let check = async |service: Service, issued: Option<Issued>| {
        let builder = crate::Proxy::builder("one".parse().unwrap());
        let proxy = builder.credential(service, std::sync::Arc::new(Gives(issued)));
        let result = proxy.build().unwrap().check_credentials().await;
        result.map_err(|error| (error.to_string(), error.cause))
    };
    let token = |text: &str| Some(Issued::token(text));
    let keys = |id: &str, token: &str| {
        Some(Issued::new(Credential::Aws {
            access_key_id: id.to_owned(),
            secret_access_key: "secret".into(),
            session_token: Some(token.into()),
        }))
    };
    let ended = || std::time::SystemTime::now() - std::time::Duration::from_secs(1);
    let s3 = || Service::custom("s3").sigv4("s3.test");
    let holder = Service::custom("x").in_place("a.test").environment("X", "holder");
    let basic_user =
        "format = 1\nname = \"x\"\n[[endpoint]]\ntargets = [\"a.test\"]\nput = { basic-password = \"\" }";
    let user = Service::from_toml(basic_user).unwrap();
    for (service, issued) in [
        (Service::docker_io(), token("no-pair")),
        (Service::github(), token("line\nbreak")),
        (Service::aws(), token("no-keys")),
        (s3(), keys("AK\nID", "")),
        (s3(), keys("AKID", "line\nbreak")),
        (Service::openai(), keys("AKID", "")),
        (holder.clone(), token("line\nbreak")),
        (user.clone(), token("a:b")),
    ] {
        let (error, cause) = check(service.clone(), issued).await.unwrap_err();
        assert!(
            matches!(cause, CredentialError::Malformed { .. }),
            "{error} {cause}"
        );
        assert!(!format!("{error}{cause}").contains("break"), "{error} {cause}");
    }
    let old = keys("AKID", "").map(|keys| keys.until(ended()));
    let (_, cause) = check(s3(), old).await.unwrap_err();
    assert!(matches!(cause, CredentialError::Ended { .. }), "{cause}");
    let (_, cause) = check(Service::openai(), None).await.unwrap_err();
    assert!(matches!(cause, CredentialError::Failed { .. }), "{cause}");
    for (service, issued) in [
        (Service::docker_io(), token("user:password")),
        (Service::gitlab(), token("secret")),
        (Service::aws(), keys("AKID", "")),
        (s3().bearer("a.test"), keys("AKID", "")),
        (s3().bearer("a.test"), token("secret")),
        (holder, token("secret")),
        (user, token("secret")),
        (Service::custom("x").query("a.test", "key"), token("ä&")),
    ] {
        check(service, issued).await.unwrap();
    }
}
