//! A credential in the keychain of whoever runs the program: the Secret Service of a Linux desktop, the Keychain of
//! macOS.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use keyring_core::Error;
use keyring_core::api::CredentialStore;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use zeroize::Zeroizing;

use super::issue;
use super::shared::{Keep, Shared};

/// An entry of the keychain, read for each request; requests that wait at the same time share a read.
///
/// Entries are made with `secret-tool store --label "…" service SERVICE username USER` on Linux, with `security
/// add-generic-password -s SERVICE -a USER -w` on macOS, or by any program that uses the crate `keyring`. A keychain
/// that cannot be opened (locked, or no desktop session) is an error and not an empty one.
#[derive(Clone)]
pub struct Keychain {
    service: String,
    user: String,
    open: fn() -> keyring_core::Result<Arc<CredentialStore>>,
    shared: Arc<Shared>,
}

/// Why a keychain was not read. What its error says may hold the entry.
#[derive(Debug, thiserror::Error)]
enum KeychainFailed {
    #[error("it could not be opened: unlock it, and run this program in the session that it belongs to")]
    Closed,
    #[error("several entries have this service and user")]
    Ambiguous,
    #[error("there is none on this platform")]
    Unsupported,
    #[error("it failed")]
    Other,
}

impl Keychain {
    /// The entry of this service and user.
    pub fn new(service: impl Into<String>, user: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            user: user.into(),
            open: platform,
            shared: Arc::default(),
        }
    }
}

impl fmt::Debug for Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keychain")
            .field("service", &self.service)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(target_os = "linux")]
fn platform() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(zbus_secret_service_keyring_store::Store::new()?)
}

#[cfg(target_os = "macos")]
fn platform() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(apple_native_keyring_store::keychain::Store::new()?)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn platform() -> keyring_core::Result<Arc<CredentialStore>> {
    Err(Error::NoDefaultStore)
}

#[async_trait]
impl CredentialSource for Keychain {
    fn describe(&self) -> String {
        format!("keychain entry {} of {}", self.service, self.user)
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let (source, described) = (self.clone(), self.describe());
        let run = || async move {
            let read = move || {
                let entry = (source.open)()?.build(&source.service, &source.user, None)?;
                entry.get_secret().map(Zeroizing::new)
            };
            let failed = |cause: KeychainFailed| CredentialError::Failed {
                source_name: described.clone(),
                cause: cause.into(),
            };
            match tokio::task::spawn_blocking(read).await {
                Ok(Ok(text)) => issue(described, text),
                Ok(Err(Error::NoEntry)) => Err(CredentialError::NotFound {
                    source_name: described,
                }),
                Ok(Err(Error::NoStorageAccess(_) | Error::PlatformFailure(_))) => {
                    Err(failed(KeychainFailed::Closed))
                }
                Ok(Err(Error::Ambiguous(_))) => Err(failed(KeychainFailed::Ambiguous)),
                Ok(Err(Error::NoDefaultStore)) => Err(failed(KeychainFailed::Unsupported)),
                Ok(Err(_)) | Err(_) => Err(failed(KeychainFailed::Other)),
            }
        };
        self.shared
            .fetch_whole(Keep::default(), run, || self.describe())
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::super::FirstOf;
    use super::super::tests::fetch;
    use super::*;

    /// A keychain in memory.
    fn memory() -> keyring_core::Result<Arc<CredentialStore>> {
        static STORE: OnceLock<Arc<CredentialStore>> = OnceLock::new();
        if let Some(store) = STORE.get() {
            return Ok(Arc::clone(store));
        }
        let new = keyring_core::mock::Store::new()?;
        Ok(Arc::clone(STORE.get_or_init(|| new)))
    }

    #[tokio::test]
    async fn entries_are_read_anew_and_beat_the_environment() {
        let keychain = Keychain {
            open: memory,
            ..Keychain::new("api", "me")
        };
        // A variable that every process has.
        let source = FirstOf::stored_beats_environment(keychain, "PATH");
        assert_eq!(fetch(&source).await.unwrap(), std::env::var("PATH").unwrap());
        let entry = memory().unwrap().build("api", "me", None).unwrap();
        entry.set_password("stored").unwrap();
        assert_eq!(fetch(&source).await.unwrap(), "stored");
        entry.set_password("rotated").unwrap();
        assert_eq!(fetch(&source).await.unwrap(), "rotated");
    }

    #[tokio::test]
    async fn keychain_that_cannot_be_opened_is_no_empty_one() {
        let keychain = Keychain {
            open: || Err(Error::NoDefaultStore),
            ..Keychain::new("api", "me")
        };
        let source = FirstOf::stored_beats_environment(keychain, "PATH");
        let error = fetch(&source).await.unwrap_err();
        assert!(matches!(error, CredentialError::Failed { .. }), "{error:?}");
    }
}
