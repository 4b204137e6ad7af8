//! Artefacts on disk: one folder `<kind>-<hash>` each, holding the file and a manifest.
//!
//! A folder with this name is always whole: it is written under another name and renamed at the end.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{ArtifactError, Kind};

/// The manifest's name inside an artefact's folder.
pub(crate) const MANIFEST: &str = "manifest.json";

/// A manifest is a few hundred bytes; a larger file is none of ours and is not read into memory.
const MANIFEST_LIMIT: u64 = 64 << 10;

/// Unit in which zeros are left out of a hash.
const BLOCK: usize = 64 << 10;

/// What is recorded about an artefact when it is built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// `Kind::name()`.
    pub(crate) kind: String,
    /// `Kind::recipe()` of the tree that built it.
    pub(crate) recipe: String,
    /// What the host added, such as the version of a Debian package.
    pub(crate) host_inputs: String,
    /// Size of the file in bytes.
    pub(crate) size: u64,
    /// `content_hash` of the file.
    pub(crate) sha256: String,
    /// Seconds since 1970 when it was built; the newest of several is used.
    pub(crate) built: u64,
}

/// An artefact found on disk.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) directory: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Stored {
    pub(crate) fn file(&self, kind: Kind) -> PathBuf {
        self.directory.join(kind.file_name())
    }

    /// Reads the whole file and compares it with what was built.
    pub(crate) fn verify(&self, kind: Kind) -> Result<(), ArtifactError> {
        let file = self.file(kind);
        let found = content_hash(&file).map_err(ArtifactError::io("read", &file))?;
        if found == self.manifest.sha256 {
            return Ok(());
        }
        Err(ArtifactError::Damaged {
            kind,
            path: self.directory.clone(),
            why: "its hash differs".into(),
        })
    }
}

/// Finds `kind` in `directory`: the newest one built from this tree's recipe.
///
/// `Ok(None)` when there is no folder of this kind at all.
pub(crate) fn find(directory: &Path, kind: Kind) -> Result<Option<Stored>, ArtifactError> {
    let mut of_kind: Vec<Stored> = list(directory, kind)?;
    of_kind.sort_by_key(|stored| (stored.manifest.recipe == kind.recipe(), stored.manifest.built));
    let Some(best) = of_kind.pop() else {
        return Ok(None);
    };
    if best.manifest.recipe != kind.recipe() {
        return Err(ArtifactError::OtherBuild {
            kind,
            path: best.directory,
            found: best.manifest.recipe,
            expected: kind.recipe().into(),
        });
    }
    check_size(&best, kind)?;
    Ok(Some(best))
}

/// Every whole artefact of this kind in `directory`; a directory that is not there holds none.
pub(crate) fn list(directory: &Path, kind: Kind) -> Result<Vec<Stored>, ArtifactError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ArtifactError::io("list", directory)(error)),
    };
    let prefix = format!("{}-", kind.name());
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ArtifactError::io("list", directory))?;
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        // Someone else may remove an old folder while we look.
        if let Ok(manifest) = read_manifest(&entry.path())
            && manifest.kind == kind.name()
        {
            found.push(Stored {
                directory: entry.path(),
                manifest,
            });
        }
    }
    Ok(found)
}

/// A cheap check for each start: the hash is checked when built and by `Artifacts::verify`.
pub(crate) fn check_size(stored: &Stored, kind: Kind) -> Result<(), ArtifactError> {
    let damaged = |why: String| ArtifactError::Damaged {
        kind,
        path: stored.directory.clone(),
        why,
    };
    let metadata = fs::metadata(stored.file(kind)).map_err(|error| damaged(error.to_string()))?;
    if metadata.size() != stored.manifest.size {
        let (is, was) = (metadata.size(), stored.manifest.size);
        return Err(damaged(format!("{is} bytes long, not {was}")));
    }
    Ok(())
}

/// SHA-256 over every block of a file that is not all zeros, each with its position before it; hexadecimal.
///
/// So a sparse image of many gigabytes takes no longer than what is in it, and copies with other holes hash alike.
pub(crate) fn content_hash(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let mut block = vec![0; BLOCK];
    let mut position = 0;
    while position < length {
        // The next data at or after here; file systems without holes say that all is data.
        match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(position)) {
            Ok(data) => position = data - data % BLOCK as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let wanted = usize::try_from(length - position).unwrap_or(BLOCK).min(BLOCK);
        let part = block.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(part, position)?;
        if part.iter().any(|byte| *byte != 0) {
            hash.update(position.to_le_bytes());
            hash.update(&*part);
        }
        position += BLOCK as u64;
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_manifest(directory: &Path) -> io::Result<Manifest> {
    let mut text = String::new();
    File::open(directory.join(MANIFEST))?
        .take(MANIFEST_LIMIT)
        .read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}
