//! The services that need no definition of the user's: each a document in `data/`, read when it is first asked for.

use std::sync::OnceLock;

use super::{Service, definition};

/// A built-in service.
struct Known {
    name: &'static str,
    text: &'static str,
    parsed: OnceLock<Service>,
}

macro_rules! known {
    ($($name:literal)*) => {
        [$(Known {
            name: $name,
            text: include_str!(concat!("data/", $name, ".toml")),
            parsed: OnceLock::new(),
        }),*]
    };
}

static KNOWN: [Known; 32] = known![
    "anaconda.org" "anthropic" "aws" "bitbucket" "cerebras" "cohere" "crates.io" "deepseek" "docker.io" "fireworks"
    "ghcr.io" "github" "gitlab" "google" "groq" "hex.pm" "huggingface" "mistral" "npm" "nuget" "openai" "openrouter"
    "perplexity" "pkg.dev" "pub.dev" "public.ecr.aws" "pypi" "quay.io" "replicate" "rubygems" "together" "xai"
];

impl Service {
    /// The built-in service of this name; [`names`](Self::names) has them all.
    pub fn known(name: &str) -> Option<Self> {
        KNOWN.iter().find(|known| known.name == name).map(load)
    }

    /// The names of all built-in services.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|known| known.name)
    }

    /// Anthropic's API: `x-api-key`.
    pub fn anthropic() -> Self {
        named("anthropic")
    }

    /// Amazon Web Services, all of them: requests that are signed with the placeholder keys (Signature Version 4) are
    /// signed again with those of [`sources::Aws`](crate::sources::Aws). Not signed are requests for other regions or
    /// services than the host's, and those that ask AWS for keys (`sts:AssumeRole`, `iam:CreateAccessKey`, …), which
    /// would be real ones.
    ///
    /// The keys may do what they may: give a sandbox a role of its own.
    pub fn aws() -> Self {
        named("aws")
    }

    /// OpenAI's API: bearer token.
    pub fn openai() -> Self {
        named("openai")
    }

    /// GitHub: bearer token for the API, Basic for git over https.
    pub fn github() -> Self {
        named("github")
    }

    /// GitLab: bearer token for the API, Basic for git over https.
    pub fn gitlab() -> Self {
        named("gitlab")
    }

    /// Google's Gemini API: `x-goog-api-key`.
    pub fn google() -> Self {
        named("google")
    }

    /// Groq's API: bearer token.
    pub fn groq() -> Self {
        named("groq")
    }

    /// Hugging Face: bearer token, Basic for git over https.
    pub fn huggingface() -> Self {
        named("huggingface")
    }

    /// Mistral's API: bearer token.
    pub fn mistral() -> Self {
        named("mistral")
    }

    /// OpenRouter's API: bearer token.
    pub fn openrouter() -> Self {
        named("openrouter")
    }

    /// xAI's API: bearer token.
    pub fn xai() -> Self {
        named("xai")
    }

    /// The public npm registry: bearer token.
    pub fn npm() -> Self {
        named("npm")
    }

    /// Uploads to PyPI: Basic with the user `__token__`.
    pub fn pypi() -> Self {
        named("pypi")
    }

    /// Publishing to crates.io: the bare token in `Authorization`.
    pub fn crates_io() -> Self {
        named("crates.io")
    }

    /// Docker Hub. The source gives `user:token`.
    pub fn docker_io() -> Self {
        named("docker.io")
    }

    /// GitHub's container registry.
    pub fn ghcr_io() -> Self {
        named("ghcr.io")
    }
}

fn named(name: &'static str) -> Service {
    // Without hosts, so that building a proxy with it is an error and no panic; tests see that each name is known.
    Service::known(name).unwrap_or_else(|| Service::custom(name))
}

fn load(known: &Known) -> Service {
    let parse =
        || definition::parse(known.text).unwrap_or_else(|error| Service::custom(known.name).fail(error));
    known.parsed.get_or_init(parse).clone()
}
