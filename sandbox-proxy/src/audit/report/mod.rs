//! A report for people: one HTML file that needs nothing else, made from a log of any size in bounded memory.

mod gather;
mod html;
mod show;

use std::io::{self, Write};
use std::path::Path;

use super::chain::{AuditKey, Body, Head};
use super::verify::{Verified, VerifyError, files_of, verify};
use super::walk::each_line;
use gather::{Gathered, Span};

/// A report that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The log cannot be read. One that was tampered with is no error: the report says so first.
    #[error(transparent)]
    Log(VerifyError),
    /// The report cannot be written.
    #[error("the report cannot be written")]
    Write(#[source] io::Error),
}

/// Writes a report of the log at this path, and says what [`verify`] says of it: the report begins with that, and covers
/// all lines that can be read, also of a log that was tampered with. Reads the log three times; blocks.
///
/// The page holds no script, loads nothing, and says so to the browser (Content Security Policy). Hosts, rules and so on
/// that are more than fit on a page are summed up in one row.
///
/// # Errors
/// The log cannot be read, or the report not be written.
pub fn report(
    path: &Path,
    key: Option<&AuditKey>,
    head: Option<&Head>,
    mut out: impl Write,
) -> Result<Result<Verified, VerifyError>, ReportError> {
    let verified = verify(path, key, head);
    if let Err(error @ (VerifyError::NotFound { .. } | VerifyError::Io { .. })) = verified {
        return Err(ReportError::Log(error));
    }
    let mut span = Span::default();
    each_body(path, &mut |body| span.take(body))?;
    let mut gathered = Gathered::new(span);
    each_body(path, &mut |body| gathered.take(body))?;
    html::write(&mut out, path, &verified, gathered)
        .and_then(|()| out.flush())
        .map_err(ReportError::Write)?;
    Ok(verified)
}

/// What each line says, whether or not it is in its place.
fn each_body(path: &Path, each: &mut dyn FnMut(Body)) -> Result<(), ReportError> {
    for file in files_of(path).map_err(ReportError::Log)? {
        let read = each_line(&file, each);
        match read {
            // Removed meanwhile to make room.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ReportError::Log(VerifyError::Io { path: file, source })),
            Ok(()) => {}
        }
    }
    Ok(())
}
