//! A desktop session: a session bus and a Secret Service of its own, in a directory that is gone afterwards.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::process::{assert_passes, inner_half};

/// Opens the keychain of a session, and nothing else.
const PASSWORD: &[u8] = b"of a session that is thrown away";
/// A service that has not started by then never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// Name and value of an environment variable.
pub type Variable = (&'static str, OsString);

/// A session bus; ended when dropped.
pub struct Session {
    directory: TempDir,
    bus: Child,
    keychain: Option<Child>,
}

impl Session {
    /// Without a keychain.
    pub fn bare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        std::fs::create_dir(at.join("services")).unwrap();
        // Who is asked for a password leaves a trace, and no answer for as long as a service may take to start.
        let prompter = format!(
            "[D-BUS Service]\nName=org.gnome.keyring.SystemPrompter\nExec=/bin/sh -c 'touch {}; exec sleep 60'\n",
            at.join("prompted").display()
        );
        std::fs::write(at.join("services/prompter.service"), prompter).unwrap();
        let config = format!(
            "<busconfig><type>session</type><listen>unix:path={0}/bus</listen><auth>EXTERNAL</auth>\
             <servicedir>{0}/services</servicedir><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>\
             </policy></busconfig>",
            at.display()
        );
        let path = at.join("bus.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--print-address", "--config-file"]);
        command.arg(path).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut bus = start(alone(&mut command, variables(at)));
        // Said when it listens.
        let mut said = String::new();
        BufReader::new(bus.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert!(said.starts_with("unix:"), "dbus-daemon does not listen");
        Self {
            directory,
            bus,
            keychain: None,
        }
    }

    /// With a keychain that is open.
    pub fn unlocked() -> Self {
        let mut session = Self::bare();
        session.start_keychain(Some(PASSWORD));
        session
    }

    /// Closes the keychain: its service anew, in a session that began without a password.
    pub fn lock(&mut self) {
        end(&mut self.keychain);
        self.start_keychain(None);
    }

    fn start_keychain(&mut self, password: Option<&[u8]>) {
        let mut command = Command::new("gnome-keyring-daemon");
        command.args(["--foreground", "--components=secrets"]);
        command.args(password.map(|_| "--unlock"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut service = start(alone(&mut command, self.variables()));
        service
            .stdin
            .take()
            .unwrap()
            .write_all(password.unwrap_or_default())
            .unwrap();
        self.keychain = Some(service);
        let begun = Instant::now();
        loop {
            let output = secret_tool(&self.variables(), &["lookup", "nothing", "there"], "");
            if output.stderr.is_empty() {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "no keychain: {output:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process that keeps the keychain.
    pub fn keychain(&self) -> i32 {
        pid(self.keychain.as_ref().unwrap()).as_raw_nonzero().get()
    }

    /// Makes the keychain hang, until somebody calls [`go_on`].
    pub fn hold_keychain(&self) {
        kill_process(pid(self.keychain.as_ref().unwrap()), Signal::STOP).unwrap();
    }

    /// What makes a process belong to this session.
    pub fn variables(&self) -> [Variable; 3] {
        variables(self.directory.path())
    }

    /// Whether somebody was asked for a password.
    pub fn prompted(&self) -> bool {
        self.directory.path().join("prompted").exists()
    }

    /// Runs this test of this module once more, in a process that belongs to the session. It must pass.
    pub fn passes(&self, module: &str, test: &str, told: &str) {
        let mut inner = inner_half(module, test, "", told);
        inner.envs(self.variables());
        assert_passes(inner);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        end(&mut self.keychain);
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

/// Ends what [`Session::hold_keychain`] began.
pub fn go_on(keychain: i32) {
    kill_process(Pid::from_raw(keychain).unwrap(), Signal::CONT).unwrap();
}

/// Stores an entry as people do, in the session of these variables; without any, in the one of this process.
pub fn store(session: &[Variable], service: &str, user: &str, value: &str) {
    store_more(session, service, user, &[], value);
}

/// The same with names and values of further attributes.
pub fn store_more(session: &[Variable], service: &str, user: &str, more: &[&str], value: &str) {
    let entry = [
        "store",
        "--label",
        "of a test",
        "service",
        service,
        "username",
        user,
    ];
    let output = secret_tool(session, &[&entry, more].concat(), value);
    assert!(output.status.success(), "{output:?}");
}

fn secret_tool(session: &[Variable], arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new("secret-tool");
    command.args(arguments).envs(session.iter().cloned());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut tool = start(&mut command);
    // One that reads nothing may have ended.
    let _ = tool.stdin.take().unwrap().write_all(input.as_bytes());
    tool.wait_with_output().unwrap()
}

/// Nothing of who runs the tests leads a service to their own keychain.
fn alone(command: &mut Command, session: [Variable; 3]) -> &mut Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).envs(session)
}

fn start(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "{:?}: {error}; `cargo xtask test` installs it",
            command.get_program()
        )
    })
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn variables(directory: &Path) -> [Variable; 3] {
    let mut address = OsString::from("unix:path=");
    address.push(directory.join("bus"));
    [
        ("DBUS_SESSION_BUS_ADDRESS", address),
        ("HOME", directory.into()),
        ("XDG_RUNTIME_DIR", directory.into()),
    ]
}
