//! A command's two outputs as each side keeps them: how much may be under way, and whether it has ended.

use super::Output;

/// Standard output and standard error, each with a window of type `W`.
#[derive(Debug)]
pub(super) struct Outputs<W> {
    stdout: Channel<W>,
    stderr: Channel<W>,
}

#[derive(Debug)]
pub(super) struct Channel<W> {
    pub window: W,
    pub open: bool,
}

impl<W> Outputs<W> {
    /// Both open.
    pub fn new(window: impl Fn() -> W) -> Self {
        let channel = || Channel {
            window: window(),
            open: true,
        };
        Self {
            stdout: channel(),
            stderr: channel(),
        }
    }

    pub fn get(&self, output: Output) -> &Channel<W> {
        match output {
            Output::Stdout => &self.stdout,
            Output::Stderr => &self.stderr,
        }
    }

    pub fn get_mut(&mut self, output: Output) -> &mut Channel<W> {
        match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        }
    }

    /// Whether both have ended.
    pub fn ended(&self) -> bool {
        !self.stdout.open && !self.stderr.open
    }
}
