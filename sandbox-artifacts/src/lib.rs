//! Kernel, agent, helper and base image on disk: find, verify by hash, build.
//!
//! Programs call [`Artifacts::locate`] and get paths; `cargo xtask artifacts` makes what they point to (feature
//! `build`). An artefact of another source tree is never used: agent and helper speak this tree's protocol.

#![forbid(unsafe_code)]

#[cfg(feature = "build")]
pub mod build;
mod error;
mod kind;
mod store;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

pub use error::ArtifactError;
pub use kind::Kind;

use store::Stored;

/// What a sandbox needs at run time; the emulated host's kernel is not among it.
const RUNTIME: [Kind; 6] = [
    Kind::KernelNormal,
    Kind::KernelInterpreted,
    Kind::Agent,
    Kind::Helper,
    Kind::BaseImage,
    Kind::LayerTemplate,
];

/// The agent's name on its disk and beside it.
const AGENT_PROGRAM: &str = "sandbox-agent";

/// Where each artefact is. All of them are of this program's own source tree.
#[derive(Clone, Debug)]
pub struct Artifacts {
    found: BTreeMap<Kind, Stored>,
}

/// Which guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFlavour {
    /// For hosts whose KVM runs ring 0 on the processor (or emulates it fully).
    Normal,
    /// For hosts whose `/dev/kvm` interprets ring 0.
    Interpreted,
}

impl Artifacts {
    /// Finds everything a sandbox is started from: in `$SANDBOX_ARTIFACTS`, else beside the program in
    /// `sandbox-artifacts/`, else in the [cache directory](cache_directory).
    ///
    /// # Errors
    /// [`ArtifactError::Missing`], [`ArtifactError::OtherBuild`] and [`ArtifactError::Damaged`] name the artefact and
    /// the command that makes it.
    pub fn locate() -> Result<Self, ArtifactError> {
        Self::locate_in(&search_directories()?)
    }

    /// The same, in the given directories; the first that has an artefact of the right build provides it.
    ///
    /// # Errors
    /// As [`Artifacts::locate`].
    pub fn locate_in(directories: &[PathBuf]) -> Result<Self, ArtifactError> {
        let mut found = BTreeMap::new();
        for kind in RUNTIME {
            found.insert(kind, search(directories, kind)?);
        }
        Ok(Self { found })
    }

    /// The ELF `vmlinux` of a guest.
    #[must_use]
    pub fn kernel(&self, flavour: KernelFlavour) -> PathBuf {
        self.path(match flavour {
            KernelFlavour::Normal => Kind::KernelNormal,
            KernelFlavour::Interpreted => Kind::KernelInterpreted,
        })
    }

    /// The agent's disk image: first disk of every guest, read-only.
    #[must_use]
    pub fn agent_image(&self) -> PathBuf {
        self.path(Kind::Agent)
    }

    /// The agent as a program, for backends without a machine: see `sandbox-agent --unix`.
    #[must_use]
    pub fn agent_program(&self) -> PathBuf {
        self.agent_image().with_file_name(AGENT_PROGRAM)
    }

    /// The VMM helper program.
    #[must_use]
    pub fn helper(&self) -> PathBuf {
        self.path(Kind::Helper)
    }

    /// The root file system: second disk of every guest, read-only and shared.
    #[must_use]
    pub fn base_image(&self) -> PathBuf {
        self.path(Kind::BaseImage)
    }

    /// The empty writable layer: sparse, so copy it with its holes. Third disk of a guest.
    #[must_use]
    pub fn layer_template(&self) -> PathBuf {
        self.path(Kind::LayerTemplate)
    }

    /// The build hash that the agent must report.
    #[must_use]
    pub fn agent_build(&self) -> &'static str {
        Kind::Agent.recipe()
    }

    /// The build hash that the helper must report.
    #[must_use]
    pub fn helper_build(&self) -> &'static str {
        Kind::Helper.recipe()
    }

    /// Reads every artefact and compares it with what was built. Takes a second or so; `locate` checks sizes only.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] names the first that differs.
    pub fn verify(&self) -> Result<(), ArtifactError> {
        self.found
            .iter()
            .try_for_each(|(kind, stored)| stored.verify(*kind))
    }

    fn path(&self, kind: Kind) -> PathBuf {
        // Every kind of RUNTIME is in the map; an empty path fails to open with a clear error.
        self.found
            .get(&kind)
            .map(|stored| stored.file(kind))
            .unwrap_or_default()
    }
}

/// Finds one artefact, for tools that need less than a whole sandbox.
///
/// # Errors
/// As [`Artifacts::locate`].
pub fn locate_one(kind: Kind) -> Result<PathBuf, ArtifactError> {
    Ok(search(&search_directories()?, kind)?.file(kind))
}

/// Where artefacts are built and looked for: `$SANDBOX_CACHE_DIR`, else `$XDG_CACHE_HOME/sandbox`, else
/// `~/.cache/sandbox`.
///
/// # Errors
/// [`ArtifactError::NoCacheDirectory`] when none of these variables says, [`ArtifactError::RelativePath`] when the first
/// is not absolute.
pub fn cache_directory() -> Result<PathBuf, ArtifactError> {
    cache_directory_of(env::var_os)
}

fn cache_directory_of(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<PathBuf, ArtifactError> {
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    explicit("SANDBOX_CACHE_DIR", &variable)?
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("sandbox")))
        .or_else(|| Some(absolute("HOME")?.join(".cache/sandbox")))
        .ok_or(ArtifactError::NoCacheDirectory)
}

/// The directory that a variable of ours names.
fn explicit(
    name: &'static str,
    variable: impl Fn(&'static str) -> Option<OsString>,
) -> Result<Option<PathBuf>, ArtifactError> {
    match variable(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
    {
        Some(path) if path.is_relative() => Err(ArtifactError::RelativePath { variable: name }),
        path => Ok(path),
    }
}

fn search_directories() -> Result<Vec<PathBuf>, ArtifactError> {
    if let Some(explicit) = explicit("SANDBOX_ARTIFACTS", env::var_os)? {
        return Ok(vec![explicit]);
    }
    let beside = env::current_exe().ok();
    let beside = beside
        .as_deref()
        .and_then(Path::parent)
        .map(|folder| folder.join("sandbox-artifacts"));
    Ok(beside.into_iter().chain([cache_directory()?]).collect())
}

fn search(directories: &[PathBuf], kind: Kind) -> Result<Stored, ArtifactError> {
    let mut other = None;
    for directory in directories {
        match store::find(directory, kind) {
            Ok(Some(stored)) => return Ok(stored),
            Ok(None) => {}
            Err(error) => other = other.or(Some(error)),
        }
    }
    Err(other.unwrap_or_else(|| ArtifactError::Missing {
        kind,
        searched: directories.to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_environment_are_absolute_or_none() {
        let of = |set: &[(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(other, _)| *other == name);
            cache_directory_of(|name| found(name).map(|(_, value)| value.into()))
        };
        let is = |set: &[(&str, &str)], path: &str| assert_eq!(of(set).unwrap(), Path::new(path));
        is(&[("SANDBOX_CACHE_DIR", "/c"), ("HOME", "/h")], "/c");
        is(
            &[("SANDBOX_CACHE_DIR", ""), ("XDG_CACHE_HOME", "/x")],
            "/x/sandbox",
        );
        is(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")], "/h/.cache/sandbox");
        for nowhere in [&[][..], &[("HOME", "")], &[("HOME", "h"), ("XDG_CACHE_HOME", "")]] {
            assert!(matches!(of(nowhere), Err(ArtifactError::NoCacheDirectory)));
        }
        let relative = of(&[("SANDBOX_CACHE_DIR", "c"), ("HOME", "/h")]);
        assert!(matches!(
            relative,
            Err(ArtifactError::RelativePath {
                variable: "SANDBOX_CACHE_DIR"
            })
        ));
    }
}
