//! Which files a log is in: `audit.jsonl` is written, and what was full is moved aside as `audit.000001.jsonl`,
//! `audit.000002.jsonl` and so on, never to be touched again but to be removed.

use std::io;
use std::path::{Path, PathBuf};

/// Digits of a file's number; more are fine.
const DIGITS: usize = 6;

/// The names of a log's files.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    active: PathBuf,
    directory: PathBuf,
    stem: String,
    /// With its dot.
    extension: String,
}

impl Names {
    /// For the log at this path, if a log can be there.
    pub(crate) fn new(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?.to_owned();
        let extension = match path.extension() {
            Some(extension) => format!(".{}", extension.to_str()?),
            None => String::new(),
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Some(Self {
            active: path.to_owned(),
            directory: directory.unwrap_or(Path::new(".")).to_owned(),
            stem,
            extension,
        })
    }

    /// The file that is written.
    pub(crate) fn active(&self) -> &Path {
        &self.active
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Held by whoever writes the log.
    pub(crate) fn lock(&self) -> PathBuf {
        let name = format!("{}{}.lock", self.stem, self.extension);
        self.directory.join(name)
    }

    /// Where the file of this number is moved to.
    pub(crate) fn aside(&self, number: u64) -> PathBuf {
        let name = format!("{}.{number:0DIGITS$}{}", self.stem, self.extension);
        self.directory.join(name)
    }

    /// The numbers of the files that were moved aside, oldest first.
    pub(crate) fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in self.directory.read_dir()? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| -> Option<u64> {
                let rest = name.strip_prefix(&self.stem)?.strip_prefix('.')?;
                let digits = rest.strip_suffix(&self.extension)?;
                let is_number = digits.len() >= DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
                digits.parse().ok().filter(|_| is_number)
            });
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// All files that are there, oldest first.
    pub(crate) fn existing(&self) -> io::Result<Vec<PathBuf>> {
        let mut files: Vec<_> = self
            .numbers()?
            .into_iter()
            .map(|number| self.aside(number))
            .collect();
        if self.active.try_exists()? {
            files.push(self.active.clone());
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_were_moved_aside_are_of_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names::new(&directory.path().join("audit.jsonl")).unwrap();
        for name in [
            "audit.jsonl",
            "audit.000002.jsonl",
            "audit.000001.jsonl",
            "audit.1000000.jsonl",
            "audit.1.jsonl",
            "audit.00000x.jsonl",
            "audit2.000003.jsonl",
            "audit.jsonl.lock",
        ] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(names.numbers().unwrap(), [1, 2, 1_000_000]);
        let files = names.existing().unwrap();
        assert_eq!(files.len(), 4);
        assert_eq!(files[3], names.active());
        assert_eq!(files[0], names.aside(1));
    }
}
