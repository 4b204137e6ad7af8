//! Placeholders: what tools and real clients send becomes the credential in the places of its service, and stays text
//! anywhere else.

use std::sync::Arc;

use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_proxy::{ClientCredential, Service, sources};

use crate::clients::run;
use crate::services::{basic, both, get};
use crate::support::*;

pub fn placeholder(running: &Running, variable: &str) -> String {
    let all = running.proxy.placeholders();
    all.into_iter().find(|(name, _)| name == variable).unwrap().1
}

#[tokio::test]
async fn placeholders_differ_between_sandboxes_and_can_be_kept() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let one = Running::serving(&upstream, Service::anthropic()).await;
    let other = Running::serving(&upstream, Service::anthropic()).await;
    let fork = Running::start(|builder| {
        let tag = one.proxy.placeholder_tag().clone();
        with_service(allowed(builder, &upstream), Service::anthropic()).placeholder_tag(tag)
    })
    .await;
    let of = |running| placeholder(running, "ANTHROPIC_API_KEY");
    assert!(of(&one).starts_with("sk-ant-api03-sandbox-placeholder-"));
    assert!(!of(&one).contains("{unique}"));
    assert_ne!(of(&one), of(&other));
    assert_eq!(of(&one), of(&fork));
}

#[tokio::test]
async fn placeholder_is_replaced_in_the_places_of_its_service_and_nowhere_else() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let at = upstream.at("api.test");
        let service = Service::custom("api")
            .in_place(&at)
            .also_strips("x-api-key")
            .also_strips_parameter("key")
            .environment("API_KEY", "sk-holder-{unique}");
        let running = Running::serving(&upstream, service).await;
        let holder = placeholder(&running, "API_KEY");
        let mut client = running.h1(&at).await;
        for (header, sent, wanted) in [
            (
                "authorization",
                format!("Bearer {holder}"),
                format!("Bearer {SECRET}"),
            ),
            (
                "authorization",
                basic(&format!("me:{holder}")),
                basic(&format!("me:{SECRET}")),
            ),
            (
                "authorization",
                basic(&format!("{holder}:")),
                basic(&format!("{SECRET}:")),
            ),
            ("x-api-key", holder.clone(), SECRET.to_owned()),
            ("user-agent", holder.clone(), holder.clone()),
        ] {
            let request = get(&at, &format!("/?q={holder}"), &[(header, &sent)]);
            assert_eq!(send(&mut client, request).await.status(), StatusCode::OK);
            assert_eq!(upstream.last().headers[header], wanted);
            assert!(upstream.last().target.ends_with(&format!("/?q={holder}")));
        }
        let request = get(&at, &format!("/?key={holder}&q=1"), &[]);
        send(&mut client, request).await;
        let seen = upstream.last();
        assert!(
            seen.target.ends_with("/?q=1&key=sk-test-4f9Zq%2Fx7%2BKd_tail"),
            "{}",
            seen.target
        );
        // A body is the client's: it goes as it is, and the connection goes on.
        let body = format!("my environment: API_KEY={holder}");
        let request = Request::post("/body")
            .header("host", &at)
            .header("x-api-key", &holder);
        let response = send(&mut client, request.body(Full::from(body.clone())).unwrap()).await;
        assert_eq!(text(&response), body);
        assert_eq!(upstream.last().body, body);
        assert_eq!(upstream.last().headers["x-api-key"], SECRET);
        // Without a placeholder nothing is injected.
        send(&mut client, get(&at, "/", &[])).await;
        assert!(!upstream.last().headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn placeholder_at_another_host_stays_one() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::start(|builder| {
        let service = Service::custom("api")
            .header(&upstream.at("api.test"), "x-api-key")
            .environment("API_KEY", "sk-holder-{unique}");
        both(builder, &upstream).credential(service, Arc::new(sources::Static::new(SECRET)))
    })
    .await;
    let holder = placeholder(&running, "API_KEY");
    let at = upstream.at("other.test");
    let tunnel = running.connect(&at).await.unwrap();
    // Opaque: the certificate is upstream's own.
    let tls = tls(tunnel, &upstream.ca_pem, "other.test", &["http/1.1"])
        .await
        .unwrap();
    let mut client = h1(tls).await;
    let request = get(
        &at,
        "/",
        &[("x-api-key", &holder), ("authorization", "Bearer mine")],
    );
    assert_eq!(send(&mut client, request).await.status(), StatusCode::OK);
    assert_eq!(upstream.last().headers["x-api-key"], holder);
    assert_eq!(upstream.last().headers["authorization"], "Bearer mine");
}

#[tokio::test]
async fn git_clones_and_pushes_with_every_way_to_say_a_placeholder() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::serving(&upstream, Service::github().moved("github.com", &at)).await;
    let in_place = Service::custom("git")
        .in_place(&at)
        .environment("GH_TOKEN", "ghp_holder{unique}");
    let in_place = Running::serving(&upstream, in_place).await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let git = async |running: &Running, arguments: &[&str]| {
        let output = run(running, "git", arguments).await;
        assert!(output.status.success(), "{arguments:?} {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (work, bare) = (path("work"), path("bare.git"));
    let as_me = ["-c", "user.name=t", "-c", "user.email=t@t.test"];
    git(&running, &["init", "-q", &work]).await;
    let commit = ["commit", "-qm", "first", "--allow-empty"];
    git(&running, &[&["-C", &work][..], &as_me, &commit].concat()).await;
    git(&running, &["clone", "-q", "--bare", &work, &bare]).await;
    *upstream.files.lock().unwrap() = directory.path().to_owned();

    let holder = placeholder(&running, "GH_TOKEN");
    let header = format!(
        "http.extraHeader=Authorization: {}",
        basic(&format!("x-access-token:{holder}"))
    );
    for (index, (user, options)) in [
        (String::new(), &[][..]),
        (format!("x-access-token:{holder}@"), &[]),
        (format!("{holder}:x-oauth-basic@"), &[]),
        ("me:mine@".to_owned(), &[]),
        // As the checkout step of CI does it.
        (String::new(), &["-c", &header]),
    ]
    .iter()
    .enumerate()
    {
        let (url, clone) = (
            format!("https://{user}{at}/git/bare.git"),
            path(&format!("clone-{index}")),
        );
        git(&running, &[options, &["clone", "-q", &url, &clone][..]].concat()).await;
        assert_eq!(
            git(&running, &["-C", &clone, "log", "--format=%s"]).await,
            "first\n"
        );
    }
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.headers["authorization"] == basic(&format!("x-access-token:{SECRET}")))
    );

    let clone = path("clone-0");
    git(
        &running,
        &[
            &["-C", &clone][..],
            &as_me,
            &["commit", "-qm", "second", "--allow-empty"],
        ]
        .concat(),
    )
    .await;
    git(&running, &["-C", &clone, "push", "-q"]).await;
    assert!(
        git(&running, &["-C", &bare, "log", "--format=%s"])
            .await
            .starts_with("second\n")
    );

    // In place, git is first refused and then sends Basic, in which the placeholder is replaced.
    let holder = placeholder(&in_place, "GH_TOKEN");
    let url = format!("https://x-access-token:{holder}@{at}/git/bare.git");
    git(&in_place, &["clone", "-q", &url, &path("clone-in-place")]).await;
    let refused = run(
        &in_place,
        "git",
        &[
            "clone",
            "-q",
            &format!("https://me:mine@{at}/git/bare.git"),
            &path("no"),
        ],
    )
    .await;
    assert!(!refused.status.success());
}

/// Sends its placeholder in every way that Python's best-known client has.
const REQUESTS: &str = r#"
import os, sys, requests
url, key = sys.argv[1], os.environ["API_KEY"]
for arguments in [{"auth": ("me", key)}, {"auth": (key, "")}, {"headers": {"Authorization": "Bearer " + key}}, {"params": {"key": key}}]:
    print(requests.get(url + "/echo", **arguments).status_code)
print(requests.post(url + "/body", json={"env": key}).json()["env"] == key)
"#;

#[tokio::test]
async fn python_requests_sends_its_placeholder_in_every_way() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let service = Service::custom("api")
        .bearer(&at)
        .also_strips_parameter("key")
        .environment("API_KEY", "sk-holder-{unique}")
        .client_credential(ClientCredential::Reject);
    let running = Running::serving(&upstream, service).await;
    let url = format!("https://{at}");
    let output = run(&running, "python3", &["-c", REQUESTS, &url]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(told, "200\n200\n200\n200\nTrue\n", "{output:?}");
    for seen in upstream.seen() {
        assert_eq!(seen.headers["authorization"], format!("Bearer {SECRET}"));
        assert!(!seen.target.contains("key="), "{}", seen.target);
    }
}
