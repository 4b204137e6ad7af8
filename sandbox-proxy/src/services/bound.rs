//! A service bound to the source of its credential, and the memory of what was injected.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;
use sandbox_core::SandboxId;
use sandbox_core::credential::{
    Credential, CredentialError, CredentialRequest, CredentialSource, ExposeSecret, SecretString,
};
use sandbox_core::host::Host;

use super::inject::{self, InjectError};
use super::{Endpoint, Service};
use crate::scrub::Patterns;

/// How many values of one service are recognised in responses: after a rotation, the host may still know the
/// one before. Bounds the memory of a source that gives a new value each time.
const REMEMBERED: usize = 4;

#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) service: Service,
    pub(crate) source: Arc<dyn CredentialSource>,
    injected: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    secrets: VecDeque<SecretString>,
    patterns: Arc<Patterns>,
}

/// Whose credential a request goes out with, and what to scrub from its response.
#[derive(Debug)]
pub(crate) enum Injected {
    /// That of the source.
    Managed(Arc<Patterns>),
    /// The client's own. What an earlier request put in is searched for all the same: the host may have kept it.
    Own(Option<Arc<Patterns>>),
}

/// Why a request to a service cannot go out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoundError {
    #[error("no credential for service {service}: {cause}")]
    Source { service: String, cause: CredentialError },
    #[error(transparent)]
    Inject(#[from] InjectError),
}

impl Bound {
    pub(crate) fn new(service: Service, source: Arc<dyn CredentialSource>) -> Self {
        Self {
            service,
            source,
            injected: Mutex::default(),
        }
    }

    /// Puts the credential of now into a request, or leaves the client's own alone.
    pub(crate) async fn inject(
        &self,
        parts: &mut Parts,
        endpoint: &Endpoint,
        sandbox: &SandboxId,
    ) -> Result<Injected, BoundError> {
        if inject::client_keeps_its_own(parts, &self.service)? {
            return Ok(Injected::Own(self.remembered()));
        }
        let issued = self
            .fetch(sandbox, Some((&endpoint.host, endpoint.port)))
            .await
            .map_err(|cause| BoundError::Source {
                service: self.service.name().to_owned(),
                cause,
            })?;
        let patterns = self.remember(&issued);
        inject::replace(parts, &self.service, endpoint, &issued)?;
        Ok(Injected::Managed(patterns))
    }

    pub(crate) async fn fetch(
        &self,
        sandbox: &SandboxId,
        target: Option<(&Host, u16)>,
    ) -> Result<Credential, CredentialError> {
        let request = CredentialRequest {
            sandbox,
            service: self.service.name(),
            target,
        };
        self.source.fetch(&request).await.map(|issued| issued.credential)
    }

    /// What was put into requests lately, if anything.
    fn remembered(&self) -> Option<Arc<Patterns>> {
        let recent = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        (!recent.secrets.is_empty()).then(|| Arc::clone(&recent.patterns))
    }

    fn remember(&self, credential: &Credential) -> Arc<Patterns> {
        let mut recent = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = &mut *recent;
        let mut grown = false;
        for secret in credential.secrets() {
            let known = |s: &SecretString| s.expose_secret() == secret.expose_secret();
            if !recent.secrets.iter().any(known) {
                if recent.secrets.len() == REMEMBERED {
                    recent.secrets.pop_front();
                }
                recent.secrets.push_back(secret.clone());
                grown = true;
            }
        }
        if grown {
            recent.patterns = Arc::new(Patterns::new(
                recent.secrets.iter().map(SecretString::expose_secret),
            ));
        }
        Arc::clone(&recent.patterns)
    }
}
