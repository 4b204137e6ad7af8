//! What is compared: each proxy a process of its own on the same processor, with its configuration from
//! `benches/rivals/`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::Ports;
use super::ours::authority_file;
use super::{KEY, Result, pki, process};

/// Names of all subjects, in the order of tables.
pub const ALL: [&str; 6] = [
    "direct",
    "ours-tunnel",
    "ours-intercept",
    "squid",
    "mitmproxy",
    "hudsucker",
];

/// Where the programs of rivals are, if they are: `cargo xtask bench` installs them and sets these.
const SQUID: &str = "SANDBOX_BENCH_SQUID";
const MITMDUMP: &str = "SANDBOX_BENCH_MITMDUMP";
const HUDSUCKER: &str = "SANDBOX_BENCH_HUDSUCKER";

/// Of Debian's package.
const CERTGEN: &str = "/usr/lib/squid/security_file_certgen";

/// How long a proxy may take to listen. Python needs a few seconds.
const START: Duration = Duration::from_secs(30);

const RIVALS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/rivals");

/// One way to the upstream, and the process that it leads through.
pub struct Subject {
    pub name: &'static str,
    pub way: Way,
    pub speaks_h2: bool,
    process: Option<Process>,
}

/// How the load goes.
#[derive(Debug, Clone)]
pub struct Way {
    /// Where the proxy listens; nowhere if direct.
    pub proxy: Option<SocketAddr>,
    /// The root to trust behind it.
    pub root: PathBuf,
    /// Whether the load sends the key, or the proxy puts it in.
    pub sends_key: bool,
}

/// Ends with its handle.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Subject {
    /// Its process, if it has one.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.0.id())
    }

    /// Processor time that its process has used, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.pid().map_or(Ok(0.0), process::cpu_seconds)
    }

    pub fn resident_kib(&self) -> Result<u64> {
        self.pid().map_or(Ok(0), process::resident_kib)
    }
}

/// A run: its directory with keys and logs, and the upstream.
pub struct Run {
    directory: tempfile::TempDir,
    pub upstream: Ports,
    _upstream: Process,
}

impl Run {
    /// Makes keys and starts the upstream.
    pub fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sandbox-bench-").tempdir()?;
        let path = directory.path();
        // For squid, which is another user where we are root; the keys are of this run.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
        pki::write(path)?;
        std::fs::write(path.join("hosts"), format!("127.0.0.1 {}\n", super::HOST))?;
        let upstream = Ports {
            h1: free_port()?,
            h2: free_port()?,
            stranger: free_port()?,
        };
        let ports = upstream.all();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("upstream")
            .arg(process::LOAD_CPU.to_string())
            .arg(path)
            .args(ports.map(|port| port.to_string()));
        let process = spawn(&mut command, path, "upstream")?;
        for port in ports {
            wait_for(port, "upstream", path)?;
        }
        Ok(Self {
            directory,
            upstream,
            _upstream: process,
        })
    }

    /// Upstream's root certificate, as PEM.
    pub fn upstream_root(&self) -> Result<String> {
        Ok(std::fs::read_to_string(
            self.directory.path().join("upstream.pem"),
        )?)
    }

    /// Starts a subject; `None`, and says why, where its program is not there.
    pub fn subject(&self, name: &'static str) -> Result<Option<Subject>> {
        let path = self.directory.path();
        let port = free_port()?;
        let command = match name {
            "direct" => None,
            "ours-tunnel" | "ours-intercept" => Some(self.ours(name, port)?),
            "squid" => self.squid(port)?,
            "mitmproxy" => self.mitmproxy(port)?,
            _ => self.hudsucker(port),
        };
        let is_end_to_end = matches!(name, "direct" | "ours-tunnel");
        let own_root = authority_file(port);
        let root = match name {
            "ours-intercept" => own_root.as_str(),
            _ if is_end_to_end => "upstream.pem",
            _ => "ca.pem",
        };
        let mut subject = Subject {
            name,
            way: Way {
                proxy: None,
                root: path.join(root),
                sends_key: is_end_to_end,
            },
            speaks_h2: name != "squid",
            process: None,
        };
        if let Some(mut command) = command {
            subject.process = Some(spawn(&mut command, path, name)?);
            wait_for(port, name, path)?;
            subject.way.proxy = Some((Ipv4Addr::LOCALHOST, port).into());
        } else if name != "direct" {
            return Ok(None);
        }
        Ok(Some(subject))
    }

    fn ours(&self, name: &str, port: u16) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name).arg(process::subject_cpu().to_string());
        command.arg(self.directory.path()).arg(port.to_string());
        command.args(self.upstream.all().map(|port| port.to_string()));
        Ok(command)
    }

    fn squid(&self, port: u16) -> Result<Option<Command>> {
        let Some(program) = program(SQUID, "squid") else {
            return Ok(None);
        };
        let path = self.directory.path();
        let own = path.join("squid");
        if !own.exists() {
            std::fs::create_dir(&own)?;
            // It does not run as root.
            std::fs::set_permissions(&own, PermissionsExt::from_mode(0o777))?;
            let mut make = unprivileged(CERTGEN.as_ref());
            make.arg("-c")
                .arg("-s")
                .arg(own.join("ssl_db"))
                .args(["-M", "4MB"]);
            let made = make.output()?;
            if !made.status.success() {
                return Err(format!("{CERTGEN}: {}", String::from_utf8_lossy(&made.stderr)).into());
            }
        }
        let text = std::fs::read_to_string(Path::new(RIVALS).join("squid/squid.conf"))?
            .replace("{port}", &port.to_string())
            .replace("{dir}", &path.to_string_lossy())
            .replace("{certgen}", CERTGEN)
            .replace("{key}", KEY)
            .replace("{descriptors}", &process::descriptors().to_string());
        let file = path.join(format!("squid-{port}.conf"));
        std::fs::write(&file, text)?;
        let mut command = unprivileged(&program);
        command.args(["-N", "-f"]).arg(file);
        Ok(Some(command))
    }

    fn mitmproxy(&self, port: u16) -> Result<Option<Command>> {
        let Some(program) = program(MITMDUMP, "mitmproxy") else {
            return Ok(None);
        };
        let path = self.directory.path();
        let own = path.join("mitmproxy");
        std::fs::create_dir_all(&own)?;
        std::fs::copy(path.join("ca-and-key.pem"), own.join("mitmproxy-ca.pem"))?;
        let mut command = pinned(&program);
        command
            .args([
                "--quiet",
                "--listen-host",
                "127.0.0.1",
                "--listen-port",
                &port.to_string(),
            ])
            .arg("--scripts")
            .arg(Path::new(RIVALS).join("mitmproxy/bench.py"))
            .arg("--set")
            .arg(format!("confdir={}", own.display()))
            .arg("--set")
            .arg(format!(
                "ssl_verify_upstream_trusted_ca={}",
                path.join("upstream.pem").display()
            ))
            .env("BENCH_KEY", KEY);
        Ok(Some(command))
    }

    fn hudsucker(&self, port: u16) -> Option<Command> {
        let mut command = pinned(&program(HUDSUCKER, "hudsucker")?);
        command.arg(port.to_string()).arg(self.directory.path()).arg(KEY);
        Some(command)
    }
}

fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let program = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.exists());
    if program.is_none() {
        println!("{name} is left out: ${variable} names no program (`cargo xtask bench proxy` installs it)");
    }
    program
}

/// A rival's program, on the processor of subjects. Ours goes there itself.
fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", &process::subject_cpu().to_string()])
        .arg(program);
    command
}

/// The same as the user that Debian has for proxies, where we are root.
fn unprivileged(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return pinned(program);
    }
    let mut command = pinned("setpriv".as_ref());
    command
        .args(["--reuid=proxy", "--regid=proxy", "--clear-groups"])
        .arg(program);
    command
}

fn spawn(command: &mut Command, directory: &Path, name: &str) -> Result<Process> {
    let log = std::fs::File::create(directory.join(format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    Ok(Process(child))
}

fn wait_for(port: u16, name: &str, directory: &Path) -> Result<()> {
    let deadline = Instant::now() + START;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(directory.join(format!("{name}.log"))).unwrap_or_default();
            return Err(format!("{name} does not listen:\n{log}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
