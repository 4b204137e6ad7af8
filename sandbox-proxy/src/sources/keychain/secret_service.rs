//! The Secret Service of a Linux desktop (freedesktop.org, draft 0.2), as gnome-keyring, KWallet and KeePassXC have it.

use std::collections::HashMap;
use std::time::Duration;

use secret_service::{EncryptionType, Error, SecretService};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use zbus::Connection;
use zeroize::Zeroizing;

use super::{KeychainError, in_time};
use crate::defence;

/// Protects requests from a service that hangs; one that the bus has to start first takes a second or two.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// What the bus answers where it knows of no service; there are more below.
const NOT_STARTED: [&str; 2] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
];

/// Below this it answers why it could not start one.
const SPAWN: &str = "org.freedesktop.DBus.Error.Spawn.";

/// What a service answers that was locked meanwhile.
const LOCKED: &str = "org.freedesktop.Secret.Error.IsLocked";

/// The entry of this service and user, if there is one.
pub(super) async fn read(service: String, user: String) -> Result<Option<Zeroizing<Vec<u8>>>, KeychainError> {
    // Whoever waits holds one end. Without it the thread ends, too: a runtime that ends waits for its threads.
    let (_waiting, gone) = oneshot::channel::<()>();
    let runtime = Handle::current();
    // A thread: the exchange of keys computes for some milliseconds.
    let read = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = gone, if defence::holds("keychain-thread-ends") => Err(KeychainError::TooSlow),
                read = look_up(&service, &user) => read,
            }
        })
    });
    in_time(read, READ_LIMIT).await?
}

async fn look_up(service: &str, user: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeychainError> {
    let bus = Connection::session()
        .await
        .map_err(|_| KeychainError::NoSession)?;
    // Encrypted, so that messages, which nobody wipes, do not hold the entry.
    let keychain = SecretService::connect_with_existing(EncryptionType::Dh, bus)
        .await
        .map_err(why)?;
    let attributes = HashMap::from([("service", service), ("username", user)]);
    let found = keychain.search_items(attributes).await.map_err(why)?;
    match (&found.unlocked[..], &found.locked[..]) {
        ([entry], []) => Ok(Some(Zeroizing::new(entry.get_secret().await.map_err(why)?))),
        ([], [entry]) => {
            if !defence::holds("keychain-asks-nobody") {
                entry.unlock().await.map_err(why)?;
            }
            Err(KeychainError::Locked)
        }
        // Some services know nothing of what is in a locked collection.
        ([], []) => match keychain.get_default_collection().await {
            Ok(entries) if entries.is_locked().await.map_err(why)? => Err(KeychainError::Locked),
            Ok(_) | Err(Error::NoResult) => Ok(None),
            Err(error) => Err(why(error)),
        },
        _ => Err(KeychainError::Ambiguous),
    }
}

fn why(error: Error) -> KeychainError {
    match error {
        Error::Zbus(zbus::Error::MethodError(name, ..)) if name == LOCKED => KeychainError::Locked,
        Error::Locked | Error::Prompt | Error::PromptDisconnected => KeychainError::Locked,
        Error::Unavailable => KeychainError::NoService,
        Error::Zbus(zbus::Error::MethodError(name, ..))
            if NOT_STARTED.contains(&name.as_str()) || name.starts_with(SPAWN) =>
        {
            KeychainError::NoService
        }
        _ => KeychainError::Other,
    }
}
