//! The rules of the cache: one builder at a time, whole or not at all, nothing twice, nothing left behind.

use std::{
    cell::Cell,
    fs,
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::*;

struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn done(&self, _: &str) {}
}

const KIND: Kind = Kind::LayerTemplate;

fn builder(cache: &Path) -> Builder<'static> {
    Builder {
        source: "/nonexistent".into(),
        cache: cache.into(),
        progress: &Silent,
    }
}

fn write(folder: &Path, content: &str) -> Result<(), ArtifactError> {
    let path = folder.join(KIND.file_name());
    fs::write(&path, content).map_err(ArtifactError::io("write", &path))
}

fn left(cache: &Path) -> Vec<String> {
    let names = fs::read_dir(cache)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with(".lock-"));
    names
}

#[test]
fn what_was_built_is_found_and_not_built_again() {
    let cache = tempfile::tempdir().expect("directory");
    let builds = Cell::new(0);
    for _ in 0..2 {
        let path = builder(cache.path())
            .make(KIND, String::new(), |folder| {
                builds.set(builds.get() + 1);
                write(folder, "content")
            })
            .expect("made");
        assert_eq!(fs::read_to_string(path).expect("read"), "content");
    }
    assert_eq!(builds.get(), 1);
    assert_eq!(left(cache.path()).len(), 1);
}

#[test]
fn two_builders_at_once_build_once() {
    let cache = tempfile::tempdir().expect("directory");
    let builds = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let build = |folder: &Path| {
                    builds.fetch_add(1, Ordering::SeqCst);
                    write(folder, "content")
                };
                builder(cache.path())
                    .make(KIND, String::new(), build)
                    .expect("made");
            });
        }
    });
    assert_eq!(builds.into_inner(), 1);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let cache = tempfile::tempdir().expect("directory");
    let error = builder(cache.path())
        .make(KIND, String::new(), |folder| {
            write(folder, "half of it")?;
            let mut full = fs::File::options()
                .write(true)
                .open("/dev/full")
                .expect("/dev/full");
            full.write_all(b"more")
                .map_err(ArtifactError::io("write the layer", folder))
        })
        .expect_err("disk is full");
    assert!(matches!(error, ArtifactError::DiskFull { .. }), "{error}");
    assert_eq!(left(cache.path()), Vec::<String>::new());
}

#[test]
fn a_program_that_finds_the_disk_full_is_understood() {
    let cache = tempfile::tempdir().expect("directory");
    let error = builder(cache.path())
        .make(KIND, String::new(), |_| {
            let mut shell = std::process::Command::new("sh");
            step::run(
                "a step",
                shell
                    .args(["-c", "echo more | cat > /dev/full"])
                    .env("LC_ALL", "C"),
                &Silent,
            )
        })
        .expect_err("disk is full");
    assert!(matches!(error, ArtifactError::DiskFull { .. }), "{error}");
}

#[test]
fn what_a_dead_builder_left_is_removed() {
    let cache = tempfile::tempdir().expect("directory");
    fs::create_dir_all(cache.path().join(".building-layer-template-1/work")).expect("create");
    builder(cache.path())
        .make(KIND, String::new(), |folder| write(folder, "content"))
        .expect("made");
    assert_eq!(left(cache.path()).len(), 1);
}

#[test]
fn a_damaged_artefact_is_refused_and_built_anew() {
    let cache = tempfile::tempdir().expect("directory");
    let make = || {
        builder(cache.path())
            .make(KIND, String::new(), |folder| write(folder, "content"))
            .expect("made")
    };
    let path = make();
    fs::write(&path, "cut").expect("write");
    assert!(matches!(
        store::find(cache.path(), KIND),
        Err(ArtifactError::Damaged { .. })
    ));
    make();
    assert_eq!(fs::read_to_string(&path).expect("read"), "content");

    fs::write(&path, "CONTENT").expect("write");
    let stored = store::find(cache.path(), KIND)
        .expect("same size")
        .expect("there");
    assert!(matches!(stored.verify(KIND), Err(ArtifactError::Damaged { .. })));
}

#[test]
fn another_build_is_told_apart_from_none() {
    let cache = tempfile::tempdir().expect("directory");
    assert!(store::find(cache.path(), KIND).expect("empty").is_none());
    let path = builder(cache.path())
        .make(KIND, String::new(), |folder| write(folder, "content"))
        .expect("made");
    let manifest = path.parent().expect("folder").join(MANIFEST);
    let text = fs::read_to_string(&manifest)
        .expect("read")
        .replace(KIND.recipe(), "another");
    fs::write(&manifest, text).expect("write");
    let error = crate::Artifacts::locate_in(&[cache.path().into()]).expect_err("nothing usable");
    assert!(error.to_string().contains("cargo xtask artifacts"), "{error}");
    assert!(matches!(
        store::find(cache.path(), KIND),
        Err(ArtifactError::OtherBuild { .. })
    ));
}

#[test]
fn a_failing_step_shows_its_last_lines() {
    let mut shell = std::process::Command::new("sh");
    let error = step::run(
        "a step",
        shell.args(["-c", "echo first; echo last >&2; exit 3"]),
        &Silent,
    );
    let Err(ArtifactError::Step { status, tail, .. }) = error else {
        panic!("it failed")
    };
    assert!(status.contains('3') && tail == "first\nlast", "{status} {tail}");
    let gone = step::run("a step", &mut std::process::Command::new("/nonexistent"), &Silent);
    assert!(matches!(gone, Err(ArtifactError::Step { .. })));
    let _ = io::stdout().flush();
}
