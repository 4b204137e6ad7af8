//! From what the user said to a sandbox that takes commands.
//!
//! Order: all that can be judged without a machine first (workspace, numbers, policy, credentials), then the
//! machine, then its agent. Every step's result is owned by this future, so dropping it undoes all of them.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandbox_core::backend::{Access, Backend, Export, Machine, MachineError, MachineSpec, ports};
use sandbox_core::id::SandboxId;
use sandbox_core::size::{CpuCount, MemorySize};
use sandbox_core::stream::BoxStream;
use sandbox_protocol::control::{self, Call, Configure, EntropySeed, Hello, WallClock};
use sandbox_proxy::dns::{SYNTHETIC_V4, SYNTHETIC_V6, Transport};
use sandbox_proxy::{Proxy, ProxyError, Rules};
use tokio::sync::broadcast;
use tokio::task::{JoinHandle, JoinSet};

use crate::builder::SandboxBuilder;
use crate::control::{Control, ControlError};
use crate::error::LaunchError;
use crate::events::{self, Attempts, Event};
use crate::sandbox::{Sandbox, why_lost};
use crate::workspace::{self, WorkspaceError};

// The guest's agent and the machines' users name the same things, in crates that do not know each other.
const _: () = {
    assert!(ports::CONTROL == sandbox_protocol::CONTROL_PORT);
    assert!(ports::EXEC == sandbox_protocol::EXEC_PORT);
    assert!(ports::EGRESS == sandbox_protocol::EGRESS_PORT);
    assert!(ports::DNS == sandbox_protocol::DNS_PORT);
    assert!(ports::DNS_DATAGRAMS == sandbox_protocol::DNS_DATAGRAMS_PORT);
    let (in_guest, given) = (sandbox_protocol::SYNTHETIC_V4, SYNTHETIC_V4);
    assert!(in_guest.0.to_bits() == given.0.to_bits() && in_guest.1 == given.1);
    let (in_guest, given) = (sandbox_protocol::SYNTHETIC_V6, SYNTHETIC_V6);
    assert!(in_guest.0.to_bits() == given.0.to_bits() && in_guest.1 == given.1);
};

/// Pause after a stream that could not be taken, so that a host without descriptors is not kept busy by it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Name of the unprivileged user in the base image.
const GUEST_USER: &str = "agent";

pub(crate) async fn launch(said: SandboxBuilder) -> Result<Sandbox, LaunchError> {
    let plan = Plan::resolve(said).await?;
    let limit = plan.start_timeout;
    let proxy = plan.proxy.clone();
    let authority = tokio::task::spawn_blocking(move || proxy.ca_pem());
    tracing::debug!(sandbox = %plan.id, phase = "start");
    let machine = plan.backend.start(plan.spec).await?;
    tracing::debug!(sandbox = %plan.id, phase = "machine");
    let up = bring_up(&machine, plan.configure, authority, plan.agent_build.as_deref());
    let (control, hello) = match tokio::time::timeout(limit, up).await {
        Ok(result) => result?,
        Err(_) => {
            return Err(LaunchError::StartTimeout {
                limit,
                console: machine.console_tail(),
            });
        }
    };
    tracing::debug!(sandbox = %plan.id, phase = "up");
    let mut tasks = JoinSet::new();
    tasks.spawn(egress(Arc::clone(&machine), plan.proxy.clone()));
    tasks.spawn(watch(Arc::clone(&machine), plan.events.clone()));
    Ok(Sandbox {
        id: plan.id,
        machine,
        control,
        events: plan.events,
        proxy: plan.proxy,
        kernel: hello.kernel,
        _tasks: tasks,
    })
}

/// All that is known before a machine runs.
struct Plan {
    id: SandboxId,
    spec: MachineSpec,
    configure: Configure,
    proxy: Proxy,
    backend: Arc<dyn Backend>,
    /// The build the agent must be of, where the backend boots our agent.
    agent_build: Option<String>,
    events: broadcast::Sender<Event>,
    start_timeout: Duration,
}

impl Plan {
    async fn resolve(said: SandboxBuilder) -> Result<Self, LaunchError> {
        let id: SandboxId = match said.name {
            Some(name) => name.try_into()?,
            None => random_name().parse()?,
        };
        let memory = MemorySize::try_from(said.memory)?;
        let cpus = CpuCount::try_from(said.cpus)?;
        let workspace = said.workspace.ok_or(WorkspaceError::NotSet)?;
        let mut exports = vec![export(&workspace, said.despite_risk, Access::ReadWrite)?];
        for (directory, access) in &said.mounts {
            exports.push(export(directory, false, *access)?);
        }

        let (events, _) = broadcast::channel(events::BACKLOG);
        let mut proxy = Proxy::builder(id.clone())
            .policy(said.policy.unwrap_or_else(|| Arc::new(Rules::locked_down())))
            .limits(said.limits)
            .audit(Arc::new(Attempts(events.clone())));
        if let Some(max_connections) = said.max_connections {
            proxy = proxy.max_connections(max_connections);
        }
        for sink in said.audit {
            proxy = proxy.audit(sink);
        }
        if let Some(approver) = said.approver {
            proxy = proxy.approver(approver);
        }
        if let Some(limit) = said.approval_time {
            proxy = proxy.approval_time(limit);
        }
        for (service, source) in said.credentials {
            proxy = proxy.credential(service, source);
        }
        for (name, addresses) in said.answers {
            let name = name.parse().map_err(|cause| LaunchError::Host { name, cause })?;
            proxy = proxy.resolve(name, addresses);
        }
        if let Some(resolver) = said.resolver {
            proxy = proxy.resolver(resolver);
        }
        if let Some(upstream) = said.upstream_proxy {
            proxy = proxy.upstream_proxy(upstream);
        }
        for root in said.roots {
            proxy = proxy.extra_root(root);
        }
        let proxy = proxy.build()?;
        proxy.check_credentials().await?;

        let (backend, agent_build) = match said.backend {
            Some(backend) => (backend, None),
            None => {
                let artifacts = sandbox_artifacts::Artifacts::locate()?;
                let agent_build = artifacts.agent_build().to_owned();
                (crate::kvm::backend(&artifacts), Some(agent_build))
            }
        };

        let env = proxy.placeholders().into_iter().chain(said.env);
        let configure = Configure {
            hostname: id.to_string(),
            machine_id: random(),
            // Set when it is sent.
            wall_clock: WallClock {
                seconds: 0,
                nanoseconds: 0,
            },
            entropy: EntropySeed(random()),
            user: GUEST_USER.into(),
            env: env.map(|(name, value)| (name.into(), value.into())).collect(),
            // Made while the machine boots.
            ca_pem: None,
            proxy: true,
            exports: exports
                .iter()
                .enumerate()
                .map(|(index, export)| on_wire(index, export))
                .collect(),
        };
        let spec = MachineSpec {
            id: id.clone(),
            memory,
            cpus,
            exports,
        };
        Ok(Self {
            id,
            spec,
            configure,
            proxy,
            backend,
            agent_build,
            events,
            start_timeout: said.start_timeout,
        })
    }
}

fn export(path: &Path, despite_risk: bool, access: Access) -> Result<Export, LaunchError> {
    let workspace::Workspace {
        directory,
        guest_path,
    } = workspace::open(path, despite_risk)?;
    let directory: OwnedFd = directory;
    Ok(Export {
        directory,
        guest_path,
        access,
    })
}

fn on_wire(index: usize, export: &Export) -> control::Export {
    use std::os::unix::ffi::OsStrExt as _;
    control::Export {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        path: export.guest_path.as_path().as_os_str().as_bytes().into(),
        read_only: export.access == Access::ReadOnly,
    }
}

/// Waits for the agent and gives the guest its identity.
async fn bring_up(
    machine: &Arc<dyn Machine>,
    mut configure: Configure,
    authority: JoinHandle<Result<String, ProxyError>>,
    agent_build: Option<&str>,
) -> Result<(Control, Hello), LaunchError> {
    let not_up = |why: String| LaunchError::GuestDidNotComeUp {
        why,
        console: machine.console_tail(),
    };
    let greeting = async {
        let stream = control_stream(machine).await?;
        Control::open(stream).await.map_err(|error| error.to_string())
    };
    let greeted = tokio::select! {
        greeted = greeting => greeted,
        exit = machine.wait() => return Err(not_up(exit.to_string())),
    };
    let (control, hello) = match greeted {
        Ok(greeted) => greeted,
        Err(why) => return Err(not_up(why_lost(machine.as_ref(), why).await)),
    };
    if let Some(expected) = agent_build
        && (hello.build != expected || hello.protocol != sandbox_protocol::PROTOCOL_VERSION)
    {
        return Err(LaunchError::OtherAgent {
            found: hello.build,
            expected: expected.to_owned(),
        });
    }
    tracing::debug!(
        kernel = hello.kernel.escape_debug().to_string(),
        phase = "greeted"
    );
    let authority = authority.await.map_err(|error| not_up(error.to_string()))?;
    configure.ca_pem = Some(authority?);
    configure.wall_clock = now();
    let configured = tokio::select! {
        configured = control.call(Call::Configure(Box::new(configure))) => configured,
        exit = machine.wait() => return Err(not_up(exit.to_string())),
    };
    match configured {
        Ok(()) => Ok((control, hello)),
        Err(ControlError::Ended) => {
            let why = ControlError::Ended.to_string();
            Err(not_up(why_lost(machine.as_ref(), why).await))
        }
        Err(other) => Err(LaunchError::Setup {
            why: other.to_string(),
            console: machine.console_tail(),
        }),
    }
}

/// The guest's first stream on the control port. Others are dropped: before it is set up it has no business.
async fn control_stream(machine: &Arc<dyn Machine>) -> Result<BoxStream, String> {
    loop {
        match machine.accept().await {
            Ok((ports::CONTROL, stream)) => return Ok(stream),
            Ok((port, _)) => tracing::warn!(port, "stream before the agent's greeting dropped"),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Carries what wants out to the proxy, and questions for names to its DNS. All its streams end with this task.
async fn egress(machine: Arc<dyn Machine>, proxy: Proxy) {
    let mut streams = JoinSet::new();
    let dns = proxy.dns();
    loop {
        tokio::select! {
            accepted = machine.accept() => match accepted {
                Ok((ports::EGRESS, stream)) => {
                    let proxy = proxy.clone();
                    streams.spawn(async move { proxy.serve(stream).await });
                }
                Ok((ports::DNS, stream)) => {
                    let dns = dns.clone();
                    streams.spawn(async move { dns.serve_stream(stream, Transport::Stream).await });
                }
                Ok((ports::DNS_DATAGRAMS, stream)) => {
                    let dns = dns.clone();
                    streams.spawn(async move { dns.serve_stream(stream, Transport::Datagram).await });
                }
                Ok((port, _)) => tracing::debug!(port, "guest opened a stream to a port that nothing serves"),
                Err(MachineError::Ended(_)) => return,
                // One stream is lost, for instance for lack of descriptors; the next may do better.
                Err(error) => {
                    tracing::warn!(%error, "an egress stream could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = streams.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an egress stream's task failed");
                }
            }
        }
    }
}

/// Tells subscribers about the machine.
async fn watch(machine: Arc<dyn Machine>, events: broadcast::Sender<Event>) {
    loop {
        let event = tokio::select! {
            notice = machine.notice() => Event::Notice(notice),
            exit = machine.wait() => Event::Ended(exit),
        };
        let last = matches!(event, Event::Ended(_));
        // Without subscribers there is nobody to tell.
        let _ = events.send(event);
        if last {
            return;
        }
    }
}

fn now() -> WallClock {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    WallClock {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: since.subsec_nanos(),
    }
}

fn random_name() -> String {
    let bytes: [u8; 5] = random();
    bytes
        .iter()
        .fold("sandbox-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// Bytes of the system's generator.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // Without randomness nothing here is safe, and getrandom(2) cannot fail on a kernel that has it.
            Err(error) => panic!("getrandom failed: {error}"),
        }
    }
    bytes
}
