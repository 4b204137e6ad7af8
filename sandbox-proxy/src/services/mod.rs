//! Services: which hosts take a credential, where it goes in a request, and what the guest sees instead.
//!
//! Known ones are data, see `known`; [`Service::custom`] makes others. `inject` is the one place where a
//! secret enters a request.

pub(crate) mod bound;
pub(crate) mod inject;
mod known;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};
use sandbox_core::host::{Host, InvalidHost};

/// A service that takes a credential: hosts, placement, placeholders.
#[derive(Debug, Clone)]
pub struct Service {
    name: String,
    endpoints: Vec<Endpoint>,
    client_credential: ClientCredential,
    stripped_headers: Vec<HeaderName>,
    stripped_parameters: Vec<String>,
    /// Starts of WebSocket subprotocols.
    stripped_protocols: Vec<String>,
    environment: Vec<(String, String)>,
    plain_http: bool,
    error: Option<InvalidService>,
}

/// One host and port of a service, and where the credential goes there.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) placement: Placement,
}

/// Where the credential goes in a request.
#[derive(Debug, Clone)]
pub(crate) enum Placement {
    /// A header of this name, its value after a prefix: `Bearer ` or nothing.
    Header { name: HeaderName, prefix: &'static str },
    /// `Authorization: Basic` with this user name (RFC 7617).
    Basic { username: String },
    /// A query parameter.
    Query { name: String },
}

/// What happens with a credential that the client itself sends to a host of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCredential {
    /// It is removed and the managed one put in. So nobody carries data out under a key of their own.
    #[default]
    Replace,
    /// It goes through as sent, and the managed one is left out. A placeholder is replaced all the same.
    Pass,
    /// The request is refused. A placeholder is replaced all the same.
    Reject,
}

/// A service definition that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidService {
    /// No host: the credential would never be used.
    #[error("service {service} has no host: add one, for instance with bearer(\"api.example.com\")")]
    NoHost {
        /// The service's name.
        service: String,
    },
    /// A text that is no `host` or `host:port`.
    #[error("service {service}: {text:?} is not a host or host:port")]
    Host {
        /// The service's name.
        service: String,
        /// What was given.
        text: String,
        /// What is wrong with its host part, if that is the fault.
        #[source]
        cause: Option<InvalidHost>,
    },
    /// A text that cannot be a header's name, or names a header that the proxy owns.
    #[error("service {service}: {text:?} cannot be the header of a credential")]
    Header {
        /// The service's name.
        service: String,
        /// What was given.
        text: String,
    },
}

impl Service {
    /// A service of your own. Add its hosts with [`bearer`](Self::bearer), [`header`](Self::header),
    /// [`basic`](Self::basic) or [`query`](Self::query); each takes `host` (port 443) or `host:port`.
    ///
    /// ```
    /// use sandbox_proxy::Service;
    /// let service = Service::custom("acme")
    ///     .header("api.acme.example", "x-acme-key")
    ///     .environment("ACME_KEY", "sandbox-placeholder-acme");
    /// ```
    pub fn custom(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            endpoints: Vec::new(),
            client_credential: ClientCredential::default(),
            stripped_headers: vec![AUTHORIZATION, COOKIE],
            stripped_parameters: Vec::new(),
            stripped_protocols: Vec::new(),
            environment: Vec::new(),
            plain_http: false,
            error: None,
        }
    }

    /// A host that takes `Authorization: Bearer …` (RFC 6750).
    #[must_use]
    pub fn bearer(self, host: &str) -> Self {
        let placement = Placement::Header {
            name: AUTHORIZATION,
            prefix: "Bearer ",
        };
        self.endpoint(host, placement)
    }

    /// A host that takes the bare credential in a header of this name.
    #[must_use]
    pub fn header(mut self, host: &str, header: &str) -> Self {
        match HeaderName::try_from(header) {
            Ok(name) if !inject::is_owned_by_proxy(&name) => {
                self.stripped_headers.push(name.clone());
                self.endpoint(host, Placement::Header { name, prefix: "" })
            }
            _ => {
                let error = InvalidService::Header {
                    service: self.name.clone(),
                    text: header.to_owned(),
                };
                self.fail(error)
            }
        }
    }

    /// A host that takes the credential as password of `Authorization: Basic …` with this user name.
    #[must_use]
    pub fn basic(self, host: &str, username: &str) -> Self {
        let username = username.to_owned();
        self.endpoint(host, Placement::Basic { username })
    }

    /// A host that takes the credential as a query parameter of this name.
    #[must_use]
    pub fn query(mut self, host: &str, parameter: &str) -> Self {
        self.stripped_parameters.push(parameter.to_owned());
        let name = parameter.to_owned();
        self.endpoint(host, Placement::Query { name })
    }

    /// Another header in which clients send credentials to this service; treated like the credential's own place.
    #[must_use]
    pub fn also_strips(mut self, header: &str) -> Self {
        match HeaderName::try_from(header) {
            Ok(name) => {
                self.stripped_headers.push(name);
                self
            }
            Err(_) => {
                let error = InvalidService::Header {
                    service: self.name.clone(),
                    text: header.to_owned(),
                };
                self.fail(error)
            }
        }
    }

    /// A query parameter in which clients send credentials to this service; treated like the credential's own place,
    /// in whatever case it is written.
    #[must_use]
    pub fn also_strips_parameter(mut self, parameter: &str) -> Self {
        self.stripped_parameters.push(parameter.to_owned());
        self
    }

    /// A start of WebSocket subprotocols (RFC 6455 §1.9) whose rest is a credential, as browsers send it since they
    /// can set no header: such members of `Sec-WebSocket-Protocol` are treated like the credential's own place.
    #[must_use]
    pub fn also_strips_protocol(mut self, prefix: &str) -> Self {
        self.stripped_protocols.push(prefix.to_owned());
        self
    }

    /// What happens with a credential that the client sends itself; [`ClientCredential::Replace`] at first.
    #[must_use]
    pub fn client_credential(self, client_credential: ClientCredential) -> Self {
        Self {
            client_credential,
            ..self
        }
    }

    /// An environment variable that the guest gets, with a placeholder: tools that insist on a key start, and
    /// what they send is replaced.
    #[must_use]
    pub fn environment(mut self, variable: &str, placeholder: &str) -> Self {
        self.environment
            .push((variable.to_owned(), placeholder.to_owned()));
        self
    }

    /// Also sends the credential over plain HTTP, readable by everyone on the way. For stand-ins and closed
    /// networks; without this call a secret only ever travels over TLS.
    #[must_use]
    pub fn plain_http_allowed(self) -> Self {
        Self {
            plain_http: true,
            ..self
        }
    }

    /// Its name, for instance `anthropic`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The environment variables for the guest, with their placeholders.
    pub fn placeholders(&self) -> &[(String, String)] {
        &self.environment
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidService> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None if self.endpoints.is_empty() => Err(InvalidService::NoHost {
                service: self.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The endpoint that a request goes to, if it is one of this service's: scheme, host and port must match.
    pub(crate) fn endpoint_at(&self, tls: bool, host: &Host, port: u16) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| (tls || self.plain_http) && endpoint.host == *host && endpoint.port == port)
    }

    /// Whether this host is one of the service's, on whatever port.
    pub(crate) fn has_host(&self, host: &Host) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.host == *host)
    }

    /// A host and port that both services have.
    pub(crate) fn shared_with(&self, other: &Self) -> Option<String> {
        let mine = &self.endpoints;
        let shared = mine.iter().find(|m| {
            other
                .endpoints
                .iter()
                .any(|o| m.host == o.host && m.port == o.port)
        })?;
        Some(format!("{}:{}", shared.host, shared.port))
    }

    fn endpoint(mut self, text: &str, placement: Placement) -> Self {
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address without brackets has no port.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
            _ => (text, Some(443)),
        };
        match (host.parse::<Host>(), port) {
            (Ok(host), Some(port)) if port != 0 => {
                self.endpoints.push(Endpoint {
                    host,
                    port,
                    placement,
                });
                self
            }
            (host, _) => {
                let error = InvalidService::Host {
                    service: self.name.clone(),
                    text: text.to_owned(),
                    cause: host.err(),
                };
                self.fail(error)
            }
        }
    }

    fn fail(mut self, error: InvalidService) -> Self {
        self.error = self.error.or(Some(error));
        self
    }
}
