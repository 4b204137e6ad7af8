//! Services over the wire: credentials go where the service says and nowhere else, and the record says why.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;
use sandbox_core::credential::CredentialSource;
use sandbox_core::policy::{RequestLine, Scheme};
use sandbox_proxy::{ClientCredential, ProxyBuilder, Rules, Service, sources};

use crate::clients::run;
use crate::placeholders::placeholder;
use crate::support::*;

pub fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

/// As [`allowed`], with `other.test` beside.
pub fn both(builder: ProxyBuilder, upstream: &Upstream) -> ProxyBuilder {
    let rules = ["api.test", "other.test"].map(|name| format!("{} special-ranges", upstream.at(name)));
    let rules = rules.iter().fold(Rules::new(), |rules, rule| rules.allow(rule));
    builder
        .policy(Arc::new(rules))
        .resolve("api.test".parse().unwrap(), vec![LOCAL])
        .resolve("other.test".parse().unwrap(), vec![LOCAL])
        .extra_root(upstream.ca_pem.clone())
}

pub fn get(at: &str, path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::get(path).header("host", at);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn another_port_of_a_services_host_is_an_opaque_tunnel_and_its_record_says_so() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let second = Upstream::tls(&["http/1.1"]).await;
    let running = Running::start(|builder| {
        let rules =
            [&upstream, &second].map(|upstream| format!("{} special-ranges", upstream.at("api.test")));
        with_credential(allowed(builder, &upstream), &upstream).policy(Arc::new(
            rules.iter().fold(Rules::new(), |all, rule| all.allow(rule)),
        ))
    })
    .await;
    let at = second.at("api.test");
    let tunnel = running.connect(&at).await.unwrap();
    let mut client = h1(tls(tunnel, &second.ca_pem, "api.test", &["http/1.1"])
        .await
        .unwrap())
    .await;
    send(&mut client, get(&at, "/", &[("x-api-key", "mine")])).await;
    assert_eq!(second.last().headers["x-api-key"], "mine");
    drop(client);
    let event = running.events.wait(|event| event.port == second.port()).await;
    let reason = event.credential_reason.unwrap();
    assert!(
        reason.contains("on other ports only") && reason.ends_with(&upstream.port().to_string()),
        "{reason}"
    );
}

#[tokio::test]
async fn secret_does_not_follow_a_redirect_to_another_host() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let (at, other) = (upstream.at("api.test"), upstream.at("other.test"));
    let running = Running::start(|builder| {
        let service = Service::custom("api")
            .header(&at, "x-api-key")
            .environment("API_KEY", "sk-holder-{unique}");
        both(builder, &upstream).credential(service, Arc::new(sources::Static::new(SECRET)))
    })
    .await;
    let holder = placeholder(&running, "API_KEY");
    // Trusts both authorities, and sends its key wherever it is led.
    let (key, location) = (
        format!("x-api-key: {holder}"),
        format!("x-location: https://{other}/echo"),
    );
    let url = format!("https://{at}/redirect-to");
    let arguments = [
        "-sSk",
        "-L",
        "--location-trusted",
        "-H",
        &key,
        "-H",
        &location,
        "-w",
        "%{num_redirects}",
        &url,
    ];
    let output = run(&running, "curl", &arguments).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.ends_with('1'), "{output:?}");
    let seen = upstream.seen();
    let [first, second] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    assert_eq!(first.headers["x-api-key"], SECRET);
    assert!(second.target.contains("/echo"));
    assert_eq!(second.headers["x-api-key"], holder);
    assert!(!holds_secret(&format!("{:?}{told}", second.headers)));
}

#[tokio::test]
async fn token_server_gets_basic_and_its_tokens_pass_to_the_registry_alone() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (auth, registry) = (upstream.at("api.test"), upstream.at("other.test"));
    let running = Running::start(|builder| {
        let service = Service::docker_io()
            .moved("auth.docker.io", &auth)
            .moved("registry-1.docker.io", &registry);
        let pair = format!("alice:{SECRET}");
        both(builder, &upstream).credential(service, Arc::new(sources::Static::new(pair)))
    })
    .await;
    let mut client = running.h1(&auth).await;
    for headers in [
        &[][..],
        &[("authorization", "Basic bWU6bWluZQ==")],
        &[("authorization", "Bearer mine")],
    ] {
        send(
            &mut client,
            get(&auth, "/token?service=r&account=me&scope=s", headers),
        )
        .await;
        assert_eq!(
            upstream.last().headers["authorization"],
            basic(&format!("alice:{SECRET}"))
        );
        assert!(upstream.last().target.ends_with("/token?service=r&scope=s"));
    }
    let echoed = send(&mut client, get(&auth, "/echo", &[])).await;
    assert!(!holds_secret(&text(&echoed)), "{}", text(&echoed));
    // Only what the token server gave to this sandbox passes: nobody brings a token of their own.
    let answer = r#"{"token": "eyJ0.e30.c2ln", "refresh_token": "lasts-for-ever"}"#;
    let given = send(&mut client, get(&auth, "/given", &[("x-given", answer)])).await;
    assert_eq!(text(&given), r#"{"token":"eyJ0.e30.c2ln"}"#);
    // Who asks says the body of a `POST` (`grant_type=password`), which is the client's own.
    let own = Request::post("/body").header("host", &auth);
    let own = own.body(Full::from(r#"{"token": "mine"}"#)).unwrap();
    send(&mut client, own).await;
    for (name, value) in [("x-http-method-override", "POST"), ("content-length", "1")] {
        let own = Request::get("/given").header("host", &auth).header(name, value);
        let own = own.header("x-given", r#"{"token": "mine"}"#);
        let body = if name == "content-length" { "x" } else { "" };
        send(&mut client, own.body(Full::from(body)).unwrap()).await;
    }
    // A server that knows no WebSockets answers as if none were asked for.
    let upgrade = [
        ("x-given", answer),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let given = send(&mut client, get(&auth, "/given", &upgrade)).await;
    assert_eq!(upstream.last().headers["upgrade"], "websocket");
    assert_eq!(text(&given), r#"{"token":"eyJ0.e30.c2ln"}"#);
    let mut client = running.h1(&registry).await;
    let issued = "Bearer eyJ0.e30.c2ln";
    send(&mut client, get(&registry, "/v2/", &[("authorization", issued)])).await;
    assert_eq!(upstream.last().headers["authorization"], issued);
    for value in [
        "Basic bWU6bWluZQ==",
        "Bearer mine",
        "Bearer eyJ0.e30.c2ln, Bearer b",
    ] {
        send(&mut client, get(&registry, "/v2/", &[("authorization", value)])).await;
        assert!(!upstream.last().headers.contains_key("authorization"), "{value}");
    }
    let event = running.events.wait(|event| event.host == "other.test").await;
    assert_eq!(event.credential, None);
    assert!(event.credential_reason.unwrap().contains("gave to the client"));
}

#[tokio::test]
async fn token_server_is_the_same_by_every_spelling_of_its_path() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let definition = format!(
        "format = 1\nname = \"api\"\n\
         [[endpoint]]\ntargets = [\"{at}/jwt/auth\"]\nput = \"bearer\"\nissues-tokens = true\n\
         [[endpoint]]\ntargets = [\"{at}\"]\nput = \"bearer\"\n"
    );
    let service = Service::from_toml(&definition).unwrap();
    let running = Running::serving(&upstream, service).await;
    let mut client = running.h1(&at).await;
    let answer = [("x-given", r#"{"token": "t", "refresh_token": "lasts-for-ever"}"#)];
    for path in [
        "/jwt/auth",
        "/jwt/auth/",
        "//jwt//auth",
        "/JWT/Auth",
        "/jwt/a%75th",
        "/jwt%2Fauth",
        "/jwt/auth;x",
        "/jwt/auth;x/y",
        "/jwt/auth.",
    ] {
        let given = send(&mut client, get(&at, path, &answer)).await;
        assert!(upstream.last().headers.contains_key("authorization"), "{path}");
        assert_eq!(text(&given), r#"{"token":"t"}"#, "{path}");
    }
    for path in ["/jwt/./auth", "/x/../jwt/auth", "/jwt/%2561uth"] {
        send(&mut client, get(&at, path, &answer)).await;
        assert!(!upstream.last().headers.contains_key("authorization"), "{path}");
    }
    let other = send(&mut client, get(&at, "/jwt/auth/more", &answer)).await;
    assert!(upstream.last().headers.contains_key("authorization"));
    assert!(text(&other).contains("refresh_token"));
}

#[tokio::test]
async fn clients_own_credentials_never_go_out_beside_the_managed_one() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let at = upstream.at("api.test");
        let service = Service::custom("api")
            .header(&at, "x-api-key")
            .also_strips_parameter("api_key");
        let running = Running::serving(&upstream, service).await;
        let path = "/?api_key=mine&API%5FKEY=mine&api.key=mine&q=1";
        let own = [
            ("x-api-key", "mine"),
            ("x-api-key", "mine"),
            ("x_api_key", "mine"),
            ("authorization", "Bearer mine, Basic mine"),
            ("proxy-authorization", "Basic mine"),
            ("cookie", "a=mine"),
            ("cookie", "b=mine"),
            ("x-forwarded-host", "mine.test"),
        ];
        let mut h1 = running.h1(&at).await;
        assert_eq!(send(&mut h1, get(&at, path, &own)).await.status(), StatusCode::OK);
        let mut h2 = running.h2(&at).await;
        let mut request = Request::get(format!("https://{at}{path}"));
        for (name, value) in own {
            request = request.header(name, value);
        }
        let response = send2(&mut h2, request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        let seen = upstream.seen();
        assert_eq!(seen.len(), 2);
        for seen in seen {
            let keys: Vec<_> = seen.headers.get_all("x-api-key").iter().collect();
            assert_eq!(keys, [SECRET]);
            let all = format!("{} {:?}", seen.target, seen.headers);
            assert!(!all.contains("mine"), "{all}");
            assert!(seen.target.ends_with("/?q=1"), "{}", seen.target);
        }
    }
}

#[tokio::test]
async fn clients_own_credentials_in_trailers_do_not_arrive() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let at = upstream.at("api.test");
    let mut client = running.trailers(&at).await;
    let mut trailers = HeaderMap::new();
    for name in [
        "x-api-key",
        "x_api_key",
        "authorization",
        "cookie",
        "proxy-authorization",
    ] {
        trailers.insert(http::HeaderName::from_static(name), "mine".parse().unwrap());
    }
    for name in ["proxy-authorization", "host", "content-length"] {
        trailers.insert(http::HeaderName::from_static(name), "1".parse().unwrap());
    }
    trailers.insert("x-checksum", "1".parse().unwrap());
    let request = Request::post(format!("https://{at}/body")).header("te", "trailers");
    let body = WithTrailers(Some("data".into()), Some(trailers));
    client.send_request(request.body(body).unwrap()).await.unwrap();
    let seen = upstream.last();
    assert_eq!(seen.body, "data");
    let names: Vec<_> = seen.trailers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["x-checksum"]);
}

#[tokio::test]
async fn sessions_that_a_credential_opens_stay_on_the_host() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let at = upstream.at("api.test");
    let managed = Running::managed(&upstream).await;
    assert!(
        !managed
            .get(&at, "/session")
            .await
            .headers()
            .contains_key("set-cookie")
    );
    // Where the client uses its own credential, sessions are its own, too.
    let service = Service::custom("api")
        .bearer(&at)
        .client_credential(ClientCredential::Pass);
    let own = Running::serving(&upstream, service).await;
    let mut client = own.h1(&at).await;
    let request = get(
        &at,
        "/session",
        &[("authorization", "Bearer mine"), ("cookie", "a=b")],
    );
    let response = send(&mut client, request).await;
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(upstream.last().headers["cookie"], "a=b");
}

#[tokio::test]
async fn method_that_a_service_goes_by_is_not_changed_by_a_header() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let service = Service::custom("api").bearer(&format!("GET {at}/**"));
    let running = Running::serving(&upstream, service).await;
    let mut client = running.h1(&at).await;
    assert_eq!(
        send(&mut client, get(&at, "/a", &[])).await.status(),
        StatusCode::OK
    );
    assert_eq!(
        upstream.last().headers["authorization"],
        format!("Bearer {SECRET}")
    );
    for name in ["X-HTTP-Method-Override", "x_http_method", "x-method-override"] {
        let response = send(&mut client, get(&at, "/b", &[(name, "DELETE")])).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{name}");
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn record_says_why_there_is_a_credential_or_none() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let plain = Upstream::plain().await;
    let at = upstream.at("api.test");
    let definition = |mode: &str| {
        let text = format!(
            "format = 1\nname = \"api\"\nclient-credential = \"{mode}\"\n[[endpoint]]\n\
             targets = [\"GET {at}/v1/**\"]\nput = \"bearer\"\n"
        );
        Service::from_toml(&text).unwrap()
    };
    let own = &[("authorization", "Bearer mine")][..];
    for (mode, path, headers, credential, why) in [
        (
            "replace",
            "/v1/a",
            own,
            Some("api"),
            "injected in header authorization after \"Bearer\"",
        ),
        (
            "replace",
            "/v1/%2e%2e/a",
            own,
            None,
            "takes no credential with this method and path",
        ),
        (
            "replace",
            "/v2/a",
            own,
            None,
            "takes no credential with this method and path",
        ),
        ("pass", "/v1/b", own, None, "the client's own credential passes"),
        (
            "pass",
            "/v1/c",
            &[],
            Some("api"),
            "injected in header authorization",
        ),
        ("reject", "/v1/d", own, None, "which the service rejects"),
    ] {
        let running = Running::serving(&upstream, definition(mode)).await;
        let mut client = running.h1(&at).await;
        send(&mut client, get(&at, path, headers)).await;
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some(path))
            .await;
        let reason = event.credential_reason.unwrap();
        assert!(reason.starts_with("api: ") && reason.contains(why), "{reason}");
        assert_eq!(event.credential.as_deref(), credential, "{reason}");
        let explained = running.proxy.explain_credential(
            Scheme::Tunnel,
            &"api.test".parse().unwrap(),
            upstream.port(),
            RequestLine { method: "GET", path },
        );
        assert_eq!(
            explained.is_injected(),
            path.starts_with("/v1/") && !path.contains("%2e")
        );
        let method = running.proxy.explain_credential(
            Scheme::Tunnel,
            &"api.test".parse().unwrap(),
            upstream.port(),
            RequestLine {
                method: "DELETE",
                path,
            },
        );
        assert!(!method.is_injected());
        if headers.is_empty() || mode == "replace" {
            assert_eq!(explained.to_string(), reason, "one answer for both");
        }
    }
    // A source that has nothing, one that gives what cannot be sent, and clients that say nothing they get it for.
    let put = |how: &str| {
        let endpoint = format!("[[endpoint]]\ntargets = [\"{at}\"]\nput = \"{how}\"\n");
        Service::from_toml(&format!("format = 1\nname = \"api\"\n{endpoint}")).unwrap()
    };
    let constant = || Arc::new(sources::Static::new(SECRET));
    let rows: [(Service, Arc<dyn CredentialSource>, u16, &str); 5] = [
        (
            definition("replace"),
            Arc::new(sources::Env::new("SANDBOX_TEST_NOT_SET")),
            502,
            "environment variable SANDBOX_TEST_NOT_SET is not set: set it, or give the service another source",
        ),
        (
            put("basic-pair"),
            constant(),
            502,
            "the credential of service api must be user:password",
        ),
        (
            Service::custom("api").sigv4(&at),
            constant(),
            403,
            "the request is not signed: set the placeholder keys that the sandbox has in its environment",
        ),
        (
            put("issued"),
            constant(),
            200,
            "the client has no token that the service gave to this sandbox",
        ),
        (
            Service::custom("api")
                .in_place(&at)
                .environment("API_KEY", "sk-holder-{unique}"),
            constant(),
            200,
            "the client sent no placeholder where the service expects one",
        ),
    ];
    for (service, source, status, why) in rows {
        let running = Running::start(|builder| allowed(builder, &upstream).credential(service, source)).await;
        let answer = running.get(&at, "/v1/e").await;
        assert_eq!(answer.status(), status, "{why}");
        let event = running
            .events
            .wait(|event| event.path.as_deref() == Some("/v1/e"))
            .await;
        let reason = event.credential_reason.unwrap();
        assert_eq!(reason, format!("api: not injected: {why}"));
        assert_eq!(event.credential, None, "{why}");
    }
    // Plain HTTP to the same host and port.
    let at = plain.at("api.test");
    let running = Running::start(|builder| {
        builder
            .policy(Arc::new(
                Rules::new().allow(&format!("http://{at} special-ranges")),
            ))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .credential(
                Service::custom("api").bearer(&at),
                Arc::new(sources::Static::new(SECRET)),
            )
    })
    .await;
    let head = format!(
        "GET http://{at}/f HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer mine\r\nConnection: close\r\n\r\n"
    );
    assert!(running.raw(head).await.starts_with("HTTP/1.1 200"));
    assert!(
        !plain.last().headers.contains_key("authorization"),
        "neither the secret nor the client's own"
    );
    let event = running
        .events
        .wait(|event| event.path.as_deref() == Some("/f"))
        .await;
    assert!(event.credential_reason.unwrap().contains("this is plain HTTP"));
}
