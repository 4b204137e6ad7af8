//! A service bound to the source of its credential.

use std::any::Any;
use std::future::poll_fn;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::request::Parts;
use sandbox_core::SandboxId;
use sandbox_core::credential::{
    Credential, CredentialError, CredentialRequest, CredentialSource, ExposeSecret, Issued, SecretString,
};
use sandbox_core::host::Host;
use tokio::sync::Semaphore;

use super::endpoint::{Endpoint, Placement};
use super::inject::{self, InjectError, Injected};
use super::issued::Tokens;
use super::placeholder::PlaceholderTag;
use super::sign::{self, SignError, Signing};
use super::{ClientCredential, Service, places};
use crate::defence::holds;
use crate::scrub::Secrets;

/// Requests of one sandbox for which a service's source is asked at a time; others wait. Protects what a source takes of
/// the host (descriptors, threads, connections to a token server) from a guest that makes many requests.
const MAX_FETCHES: usize = 16;

#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) service: Service,
    pub(crate) source: Arc<dyn CredentialSource>,
    pub(crate) name: Arc<str>,
    /// Where each endpoint's credential goes, in words.
    places: Vec<Arc<str>>,
    fetches: Semaphore,
    /// Tells credentials apart.
    keys: RandomState,
    /// For bodies that are collected to be signed.
    room: Arc<Semaphore>,
    /// What the service's own token server gave to the sandbox.
    pub(crate) tokens: Tokens,
}

/// Why a request to a service cannot go out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoundError {
    #[error("no credential for service {service}: {cause}")]
    Source { service: String, cause: CredentialError },
    #[error(transparent)]
    Inject(#[from] InjectError),
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Tells one credential of a service from another, and nothing of either: a hash with keys that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CredentialId(u64);

#[cfg(test)]
impl CredentialId {
    pub(crate) fn of_test(number: u64) -> Self {
        Self(number)
    }
}

/// What was done to a request.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) injected: Injected,
    pub(crate) to_sign: ToSign,
    /// The credential that it goes out with.
    pub(crate) credential: Option<CredentialId>,
}

impl Put {
    /// No credential.
    fn none(injected: Injected) -> Self {
        Self {
            injected,
            to_sign: None,
            credential: None,
        }
    }
}

/// A request is to go out with a signature by the source's keys, once nothing else of it changes.
pub(crate) type ToSign = Option<Box<Signing>>;

impl Bound {
    pub(crate) fn new(service: Service, source: Arc<dyn CredentialSource>) -> Self {
        Self {
            name: service.name().into(),
            places: {
                let endpoints = service.endpoints.iter();
                endpoints
                    .map(|endpoint| endpoint.placement.shown().into())
                    .collect()
            },
            service,
            source,
            fetches: Semaphore::new(if holds("source-requests") {
                MAX_FETCHES
            } else {
                Semaphore::MAX_PERMITS
            }),
            keys: RandomState::new(),
            room: sign::payload::room(),
            tokens: Tokens::default(),
        }
    }

    /// The same with the placeholders of one sandbox.
    pub(crate) fn tagged(mut self, tag: &PlaceholderTag) -> Self {
        self.service.fill_placeholders(tag);
        self
    }

    /// The service's endpoint of this number, and where its credential goes in words.
    pub(crate) fn endpoint_and_place(&self, index: usize) -> Option<(&Endpoint, &Arc<str>)> {
        self.service.endpoints.get(index).zip(self.places.get(index))
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
    ) -> Result<Put, BoundError> {
        if let Some(Placement::SigV4 { of_aws }) = endpoint.map(|endpoint| &endpoint.placement) {
            places::strip_overrides(&mut parts.headers);
            if self.client_keeps_its_signature(parts)? {
                return Ok(Put::none(Injected::Own));
            }
            let claim = sign::claim(parts, &self.service, target.0, *of_aws)?;
            let issued = self.issue(target, sandbox).await?;
            secrets.remember_all(&self.name, issued.secrets());
            let credential = Some(self.id(&issued.credential));
            let signing = Signing::new(claim, issued.credential, Arc::clone(&self.room));
            let kind = || InjectError::Kind(self.service.name().to_owned());
            return Ok(Put {
                injected: Injected::Managed,
                to_sign: Some(Box::new(signing.ok_or_else(kind)?)),
                credential,
            });
        }
        if let Some(injected) = inject::prepare(parts, &self.service, endpoint, &self.tokens)? {
            return Ok(Put::none(injected));
        }
        // `prepare` ends requests without an endpoint.
        let Some(endpoint) = endpoint else {
            return Ok(Put::none(Injected::NotHere));
        };
        let issued = self.issue(target, sandbox).await?;
        secrets.remember_all(&self.name, &issued.also_secret);
        let credential = inject::shaped(issued.credential, &self.service, endpoint)?;
        secrets.remember(&self.name, &credential);
        inject::replace(parts, &self.service, endpoint, &credential)?;
        Ok(Put {
            injected: Injected::Managed,
            to_sign: None,
            credential: Some(self.id(&credential)),
        })
    }

    fn id(&self, credential: &Credential) -> CredentialId {
        let whose = match credential {
            Credential::Basic { username, .. } => username,
            Credential::Aws { access_key_id, .. } => access_key_id,
            _ => "",
        };
        let secrets = credential.secrets().map(SecretString::expose_secret);
        let mut hasher = self.keys.build_hasher();
        for part in secrets.chain([whose]) {
            // With where it ends.
            part.hash(&mut hasher);
        }
        CredentialId(hasher.finish())
    }

    /// Whether the source gives something now that requests can go out with.
    pub(crate) async fn check(&self, sandbox: &SandboxId) -> Result<(), CredentialError> {
        let issued = self.fetch_good(sandbox, None).await?;
        let malformed = |why| CredentialError::Malformed {
            source_name: self.source.describe(),
            why,
        };
        let (mut is_of_use, mut is_other) = (false, false);
        for endpoint in &self.service.endpoints {
            match self.try_out(endpoint, &issued.credential) {
                Ok(()) => is_of_use = true,
                // Of no use here, but maybe at another endpoint.
                Err(InjectError::Kind(_)) => is_other = true,
                Err(InjectError::Pair(_)) => return Err(malformed("it must be user:password")),
                Err(InjectError::Form(_) | InjectError::Rejected(_)) => {
                    return Err(malformed("it has a form that the service's requests cannot hold"));
                }
            }
        }
        if is_other && !is_of_use {
            return Err(malformed("it is of a kind that the service does not take"));
        }
        Ok(())
    }

    /// Puts a credential into a request that goes nowhere.
    fn try_out(&self, endpoint: &Endpoint, credential: &Credential) -> Result<(), InjectError> {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        match (&endpoint.placement, credential) {
            (Placement::Issued, _) => return Ok(()),
            (Placement::SigV4 { .. }, credential) => {
                return sign::check(credential, self.service.name());
            }
            (Placement::InPlace, _) => {
                let placeholder = self.service.placeholders().first();
                if let Some(value) = placeholder.and_then(|(_, text)| HeaderValue::try_from(text).ok()) {
                    parts.headers.insert(AUTHORIZATION, value);
                }
            }
            _ => {}
        }
        let credential = inject::shaped(credential.clone(), &self.service, endpoint)?;
        inject::replace(&mut parts, &self.service, endpoint, &credential)
    }

    /// The credential of now.
    async fn issue(&self, target: (&Host, u16), sandbox: &SandboxId) -> Result<Issued, BoundError> {
        let issued = self.fetch_good(sandbox, Some(target)).await;
        issued.map_err(|cause| BoundError::Source {
            service: self.service.name().to_owned(),
            cause,
        })
    }

    /// What the source gives, unless it has ended.
    async fn fetch_good(
        &self,
        sandbox: &SandboxId,
        target: Option<(&Host, u16)>,
    ) -> Result<Issued, CredentialError> {
        let issued = self.fetch(sandbox, target).await?;
        if !issued.outlasts(SystemTime::now(), Duration::ZERO) && holds("ended-credentials") {
            return Err(CredentialError::Ended {
                source_name: self.source.describe(),
            });
        }
        Ok(issued)
    }

    /// Whether a request keeps the signature that it has: one with other keys than the placeholders.
    fn client_keeps_its_signature(&self, parts: &Parts) -> Result<bool, InjectError> {
        let is_own = || match sign::Claim::read(parts) {
            Ok(claim) => !self.service.is_placeholder(&claim.access_key_id),
            Err(error) => error != SignError::Unsigned,
        };
        match self.service.client_credential {
            ClientCredential::Pass => Ok(is_own()),
            ClientCredential::Reject if is_own() => {
                Err(InjectError::Rejected(self.service.name().to_owned()))
            }
            _ => Ok(false),
        }
    }

    async fn fetch(
        &self,
        sandbox: &SandboxId,
        target: Option<(&Host, u16)>,
    ) -> Result<Issued, CredentialError> {
        let request = CredentialRequest {
            sandbox,
            service: self.service.name(),
            target,
        };
        // Never closed, so never an error.
        let _turn = self.fetches.acquire().await.ok();
        // A panic in it is the fault of a source of the user's own, and no reason to drop the guest's stream.
        let mut fetched = pin!(self.source.fetch(&request));
        poll_fn(
            |cx| match catch_unwind(AssertUnwindSafe(|| fetched.as_mut().poll(cx))) {
                Ok(polled) => polled,
                Err(panic) if !holds("source-panics") => std::panic::resume_unwind(panic),
                Err(panic) => Poll::Ready(Err(panicked(panic.as_ref()))),
            },
        )
        .await
    }
}

/// What is said of a source that panics: not its words, which may hold the secret.
fn panicked(panic: &(dyn Any + Send)) -> CredentialError {
    let words = panic.downcast_ref::<String>().filter(|_| !holds("panic-text"));
    CredentialError::Failed {
        source_name: "the credential's source".to_owned(),
        cause: words.map_or("it panicked", String::as_str).into(),
    }
}
