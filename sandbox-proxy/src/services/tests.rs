//! Injection as a whole: what a service's definition says is what leaves the host, whatever the client sent.

mod builtin;
mod definitions;
mod properties;
mod targets;

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
