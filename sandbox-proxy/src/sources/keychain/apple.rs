//! The Keychain of macOS.

use apple_native_keyring_store::keychain::Store;
use keyring_core::Error;
use keyring_core::api::CredentialStoreApi;
use zeroize::Zeroizing;

use super::KeychainError;

/// The entry of this service and user, if there is one.
pub(super) async fn read(service: String, user: String) -> Result<Option<Zeroizing<Vec<u8>>>, KeychainError> {
    let read = tokio::task::spawn_blocking(move || {
        let entry = Store::new()?.build(&service, &user, None)?;
        entry.get_secret().map(Zeroizing::new)
    })
    .await;
    match read {
        Ok(Ok(text)) => Ok(Some(text)),
        Ok(Err(Error::NoEntry)) => Ok(None),
        Ok(Err(Error::NoStorageAccess(_) | Error::PlatformFailure(_))) => Err(KeychainError::Locked),
        Ok(Err(Error::Ambiguous(_))) => Err(KeychainError::Ambiguous),
        Ok(Err(_)) | Err(_) => Err(KeychainError::Other),
    }
}
