//! Bad input and faults: a typed error that says what to do, and nothing left running or on disk.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sandbox::artifacts::{ArtifactError, Artifacts};
use sandbox::core::backend::{Backend, BackendError, MachineExit};
use sandbox::{ExecError, KvmBackend, LaunchError, Rules, Sandbox, SandboxBuilder, Service, Size, sources};

use crate::fixture::{fresh_directory, run, vmm_of, vmms};

/// Environment variable that turns this test program into an orchestrator that launches a sandbox and waits.
const ORCHESTRATOR: &str = "SANDBOX_TEST_ORCHESTRATOR";

fn small(name: &str) -> SandboxBuilder {
    Sandbox::builder()
        .name(name)
        .workspace(fresh_directory(name))
        .memory(Size::mib(256))
}

fn images() -> sandbox::KvmImages {
    sandbox::kvm::images(&Artifacts::locate().unwrap())
}

/// Why a launch that must fail did.
async fn refused(builder: SandboxBuilder) -> LaunchError {
    let Err(error) = builder.launch().await else {
        panic!("it was launched")
    };
    error
}

/// Waits until a process is gone; bounded by the test runner. A zombie is gone but for its name.
fn wait_until_gone(pid: u32) {
    let running = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().next())
            .is_some_and(|state| state != "Z")
    };
    while running(pid) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn device_that_may_not_be_opened_names_the_group() {
    if !Path::new("/dev/kvm").exists() {
        return;
    }
    let backend = KvmBackend::new(images());
    // Only this thread becomes an unprivileged user: credentials are per thread on Linux.
    std::thread::spawn(move || {
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
        let (nobody, nogroup) = (
            rustix::process::Uid::from_raw(65534),
            rustix::process::Gid::from_raw(65534),
        );
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(nogroup, nogroup, nogroup).unwrap();
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(backend.probe()).unwrap_err();
        let BackendError::NoPermission { group, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(!group.is_empty());
        assert!(error.to_string().contains("usermod -aG"), "{error}");
    })
    .join()
    .unwrap();
}

#[test]
fn missing_artefacts_and_those_of_another_build_name_the_command() {
    run(async {
        let empty = fresh_directory("no-artefacts");
        let error = Artifacts::locate_in(&[empty]).unwrap_err();
        assert!(matches!(error, ArtifactError::Missing { .. }), "{error:?}");
        assert!(error.to_string().contains("cargo xtask artifacts"), "{error}");

        let mut gone = images();
        gone.agent = "/nonexistent/agent.erofs".into();
        let error = refused(small("gone").backend(KvmBackend::new(gone))).await;
        let missing = matches!(&error, LaunchError::Backend(BackendError::ArtefactMissing { path, .. })
            if path == Path::new("/nonexistent/agent.erofs"));
        assert!(missing, "{error:?}");

        let mut other = images();
        other.helper_build = Some("0123456789abcdef".into());
        let error = refused(small("other").backend(KvmBackend::new(other))).await;
        assert!(
            matches!(error, LaunchError::Backend(BackendError::OtherBuild { .. })),
            "{error:?}"
        );
        assert!(error.to_string().contains("cargo xtask artifacts"), "{error}");
    });
}

#[test]
fn unparsable_rule_points_at_the_character() {
    run(async {
        let rules = Rules::locked_down().allow("api.example.com:https");
        let error = refused(small("rule").policy(rules)).await;
        assert!(matches!(error, LaunchError::Proxy(_)), "{error:?}");
        let text = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        assert!(
            text.lines().any(|line| line.trim() == "^"),
            "a caret under the character: {text}"
        );
    });
}

#[test]
fn credential_that_cannot_be_found_stops_the_launch() {
    run(async {
        let source = sources::Env::new("SANDBOX_TEST_NO_SUCH_VARIABLE");
        let error = refused(small("credential").credential(Service::anthropic(), source)).await;
        assert!(matches!(error, LaunchError::Credential(_)), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("anthropic") && text.contains("SANDBOX_TEST_NO_SUCH_VARIABLE"),
            "{text}"
        );
    });
}

#[test]
fn impossible_amounts_are_refused_before_anything_starts() {
    run(async {
        for builder in [
            small("impossible").memory(Size::mib(1)),
            small("impossible").memory(Size::gib(4096)),
            small("impossible").cpus(0),
        ] {
            let error = refused(builder).await;
            assert!(matches!(error, LaunchError::Resources(_)), "{error:?}");
        }
        assert_eq!(vmm_of("impossible"), None);
        let error = refused(small("not-a-name").name("Not A Name")).await;
        assert!(matches!(error, LaunchError::Name(_)), "{error:?}");
    });
}

#[test]
fn guest_that_does_not_come_up_shows_its_last_words() {
    run(async {
        let mut broken = images();
        // A root file system without our agent: the kernel panics for lack of an init.
        broken.agent = broken.base.clone();
        let error = refused(small("broken").backend(KvmBackend::new(broken))).await;
        let LaunchError::GuestDidNotComeUp { console, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(console.contains("Kernel panic"), "{console}");
        assert!(
            !console.contains('\x1b') && !console.contains('\r'),
            "control characters are escaped"
        );
    });
}

#[test]
fn killed_vmm_is_an_error_value_and_not_the_end_of_the_host_program() {
    run(async {
        let sandbox = small("killed").launch().await.unwrap_or_else(|e| panic!("{e}"));
        let mut running = sandbox.command("sleep").arg("100000").spawn().await.unwrap();
        let vmm = vmm_of("killed").expect("a VMM process");
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(vmm.cast_signed()).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        let exit = sandbox.wait().await;
        assert!(
            matches!(&exit, MachineExit::MonitorDied { why } if why.contains('9')),
            "{exit:?}"
        );
        let error = running.wait().await.unwrap_err();
        assert!(
            matches!(&error, ExecError::SandboxEnded { why } if *why == exit.to_string()),
            "{error:?}"
        );
        let error = sandbox.command("true").status().await.unwrap_err();
        assert!(matches!(error, ExecError::SandboxEnded { .. }), "{error:?}");
        wait_until_gone(vmm);
    });
}

#[test]
fn shutdown_ends_the_machine_and_keeps_what_was_written() {
    run(async {
        let workspace = fresh_directory("shutdown");
        let sandbox = Sandbox::builder()
            .workspace(&workspace)
            .memory(Size::mib(256))
            .launch()
            .await;
        let sandbox = sandbox.unwrap_or_else(|e| panic!("{e}"));
        let command = sandbox.command("sh").args(["-c", "echo kept > file"]);
        assert!(command.status().await.unwrap().success());
        sandbox.shutdown().await.unwrap();
        assert_eq!(sandbox.wait().await, MachineExit::Shutdown);
        assert_eq!(std::fs::read_to_string(workspace.join("file")).unwrap(), "kept\n");
    });
}

#[test]
fn dropped_launch_leaves_nothing_running() {
    run(async {
        // Cut off at many points, from before the helper starts to just before the guest answers.
        for millis in [0, 1, 3, 10, 30, 100, 300, 600] {
            let launch = small("dropped").launch();
            let cut = tokio::time::timeout(Duration::from_millis(millis), launch).await;
            drop(cut);
            if let Some(vmm) = vmm_of("dropped") {
                wait_until_gone(vmm);
            }
        }
    });
}

#[test]
fn killed_orchestrator_takes_its_vmm_with_it_at_any_phase() {
    if std::env::var_os(ORCHESTRATOR).is_some() {
        return orchestrate();
    }
    // By what the orchestrator says when it reaches them.
    for phase in ["start", "machine", "greeted", "up"] {
        let mut orchestrator = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "faults::killed_orchestrator_takes_its_vmm_with_it_at_any_phase",
                "--nocapture",
            ])
            .env(ORCHESTRATOR, fresh_directory(&format!("orchestrator-{phase}")))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(orchestrator.stderr.take().unwrap()).lines();
        let mark = format!("phase={phase}");
        let reached = said
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.replace('"', "").contains(&mark));
        assert!(reached, "the orchestrator never came to {phase}");
        let vmms: Vec<_> = vmms(orchestrator.id()).into_keys().collect();
        assert!(phase == "start" || vmms.len() == 1, "at {phase}: {vmms:?}");
        orchestrator.kill().unwrap();
        orchestrator.wait().unwrap();
        for vmm in vmms {
            wait_until_gone(vmm);
        }
    }
}

fn orchestrate() {
    tracing_subscriber::fmt()
        .with_env_filter("sandbox=debug")
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let workspace = PathBuf::from(std::env::var_os(ORCHESTRATOR).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let _sandbox = Sandbox::builder()
            .workspace(workspace)
            .memory(Size::mib(256))
            .launch()
            .await
            .unwrap();
        std::future::pending::<()>().await;
    });
}

#[test]
fn full_layer_is_an_error_in_the_guest_and_leaves_the_sandbox_usable() {
    run(async {
        let (disk, unmount) = small_disk("full-disk", "24m");
        let sandbox = small("full")
            .backend(KvmBackend::new(images()).layer_directory(&disk))
            .launch()
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let mut events = sandbox.events();
        let script = "dd if=/dev/zero of=/var/tmp/fill bs=1M count=64 conv=fsync 2>&1";
        let output = sandbox.command("sh").args(["-c", script]).output().await.unwrap();
        assert!(!output.status.success(), "{}", output.text());
        let told = async {
            loop {
                if let sandbox::Event::Notice(notice) = events.recv().await.unwrap() {
                    return notice;
                }
            }
        };
        assert_eq!(told.await, sandbox::core::backend::Notice::LayerOutOfSpace);
        // The workspace lives elsewhere and still works.
        let command = sandbox.command("sh").args(["-c", "echo works > file; cat file"]);
        assert_eq!(command.output().await.unwrap().stdout, b"works\n");
        drop(sandbox);
        drop(unmount);
    });
}

/// A disk for layers that is soon full: a file system of its own.
fn small_disk(name: &str, size: &str) -> (PathBuf, Unmount) {
    let disk = fresh_directory(name);
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "sandbox-test"])
        .arg(&disk)
        .status()
        .unwrap();
    assert!(
        mounted.success(),
        "this test mounts a file system: run it as root"
    );
    (disk.clone(), Unmount(disk))
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily: the VMM process may still be on its way out.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_layer_that_cannot_be_made_says_that_the_disk_is_full() {
    run(async {
        let (disk, _unmount) = small_disk("no-room", "4k");
        let backend = KvmBackend::new(images()).layer_directory(&disk);
        let error = refused(small("no-room").backend(backend)).await;
        let LaunchError::Backend(BackendError::DiskFull { directory }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(directory, &disk);
    });
}
