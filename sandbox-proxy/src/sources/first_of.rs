//! Several sources, of which the first that has something counts.

use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};

use super::Env;
use crate::defence;

/// Sources in order: the first that has something gives the credential. One that has something and cannot give it (a
/// file that may not be read, a token that has ended) is an error, and the next is not asked: a key is never silently
/// replaced by another.
#[derive(Debug, Clone)]
pub struct FirstOf {
    sources: Vec<Arc<dyn CredentialSource>>,
}

impl FirstOf {
    /// Asks this source first; add others with [`or`](Self::or).
    pub fn new(source: impl CredentialSource + 'static) -> Self {
        Self {
            sources: vec![Arc::new(source)],
        }
    }

    /// Asks this source if all before it have nothing.
    #[must_use]
    pub fn or(mut self, source: impl CredentialSource + 'static) -> Self {
        self.sources.push(Arc::new(source));
        self
    }

    /// What is stored (a keychain, a file), and the environment variable if nothing is: a key that somebody took care
    /// to store is not overridden by what a shell happens to have.
    ///
    /// ```
    /// use sandbox_proxy::sources::{File, FirstOf};
    /// let source = FirstOf::stored_beats_environment(File::new("/run/secrets/openai"), "OPENAI_API_KEY");
    /// ```
    pub fn stored_beats_environment(
        stored: impl CredentialSource + 'static,
        variable: impl Into<String>,
    ) -> Self {
        Self::new(stored).or(Env::new(variable))
    }
}

#[async_trait]
impl CredentialSource for FirstOf {
    fn describe(&self) -> String {
        let all: Vec<_> = self.sources.iter().map(|source| source.describe()).collect();
        all.join(", or else ")
    }

    async fn fetch(&self, request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        for source in &self.sources {
            match source.fetch(request).await {
                Err(CredentialError::NotFound { .. }) => {}
                Err(_) if !defence::holds("first-of-stops-at-errors") => {}
                other => return other,
            }
        }
        Err(CredentialError::NotFound {
            source_name: self.describe(),
        })
    }
}
