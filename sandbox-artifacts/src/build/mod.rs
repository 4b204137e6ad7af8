//! Makes the artefacts: each under a lock, in a folder of its own that gets its name when whole.
//!
//! A second call finds what the first made and does no work. Whoever dies while building leaves a folder that the
//! next builder of the same kind removes.

mod base;
mod kernel;
mod layer;
mod packages;
mod programs;
mod step;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::{
    ArtifactError, Kind, cache_directory,
    store::{self, MANIFEST, Manifest, Stored, hex},
};

pub use packages::ensure_installed;

/// Artefacts of one kind that are kept: this tree's, and those of branches one goes back to.
const KEPT_PER_KIND: usize = 3;

/// A disk with less than this is full for every artefact, so a step that failed on it failed for that.
const FULL_BYTES: u64 = 1 << 20;

/// Told what happens while something is built, which takes minutes for a kernel.
pub trait Progress {
    /// Work begins; `what` reads like "building the guest kernel".
    fn begin(&self, what: &str);
    /// The newest line of output of the program that works; not every line is worth showing.
    fn line(&self, line: &str);
    /// Work on `what` ended well.
    fn done(&self, what: &str);
}

/// Builds artefacts into a cache directory.
pub struct Builder<'a> {
    source: PathBuf,
    cache: PathBuf,
    progress: &'a dyn Progress,
}

impl<'a> Builder<'a> {
    /// A builder from the source tree that this program was compiled in, into the user's cache directory.
    ///
    /// # Errors
    /// [`ArtifactError::NoCacheDirectory`].
    pub fn new(progress: &'a dyn Progress) -> Result<Self, ArtifactError> {
        Ok(Self {
            source: env!("SANDBOX_WORKSPACE").into(),
            cache: cache_directory()?,
            progress,
        })
    }

    /// Builds into another directory.
    #[must_use]
    pub fn into_directory(mut self, cache: PathBuf) -> Self {
        self.cache = cache;
        self
    }

    /// Makes sure that every kind of `kinds` is there, installing the Debian packages that the missing ones need.
    ///
    /// # Errors
    /// Any [`ArtifactError`] of a step; what was whole before stays.
    pub fn ensure_all(&self, kinds: &[Kind]) -> Result<(), ArtifactError> {
        let mut missing = Vec::new();
        for kind in kinds {
            // Damaged or of another build: both are answered by building.
            if !matches!(store::find(&self.cache, *kind), Ok(Some(_))) {
                missing.push(*kind);
            }
        }
        let mut needed: Vec<&str> = missing
            .iter()
            .flat_map(|kind| packages::needed(*kind))
            .copied()
            .collect();
        needed.sort_unstable();
        needed.dedup();
        ensure_installed(&needed, self.progress)?;
        missing
            .into_iter()
            .try_for_each(|kind| self.ensure(kind).map(drop))
    }

    /// Makes sure that `kind` is there and says where its file is.
    ///
    /// # Errors
    /// Any [`ArtifactError`] of a step; nothing half-made is left.
    pub fn ensure(&self, kind: Kind) -> Result<PathBuf, ArtifactError> {
        if let Ok(Some(stored)) = store::find(&self.cache, kind) {
            return Ok(stored.file(kind));
        }
        let host_inputs = match kind {
            Kind::KernelNormal | Kind::KernelInterpreted | Kind::KernelHost => kernel::source_version()?,
            _ => String::new(),
        };
        self.make(kind, host_inputs, |folder| match kind {
            Kind::KernelNormal => kernel::build(self, folder, "normal", &[]),
            Kind::KernelInterpreted => kernel::build(
                self,
                folder,
                "interpreted",
                &["emulated-ring0.patch", "interpreted-boot.patch"],
            ),
            Kind::KernelHost => kernel::build(self, folder, "host", &[]),
            Kind::Agent => programs::agent(self, folder),
            Kind::Helper => programs::helper(self, folder),
            Kind::BaseImage => base::build(self, folder),
            Kind::LayerTemplate => layer::build(self, folder),
        })
    }

    /// Runs `build` in a new folder under the kind's lock, and gives the folder its name when all is on disk.
    fn make(
        &self,
        kind: Kind,
        host_inputs: String,
        build: impl FnOnce(&Path) -> Result<(), ArtifactError>,
    ) -> Result<PathBuf, ArtifactError> {
        fs::create_dir_all(&self.cache).map_err(ArtifactError::io("create", &self.cache))?;
        let _lock = self.lock(kind)?;
        // Another builder may have made it while we waited.
        if let Ok(Some(stored)) = store::find(&self.cache, kind) {
            return Ok(stored.file(kind));
        }
        let what = format!("building the {kind}");
        self.progress.begin(&what);
        let scratch = Scratch::new(&self.cache, kind)?;
        build(&scratch.0).map_err(|error| self.full_disk(kind, error))?;
        let directory = self.finish(kind, host_inputs, &scratch)?;
        self.remove_old(kind);
        self.progress.done(&what);
        Ok(directory.join(kind.file_name()))
    }

    fn finish(&self, kind: Kind, host_inputs: String, scratch: &Scratch) -> Result<PathBuf, ArtifactError> {
        let file = scratch.0.join(kind.file_name());
        let written = File::open(&file).map_err(ArtifactError::io("open", &file))?;
        written.sync_all().map_err(ArtifactError::io("write", &file))?;
        let manifest = Manifest {
            kind: kind.name().into(),
            recipe: kind.recipe().into(),
            size: written
                .metadata()
                .map_err(ArtifactError::io("read", &file))?
                .len(),
            sha256: store::content_hash(&file).map_err(ArtifactError::io("read", &file))?,
            built: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            host_inputs,
        };
        write_manifest(&scratch.0.join(MANIFEST), &manifest)?;

        let inputs = Sha256::digest(format!("{}\n{}", manifest.recipe, manifest.host_inputs));
        let name = format!("{}-{}", kind.name(), &hex(&inputs)[..16]);
        let directory = self.cache.join(name);
        if directory.exists() {
            // Only a damaged one can be in the way: `find` did not accept it.
            fs::remove_dir_all(&directory).map_err(ArtifactError::io("remove", &directory))?;
        }
        fs::rename(&scratch.0, &directory).map_err(ArtifactError::io("rename", &scratch.0))?;
        let cache = File::open(&self.cache).map_err(ArtifactError::io("open", &self.cache))?;
        cache
            .sync_all()
            .map_err(ArtifactError::io("write", &self.cache))?;
        Ok(directory)
    }

    /// Waits until no other process builds this kind. The lock ends with the process that holds it.
    fn lock(&self, kind: Kind) -> Result<File, ArtifactError> {
        let path = self.cache.join(format!(".lock-{}", kind.name()));
        let failed = ArtifactError::io("lock", &path);
        let file = match File::options().create(true).append(true).open(&path) {
            Ok(file) => file,
            Err(error) => return Err(failed(error)),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            self.progress
                .line(&format!("waiting for another process that builds the {kind}"));
            flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        }
        Ok(file)
    }

    /// A program that could not write says so in its own words, or only fails.
    fn full_disk(&self, kind: Kind, error: ArtifactError) -> ArtifactError {
        let full =
            rustix::fs::statvfs(&self.cache).is_ok_and(|disk| disk.f_bavail * disk.f_frsize < FULL_BYTES);
        match &error {
            ArtifactError::Step { tail, .. } if full || tail.contains("No space left on device") => {
                ArtifactError::DiskFull {
                    what: kind.to_string(),
                    path: self.cache.clone(),
                }
            }
            _ => error,
        }
    }

    fn remove_old(&self, kind: Kind) {
        let mut all: Vec<Stored> = store::list(&self.cache, kind).unwrap_or_default();
        all.sort_by_key(|stored| std::cmp::Reverse(stored.manifest.built));
        for old in all.iter().skip(KEPT_PER_KIND) {
            // An old folder that cannot be removed costs only its space.
            let _ = fs::remove_dir_all(&old.directory);
        }
    }
}

/// A folder to build in. Dropped, it is gone with all that is in it; renamed, there is nothing left to remove.
struct Scratch(PathBuf);

impl Scratch {
    /// Needs the kind's lock: every other folder of this kind is then of a builder that died.
    fn new(cache: &Path, kind: Kind) -> Result<Self, ArtifactError> {
        let prefix = format!(".building-{}-", kind.name());
        for entry in fs::read_dir(cache).map_err(ArtifactError::io("list", cache))? {
            let entry = entry.map_err(ArtifactError::io("list", cache))?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(entry.path()).map_err(ArtifactError::io("remove", entry.path()))?;
            }
        }
        let path = cache.join(format!("{prefix}{}", std::process::id()));
        fs::create_dir(&path).map_err(ArtifactError::io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write_manifest(path: &Path, manifest: &Manifest) -> Result<(), ArtifactError> {
    let failed = |error| ArtifactError::io("write", path)(error);
    let text = serde_json::to_vec_pretty(manifest).map_err(|error| failed(error.into()))?;
    let mut file = File::create(path).map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    file.sync_all().map_err(failed)
}

#[cfg(test)]
mod tests;
