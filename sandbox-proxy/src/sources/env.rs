//! A credential in an environment variable of the host process.

use std::os::unix::ffi::OsStringExt;

use async_trait::async_trait;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use zeroize::Zeroizing;

use super::issue;

/// An environment variable of the process that runs the proxy, read for each request.
#[derive(Debug, Clone)]
pub struct Env {
    variable: String,
}

impl Env {
    /// The variable of this name.
    pub fn new(variable: impl Into<String>) -> Self {
        Self {
            variable: variable.into(),
        }
    }
}

#[async_trait]
impl CredentialSource for Env {
    fn describe(&self) -> String {
        format!("environment variable {}", self.variable)
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        // `var_os` panics on names that no variable can have.
        let possible = !self.variable.is_empty() && !self.variable.contains(['=', '\0']);
        let value = possible.then(|| std::env::var_os(&self.variable)).flatten();
        let value = value.ok_or_else(|| CredentialError::NotFound {
            source_name: self.describe(),
        })?;
        issue(self.describe(), Zeroizing::new(value.into_vec()))
    }
}
