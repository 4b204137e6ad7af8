//! A real agent as an ordinary process, and the host's side of its streams.

#![allow(dead_code)] // each test binary uses its own part

use std::{path::Path, process::Stdio, time::Duration};

use sandbox_protocol::{
    CONTROL_PORT, EXEC_PORT,
    control::{AgentMessage, Call, Configure, EntropySeed, Export, Failure, Hello, Request, WallClock},
    exec::*,
    frame::{self, Decoder},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

/// Long enough for any machine; only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Agent {
    pub directory: TempDir,
    pub hello: Hello,
    pub control: Option<UnixStream>,
    child: std::process::Child,
    requests: u32,
}

impl Agent {
    /// An agent that has greeted. Its parent ignores signals, as `nohup` does.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener =
            UnixListener::bind(directory.path().join(format!("host-{CONTROL_PORT}.sock"))).unwrap();
        let child = std::process::Command::new("sh")
            .args(["-c", "trap '' HUP INT QUIT TERM USR1; exec \"$@\"", "sh"])
            .arg(env!("CARGO_BIN_EXE_sandbox-agent"))
            .arg("--unix")
            .arg(directory.path())
            .arg("--no-setup")
            .env("HOST_SECRET", "not for commands")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (mut control, _) = patient(listener.accept()).await.unwrap();
        let hello = match next_message(&mut control).await {
            AgentMessage::Hello(hello) => hello,
            other => panic!("{other:?}"),
        };
        Self {
            directory,
            hello,
            control: Some(control),
            child,
            requests: 0,
        }
    }

    /// An agent that runs commands.
    pub async fn ready() -> Self {
        let mut agent = Self::start().await;
        let configure = agent.configuration();
        agent.call(Call::Configure(Box::new(configure))).await.unwrap();
        agent
    }

    pub fn configuration(&self) -> Configure {
        Configure {
            hostname: "box".into(),
            machine_id: [1; 16],
            wall_clock: WallClock {
                seconds: 0,
                nanoseconds: 0,
            },
            entropy: EntropySeed([0; 32]),
            user: "agent".into(),
            env: vec![("FROM_HOST".into(), "yes".into())],
            ca_pem: Some("-----CERTIFICATE-----".into()),
            proxy: true,
            exports: vec![Export {
                index: 0,
                path: path_bytes(self.directory.path()),
                read_only: false,
            }],
        }
    }

    pub async fn call(&mut self, call: Call) -> Result<(), Failure> {
        self.requests += 1;
        let id = self.requests;
        let control = self.control.as_mut().unwrap();
        control
            .write_all(&frame::encode(&Request { id, call }).unwrap())
            .await
            .unwrap();
        match next_message(control).await {
            AgentMessage::Response(response) => {
                assert_eq!(response.id, id);
                response.result
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn dial(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join(format!("guest-{EXEC_PORT}.sock")))
            .await
            .unwrap()
    }

    pub async fn exec(&self, spawn: Spawn) -> Exec {
        Exec {
            side: HostSide::new(spawn).unwrap(),
            stream: self.dial().await,
        }
    }

    pub async fn run(&self, spawn: Spawn, input: &[u8]) -> Outcome {
        patient(self.exec(spawn).await.finish(input)).await
    }

    pub async fn shell(&self, script: &str) -> Outcome {
        self.run(Spawn::new(["sh", "-c", script]), b"").await
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        patient(async {
            loop {
                match self.child.try_wait().unwrap() {
                    Some(status) => return status.code(),
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Exec {
    pub side: HostSide,
    pub stream: UnixStream,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Option<Exit>,
    pub failure: Option<SpawnFailure>,
    pub stdin_gone: bool,
}

impl Outcome {
    pub fn code(&self) -> i32 {
        match self.exit {
            Some(Exit {
                status: ExitStatus::Code(code),
                timed_out: false,
            }) => code,
            _ => panic!("{self:?}"),
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }

    pub fn failed(&self) -> SpawnFailureKind {
        self.failure.as_ref().unwrap_or_else(|| panic!("{self:?}")).kind
    }
}

impl Exec {
    /// One step: write what there is, then wait for something new.
    pub async fn next(&mut self) -> Option<HostEvent> {
        loop {
            if let Some(event) = self.side.next_event().unwrap() {
                return Some(event);
            }
            let mut buffer = vec![0; 70_000];
            tokio::select! {
                ready = self.stream.writable(), if !self.side.outgoing().is_empty() => {
                    ready.unwrap();
                    if let Ok(count) = self.stream.try_write(self.side.outgoing()) {
                        self.side.sent(count);
                    }
                }
                ready = self.stream.readable() => {
                    ready.unwrap();
                    match self.stream.try_read(&mut buffer) {
                        Ok(0) => {
                            self.side.end_of_stream().unwrap();
                            return None;
                        }
                        Ok(count) => self.side.received(&buffer[..count]),
                        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                    }
                }
            }
        }
    }

    pub async fn event(&mut self) -> HostEvent {
        patient(self.next()).await.unwrap()
    }

    /// Feeds `input` and reads everything.
    pub async fn finish(mut self, input: &[u8]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut rest = input;
        loop {
            let count = self.side.write_stdin(rest);
            rest = &rest[count..];
            if rest.is_empty() {
                self.side.close_stdin();
            }
            let Some(event) = self.next().await else {
                return outcome;
            };
            match event {
                HostEvent::Spawned { pid } => outcome.pid = pid,
                HostEvent::SpawnFailed(failure) => outcome.failure = Some(failure),
                HostEvent::Output { output, data } => {
                    self.side.consumed(output, data.len());
                    match output {
                        Output::Stdout => outcome.stdout.extend(data),
                        Output::Stderr => outcome.stderr.extend(data),
                    }
                }
                HostEvent::OutputClosed(_) | HostEvent::StdinRoom => {}
                HostEvent::StdinGone => {
                    outcome.stdin_gone = true;
                    rest = &[];
                }
                HostEvent::Exited(exit) => outcome.exit = Some(exit),
            }
        }
    }
}

pub async fn patient<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("still waiting")
}

pub fn path_bytes(path: &Path) -> sandbox_protocol::ByteString {
    path.to_str().unwrap().into()
}

/// Waits until no process has this id, or only an ended one.
pub async fn gone(pid: u32) {
    patient(async {
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Bytes without pattern, the same in each run.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(len)
    .collect()
}

async fn next_message(control: &mut UnixStream) -> AgentMessage {
    let mut decoder = Decoder::<AgentMessage>::new();
    let mut buffer = [0; 4096];
    loop {
        let count = patient(control.read(&mut buffer)).await.unwrap();
        assert_ne!(count, 0, "the agent has gone");
        decoder.push(&buffer[..count]);
        if let Some(message) = decoder.next().unwrap() {
            return message;
        }
    }
}
