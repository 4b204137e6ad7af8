//! What the guest is kept from: another kernel, other files, the host's environment, services and networks.

use std::net::{Ipv4Addr, TcpListener};

use sandbox::{LaunchError, Sandbox, User, WorkspaceError};

use crate::fixture::{command, python, run, sh, sh_ok, shared};

#[test]
fn process_list_holds_guest_processes_only() {
    run(async {
        // A process of the host with a name to look for.
        let mut beacon = std::process::Command::new("sleep").arg("98765").spawn().unwrap();
        let processes = sh_ok("ps -eo args; sleep 4321 & ps -eo args; kill $!").await;
        beacon.kill().unwrap();
        beacon.wait().unwrap();
        assert!(!processes.contains("98765"), "{processes}");
        assert!(
            processes.contains("sleep 4321"),
            "the search would find one: {processes}"
        );
    });
}

#[test]
fn parents_of_the_workspace_are_empty_stubs() {
    run(async {
        let workspace = &shared().await.workspace;
        // Something beside the workspace, on the host.
        let sibling = workspace.with_file_name(format!("sibling-{}", std::process::id()));
        std::fs::write(&sibling, "not for the guest").unwrap();
        let parent = workspace.parent().unwrap().display().to_string();
        let listing = sh_ok(&format!("ls -A {parent}")).await;
        std::fs::remove_file(&sibling).unwrap();
        assert_eq!(listing.trim(), workspace.file_name().unwrap().to_str().unwrap());
        let written = sh(&format!("touch {parent}/new 2>&1")).await;
        assert!(!written.status.success(), "the stub is read-only for the agent");
    });
}

#[test]
fn home_directory_of_the_host_is_not_there() {
    run(async {
        let output = sh("ls -A ~/.ssh ~/.aws ~/.config 2>/dev/null").await;
        assert_eq!(output.stdout, b"");
        let home = std::env::home_dir().unwrap();
        let of_host: Vec<_> = std::fs::read_dir(&home)
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default();
        let as_root = command("ls").await.arg("-A").arg(&home).user(User::Root);
        let listing = String::from_utf8(as_root.output().await.unwrap().stdout).unwrap();
        for name in of_host
            .iter()
            .filter_map(|name| name.to_str())
            .filter(|name| name.starts_with(".cargo"))
        {
            assert!(
                !listing.lines().any(|line| line == name),
                "{name} is in the guest: {listing}"
            );
        }
    });
}

#[test]
fn environment_holds_no_variable_of_the_host() {
    run(async {
        // Planted by `.cargo/config.toml` in the environment of everything that cargo runs.
        let planted = std::env::var("SANDBOX_TEST_CANARY").expect("run the tests through cargo");
        let environment = sh_ok("env; sudo env; cat /proc/1/environ 2>/dev/null | tr '\\0' '\\n'").await;
        assert!(!environment.contains("SANDBOX_TEST_CANARY"), "{environment}");
        assert!(!environment.contains(&planted) && !environment.contains(&shared().await.key));
        assert!(
            environment.contains("STAND_IN_API_KEY="),
            "a placeholder lets tools start: {environment}"
        );
    });
}

#[test]
fn services_of_the_host_fail_at_once_with_a_real_error() {
    run(async {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        // The guest's own loopback, private networks, metadata, the internet: none has a route or a listener.
        let script = format!(
            "import socket, errno
for host in ('127.0.0.1', '10.0.0.1', '192.168.1.1', '172.17.0.1', '169.254.169.254', '1.1.1.1'):
    s = socket.socket(); s.settimeout(600)
    try: s.connect((host, {port})); print(host, 'CONNECTED')
    except OSError as e: print(host, errno.errorcode.get(e.errno, repr(e)))
"
        );
        let output = python(&script).await;
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text.lines().count(),
            6,
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains("127.0.0.1 ECONNREFUSED"), "{text}");
        for line in text.lines().skip(1) {
            assert!(
                line.ends_with("ENETUNREACH") || line.ends_with("EHOSTUNREACH"),
                "{line}"
            );
        }
    });
}

#[test]
fn there_is_no_network_device_but_loopback() {
    run(async {
        assert_eq!(sh_ok("ls /sys/class/net").await.trim(), "lo");
        let raw = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(bytes(8), ('10.0.0.1', 0))";
        let command = command("python3").await.args(["-c", raw]).user(User::Root);
        let output = command.output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{stderr}");
        assert!(stderr.contains("unreachable"), "{stderr}");
    });
}

#[test]
fn workspace_that_is_a_home_directory_is_refused() {
    run(async {
        let home = std::env::home_dir().unwrap();
        let error = Sandbox::builder().workspace(&home).launch().await.err().unwrap();
        assert!(
            matches!(error, LaunchError::Workspace(WorkspaceError::Home { .. })),
            "{error}"
        );
        assert!(
            error.to_string().contains("workspace_despite_risk"),
            "says how to force it: {error}"
        );
        for (path, what) in [
            ("/", "root"),
            ("/nonexistent-workspace", "missing"),
            ("/etc/hostname", "file"),
        ] {
            let error = Sandbox::builder().workspace(path).launch().await.err().unwrap();
            let right = match what {
                "root" => matches!(error, LaunchError::Workspace(WorkspaceError::Root)),
                "missing" => matches!(error, LaunchError::Workspace(WorkspaceError::Missing { .. })),
                _ => matches!(
                    error,
                    LaunchError::Workspace(WorkspaceError::NotADirectory { .. })
                ),
            };
            assert!(right, "{path}: {error:?}");
        }
    });
}
