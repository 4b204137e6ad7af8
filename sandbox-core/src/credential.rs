//! Credentials: what is added to requests on the host, and where it comes from.
//!
//! Values live in [`SecretString`]: redacted in `Debug`, wiped when dropped.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
pub use secrecy::{ExposeSecret, SecretString};

use crate::host::Host;
use crate::id::SandboxId;

/// A credential of some kind.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Credential {
    /// One secret text, put where the service's definition says.
    Token(SecretString),
    /// `Authorization: Bearer …` (RFC 6750), whatever the service's definition says.
    Bearer(SecretString),
    /// A header of this name.
    Header {
        /// Header name, for instance `x-api-key`.
        name: String,
        /// Its value.
        value: SecretString,
    },
    /// `Authorization: Basic …` (RFC 7617).
    Basic {
        /// User name; not secret.
        username: String,
        /// Password.
        password: SecretString,
    },
    /// A query parameter.
    Query {
        /// Parameter name.
        name: String,
        /// Its value, before percent-encoding.
        value: SecretString,
    },
    /// Keys for AWS Signature Version 4.
    Aws {
        /// Access key id; appears in signatures, not secret.
        access_key_id: String,
        /// Secret access key.
        secret_access_key: SecretString,
        /// Session token of temporary keys.
        session_token: Option<SecretString>,
    },
}

impl Credential {
    /// Every secret text in it, for whoever must recognise them.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        let (first, second) = match self {
            Self::Token(value)
            | Self::Bearer(value)
            | Self::Header { value, .. }
            | Self::Basic { password: value, .. }
            | Self::Query { value, .. } => (value, None),
            Self::Aws {
                secret_access_key,
                session_token,
                ..
            } => (secret_access_key, session_token.as_ref()),
        };
        std::iter::once(first).chain(second)
    }
}

/// A credential and how long it is good for.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The credential.
    pub credential: Credential,
    /// When it ends; whoever keeps it asks the source again before, and it is not sent after. `None`: not known, and
    /// so never kept. The proxy itself keeps nothing, so that a rotated key acts at once: sources for which asking is
    /// dear keep what they gave.
    pub expires: Option<SystemTime>,
    /// Secrets beside it that must not come back either, for instance the refresh token that it was got with.
    pub also_secret: Vec<SecretString>,
}

impl Issued {
    /// A credential without a known end.
    pub fn new(credential: Credential) -> Self {
        Self {
            credential,
            expires: None,
            also_secret: Vec::new(),
        }
    }

    /// A single secret text without a known end.
    pub fn token(value: impl Into<SecretString>) -> Self {
        Self::new(Credential::Token(value.into()))
    }

    /// The same, with an end.
    #[must_use]
    pub fn until(self, expires: SystemTime) -> Self {
        Self {
            expires: Some(expires),
            ..self
        }
    }

    /// Every secret text in it or beside it.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        self.credential.secrets().chain(&self.also_secret)
    }

    /// Whether it is still good `margin` after `now`. One without a known end is.
    pub fn outlasts(&self, now: SystemTime, margin: Duration) -> bool {
        match (self.expires, now.checked_add(margin)) {
            (None, _) => true,
            (Some(expires), Some(then)) => then < expires,
            (Some(_), None) => false,
        }
    }
}

/// Where a credential comes from: a keychain, a file, a command, a token server.
#[async_trait]
pub trait CredentialSource: Send + Sync + fmt::Debug {
    /// What a person calls this source, for instance `environment variable ANTHROPIC_API_KEY`. Not secret.
    fn describe(&self) -> String;

    /// The credential for this request. Called on the host, once at launch to fail early and then per request.
    async fn fetch(&self, request: &CredentialRequest<'_>) -> Result<Issued, CredentialError>;
}

/// For what a credential is wanted.
#[derive(Debug, Clone, Copy)]
pub struct CredentialRequest<'a> {
    /// The sandbox that will benefit.
    pub sandbox: &'a SandboxId,
    /// The service's name, for instance `anthropic`.
    pub service: &'a str,
    /// The target; `None` when asked at launch.
    pub target: Option<(&'a Host, u16)>,
}

/// Why there is no credential. Never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The source has nothing under that name.
    #[error("{source_name} is not set: set it, or give the service another source")]
    NotFound {
        /// The source, as it describes itself.
        source_name: String,
    },
    /// The source holds something that cannot be a credential (empty, a line break inside, not UTF-8).
    #[error("{source_name} holds something that cannot be sent as a credential: {why}")]
    Malformed {
        /// The source, as it describes itself.
        source_name: String,
        /// What is wrong with it, without the value.
        why: &'static str,
    },
    /// What the source holds has ended, or was revoked, and the source cannot renew it by itself.
    #[error("what {source_name} holds is no longer good: sign in again, or replace it")]
    Ended {
        /// The source, as it describes itself.
        source_name: String,
    },
    /// The source failed, for instance a file that cannot be read.
    #[error("{source_name} could not be read")]
    Failed {
        /// The source, as it describes itself.
        source_name: String,
        /// The cause.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}
