//! The backend alone, for looking at it without the rest: `launch DIRECTORY [COMMAND...]` starts a machine from the
//! artefacts in a directory, shares the working directory with it, runs a command and prints how long it took.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sandbox_core::backend::{Access, Backend, Export, Machine, MachineSpec};
use sandbox_core::{BoxStream, CpuCount, GuestPath, SandboxId, Size};
use sandbox_kvm::{KvmBackend, KvmImages};
use sandbox_protocol::control::{AgentMessage, Call, Configure, EntropySeed, Request, WallClock};
use sandbox_protocol::exec::{HostEvent, HostSide, Spawn};
use sandbox_protocol::frame::{Decoder, encode};
use sandbox_protocol::{CONTROL_PORT, EXEC_PORT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let directory = PathBuf::from(args.next().ok_or("which directory holds the artefacts?")?);
    let command: Vec<String> = args.collect();
    let memory: u64 = std::env::var("MIB").map_or(Ok(256), |mib| mib.parse())?;
    let cpus: u32 = std::env::var("CPUS").map_or(Ok(1), |cpus| cpus.parse())?;
    let backend =
        KvmBackend::new(images(&directory)).kernel_options(std::env::var("KERNEL").unwrap_or_default());

    let patience: u64 = std::env::var("PATIENCE").map_or(Ok(600), |seconds| seconds.parse())?;

    let begin = Instant::now();
    let here = std::env::current_dir()?;
    let export = Export {
        directory: std::fs::File::open(&here)?.into(),
        guest_path: GuestPath::try_from(here.clone())?,
        access: Access::ReadWrite,
    };
    let spec = MachineSpec {
        id: "launch".parse::<SandboxId>()?,
        memory: Size::mib(memory).try_into()?,
        cpus: CpuCount::try_from(cpus)?,
        exports: vec![export],
    };
    let machine = backend.start(spec).await?;
    eprintln!("{:>7.3} s  started", begin.elapsed().as_secs_f64());
    let outcome = tokio::select! {
        outcome = run(&*machine, &here, command, begin) => outcome,
        () = tokio::time::sleep(std::time::Duration::from_secs(patience)) => Err("no end in sight".into()),
        exit = machine.wait() => Err(format!("{exit}\n{}", machine.console_tail()).into()),
    };
    if outcome.is_err() {
        eprintln!("{}", machine.console_tail());
    }
    machine.kill().await;
    outcome
}

fn images(directory: &Path) -> KvmImages {
    KvmImages {
        kernel_normal: directory.join("vmlinux-normal"),
        kernel_interpreted: directory.join("vmlinux-interpreted"),
        agent: directory.join("agent.erofs"),
        base: directory.join("base.erofs"),
        layer_template: directory.join("layer.ext4"),
        helper: directory.join("sandbox-vmm-kvm"),
        helper_build: None,
    }
}

async fn run(machine: &dyn Machine, here: &Path, command: Vec<String>, begin: Instant) -> Result<()> {
    let (port, mut control) = machine.accept().await?;
    assert_eq!(port, CONTROL_PORT);
    let mut decoder = Decoder::<AgentMessage>::new();
    let hello = next(&mut control, &mut decoder).await?;
    eprintln!("{:>7.3} s  {hello:?}", begin.elapsed().as_secs_f64());
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let configure = Configure {
        hostname: "launch".into(),
        machine_id: [7; 16],
        wall_clock: WallClock {
            seconds: i64::try_from(now.as_secs())?,
            nanoseconds: now.subsec_nanos(),
        },
        entropy: EntropySeed([1; 32]),
        user: "agent".into(),
        env: vec![],
        ca_pem: None,
        proxy: false,
        exports: vec![sandbox_protocol::control::Export {
            index: 0,
            path: here
                .to_str()
                .ok_or("a path that is no text")?
                .as_bytes()
                .to_vec()
                .into(),
            read_only: false,
        }],
    };
    let call = Call::Configure(Box::new(configure));
    control.write_all(&encode(&Request { id: 1, call })?).await?;
    let answer = next(&mut control, &mut decoder).await?;
    eprintln!("{:>7.3} s  {answer:?}", begin.elapsed().as_secs_f64());
    let idle: u64 = std::env::var("IDLE").map_or(Ok(0), |seconds| seconds.parse())?;
    tokio::time::sleep(std::time::Duration::from_secs(idle)).await;
    if command.is_empty() {
        control
            .write_all(&encode(&Request {
                id: 2,
                call: Call::Shutdown,
            })?)
            .await?;
        eprintln!("{:?}", machine.wait().await);
        return Ok(());
    }
    let mut stream = machine.connect(EXEC_PORT).await?;
    let mut host = HostSide::new(Spawn::new(command.into_iter().map(String::into_bytes)))?;
    let mut bytes = [0; 65536];
    while !host.is_complete() {
        while !host.outgoing().is_empty() {
            let sent = stream.write(host.outgoing()).await?;
            host.sent(sent);
        }
        let read = stream.read(&mut bytes).await?;
        if read == 0 {
            host.end_of_stream()?;
            break;
        }
        host.received(&bytes[..read]);
        while let Some(event) = host.next_event()? {
            match event {
                HostEvent::Output { output, data } => {
                    use std::io::Write;
                    std::io::stdout().write_all(&data)?;
                    host.consumed(output, data.len());
                }
                event => eprintln!("{:>7.3} s  {event:?}", begin.elapsed().as_secs_f64()),
            }
        }
    }
    Ok(())
}

async fn next(stream: &mut BoxStream, decoder: &mut Decoder<AgentMessage>) -> Result<AgentMessage> {
    let mut bytes = [0; 4096];
    loop {
        if let Some(message) = decoder.next()? {
            return Ok(message);
        }
        let read = stream.read(&mut bytes).await?;
        if read == 0 {
            return Err("the agent went away".into());
        }
        decoder.push(&bytes[..read]);
    }
}
