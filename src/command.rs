//! Commands in a sandbox, in the manner of `tokio::process::Command`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use sandbox_core::command::{CommandSpec, ExitStatus, Input, Output as Stream, Process, Stdin, User};
use sandbox_core::sandbox::{ExecError, Sandbox};
use tokio::io::AsyncReadExt as _;

/// What [`Command::output`] keeps of each output unless told otherwise; a guest cannot fill the host's memory.
const OUTPUT_LIMIT: usize = 64 << 20;

/// A command to run in a sandbox, by default as the unprivileged user, in the workspace, without input.
#[derive(Clone)]
#[must_use = "a command does nothing until spawned"]
pub struct Command<'a> {
    sandbox: &'a dyn Sandbox,
    spec: CommandSpec,
    output_limit: usize,
}

/// All of what a command said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Its standard error, byte for byte.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Both outputs as text for people: first standard output, then standard error; what is not UTF-8 is
    /// replaced. Control characters of the guest are as it sent them: escape them before a terminal shows them
    /// to somebody who does not trust it.
    pub fn text(&self) -> String {
        [&self.stdout, &self.stderr]
            .map(|bytes| String::from_utf8_lossy(bytes))
            .concat()
    }
}

impl<'a> Command<'a> {
    /// `program` in `sandbox`: a path in the guest, or a name looked up in its `PATH`.
    pub fn new(sandbox: &'a dyn Sandbox, program: impl Into<OsString>) -> Self {
        Self {
            sandbox,
            spec: CommandSpec::new(program),
            output_limit: OUTPUT_LIMIT,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.spec.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.spec.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.spec.env.insert(name.into(), Some(value.into()));
        self
    }

    /// Removes an environment variable that the sandbox sets.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.spec.env.insert(name.into(), None);
        self
    }

    /// Starts from an empty environment: without the proxy's and certificates' variables, most programs reach
    /// nothing.
    pub fn env_clear(mut self) -> Self {
        self.spec.env_clear = true;
        self.spec.env.clear();
        self
    }

    /// The working directory, instead of the workspace.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.spec.cwd = Some(directory.into());
        self
    }

    /// Runs it as another user of the guest.
    pub fn user(mut self, user: User) -> Self {
        self.spec.user = user;
        self
    }

    /// Ends it with SIGTERM when it runs longer, and with SIGKILL when it then does not end.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = Some(timeout);
        self
    }

    /// What it finds at its standard input; nothing by default.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.spec.stdin = stdin;
        self
    }

    /// How much of each output [`Self::output`] keeps, in bytes; 64 MiB by default.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`ExecError`] says whether the program, the working directory or the sandbox is at fault.
    pub async fn spawn(self) -> Result<Child, ExecError> {
        let mut process = self.sandbox.spawn(self.spec).await?;
        Ok(Child {
            stdin: process.take_stdin(),
            stdout: process.take_stdout(),
            stderr: process.take_stderr(),
            process,
        })
    }

    /// Runs it to its end and discards what it says.
    ///
    /// # Errors
    /// As [`Self::spawn`], and when the sandbox ends meanwhile.
    pub async fn status(self) -> Result<ExitStatus, ExecError> {
        self.spawn().await?.wait().await
    }

    /// Runs it to its end and gives all it said.
    ///
    /// # Errors
    /// As [`Self::status`]; [`ExecError::OutputTooLarge`] beyond [`Self::output_limit`].
    pub async fn output(self) -> Result<Output, ExecError> {
        let limit = self.output_limit;
        self.spawn().await?.output(limit).await
    }
}

/// A running command. Dropping it ends the command and all it started.
pub struct Child {
    /// Its input, if [`Stdin::Piped`]; shut down or drop it to let the command see its end.
    pub stdin: Option<Input>,
    /// Its output. What is not read stops the command in time, as with any pipe.
    pub stdout: Option<Stream>,
    /// Its error output.
    pub stderr: Option<Stream>,
    process: Box<dyn Process>,
}

impl Child {
    /// Process id in the guest.
    pub fn id(&self) -> u32 {
        self.process.pid()
    }

    /// Sends a signal, by Linux number, to the command and what it started in its process group.
    ///
    /// # Errors
    /// When the number is none, or the sandbox has ended.
    pub async fn signal(&self, signal: u8) -> Result<(), ExecError> {
        self.process.signal(signal).await
    }

    /// Closes the input, discards output that was not taken, and waits for the end.
    ///
    /// # Errors
    /// When the sandbox ends before the command.
    pub async fn wait(&mut self) -> Result<ExitStatus, ExecError> {
        self.stdin.take();
        self.stdout.take();
        self.stderr.take();
        self.process.wait().await
    }

    /// Closes the input, reads both outputs to their ends and waits. Each output may have `limit` bytes.
    ///
    /// # Errors
    /// [`ExecError::OutputTooLarge`], or when the sandbox ends before the command.
    pub async fn output(mut self, limit: usize) -> Result<Output, ExecError> {
        self.stdin.take();
        let (stdout, stderr) = tokio::try_join!(
            read_all(self.stdout.take(), limit),
            read_all(self.stderr.take(), limit)
        )?;
        Ok(Output {
            status: self.process.wait().await?,
            stdout,
            stderr,
        })
    }
}

async fn read_all(stream: Option<Stream>, limit: usize) -> Result<Vec<u8>, ExecError> {
    let mut all = Vec::new();
    if let Some(stream) = stream {
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        stream.take(most).read_to_end(&mut all).await.map_err(|error| {
            match error.downcast::<ExecError>() {
                Ok(exec) => exec,
                Err(other) => ExecError::SandboxEnded {
                    why: other.to_string(),
                },
            }
        })?;
    }
    if all.len() > limit {
        return Err(ExecError::OutputTooLarge { limit });
    }
    Ok(all)
}
