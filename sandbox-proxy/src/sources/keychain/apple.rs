//! The Keychain of macOS.

use std::time::Duration;

use apple_native_keyring_store::keychain::Store;
use keyring_core::Error;
use keyring_core::api::CredentialStoreApi;
use zeroize::Zeroizing;

use super::{KeychainError, in_time};

/// Protects requests from a question that nobody answers; time enough for somebody who is there.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// The entry of this service and user, if there is one.
pub(super) async fn read(service: String, user: String) -> Result<Option<Zeroizing<Vec<u8>>>, KeychainError> {
    let read = tokio::task::spawn_blocking(move || {
        let entry = Store::new()?.build(&service, &user, None)?;
        entry.get_secret().map(Zeroizing::new)
    });
    match in_time(read, READ_LIMIT).await? {
        Ok(text) => Ok(Some(text)),
        Err(Error::NoEntry) => Ok(None),
        Err(Error::NoStorageAccess(_) | Error::PlatformFailure(_)) => Err(KeychainError::Locked),
        Err(Error::Ambiguous(_)) => Err(KeychainError::Ambiguous),
        Err(_) => Err(KeychainError::Other),
    }
}
