//! A credential in a file of the host.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::fs::OFlags;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use zeroize::Zeroizing;

use super::shared::{Keep, Shared};
use super::{MAX_SECRET_BYTES, issue};
use crate::defence;

/// A file of the host that holds one line, read for each request. Requests that wait at the same time share a read
/// that began after they came: a guest that makes many takes one descriptor and one thread of the host, also where a
/// disk hangs.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl File {
    /// The file at this path. Pipes and devices are refused: they would block.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            shared: Arc::default(),
        }
    }
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
#[error("it is no regular file")]
struct NotRegular;

/// Reads a regular file up to one byte more than `limit`. Blocks on no pipe.
pub(super) fn read_regular(path: &Path, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() && defence::holds("source-regular-files") {
        return Err(io::Error::other(NotRegular));
    }
    // Room for one byte more than is taken, so that nothing is left behind by growing.
    let expected = usize::try_from(metadata.len()).unwrap_or(limit);
    let mut text = Zeroizing::new(Vec::with_capacity(expected.min(limit) + 64));
    let bound = u64::try_from(limit.saturating_add(1)).unwrap_or(u64::MAX);
    file.take(bound).read_to_end(&mut text)?;
    Ok(text)
}

/// The same away from the threads that others wait for. `None` where there is no such file.
pub(super) async fn read(
    path: PathBuf,
    limit: usize,
    describe: impl Fn() -> String,
) -> Result<Option<Zeroizing<Vec<u8>>>, CredentialError> {
    let failed = |cause: Box<dyn std::error::Error + Send + Sync>| CredentialError::Failed {
        source_name: describe(),
        cause,
    };
    match tokio::task::spawn_blocking(move || read_regular(&path, limit)).await {
        Ok(Ok(text)) => Ok(Some(text)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Ok(Err(error)) => Err(failed(error.into())),
        Err(error) => Err(failed(error.into())),
    }
}

#[async_trait]
impl CredentialSource for File {
    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let (path, described) = (self.path.clone(), self.describe());
        let run = || async move {
            match read(path, MAX_SECRET_BYTES, || described.clone()).await? {
                Some(text) => issue(described, text),
                None => Err(CredentialError::NotFound {
                    source_name: described,
                }),
            }
        };
        self.shared
            .fetch_whole(Keep::default(), run, || self.describe())
            .await
    }
}
