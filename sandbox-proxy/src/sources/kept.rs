//! A source's credential, kept until shortly before its end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};

use super::shared::{Keep, Shared};

/// So long before its end a credential is no longer used: it has to arrive, and clocks differ.
pub(super) const MARGIN: Duration = Duration::from_secs(60);

/// Keeps what another source gives until a minute before it ends, for sources that are slow or dear and say when their
/// credential [expires](Issued::expires). What has no known end is not kept, so that a changed key acts on the next
/// request. For sources that give the same whatever the request is.
#[derive(Debug, Clone)]
pub struct Kept<S> {
    source: S,
    shared: Arc<Shared>,
}

impl<S> Kept<S> {
    /// Keeps what this source gives.
    pub fn new(source: S) -> Self {
        Self {
            source,
            shared: Arc::default(),
        }
    }
}

#[async_trait]
impl<S: CredentialSource> CredentialSource for Kept<S> {
    fn describe(&self) -> String {
        self.source.describe()
    }

    async fn fetch(&self, request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let keep = Keep {
            to_its_end: true,
            margin: MARGIN,
            ..Keep::default()
        };
        self.shared
            .fetch(keep, self.source.fetch(request), || self.describe())
            .await
    }
}
