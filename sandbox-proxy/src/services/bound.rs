//! A service bound to the source of its credential.

use std::sync::Arc;

use http::request::Parts;
use sandbox_core::SandboxId;
use sandbox_core::credential::{Credential, CredentialError, CredentialRequest, CredentialSource};
use sandbox_core::host::Host;
use tokio::sync::Semaphore;

use super::inject::{self, InjectError};
use super::{Endpoint, Service};
use crate::scrub::Secrets;

/// Requests of one sandbox for which a service's source is asked at a time; others wait. Protects what a source takes of
/// the host (descriptors, threads, connections to a token server) from a guest that makes many requests.
const MAX_FETCHES: usize = 16;

#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) service: Service,
    pub(crate) source: Arc<dyn CredentialSource>,
    name: Arc<str>,
    fetches: Semaphore,
}

/// Whose credential a request goes out with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Injected {
    /// That of the source.
    Managed,
    /// The client's own.
    Own,
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
            name: service.name().into(),
            service,
            source,
            fetches: Semaphore::new(MAX_FETCHES),
        }
    }

    /// Puts the credential of now into a request, or leaves the client's own alone. What is put in is one of
    /// `secrets` from before it goes out.
    pub(crate) async fn inject(
        &self,
        parts: &mut Parts,
        endpoint: &Endpoint,
        sandbox: &SandboxId,
        secrets: &Secrets,
    ) -> Result<Injected, BoundError> {
        if inject::client_keeps_its_own(parts, &self.service)? {
            return Ok(Injected::Own);
        }
        let issued = self
            .fetch(sandbox, Some((&endpoint.host, endpoint.port)))
            .await
            .map_err(|cause| BoundError::Source {
                service: self.service.name().to_owned(),
                cause,
            })?;
        secrets.remember(&self.name, &issued);
        inject::replace(parts, &self.service, endpoint, &issued)?;
        Ok(Injected::Managed)
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
        // Never closed, so never an error.
        let _turn = self.fetches.acquire().await.ok();
        self.source.fetch(&request).await.map(|issued| issued.credential)
    }
}
