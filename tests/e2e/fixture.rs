//! What the tests share: a runtime, a workspace, the API stand-in and a running sandbox.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sandbox::{Command, Output, Rules, Sandbox, SandboxBuilder, Service, sources};
use stand_in::StandIn;
use tokio::runtime::Runtime;

/// Host name of the API stand-in.
pub const API: &str = "api.example.com";

/// A sandbox, what it works on, and the API it may call.
pub struct Shared {
    pub sandbox: Sandbox,
    pub workspace: PathBuf,
    pub api: StandIn,
    /// The API's key. Made here, so no file of the repository holds it.
    pub key: String,
}

/// Runs an async test on the runtime that all tests share.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .with_test_writer()
                .init();
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap()
        })
        .block_on(test)
}

/// The sandbox that tests share. Launched once; ends with the test process, as the VMM dies with its parent.
pub async fn shared() -> &'static Shared {
    static SHARED: tokio::sync::OnceCell<Shared> = tokio::sync::OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let key = random_key();
            let api = StandIn::start(API, &key).await.unwrap();
            let workspace = fresh_directory("shared");
            let sandbox = with_api(&workspace, &api, &key)
                .launch()
                .await
                .unwrap_or_else(|e| panic!("{e}"));
            Shared {
                sandbox,
                workspace,
                api,
                key,
            }
        })
        .await
}

/// A builder for a sandbox on `workspace` that may call `api` with `key` and nothing else.
pub fn with_api(workspace: &Path, api: &StandIn, key: &str) -> SandboxBuilder {
    Sandbox::builder()
        .workspace(workspace)
        .memory(sandbox::Size::mib(256))
        .policy(api_rules(api))
        .credential(api_service(api), sources::Static::new(key))
        .resolve(API, api.ip())
        .trust(api.root_pem())
}

/// Allows the API stand-in, which lives on loopback.
pub fn api_rules(api: &StandIn) -> Rules {
    Rules::locked_down().allow(&format!("https://{API}:{} special-ranges", api.port()))
}

/// The stand-in as a service with a key in `x-api-key`.
pub fn api_service(api: &StandIn) -> Service {
    Service::custom("stand-in")
        .header(&format!("{API}:{}", api.port()), "x-api-key")
        .environment("STAND_IN_API_KEY", "sandbox-placeholder-stand-in")
}

/// A program in the shared sandbox, not yet started.
pub async fn command(program: &str) -> Command<'static> {
    shared().await.sandbox.command(program)
}

/// A shell script in the shared sandbox, not yet started.
pub async fn shell(script: &str) -> Command<'static> {
    command("sh").await.args(["-c", script])
}

/// A shell script in the shared sandbox.
pub async fn sh(script: &str) -> Output {
    shell(script)
        .await
        .output()
        .await
        .unwrap_or_else(|e| panic!("{e}"))
}

/// As [`sh`], for a script that must succeed; gives its output as text.
pub async fn sh_ok(script: &str) -> String {
    let output = sh(script).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{script:?} ended with {:?}: {stderr}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A Python program in the shared sandbox.
pub async fn python(program: &str) -> Output {
    let python = command("python3").await.args(["-c", program]);
    python.output().await.unwrap_or_else(|e| panic!("{e}"))
}

/// `https://…` of the API stand-in.
pub async fn api_url(path: &str) -> String {
    format!("https://{API}:{}{path}", shared().await.api.port())
}

/// The process id of the VMM of one of this process's sandboxes. Tests run side by side: only the name tells
/// which is whose.
pub fn vmm_of(sandbox: &str) -> Option<u32> {
    let mut vmms = vmms(std::process::id()).into_iter();
    vmms.find(|(_, name)| name == sandbox).map(|(pid, _)| pid)
}

/// The VMM processes of one orchestrator: their ids and the names of their sandboxes.
pub fn vmms(orchestrator: u32) -> BTreeMap<u32, String> {
    let vmm = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let parent: u32 = rest.split_whitespace().nth(1)?.parse().ok()?;
        let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let name = title
            .trim_end_matches('\0')
            .strip_prefix("sandbox-vmm: ")?
            .to_owned();
        (parent == orchestrator).then_some((pid, name))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(vmm).collect()
}

/// An empty directory of this process, outside any home directory.
pub fn fresh_directory(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path.canonicalize().unwrap()
}

pub fn random_key() -> String {
    use std::io::Read as _;
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    // '+' and '=' so that percent-encoding changes it.
    bytes
        .iter()
        .fold("sk+test=".to_owned(), |key, byte| format!("{key}{byte:02x}"))
}
