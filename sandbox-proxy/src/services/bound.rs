//! A service bound to the source of its credential.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;

use http::request::Parts;
use sandbox_core::SandboxId;
use sandbox_core::credential::{Credential, CredentialError, CredentialRequest, CredentialSource};
use sandbox_core::host::Host;
use tokio::sync::Semaphore;

use super::Service;
use super::endpoint::Endpoint;
use super::inject::{self, InjectError, Injected};
use super::placeholder::PlaceholderTag;
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

    /// The same with the placeholders of one sandbox.
    pub(crate) fn tagged(mut self, tag: &PlaceholderTag) -> Self {
        self.service.fill_placeholders(tag);
        self
    }

    /// Puts the credential of now into a request to `target`, or does instead what the service says. What is put in is
    /// one of `secrets` from before it goes out.
    pub(crate) async fn inject(
        &self,
        parts: &mut Parts,
        endpoint: Option<&Endpoint>,
        target: (&Host, u16),
        sandbox: &SandboxId,
        secrets: &Secrets,
    ) -> Result<Injected, BoundError> {
        if let Some(injected) = inject::prepare(parts, &self.service, endpoint)? {
            return Ok(injected);
        }
        // `prepare` ends requests without an endpoint.
        let Some(endpoint) = endpoint else {
            return Ok(Injected::NotHere);
        };
        let issued = self
            .fetch(sandbox, Some(target))
            .await
            .map_err(|cause| BoundError::Source {
                service: self.service.name().to_owned(),
                cause,
            })?;
        let credential = inject::shaped(issued, &self.service, endpoint)?;
        secrets.remember(&self.name, &credential);
        inject::replace(parts, &self.service, endpoint, &credential)?;
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
        // A panic in it is the fault of a source of the user's own, and no reason to drop the guest's stream.
        let mut fetched = pin!(self.source.fetch(&request));
        let asked = poll_fn(
            |cx| match catch_unwind(AssertUnwindSafe(|| fetched.as_mut().poll(cx))) {
                Ok(polled) => polled.map(Some),
                Err(_) => std::task::Poll::Ready(None),
            },
        );
        match asked.await {
            Some(issued) => issued.map(|issued| issued.credential),
            None => Err(CredentialError::Failed {
                source_name: "the credential's source".to_owned(),
                cause: "it panicked".into(),
            }),
        }
    }
}
