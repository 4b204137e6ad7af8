//! Opens the files a machine is made of, and makes its private layer. Every failure says what to do.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use sandbox_core::backend::BackendError;

use super::MAKE_ARTEFACTS;
use super::launch::failed;

const DEVICE: &str = "/dev/kvm";
/// The group that distributions give the device to.
const USUAL_GROUP: &str = "kvm";
/// Most of `/etc/group` that is read to name a group.
const MAX_GROUP_FILE: u64 = 1 << 20;
/// Bytes copied at once through our memory; zeroes are left out in this unit.
const COPY_BUFFER: usize = 64 << 10;
/// Most of a template's list of extents that is read; a fresh file system has a few dozen.
const MAX_EXTENT_LIST: u64 = 1 << 20;
/// Bytes of the layer copied at once where the file system cannot share them.
const COPY_BYTES: usize = 1 << 30;

/// Opens the hypervisor's device.
pub(super) fn open_hypervisor() -> Result<File, BackendError> {
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE);
    opened.map_err(|cause| match cause.kind() {
        ErrorKind::NotFound => BackendError::NoDevice { device: DEVICE },
        ErrorKind::PermissionDenied => BackendError::NoPermission {
            device: DEVICE,
            group: group_of(DEVICE),
        },
        _ => match cause.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => BackendError::NoDevice { device: DEVICE },
            _ => failed("open /dev/kvm", cause),
        },
    })
}

/// Opens an artefact for reading.
pub(super) fn open(path: &Path) -> Result<File, BackendError> {
    File::open(path).map_err(|cause| missing_or(path, "open an artefact", cause))
}

/// A missing artefact has its own error; anything else is the host's.
pub(super) fn missing_or(path: &Path, doing: &'static str, cause: std::io::Error) -> BackendError {
    if cause.kind() == ErrorKind::NotFound {
        return BackendError::ArtefactMissing {
            path: path.to_owned(),
            command: MAKE_ARTEFACTS,
        };
    }
    failed(doing, cause)
}

/// A private copy of the template in a file without a name, so that nothing stays when its last user goes.
pub(super) fn private_layer(template: &Path, directory: &Path) -> Result<File, BackendError> {
    let source = open(template)?;
    let layer = nameless_file(directory).map_err(|cause| layer_error(directory, cause))?;
    copy_sparse(&source, &layer, extents_of(template)).map_err(|cause| layer_error(directory, cause))?;
    Ok(layer)
}

fn layer_error(directory: &Path, cause: std::io::Error) -> BackendError {
    match cause.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => BackendError::DiskFull {
            directory: directory.to_owned(),
        },
        _ => failed("make a private layer in the layer directory", cause),
    }
}

fn nameless_file(directory: &Path) -> std::io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(fd) => return Ok(fd.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    // File systems without nameless files: a name nobody guesses, for a moment.
    for attempt in 0u32..16 {
        let name = directory.join(format!(".sandbox-layer-{}-{attempt}", std::process::id()));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(&name, flags, mode) {
            Ok(fd) => {
                rustix::fs::unlink(&name)?;
                return Ok(fd.into());
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Copies only what holds data; shares the blocks where the file system can.
fn copy_sparse(source: &File, target: &File, extents: Option<Vec<(u64, u64)>>) -> std::io::Result<()> {
    let size = source.metadata()?.size();
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(target, size)?;
    if let Some(extents) = extents {
        for (start, length) in extents {
            let end = start.saturating_add(length).min(size);
            copy_by_hand(source, target, start.min(end), end)?;
        }
        return Ok(());
    }
    let mut at = 0u64;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but holes from here on.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        copy_range(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

/// Where the template's data is, if a list beside it says so: file systems such as 9p show its holes as data.
fn extents_of(template: &Path) -> Option<Vec<(u64, u64)>> {
    let mut name = template.as_os_str().to_owned();
    name.push(".extents");
    let mut list = String::new();
    File::open(name)
        .ok()?
        .take(MAX_EXTENT_LIST)
        .read_to_string(&mut list)
        .ok()?;
    list.lines()
        .map(|line| {
            let (start, length) = line.split_once(' ')?;
            Some((start.parse().ok()?, length.parse().ok()?))
        })
        .collect()
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> std::io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let left = usize::try_from(end - from).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        match rustix::fs::copy_file_range(
            source.as_fd(),
            Some(&mut from),
            target.as_fd(),
            Some(&mut to),
            left,
        ) {
            // The template shrank; what is missing reads as zero.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Older kernels, and between file systems: through our memory.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, start: u64, end: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; COPY_BUFFER];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        let Some(part) = buffer.get_mut(..want) else { break };
        let got = source.read_at(part, at)?;
        if got == 0 {
            break;
        }
        let part = part.get(..got).unwrap_or(&[]);
        // What is zero stays a hole.
        if part.iter().any(|byte| *byte != 0) {
            target.write_all_at(part, at)?;
        }
        at += got as u64;
    }
    Ok(())
}

/// The name of the group that owns `path`, so that the error can say what to join.
fn group_of(path: &str) -> String {
    let named = || -> Option<String> {
        let gid = std::fs::metadata(path).ok()?.gid();
        if gid == 0 {
            return None;
        }
        let mut groups = String::new();
        File::open("/etc/group")
            .ok()?
            .take(MAX_GROUP_FILE)
            .read_to_string(&mut groups)
            .ok()?;
        groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
        })
    };
    named().unwrap_or_else(|| USUAL_GROUP.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    #[test]
    fn a_layer_is_a_sparse_copy_without_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let template = directory.path().join("template");
        let mut file = File::create(&template).unwrap();
        file.write_all(&[7; 8192]).unwrap();
        file.seek(std::io::SeekFrom::Start(1 << 30)).unwrap();
        file.write_all(b"end").unwrap();
        let mut layer = private_layer(&template, directory.path()).unwrap();
        let metadata = layer.metadata().unwrap();
        assert_eq!(metadata.len(), (1 << 30) + 3);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        layer.seek(std::io::SeekFrom::Start(1 << 30)).unwrap();
        let mut end = String::new();
        layer.read_to_string(&mut end).unwrap();
        assert_eq!(end, "end");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_list_of_extents_is_believed_where_holes_do_not_show() {
        let directory = tempfile::tempdir().unwrap();
        let template = directory.path().join("template");
        std::fs::write(&template, [7; 3 << 16]).unwrap();
        std::fs::write(
            directory.path().join("template.extents"),
            "0 65536\n131072 999999999\n",
        )
        .unwrap();
        let mut layer = private_layer(&template, directory.path()).unwrap();
        let mut bytes = Vec::new();
        layer.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 3 << 16);
        assert!(bytes[..1 << 16].iter().all(|byte| *byte == 7));
        assert!(bytes[1 << 16..2 << 16].iter().all(|byte| *byte == 0));
        assert!(bytes[2 << 16..].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_missing_artefact_names_the_command() {
        let error = open(Path::new("/nonexistent/kernel")).unwrap_err();
        assert!(matches!(error, BackendError::ArtefactMissing { .. }));
        assert!(error.to_string().contains(MAKE_ARTEFACTS));
    }

    #[test]
    fn a_missing_layer_directory_is_the_hosts_fault() {
        let template = tempfile::NamedTempFile::new().unwrap();
        let error = private_layer(template.path(), Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, BackendError::Io { .. }));
    }
}
