//! A credential in the keychain of whoever runs the program: the Secret Service of a Linux desktop, the Keychain of
//! macOS.

#[cfg(target_os = "macos")]
mod apple;
#[cfg(target_os = "linux")]
mod secret_service;

use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};

#[cfg(target_os = "macos")]
use self::apple as platform;
#[cfg(target_os = "linux")]
use self::secret_service as platform;
use super::issue;
use super::shared::{Keep, Shared, cause};

/// An entry of the keychain, read for each request; requests that wait at the same time share a read.
///
/// Entries are made with `secret-tool store --label "…" service SERVICE username USER` on Linux, with `security
/// add-generic-password -s SERVICE -a USER -w` on macOS, or by any program that uses the crate `keyring`. A keychain
/// that cannot be read (locked, or no desktop session) is an error and not an empty one; [`KeychainError`] says which.
///
/// On Linux nobody is ever asked for a password: a sandbox's requests must not put dialogs on your screen. macOS asks
/// whether this program may read an entry that another one made.
#[derive(Debug, Clone)]
pub struct Keychain {
    service: String,
    user: String,
    shared: Arc<Shared>,
}

/// Why a keychain was not read. The [source](std::error::Error::source) of a [`CredentialError::Failed`]; says nothing
/// of what the keychain's own error says, which may hold the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeychainError {
    /// It is locked, or closed to this program.
    #[error("the keychain is locked: unlock it, for instance in the desktop's password manager")]
    Locked,
    /// There is no session bus (Linux).
    #[error(
        "there is no session bus: run this program in the desktop session that the keychain belongs to, or set \
         DBUS_SESSION_BUS_ADDRESS to its bus"
    )]
    NoSession,
    /// Nothing in the session keeps secrets (Linux).
    #[error("this session has no keychain: start a Secret Service, for instance gnome-keyring")]
    NoService,
    /// It did not answer in time.
    #[error("the keychain does not answer: see whether it waits for you, or start it anew")]
    TooSlow,
    /// Several entries have this service and user.
    #[error("several entries of the keychain have this service and user: delete all but one")]
    Ambiguous,
    /// There is none on this platform.
    #[error("there is no keychain on this platform: use another source")]
    Unsupported,
    /// It failed.
    #[error("the keychain failed: its own log may say why")]
    Other,
}

impl KeychainError {
    /// The one that an error of [`Keychain`] holds, if it holds one.
    pub fn of(error: &CredentialError) -> Option<&Self> {
        cause(error)
    }
}

impl Keychain {
    /// The entry of this service and user.
    pub fn new(service: impl Into<String>, user: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            user: user.into(),
            shared: Arc::default(),
        }
    }
}

/// What a thread that reads says, if it does in time.
#[cfg(any(target_os = "linux", target_os = "macos"))]
async fn in_time<T>(
    read: tokio::task::JoinHandle<T>,
    limit: std::time::Duration,
) -> Result<T, KeychainError> {
    let read = if crate::defence::holds("keychain-time-limit") {
        let in_time = tokio::time::timeout(limit, read).await;
        in_time.map_err(|_| KeychainError::TooSlow)?
    } else {
        read.await
    };
    read.map_err(|_| KeychainError::Other)
}

#[async_trait]
impl CredentialSource for Keychain {
    fn describe(&self) -> String {
        format!("keychain entry {} of {}", self.service, self.user)
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let run = || {
            let (service, user, source_name) = (self.service.clone(), self.user.clone(), self.describe());
            async move {
                match platform::read(service, user).await {
                    Ok(Some(text)) => issue(source_name, text),
                    Ok(None) => Err(CredentialError::NotFound { source_name }),
                    Err(error) => Err(CredentialError::Failed {
                        source_name,
                        cause: error.into(),
                    }),
                }
            }
        };
        self.shared
            .fetch_whole(Keep::default(), run, || self.describe())
            .await
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod platform {
    use zeroize::Zeroizing;

    use super::KeychainError;

    pub(super) async fn read(_: String, _: String) -> Result<Option<Zeroizing<Vec<u8>>>, KeychainError> {
        Err(KeychainError::Unsupported)
    }
}
