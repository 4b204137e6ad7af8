//! The command line: none as PID 1; `--unix DIR [--no-setup]` as an ordinary process.

use std::{ffi::OsString, path::PathBuf};

use crate::transport::Transport;

/// How this agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) transport: Transport,
    /// Whether the agent may change the system it runs in: mounts, host name, clock.
    pub(crate) setup: bool,
}

/// What is wrong with the command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("unknown argument {0:?}; use `sandbox-agent --unix DIR [--no-setup]`")]
    Unknown(OsString),
    #[error("`--unix` needs a directory for its sockets")]
    NoDirectory,
    #[error(
        "without `--unix DIR` this program is the first process of a virtual machine, and here it is not"
    )]
    NotInit,
    #[error("`--no-setup` needs `--unix DIR`: a machine cannot do without its set-up")]
    SetupNeeded,
}

impl Options {
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        Self::resolve(args, std::process::id() == 1)
    }

    /// Whether the agent is PID 1 of a machine that ends with it.
    pub(crate) fn is_machine(&self) -> bool {
        matches!(self.transport, Transport::Vsock)
    }

    fn resolve(args: impl IntoIterator<Item = OsString>, init: bool) -> Result<Self, UsageError> {
        let (mut directory, mut setup) = (None, true);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("--unix") => {
                    directory = Some(PathBuf::from(args.next().ok_or(UsageError::NoDirectory)?));
                }
                Some("--no-setup") => setup = false,
                // The kernel hands its own unknown options to the first process.
                _ if init && directory.is_none() => {}
                _ => return Err(UsageError::Unknown(arg)),
            }
        }
        match directory {
            Some(directory) => Ok(Self {
                transport: Transport::Unix(directory),
                setup,
            }),
            None if !setup => Err(UsageError::SetupNeeded),
            None if !init => Err(UsageError::NotInit),
            None => Ok(Self {
                transport: Transport::Vsock,
                setup,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &[&str], init: bool) -> Result<Options, UsageError> {
        Options::resolve(args.iter().map(OsString::from), init)
    }

    #[test]
    fn init_ignores_what_the_kernel_passes_on() {
        let options = resolve(&["noxsave", "splash"], true).unwrap();
        assert!(options.is_machine() && options.setup);
    }

    #[test]
    fn ordinary_process_needs_a_directory() {
        assert_eq!(resolve(&[], false).unwrap_err(), UsageError::NotInit);
        assert_eq!(resolve(&["--unix"], false).unwrap_err(), UsageError::NoDirectory);
        assert_eq!(
            resolve(&["--no-setup"], true).unwrap_err(),
            UsageError::SetupNeeded
        );
        assert_eq!(
            resolve(&["-x"], false).unwrap_err(),
            UsageError::Unknown("-x".into())
        );
        let options = resolve(&["--unix", "/tmp/a", "--no-setup"], false).unwrap();
        assert!(!options.is_machine() && !options.setup);
    }
}
