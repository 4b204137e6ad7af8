//! Hashes what each artefact is made from, so that a program knows which build of each it needs.
//!
//! The values end up in `Kind::recipe()`, in the file name of the artefact and, for programs, in their first message.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// Part of every recipe. To be raised when the way in which a kernel is built changes what comes out: kernels take
/// minutes, so an edit of that code alone builds none.
const REVISION: &str = "1";

/// For each artefact, the name of its variable and the files that it is made from, relative to the workspace.
const RECIPES: &[(&str, &[&str])] = &[
    ("RECIPE_KERNEL_NORMAL", &["guest/kernel/normal.config"]),
    (
        "RECIPE_KERNEL_INTERPRETED",
        &[
            "guest/kernel/interpreted.config",
            "guest/kernel/emulated-ring0.patch",
            "guest/kernel/interpreted-boot.patch",
        ],
    ),
    ("RECIPE_KERNEL_HOST", &["guest/kernel/host.config"]),
    (
        "RECIPE_AGENT",
        &[
            "Cargo.lock",
            "sandbox-guest",
            "sandbox-protocol",
            "sandbox-artifacts/src/build/programs.rs",
        ],
    ),
    (
        "RECIPE_HELPER",
        &[
            "Cargo.lock",
            "sandbox-core",
            "sandbox-kvm",
            "sandbox-protocol",
            "sandbox-vmm",
            "sandbox-artifacts/src/build/programs.rs",
        ],
    ),
    (
        "RECIPE_BASE_IMAGE",
        &["guest/image", "sandbox-artifacts/src/build/base.rs"],
    ),
    ("RECIPE_LAYER_TEMPLATE", &["sandbox-artifacts/src/build/layer.rs"]),
];

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let workspace = Path::new(&here).parent().unwrap_or(Path::new("."));
    for (variable, paths) in RECIPES {
        for path in *paths {
            println!("cargo::rerun-if-changed={}", workspace.join(path).display());
        }
        match tree_hash(workspace, paths) {
            Ok(hash) => println!("cargo::rustc-env={variable}={hash}"),
            Err(error) => {
                // A build script that ends with an error stops the build and shows this line.
                eprintln!("cannot hash what {variable} is made from: {error}");
                std::process::exit(1);
            }
        }
    }
    println!("cargo::rustc-env=SANDBOX_WORKSPACE={}", workspace.display());
}

/// Characters kept of a hash: 128 bits, far past any accident.
const HASH_CHARS: usize = 32;

/// Hashes `paths` below `root`, folders with all that is in them.
///
/// # Errors
/// When a file is missing or cannot be read.
fn tree_hash(root: &Path, paths: &[&str]) -> io::Result<String> {
    let mut files = Vec::new();
    for path in paths {
        collect(&root.join(path), &mut files).map_err(|error| named(&root.join(path), &error))?;
    }
    files.sort();
    let mut hash = Sha256::new_with_prefix(REVISION);
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        let content = fs::read(&file).map_err(|error| named(&file, &error))?;
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(&content);
    }
    let digest = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    Ok(digest.chars().take(HASH_CHARS).collect())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Tests and hidden files (editors leave some) change no artefact.
        let name = entry.file_name();
        if name != "tests" && name != "target" && !name.as_encoded_bytes().starts_with(b".") {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
