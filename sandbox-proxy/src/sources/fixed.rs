//! A credential that the program holds already.

use async_trait::async_trait;
use sandbox_core::credential::{
    CredentialError, CredentialRequest, CredentialSource, ExposeSecret, Issued, SecretString,
};
use zeroize::Zeroizing;

use super::issue;

/// A value given by the program.
#[derive(Debug, Clone)]
pub struct Static {
    value: SecretString,
}

impl Static {
    /// This value.
    pub fn new(value: impl Into<SecretString>) -> Self {
        Self { value: value.into() }
    }
}

#[async_trait]
impl CredentialSource for Static {
    fn describe(&self) -> String {
        "value given by the program".to_owned()
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let bytes = self.value.expose_secret().as_bytes().to_vec();
        issue(self.describe(), Zeroizing::new(bytes))
    }
}
