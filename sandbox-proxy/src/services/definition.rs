//! Services as data: one TOML document each, the built-in ones in `data/`.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::endpoint::{Basic, Endpoint, Placement};
use super::{ClientCredential, InvalidService, Service};

/// The format of definitions that this version reads.
const FORMAT: u32 = 1;
/// Protects the host from a file that is no definition.
const MAX_BYTES: usize = 256 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Definition {
    format: u32,
    #[serde(default)]
    revision: u32,
    name: String,
    #[serde(default)]
    client_credential: ClientCredential,
    #[serde(default)]
    plain_http_allowed: bool,
    #[serde(default)]
    allow_compression: bool,
    endpoint: Vec<EndpointDefinition>,
    #[serde(default)]
    strip: Strip,
    #[serde(default)]
    placeholders: BTreeMap<String, String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointDefinition {
    targets: Vec<String>,
    put: Put,
    #[serde(default, rename = "issues-tokens")]
    issues_tokens: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Strip {
    headers: Vec<String>,
    parameters: Vec<String>,
    protocols: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Put {
    Bearer,
    BearerBase64,
    BasicPair,
    InPlace,
    Issued,
    Header(String),
    Prefixed(Prefixed),
    BasicUser(String),
    BasicPassword(String),
    Query(String),
    Sigv4,
    Sigv4OfAws,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prefixed {
    header: String,
    prefix: String,
}

/// Reads a definition; mistakes within are kept in the service, and told by `validate`.
pub(super) fn parse(text: &str) -> Result<Service, InvalidService> {
    if text.len() > MAX_BYTES {
        return Err(InvalidService::Definition {
            message: "it is longer than 256 KiB".to_owned(),
        });
    }
    let definition: Definition = toml::from_str(text).map_err(|error| InvalidService::Definition {
        message: error.to_string(),
    })?;
    if definition.format != FORMAT {
        return Err(InvalidService::Definition {
            message: format!(
                "it has format {}, and this version reads {FORMAT}",
                definition.format
            ),
        });
    }
    let mut service = Service::custom(definition.name).client_credential(definition.client_credential);
    service.revision = definition.revision;
    service.plain_http = definition.plain_http_allowed;
    service.compression = definition.allow_compression;
    for EndpointDefinition {
        targets,
        put,
        issues_tokens,
    } in definition.endpoint
    {
        let Some(placement) = placement(&mut service, put) else {
            continue;
        };
        for target in targets {
            let endpoint = Endpoint::parse(&service.name, &target, placement.clone())?;
            service.endpoints.push(Endpoint {
                issues_tokens,
                ..endpoint
            });
        }
    }
    for header in &definition.strip.headers {
        service = service.also_strips(header);
    }
    for parameter in &definition.strip.parameters {
        service = service.also_strips_parameter(parameter);
    }
    for protocol in &definition.strip.protocols {
        service = service.also_strips_protocol(protocol);
    }
    for (variable, placeholder) in &definition.placeholders {
        service = service.environment(variable, placeholder);
    }
    for (variable, value) in &definition.environment {
        service = service.fixed_environment(variable, value);
    }
    service.validate()?;
    Ok(service)
}

/// Where the credential goes; a place for it is one for the client's own, too. `None`: the service has the mistake.
fn placement(service: &mut Service, put: Put) -> Option<Placement> {
    Some(match put {
        Put::Bearer => Placement::bearer(),
        Put::BearerBase64 => Placement::Header {
            name: http::header::AUTHORIZATION,
            prefix: "Bearer ".to_owned(),
            base64: true,
        },
        Put::BasicPair => Placement::Basic(Basic::Pair),
        Put::BasicUser(user) => service.password_of(user)?,
        Put::BasicPassword(password) => Placement::Basic(Basic::UserWith(password)),
        Put::InPlace => Placement::InPlace,
        Put::Issued => Placement::Issued,
        Put::Query(name) => {
            service.stripped_parameters.push(name.clone());
            Placement::Query { name }
        }
        Put::Sigv4 => service.signature_placement(false),
        Put::Sigv4OfAws => service.signature_placement(true),
        Put::Header(header) => service.header_placement(&header, "")?,
        Put::Prefixed(Prefixed { header, prefix }) => service.header_placement(&header, &prefix)?,
    })
}
