//! The name of one sandbox, in logs, audit records and its hostname.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 1 to 63 of `a-z`, `0-9` and `-`, not starting or ending with `-`: valid as a host name label (RFC 1123 §2.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SandboxId {
    type Error = InvalidId;

    fn try_from(name: String) -> Result<Self, InvalidId> {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let valid = (1..=63).contains(&name.len())
            && name.bytes().all(ok)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if valid {
            Ok(Self(name))
        } else {
            Err(InvalidId { name })
        }
    }
}

impl std::str::FromStr for SandboxId {
    type Err = InvalidId;

    fn from_str(name: &str) -> Result<Self, InvalidId> {
        Self::try_from(name.to_owned())
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that cannot be a sandbox's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot name a sandbox: use 1 to 63 of a-z, 0-9 and '-', with '-' neither first nor last")]
pub struct InvalidId {
    /// What was given.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_name_labels_name_a_sandbox() {
        assert!("agent-7".parse::<SandboxId>().is_ok());
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
        }
    }
}
