//! The services that need no definition, as data: one entry each, all of the same shape.

use super::Service;

/// Where a credential goes at one host.
enum Place {
    Bearer(&'static str),
    Header(&'static str, &'static str),
    Basic(&'static str, &'static str),
}
use Place::{Basic, Bearer, Header};

/// One service.
struct Known {
    name: &'static str,
    places: &'static [Place],
    /// Further headers in which its clients send credentials; `authorization` and `cookie` always count.
    strips_headers: &'static [&'static str],
    strips_parameters: &'static [&'static str],
    /// Starts of WebSocket subprotocols whose rest is a credential.
    strips_protocols: &'static [&'static str],
    /// Environment variables and their placeholders. Tools check the form of some keys before they start.
    environment: &'static [(&'static str, &'static str)],
}

static ANTHROPIC: Known = Known {
    name: "anthropic",
    places: &[Header("api.anthropic.com", "x-api-key")],
    strips_headers: &["x-api-key"],
    strips_parameters: &[],
    strips_protocols: &[],
    environment: &[("ANTHROPIC_API_KEY", "sandbox-placeholder-anthropic")],
};

static OPENAI: Known = Known {
    name: "openai",
    places: &[Bearer("api.openai.com")],
    strips_headers: &[
        "api-key",
        "openai-organization",
        "openai-project",
        "chatgpt-account-id",
    ],
    strips_parameters: &[],
    strips_protocols: &[
        "openai-insecure-api-key.",
        "openai-organization.",
        "openai-project.",
    ],
    environment: &[("OPENAI_API_KEY", "sandbox-placeholder-openai")],
};

static GITHUB: Known = Known {
    name: "github",
    places: &[
        Bearer("api.github.com"),
        Bearer("uploads.github.com"),
        // git over https, which sends Basic only.
        Basic("github.com", "x-access-token"),
        Basic("codeload.github.com", "x-access-token"),
    ],
    strips_headers: &["private-token", "x-github-otp"],
    strips_parameters: &["access_token", "client_secret", "token"],
    strips_protocols: &[],
    environment: &[
        ("GH_TOKEN", "sandbox-placeholder-github"),
        ("GITHUB_TOKEN", "sandbox-placeholder-github"),
    ],
};

static GOOGLE: Known = Known {
    name: "google",
    places: &[Header("generativelanguage.googleapis.com", "x-goog-api-key")],
    strips_headers: &[
        "x-goog-api-key",
        "x-goog-iam-authorization-token",
        "x-goog-user-project",
    ],
    // The last one carries headers, for callers that can set none.
    strips_parameters: &[
        "key",
        "api_key",
        "access_token",
        "oauth_token",
        "bearer_token",
        "$httpHeaders",
    ],
    strips_protocols: &[],
    environment: &[
        ("GEMINI_API_KEY", "sandbox-placeholder-google"),
        ("GOOGLE_API_KEY", "sandbox-placeholder-google"),
    ],
};

static GROQ: Known = Known {
    name: "groq",
    places: &[Bearer("api.groq.com")],
    strips_headers: &["x-api-key"],
    strips_parameters: &[],
    strips_protocols: &[],
    environment: &[("GROQ_API_KEY", "sandbox-placeholder-groq")],
};

static MISTRAL: Known = Known {
    name: "mistral",
    places: &[Bearer("api.mistral.ai")],
    strips_headers: &["x-api-key"],
    strips_parameters: &[],
    strips_protocols: &[],
    environment: &[("MISTRAL_API_KEY", "sandbox-placeholder-mistral")],
};

static OPENROUTER: Known = Known {
    name: "openrouter",
    places: &[Bearer("openrouter.ai")],
    strips_headers: &["x-api-key"],
    strips_parameters: &[],
    strips_protocols: &[],
    environment: &[("OPENROUTER_API_KEY", "sandbox-placeholder-openrouter")],
};

static XAI: Known = Known {
    name: "xai",
    places: &[Bearer("api.x.ai")],
    strips_headers: &["x-api-key"],
    strips_parameters: &[],
    strips_protocols: &["xai-client-secret.", "openai-insecure-api-key."],
    environment: &[("XAI_API_KEY", "sandbox-placeholder-xai")],
};

static NPM: Known = Known {
    name: "npm",
    places: &[Bearer("registry.npmjs.org")],
    strips_headers: &["npm-otp"],
    strips_parameters: &[],
    strips_protocols: &[],
    environment: &[("NPM_TOKEN", "sandbox-placeholder-npm")],
};

static PYPI: Known = Known {
    name: "pypi",
    places: &[Basic("upload.pypi.org", "__token__")],
    strips_headers: &[],
    strips_parameters: &[],
    strips_protocols: &[],
    environment: &[
        ("TWINE_USERNAME", "__token__"),
        ("TWINE_PASSWORD", "sandbox-placeholder-pypi"),
    ],
};

impl Service {
    /// Anthropic's API: `x-api-key`.
    pub fn anthropic() -> Self {
        load(&ANTHROPIC)
    }

    /// OpenAI's API: bearer token.
    pub fn openai() -> Self {
        load(&OPENAI)
    }

    /// GitHub: bearer token for the API, Basic for git over https.
    pub fn github() -> Self {
        load(&GITHUB)
    }

    /// Google's Gemini API: `x-goog-api-key`.
    pub fn google() -> Self {
        load(&GOOGLE)
    }

    /// Groq's API: bearer token.
    pub fn groq() -> Self {
        load(&GROQ)
    }

    /// Mistral's API: bearer token.
    pub fn mistral() -> Self {
        load(&MISTRAL)
    }

    /// OpenRouter's API: bearer token.
    pub fn openrouter() -> Self {
        load(&OPENROUTER)
    }

    /// xAI's API: bearer token.
    pub fn xai() -> Self {
        load(&XAI)
    }

    /// The public npm registry: bearer token.
    pub fn npm() -> Self {
        load(&NPM)
    }

    /// Uploads to PyPI: Basic with the user `__token__`.
    pub fn pypi() -> Self {
        load(&PYPI)
    }
}

fn load(known: &Known) -> Service {
    let mut service = Service::custom(known.name);
    for place in known.places {
        service = match place {
            Bearer(host) => service.bearer(host),
            Header(host, header) => service.header(host, header),
            Basic(host, username) => service.basic(host, username),
        };
    }
    for header in known.strips_headers {
        service = service.also_strips(header);
    }
    for parameter in known.strips_parameters {
        service = service.also_strips_parameter(parameter);
    }
    for prefix in known.strips_protocols {
        service = service.also_strips_protocol(prefix);
    }
    for (variable, placeholder) in known.environment {
        service = service.environment(variable, placeholder);
    }
    service
}

#[cfg(test)]
mod tests {
    use http::Request;
    use sandbox_core::credential::Credential;

    use super::super::inject;
    use super::*;

    const ALL: [&Known; 10] = [
        &ANTHROPIC,
        &OPENAI,
        &GITHUB,
        &GOOGLE,
        &GROQ,
        &MISTRAL,
        &OPENROUTER,
        &XAI,
        &NPM,
        &PYPI,
    ];

    #[test]
    fn clients_own_credentials_are_stripped_from_every_place_that_a_service_reads() {
        for known in ALL {
            let service = load(known);
            let mut query = vec!["alt=sse".to_owned()];
            let sent = known.strips_parameters.iter();
            query.extend(sent.map(|name| format!("{}=mine", name.replace('$', "%24"))));
            let mut protocols = vec!["realtime".to_owned()];
            protocols.extend(known.strips_protocols.iter().map(|start| format!("{start}mine")));
            let mut request = Request::builder()
                .uri(format!("/v1?{}", query.join("&")))
                .header("sec-websocket-protocol", protocols.join(", "))
                .header("authorization", "Bearer mine")
                .header("cookie", "session=mine");
            for header in known.strips_headers {
                request = request.header(*header, "mine");
            }
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let (Bearer(host) | Header(host, _) | Basic(host, _)) = &known.places[0];
            let endpoint = service.endpoint_at(true, &host.parse().unwrap(), 443).unwrap();
            let credential = Credential::Token("managed".to_owned().into());
            inject::replace(&mut parts, &service, endpoint, &credential).unwrap();
            let sent = format!("{} {:?}", parts.uri, parts.headers);
            assert!(!sent.contains("mine"), "{}: {sent}", known.name);
            assert_eq!(parts.uri, "/v1?alt=sse", "{}", known.name);
            assert_eq!(
                parts.headers["sec-websocket-protocol"], "realtime",
                "{}",
                known.name
            );
        }
    }

    #[test]
    fn every_known_service_is_valid_and_has_a_placeholder() {
        for known in ALL {
            let service = load(known);
            service.validate().unwrap();
            assert!(!service.placeholders().is_empty(), "{}", known.name);
            for place in known.places {
                let (Bearer(host) | Header(host, _) | Basic(host, _)) = place;
                let host = host.parse().unwrap();
                assert!(service.endpoint_at(true, &host, 443).is_some());
                assert!(
                    service.endpoint_at(false, &host, 443).is_none(),
                    "never over plain HTTP"
                );
                assert!(
                    service.endpoint_at(true, &host, 8443).is_none(),
                    "never to another port"
                );
            }
        }
    }

    #[test]
    fn mistakes_in_a_definition_are_told() {
        let no_host = Service::custom("x").validate().unwrap_err();
        assert!(matches!(no_host, InvalidService::NoHost { .. }));
        for host in ["", "a b", "a.test:x", "a.test:0", "a.test:", "https://a.test"] {
            let error = Service::custom("x").bearer(host).validate().unwrap_err();
            assert!(matches!(error, InvalidService::Host { .. }), "{host}");
        }
        for header in ["", "a b", "host", "content-length"] {
            let error = Service::custom("x")
                .header("a.test", header)
                .validate()
                .unwrap_err();
            assert!(matches!(error, InvalidService::Header { .. }), "{header}");
        }
    }

    use super::super::InvalidService;
}
