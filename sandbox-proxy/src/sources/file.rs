//! A credential in a file of the host.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use zeroize::Zeroizing;

use super::shared::Shared;
use super::{MAX_SECRET_BYTES, issue};

/// A file of the host that holds one line, read for each request. Requests that wait at the same time share a read
/// that began after they came: a guest that makes many takes one descriptor of the host.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl File {
    /// The file at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            shared: Arc::default(),
        }
    }

    async fn read(&self) -> Result<Issued, CredentialError> {
        let path = self.path.clone();
        let read = move || {
            // Room for one byte more than is taken, so that nothing is left behind by growing.
            let mut text = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
            let limit = u64::try_from(MAX_SECRET_BYTES + 1).unwrap_or(u64::MAX);
            std::fs::File::open(path)?.take(limit).read_to_end(&mut text)?;
            Ok::<_, io::Error>(text)
        };
        let text = match tokio::task::spawn_blocking(read).await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CredentialError::NotFound {
                    source_name: self.describe(),
                });
            }
            Ok(Err(error)) => {
                return Err(CredentialError::Failed {
                    source_name: self.describe(),
                    cause: error.into(),
                });
            }
            Err(error) => {
                return Err(CredentialError::Failed {
                    source_name: self.describe(),
                    cause: error.into(),
                });
            }
        };
        issue(self.describe(), text)
    }
}

#[async_trait]
impl CredentialSource for File {
    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        self.shared
            .fetch(Duration::ZERO, self.read(), || self.describe())
            .await
    }
}
