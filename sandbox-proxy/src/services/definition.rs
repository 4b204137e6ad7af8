//! Services as data: one TOML document each, the built-in ones in `data/`.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::endpoint::{Basic, Endpoint, Hosts, PathPattern, Placement};
use super::sign::is_of_aws;
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
    hosts: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
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
        hosts,
        paths,
        put,
        issues_tokens,
    } in definition.endpoint
    {
        let paths: Vec<_> = paths
            .iter()
            .map(|path| (path, PathPattern::parse(path)))
            .collect();
        if let Some((path, _)) = paths.iter().find(|(_, pattern)| pattern.is_none()) {
            return Err(InvalidService::Path {
                service: service.name,
                text: (*path).clone(),
            });
        }
        let paths: Vec<_> = paths.into_iter().filter_map(|(_, pattern)| pattern).collect();
        let placement = placement(&mut service, put);
        let Some(placement) = placement else {
            continue;
        };
        for host in hosts {
            let endpoint = Endpoint {
                issues_tokens,
                ..Endpoint::parse(&service.name, &host, paths.clone(), placement.clone())?
            };
            endpoint.check_signature(&service.name)?;
            service.endpoints.push(endpoint);
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

impl Endpoint {
    /// Parses `host` (port 443) or `host:port`.
    pub(super) fn parse(
        service: &str,
        text: &str,
        paths: Vec<PathPattern>,
        placement: Placement,
    ) -> Result<Self, InvalidService> {
        let (hosts, port) = Self::parse_place(service, text, 443)?;
        Ok(Self {
            hosts,
            port,
            paths,
            placement,
            issues_tokens: false,
        })
    }

    /// A signature is for no answers that are tokens, and one by AWS's rules for AWS's hosts alone.
    fn check_signature(&self, service: &str) -> Result<(), InvalidService> {
        let why = match self.placement {
            Placement::SigV4 { .. } if self.issues_tokens => {
                "issues-tokens is for hosts that take a credential, not for those that take a signature"
            }
            Placement::SigV4 { of_aws: true } if !is_of_aws(&self.hosts) => {
                "sigv4-of-aws is for hosts of AWS alone; put = \"sigv4\" is for others"
            }
            _ => return Ok(()),
        };
        Err(InvalidService::Signature {
            service: service.to_owned(),
            host: self.hosts.to_string(),
            why,
        })
    }

    /// Parses `host` or `host:port`.
    pub(super) fn parse_place(
        service: &str,
        text: &str,
        default_port: u16,
    ) -> Result<(Hosts, u16), InvalidService> {
        let (hosts, port) = match text.rsplit_once(':') {
            // An IPv6 address without brackets has no port.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
            _ => (text, Some(default_port)),
        };
        match (Hosts::parse(hosts), port) {
            (Ok(hosts), Some(port)) if port != 0 => Ok((hosts, port)),
            (hosts, _) => Err(InvalidService::Host {
                service: service.to_owned(),
                text: text.to_owned(),
                cause: hosts.err().flatten(),
            }),
        }
    }
}
