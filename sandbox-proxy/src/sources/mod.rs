//! Where credentials come from. Each source reads anew for every request, so a rotated key acts at once; what has an end
//! and is dear to get (tokens, keys of a role) is kept until shortly before it.

mod aws;
mod command;
mod env;
mod file;
mod first_of;
mod fixed;
mod http;
mod kept;
#[cfg(feature = "keyring")]
mod keychain;
mod oauth;
mod shared;

pub use aws::Aws;
pub use command::Command;
pub use env::Env;
pub use file::File;
pub use first_of::FirstOf;
pub use fixed::Static;
pub use kept::Kept;
#[cfg(feature = "keyring")]
pub use keychain::{Keychain, KeychainError};
pub use oauth::{OAuth2, OAuthError};

use sandbox_core::credential::{CredentialError, Issued, SecretString};
use zeroize::Zeroizing;

/// Protects headers from a file or command that holds something else; the longest tokens have a few KiB.
const MAX_SECRET_BYTES: usize = 16 << 10;

/// Checks what a source holds: one line of text. A line break at its end is left out.
fn issue(source_name: String, text: Zeroizing<Vec<u8>>) -> Result<Issued, CredentialError> {
    let malformed = |why| CredentialError::Malformed {
        source_name: source_name.clone(),
        why,
    };
    if text.len() > MAX_SECRET_BYTES {
        return Err(malformed("it is longer than 16 KiB"));
    }
    let text = std::str::from_utf8(&text).map_err(|_| malformed("it is not UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(malformed("it is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(malformed("it has a line break or control character inside"));
    }
    Ok(Issued::token(SecretString::from(text)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use sandbox_core::credential::{Credential, CredentialRequest, CredentialSource, ExposeSecret};

    use super::*;

    /// What a source gives, as tests of all sources ask for it.
    pub(super) async fn fetch(source: &dyn CredentialSource) -> Result<String, CredentialError> {
        let sandbox = "one".parse().unwrap();
        let request = CredentialRequest {
            sandbox: &sandbox,
            service: "x",
            target: None,
        };
        match source.fetch(&request).await?.credential {
            Credential::Token(secret) => Ok(secret.expose_secret().to_owned()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn file_is_read_anew_and_trimmed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "first").unwrap();
        let source = File::new(file.path());
        assert_eq!(fetch(&source).await.unwrap(), "first");
        std::fs::write(file.path(), "second\r\n").unwrap();
        assert_eq!(fetch(&source).await.unwrap(), "second");
        for bad in ["", "\n", "two\nlines\n", "esc\u{1b}"] {
            std::fs::write(file.path(), bad).unwrap();
            let error = fetch(&source).await.unwrap_err();
            assert!(
                matches!(error, CredentialError::Malformed { .. }),
                "{bad:?} {error}"
            );
        }
        std::fs::write(file.path(), vec![b'x'; MAX_SECRET_BYTES + 1]).unwrap();
        assert!(matches!(
            fetch(&source).await,
            Err(CredentialError::Malformed { .. })
        ));
    }

    #[tokio::test]
    async fn missing_sources_are_named() {
        let error = fetch(&File::new("/nonexistent/key")).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/key"), "{error}");
        let error = fetch(&Env::new("SANDBOX_TEST_NOT_SET")).await.unwrap_err();
        assert!(error.to_string().contains("SANDBOX_TEST_NOT_SET"), "{error}");
        let error = fetch(&Command::new("/nonexistent/tool")).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/tool"), "{error}");
    }

    #[tokio::test]
    async fn command_gives_its_output_and_is_cached_as_asked() {
        let source = Command::new("sh").args(["-c", "echo key-$$"]);
        let first = fetch(&source).await.unwrap();
        assert_ne!(first, fetch(&source).await.unwrap());
        let source = source.cached(std::time::Duration::from_secs(3600));
        assert_eq!(fetch(&source).await.unwrap(), fetch(&source).await.unwrap());
        let failing = Command::new("sh").args(["-c", "echo hush >&2; echo secret; exit 3"]);
        let error = fetch(&failing).await.unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        assert!(!format!("{error:?}").contains("secret\\n"), "{error:?}");
    }

    #[tokio::test]
    async fn no_secret_in_debug() {
        let source = Static::new("very-secret-value");
        assert_eq!(fetch(&source).await.unwrap(), "very-secret-value");
        assert!(!format!("{source:?} {}", source.describe()).contains("very-secret"));
    }
}
