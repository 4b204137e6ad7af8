//! The empty writable layer: a sparse ext4 of bounded size, a few blocks on disk.

use std::{fs::File, path::Path, process::Command};

use crate::{
    ArtifactError, Kind,
    build::{Builder, step},
};

/// What one sandbox can write to its private layer before its disk is full; the host's disk is protected by it.
const LAYER_BYTES: u64 = 8 << 30;

/// Files and directories that fit; an inode costs nothing until it is used.
const INODES: &str = "524288";

/// Fixed, so that equal sources give equal images.
const UUID: &str = "5ab0c5a4-0000-4000-8000-6c6179657200";

pub(super) fn build(builder: &Builder<'_>, folder: &Path) -> Result<(), ArtifactError> {
    let image = folder.join(Kind::LayerTemplate.file_name());
    let file = File::create(&image).map_err(ArtifactError::io("create", &image))?;
    file.set_len(LAYER_BYTES)
        .map_err(ArtifactError::io("write", &image))?;
    // No journal and no checksums: the layer is private to one guest and gone with it. The file is all holes, so the
    // guest need not zero tables, now or later in a kernel thread.
    let seed =
        format!("assume_storage_prezeroed=1,lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={UUID}");
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("PATH", super::base::ADMIN_PATH);
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-N", INODES, "-U", UUID]);
    mke2fs.args([
        "-O",
        "^has_journal,^resize_inode,^metadata_csum,uninit_bg",
        "-E",
        &seed,
    ]);
    // Groups stand alone (`-G`): Linux prepares the block maps of eight times as many groups as are bound together
    // before it allocates the first block.
    mke2fs.args(["-G", "1"]);
    step::run("mke2fs", mke2fs.arg(&image), builder.progress)?;
    // What overlayfs needs, made here once and not in each guest. `debugfs` makes them root's, whoever runs it.
    for directory in ["upper", "work"] {
        let mut debugfs = Command::new("debugfs");
        debugfs.env("PATH", super::base::ADMIN_PATH);
        debugfs
            .args(["-w", "-R", &format!("mkdir {directory}")])
            .arg(&image);
        step::run("debugfs", &mut debugfs, builder.progress)?;
    }
    write_extents(&image).map_err(ArtifactError::io("write", &image))
}

/// Says beside the image where its data is, a line of `start length` for each: shared file systems such as 9p show
/// holes as data, and whoever copies the image there would read gigabytes of nothing.
fn write_extents(image: &Path) -> std::io::Result<()> {
    use rustix::{
        fs::{SeekFrom, seek},
        io::Errno,
    };
    let file = File::open(image)?;
    let mut list = String::new();
    let mut at = 0;
    loop {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(&file, SeekFrom::Hole(start))?;
        list.push_str(&format!("{start} {}\n", at - start));
    }
    let mut name = image.as_os_str().to_owned();
    name.push(".extents");
    std::fs::write(name, list)
}
