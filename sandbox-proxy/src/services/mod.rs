//! Services: which hosts take a credential, where it goes in a request, and what the guest sees instead.
//!
//! Each is data: `definition` reads it, `known` has the built-in ones. `directory` finds the service of a request,
//! `places` knows where clients send credentials, and `inject` is the one place where a secret enters a request.

pub(crate) mod bound;
mod definition;
pub(crate) mod directory;
mod endpoint;
pub(crate) mod explain;
pub(crate) mod inject;
pub(crate) mod issued;
mod known;
mod placeholder;
pub(crate) mod places;
mod query;
pub(crate) mod sign;
#[cfg(test)]
mod tests;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};
use serde::Deserialize;

use crate::policy::{self, RuleError};
use endpoint::{Basic, Endpoint, Placement};
pub use explain::{CredentialReason, Explanation};
pub use placeholder::{InvalidPlaceholderTag, PlaceholderTag};

/// A service that takes a credential: hosts, placement, placeholders.
#[derive(Debug, Clone)]
pub struct Service {
    name: String,
    revision: u32,
    endpoints: Vec<Endpoint>,
    client_credential: ClientCredential,
    stripped_headers: Vec<HeaderName>,
    stripped_parameters: Vec<String>,
    /// Starts of WebSocket subprotocols.
    stripped_protocols: Vec<String>,
    /// Variables whose values are placeholders.
    placeholders: Vec<(String, String)>,
    /// Further variables that tools need beside.
    environment: Vec<(String, String)>,
    compression: bool,
    plain_http: bool,
    error: Option<InvalidService>,
}

/// What happens with a credential that the client itself sends to a host of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
#[non_exhaustive]
pub enum InvalidService {
    /// A document that is no definition of a service.
    #[error("the definition of a service cannot be read: {message}")]
    Definition {
        /// What is wrong, and where.
        message: String,
    },
    /// No host: the credential would never be used.
    #[error("service {service} has no host: add one, for instance with bearer(\"api.example.com\")")]
    NoHost {
        /// The service's name.
        service: String,
    },
    /// A text that is no target as rules of the policy have them.
    #[error("service {service}: {text:?} cannot be a target")]
    Target {
        /// The service's name.
        service: String,
        /// What was given.
        text: String,
        /// Where it stops being one, and what to write instead.
        #[source]
        cause: RuleError,
    },
    /// A target that is nobody's own: every name, all names of a top-level domain, or a network with less than 8 bits.
    #[error("service {service}: nobody owns all of {text:?}; name the hosts that are to get the credential")]
    TooWide {
        /// The service's name.
        service: String,
        /// What was given.
        text: String,
    },
    /// A target of plain HTTP in a service that speaks TLS only.
    #[error(
        "service {service}: {target} is plain HTTP; if everyone on the way may read the credential, say \
         plain_http_allowed(), or plain-http-allowed = true in a definition"
    )]
    PlainHttp {
        /// The service's name.
        service: String,
        /// The target.
        target: String,
    },
    /// A text that cannot be a header's name, or names a header that the proxy owns.
    #[error("service {service}: {text:?} cannot be the header of a credential")]
    Header {
        /// The service's name.
        service: String,
        /// What was given.
        text: String,
    },
    /// A text that cannot be a placeholder.
    #[error(
        "service {service}: the placeholder of {variable} must be 1 to 512 visible characters without a colon"
    )]
    Placeholder {
        /// The service's name.
        service: String,
        /// The environment variable.
        variable: String,
    },
    /// A host that the service was to be moved from, and does not have.
    #[error("service {service} has no host {text:?} that could be moved")]
    NotThere {
        /// The service's name.
        service: String,
        /// What was given.
        text: String,
    },
    /// An endpoint that takes a signature and cannot be as its definition has it.
    #[error("service {service}, host {host}: {why}")]
    Signature {
        /// The service's name.
        service: String,
        /// The host.
        host: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A user name with a colon, which would be another user name and password (RFC 7617 §2).
    #[error("service {service}: the user name {text:?} of Basic has a colon")]
    UserName {
        /// The service's name.
        service: String,
        /// What was given.
        text: String,
    },
}

impl Service {
    /// A service of your own. Add what it is for with [`bearer`](Self::bearer), [`header`](Self::header),
    /// [`basic`](Self::basic) or [`query`](Self::query); each takes a target as rules of the policy do
    /// ([`Rules`](crate::Rules)): `host` (port 443), `host:port`, `**.host`, `host/v1/**`, `GET,HEAD host`. The most
    /// specific hosts decide which service a request is of; then the first of its targets with these hosts that has the
    /// request says where the credential goes.
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
            revision: 0,
            endpoints: Vec::new(),
            client_credential: ClientCredential::default(),
            stripped_headers: vec![AUTHORIZATION, COOKIE],
            stripped_parameters: Vec::new(),
            stripped_protocols: Vec::new(),
            placeholders: Vec::new(),
            environment: Vec::new(),
            plain_http: false,
            compression: false,
            error: None,
        }
    }

    /// A service from its definition in TOML, the format of the built-in ones.
    ///
    /// ```
    /// use sandbox_proxy::Service;
    /// let service = Service::from_toml(r#"
    ///     format = 1
    ///     name = "acme"
    ///     client-credential = "reject"        # or "replace", "pass"
    ///
    ///     [[endpoint]]                        # the first that has a request is used
    ///     targets = ["git.acme.example/**/info/refs", "POST git.acme.example/**/git-upload-pack"] # as in rules
    ///     put = { basic-user = "token" }      # Basic with this user name
    ///
    ///     [[endpoint]]
    ///     targets = ["git.acme.example", "api.acme.example:8443"]
    ///     put = { header = "x-acme-key" }     # also: "bearer", { query = "key" }, "in-place", "sigv4", …
    ///
    ///     [strip]                             # further places in which clients send credentials
    ///     headers = ["x-acme-session"]
    ///     parameters = ["token"]
    ///
    ///     [placeholders]
    ///     ACME_KEY = "acme_{unique}"          # what the sandbox sees; differs from sandbox to sandbox
    /// "#)?;
    /// # Ok::<(), sandbox_proxy::services::InvalidService>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with the document, and where.
    pub fn from_toml(definition: &str) -> Result<Self, InvalidService> {
        definition::parse(definition)
    }

    /// A target that takes `Authorization: Bearer …` (RFC 6750).
    #[must_use]
    pub fn bearer(self, target: &str) -> Self {
        self.endpoint(target, Placement::bearer())
    }

    /// A target that takes the bare credential in a header of this name.
    #[must_use]
    pub fn header(mut self, target: &str, header: &str) -> Self {
        match self.header_placement(header, "") {
            Some(placement) => self.endpoint(target, placement),
            None => self,
        }
    }

    /// A target that takes the credential as password of `Authorization: Basic …` with this user name.
    #[must_use]
    pub fn basic(mut self, target: &str, username: &str) -> Self {
        match self.password_of(username.to_owned()) {
            Some(placement) => self.endpoint(target, placement),
            None => self,
        }
    }

    /// A target that takes the credential as a query parameter of this name.
    #[must_use]
    pub fn query(mut self, target: &str, parameter: &str) -> Self {
        self.stripped_parameters.push(parameter.to_owned());
        let name = parameter.to_owned();
        self.endpoint(target, Placement::Query { name })
    }

    /// A target that takes the credential wherever the client has a placeholder: in `Authorization`, bare, after a scheme
    /// or as one half of Basic, or in one of the places named with [`also_strips`](Self::also_strips) and
    /// [`also_strips_parameter`](Self::also_strips_parameter). The other half of Basic stays the client's. Requests
    /// without a placeholder get no credential.
    #[must_use]
    pub fn in_place(self, target: &str) -> Self {
        self.endpoint(target, Placement::InPlace)
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

    /// Lets the service's hosts compress their responses. At first they are asked not to.
    ///
    /// The proxy reads gzip, deflate, brotli and zstd, and searches what comes of them. But where a host puts the
    /// credential and words of the guest into one compressed stream, as an echo or an error page does, the moments at which
    /// parts of it arrive tell how well the two fit together, and so the credential, guess by guess. Allow it for
    /// hosts that serve files and large documents, and show no requests.
    #[must_use]
    pub fn allow_compression(self) -> Self {
        Self {
            compression: true,
            ..self
        }
    }

    /// An environment variable that the guest gets, with a placeholder: tools that insist on a key start, and
    /// what they send is replaced. `{unique}` in it becomes the sandbox's [`PlaceholderTag`], `{UNIQUE}` the start of it as
    /// nine capitals and digits, for keys of that form.
    #[must_use]
    pub fn environment(mut self, variable: &str, placeholder: &str) -> Self {
        if placeholder::is_valid(placeholder) {
            self.placeholders
                .push((variable.to_owned(), placeholder.to_owned()));
            return self;
        }
        let error = InvalidService::Placeholder {
            service: self.name.clone(),
            variable: variable.to_owned(),
        };
        self.fail(error)
    }

    /// An environment variable that the guest gets beside its placeholders, for instance a user name.
    #[must_use]
    pub fn fixed_environment(mut self, variable: &str, value: &str) -> Self {
        self.environment.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// The same service on hosts of your own: every endpoint at `from` is at `to` instead. `from` is hosts as the
    /// service has them, on whatever ports; with a port or a range of them, endpoints on those alone move. `to` is `host`,
    /// for the ports that each had, or `host:port`; methods and paths stay. For instance
    /// `Service::gitlab().moved("gitlab.com", "gitlab.acme.example")`. A `from` that the service does not have is a mistake
    /// that building a proxy tells.
    #[must_use]
    pub fn moved(mut self, from: &str, to: &str) -> Self {
        let (target, ports) = match endpoint::place(&self.name, to) {
            Ok(place) => place,
            Err(error) => return self.fail(error),
        };
        let mut has_moved = false;
        if let Ok((old_target, old_ports)) = policy::place(from) {
            for Endpoint { pattern, .. } in &mut self.endpoints {
                if pattern.target == old_target && old_ports.is_none_or(|old| old == pattern.ports) {
                    pattern.move_to(target.clone(), ports);
                    has_moved = true;
                }
            }
        }
        if has_moved {
            return self;
        }
        let error = InvalidService::NotThere {
            service: self.name.clone(),
            text: from.to_owned(),
        };
        self.fail(error)
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

    /// The revision of its definition; 0 if it has none.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Environment variables with their placeholders, each as its definition has it.
    pub fn placeholders(&self) -> &[(String, String)] {
        &self.placeholders
    }

    /// All environment variables for the guest.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &(String, String)> {
        self.placeholders.iter().chain(&self.environment)
    }

    /// Makes its placeholders those of one sandbox.
    pub(crate) fn fill_placeholders(&mut self, tag: &PlaceholderTag) {
        for (_, placeholder) in &mut self.placeholders {
            *placeholder = tag.fill(placeholder);
        }
    }

    /// Whether a text is one of its placeholders and nothing else.
    fn is_placeholder(&self, text: &str) -> bool {
        self.placeholders
            .iter()
            .any(|(_, placeholder)| placeholder == text)
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidService> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None if self.endpoints.is_empty() => Err(InvalidService::NoHost {
                service: self.name.clone(),
            }),
            None => {
                let mut endpoints = self.endpoints.iter();
                endpoints.try_for_each(|endpoint| endpoint.check(&self.name, self.plain_http))
            }
        }
    }

    /// Whether its hosts may compress responses.
    pub(crate) fn allows_compression(&self) -> bool {
        self.compression
    }

    /// The placement in a header, which becomes a place for the client's own, too. `None`: it is none, which is kept.
    fn header_placement(&mut self, header: &str, prefix: &str) -> Option<Placement> {
        let name = HeaderName::try_from(header)
            .ok()
            .filter(|name| !places::is_owned_by_proxy(name));
        let is_text = |b: u8| (0x20..0x7f).contains(&b);
        let Some(name) = name.filter(|_| prefix.bytes().all(is_text)) else {
            self.error.get_or_insert(InvalidService::Header {
                service: self.name.clone(),
                text: header.to_owned(),
            });
            return None;
        };
        self.stripped_headers.push(name.clone());
        Some(Placement::Header {
            name,
            prefix: prefix.to_owned(),
            base64: false,
        })
    }

    /// The placement as password of this user. `None`: it can be no user's, which is kept.
    fn password_of(&mut self, user: String) -> Option<Placement> {
        if user.contains(':') {
            self.error.get_or_insert(InvalidService::UserName {
                service: self.name.clone(),
                text: user,
            });
            return None;
        }
        Some(Placement::Basic(Basic::PasswordOf(user)))
    }

    fn endpoint(mut self, target: &str, placement: Placement) -> Self {
        match Endpoint::parse(&self.name, target, placement) {
            Ok(endpoint) => {
                self.endpoints.push(endpoint);
                self
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(mut self, error: InvalidService) -> Self {
        self.error = self.error.or(Some(error));
        self
    }
}
