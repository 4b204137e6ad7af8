//! Paths inside the guest.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// An absolute path in the guest without `.`, `..`, doubled slashes or NUL; not `/` itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPath(PathBuf);

impl GuestPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for GuestPath {
    type Error = InvalidGuestPath;

    fn try_from(path: PathBuf) -> Result<Self, InvalidGuestPath> {
        let mut parts = path.components();
        let absolute = parts.next() == Some(Component::RootDir);
        let plain = parts.clone().count() > 0 && parts.all(|part| matches!(part, Component::Normal(_)));
        let nul = path.as_os_str().as_encoded_bytes().contains(&0);
        if !absolute || !plain || nul {
            return Err(InvalidGuestPath { path });
        }
        // `components` has dropped `//` and `/./`; collect to store the normal form.
        Ok(Self(path.components().collect()))
    }
}

impl AsRef<Path> for GuestPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A path that names no place in a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path:?} is not a path in the guest: give an absolute one without '..', for instance /home/me/project"
)]
pub struct InvalidGuestPath {
    /// What was given.
    pub path: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_normal() {
        let path = GuestPath::try_from(PathBuf::from("/home//me/./project/")).unwrap();
        assert_eq!(path.as_path().as_os_str(), "/home/me/project");
        for bad in ["", "/", "a/b", "/a/../b", "../a", "/a\0b"] {
            assert!(GuestPath::try_from(PathBuf::from(bad)).is_err(), "{bad:?}");
        }
    }
}
