//! The built-in services: one row for each host, and placeholders in the form of their keys.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::super::inject::Injected;
use super::super::*;
use super::{basic, directory, get, managed, request, send};

/// What arrives is a signature, which tests of its own verify.
const SIGNED: &str = "signed";

/// One request to a built-in service, and what must arrive: a header or the whole target.
const TABLE: &[(&str, &str, &str, &str, &str)] = &[
    (
        "anaconda.org",
        "api.anaconda.org",
        "/package/a/b",
        "authorization",
        "token SECRET",
    ),
    (
        "anthropic",
        "api.anthropic.com",
        "/v1/messages",
        "x-api-key",
        "SECRET",
    ),
    ("aws", "anyany.amazonaws.com", "/", "authorization", SIGNED),
    ("aws", "anyany.amazonaws.com.cn", "/", "authorization", SIGNED),
    ("aws", "anyany.api.aws", "/", "authorization", SIGNED),
    (
        "bitbucket",
        "api.bitbucket.org",
        "/2.0/user",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "bitbucket",
        "bitbucket.org",
        "/a/b.git/info/refs",
        "authorization",
        "Basic x-token-auth:SECRET",
    ),
    (
        "cerebras",
        "api.cerebras.ai",
        "/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "cohere",
        "api.cohere.com",
        "/v2/chat",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "crates.io",
        "crates.io",
        "/api/v1/crates/new",
        "authorization",
        "SECRET",
    ),
    (
        "deepseek",
        "api.deepseek.com",
        "/models",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "docker.io",
        "auth.docker.io",
        "/token",
        "authorization",
        "Basic user:SECRET",
    ),
    ("docker.io", "registry-1.docker.io", "/v2/", "authorization", "-"),
    (
        "fireworks",
        "api.fireworks.ai",
        "/inference/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "ghcr.io",
        "ghcr.io",
        "/token",
        "authorization",
        "Basic x-access-token:SECRET",
    ),
    (
        "ghcr.io",
        "ghcr.io",
        "/v2/",
        "authorization",
        "Bearer base64 SECRET",
    ),
    (
        "github",
        "api.github.com",
        "/user",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "github",
        "uploads.github.com",
        "/repos",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "github",
        "raw.githubusercontent.com",
        "/a/b/main/c",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "github",
        "npm.pkg.github.com",
        "/a",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "github",
        "github.com",
        "/a/b.git/info/refs",
        "authorization",
        "Basic x-access-token:SECRET",
    ),
    (
        "github",
        "gist.github.com",
        "/a.git/info/refs",
        "authorization",
        "Basic x-access-token:SECRET",
    ),
    (
        "github",
        "codeload.github.com",
        "/a/b/tar.gz/main",
        "authorization",
        "Basic x-access-token:SECRET",
    ),
    (
        "github",
        "maven.pkg.github.com",
        "/a/b",
        "authorization",
        "Basic x-access-token:SECRET",
    ),
    (
        "gitlab",
        "gitlab.com",
        "/api/v4/user",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "gitlab",
        "gitlab.com",
        "/a/b.git/info/refs",
        "authorization",
        "Basic oauth2:SECRET",
    ),
    (
        "gitlab",
        "gitlab.com",
        "/jwt/auth",
        "authorization",
        "Basic oauth2:SECRET",
    ),
    ("gitlab", "registry.gitlab.com", "/v2/", "authorization", "-"),
    (
        "gitlab",
        "gitlab.com",
        "/jwt/auth.json",
        "authorization",
        "Basic oauth2:SECRET",
    ),
    (
        "google",
        "generativelanguage.googleapis.com",
        "/v1beta/models",
        "x-goog-api-key",
        "SECRET",
    ),
    (
        "groq",
        "api.groq.com",
        "/openai/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    ("hex.pm", "hex.pm", "/api/publish", "authorization", "SECRET"),
    (
        "huggingface",
        "huggingface.co",
        "/api/whoami-v2",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "huggingface",
        "huggingface.co",
        "/a/b/resolve/main/c",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "huggingface",
        "huggingface.co",
        "/a/b/info/refs",
        "authorization",
        "Basic user:SECRET",
    ),
    (
        "huggingface",
        "huggingface.co",
        "/a/b.git/info/lfs/objects/batch",
        "authorization",
        "Basic user:SECRET",
    ),
    (
        "huggingface",
        "router.huggingface.co",
        "/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "huggingface",
        "api-inference.huggingface.co",
        "/models/a",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "mistral",
        "api.mistral.ai",
        "/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    ("npm", "any.npmjs.org", "/a", "authorization", "Bearer SECRET"),
    (
        "nuget",
        "any.nuget.org",
        "/api/v2/package/",
        "x-nuget-apikey",
        "SECRET",
    ),
    (
        "nuget",
        "any.nuget.org",
        "/api/v2/symbolpackage/",
        "x-nuget-apikey",
        "SECRET",
    ),
    ("nuget", "any.nuget.org", "/v3/index.json", "x-nuget-apikey", "-"),
    (
        "openai",
        "api.openai.com",
        "/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "openrouter",
        "openrouter.ai",
        "/api/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    ("openrouter", "openrouter.ai", "/models", "authorization", "-"),
    (
        "perplexity",
        "api.perplexity.ai",
        "/chat/completions",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "pkg.dev",
        "any.pkg.dev",
        "/v2/token",
        "authorization",
        "Basic oauth2accesstoken:SECRET",
    ),
    (
        "pkg.dev",
        "any.pkg.dev",
        "/v2/a/b/manifests/c",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "pkg.dev",
        "gcr.io",
        "/v2/token",
        "authorization",
        "Basic oauth2accesstoken:SECRET",
    ),
    (
        "pkg.dev",
        "gcr.io",
        "/v2/a/b/manifests/c",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "pkg.dev",
        "any.gcr.io",
        "/v2/token",
        "authorization",
        "Basic oauth2accesstoken:SECRET",
    ),
    (
        "pkg.dev",
        "any.gcr.io",
        "/v2/a/b/manifests/c",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "pkg.dev",
        "any.pkg.dev",
        "/artifacts-downloads/a",
        "authorization",
        "-",
    ),
    (
        "pub.dev",
        "pub.dev",
        "/api/packages/versions/new",
        "authorization",
        "Bearer SECRET",
    ),
    ("pub.dev", "pub.dev", "/packages/a", "authorization", "-"),
    (
        "public.ecr.aws",
        "public.ecr.aws",
        "/token/",
        "authorization",
        "Basic AWS:SECRET",
    ),
    (
        "public.ecr.aws",
        "public.ecr.aws",
        "/v2/a/b/manifests/1",
        "authorization",
        "-",
    ),
    (
        "pypi",
        "any.pypi.org",
        "/legacy/",
        "authorization",
        "Basic __token__:SECRET",
    ),
    (
        "quay.io",
        "quay.io",
        "/v2/auth",
        "authorization",
        "Basic user:SECRET",
    ),
    ("quay.io", "quay.io", "/v2/a/b/manifests/c", "authorization", "-"),
    (
        "replicate",
        "api.replicate.com",
        "/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    (
        "rubygems",
        "rubygems.org",
        "/api/v1/gems",
        "authorization",
        "SECRET",
    ),
    (
        "together",
        "api.together.xyz",
        "/v1/models",
        "authorization",
        "Bearer SECRET",
    ),
    ("xai", "api.x.ai", "/v1/models", "authorization", "Bearer SECRET"),
];

#[test]
fn built_in_services_put_the_credential_where_the_table_says_and_nothing_of_the_clients() {
    for (name, host, path, header, wanted) in TABLE {
        let service = Service::known(name).unwrap();
        if *wanted == SIGNED {
            let managed = managed(&service, host).unwrap();
            let placement = &managed.choose(get(path)).unwrap().endpoint.placement;
            assert_eq!(*placement, Placement::SigV4 { of_aws: true }, "{name} {host}");
            continue;
        }
        let mut query = vec!["alt=sse".to_owned()];
        let sent = service.stripped_parameters.iter();
        query.extend(sent.map(|name| format!("{}=mine", name.replace('$', "%24"))));
        let mut protocols = vec!["realtime".to_owned()];
        protocols.extend(
            service
                .stripped_protocols
                .iter()
                .map(|start| format!("{start}mine")),
        );
        let mut headers = vec![("sec-websocket-protocol".to_owned(), protocols.join(", "))];
        for header in &service.stripped_headers {
            // Twice, and as CGI would read it, too.
            headers.push((header.to_string(), "mine".to_owned()));
            headers.push((header.as_str().to_ascii_uppercase(), "mine".to_owned()));
            headers.push((header.as_str().replace('-', "_"), "mine".to_owned()));
        }
        let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut parts = request(&format!("{path}?{}", query.join("&")), &headers);
        let secret = if wanted.contains("user:") && name.contains(".io") {
            "user:SECRET"
        } else {
            "SECRET"
        };
        let injected = send(&mut parts, &service, host, secret).unwrap();
        let sent = format!("{} {:?}", parts.uri, parts.headers);
        assert!(!sent.contains("mine"), "{name} {host}: {sent}");
        assert_eq!(parts.uri, *format!("{path}?alt=sse"), "{name} {host}");
        assert_eq!(
            parts.headers["sec-websocket-protocol"], "realtime",
            "{name} {host}"
        );
        let values: Vec<_> = parts
            .headers
            .get_all(*header)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect();
        let wanted = match wanted.split_once(' ') {
            Some(("Basic", pair)) => basic(pair),
            Some(("Bearer", "base64 SECRET")) => format!("Bearer {}", BASE64_STANDARD.encode("SECRET")),
            _ => (*wanted).to_owned(),
        };
        if wanted == "-" {
            assert!(
                matches!(injected, Injected::NotHere | Injected::NotIssued),
                "{name} {host}"
            );
            assert!(values.is_empty(), "{name} {host}");
        } else {
            assert_eq!(
                (values.as_slice(), injected),
                (&[wanted.as_str()][..], Injected::Managed),
                "{name} {host}"
            );
        }
    }
}

#[test]
fn table_has_every_host_of_every_built_in_service() {
    for name in Service::names() {
        let service = Service::known(name).unwrap();
        assert_eq!(service.name(), name);
        assert!(service.revision() > 0, "{name}");
        service.validate().unwrap();
        for endpoint in &service.endpoints {
            let hosts = endpoint.pattern.target.to_string().replace('*', "any");
            assert!(
                TABLE.iter().any(|row| row.0 == name && row.1 == hosts),
                "{name} {hosts}"
            );
            let host = hosts.parse().unwrap();
            let directory = directory([service.clone()]);
            assert!(directory.select(true, &host, 443).unwrap().is_bound());
            for (tls, port) in [(false, 443), (false, 80), (true, 8443), (true, 80)] {
                assert!(
                    !directory.select(tls, &host, port).unwrap().is_bound(),
                    "{name} {hosts} {tls} {port}"
                );
            }
        }
    }
    assert!(Service::known("nonsense").is_none());
    for service in [
        Service::anthropic(),
        Service::aws(),
        Service::openai(),
        Service::github(),
        Service::gitlab(),
        Service::google(),
        Service::groq(),
        Service::huggingface(),
        Service::mistral(),
        Service::openrouter(),
        Service::xai(),
        Service::npm(),
        Service::pypi(),
        Service::crates_io(),
        Service::docker_io(),
        Service::ghcr_io(),
    ] {
        service.validate().unwrap();
    }
}

#[test]
fn built_in_placeholders_are_in_form_and_unmistakable() {
    let tag: PlaceholderTag = "0123456789abcdef".parse().unwrap();
    for name in Service::names() {
        let mut service = Service::known(name).unwrap();
        service.fill_placeholders(&tag);
        for (variable, placeholder) in service.placeholders() {
            let plain = placeholder.to_lowercase().replace('-', "");
            // All that is left of AWS's form.
            let (word, own) = match variable.as_str() {
                "AWS_ACCESS_KEY_ID" => ("akiasandbox", tag.fill("{UNIQUE}")),
                _ => ("sandboxplaceholder", tag.as_str().to_owned()),
            };
            assert!(plain.contains(word), "{variable} {placeholder}");
            assert!(placeholder.ends_with(&own), "{variable} {placeholder}");
        }
    }
    let of = |name, variable| {
        let mut service = Service::known(name).unwrap();
        service.fill_placeholders(&tag);
        let mut found = service.placeholders().iter().filter(|(name, _)| name == variable);
        found.next().unwrap().1.clone()
    };
    for (name, variable, prefix, length) in [
        ("aws", "AWS_ACCESS_KEY_ID", "AKIA", 20),
        ("aws", "AWS_SECRET_ACCESS_KEY", "", 40),
        ("github", "GH_TOKEN", "ghp_", 40),
        ("nuget", "NUGET_API_KEY", "oy2", 46),
        ("google", "GEMINI_API_KEY", "AIza", 39),
        ("npm", "NPM_TOKEN", "npm_", 40),
        ("groq", "GROQ_API_KEY", "gsk_", 56),
        ("huggingface", "HF_TOKEN", "hf_", 37),
        ("replicate", "REPLICATE_API_TOKEN", "r8_", 40),
    ] {
        let placeholder = of(name, variable);
        assert!(placeholder.starts_with(prefix), "{placeholder}");
        assert_eq!(placeholder.len(), length, "{placeholder}");
    }
    assert!(of("anthropic", "ANTHROPIC_API_KEY").starts_with("sk-ant-api03-"));
    assert!(of("openai", "OPENAI_API_KEY").starts_with("sk-proj-"));
}
