//! Commands of a real agent: byte-exact streams, endings, surroundings.

#![allow(clippy::unwrap_used)] // the helpers are tests too

mod common;

use std::time::Duration;

use common::{Agent, gone, noise, patient};
use sandbox_protocol::exec::*;

fn piped(argv: &[&str]) -> Spawn {
    Spawn {
        stdin: Stdin::Pipe,
        ..Spawn::new(argv.iter().copied())
    }
}

#[tokio::test(flavor = "current_thread")]
async fn bytes_pass_unchanged_in_both_directions() {
    let agent = Agent::ready().await;
    let input = noise(3 << 20);
    let outcome = agent.run(piped(&["sh", "-c", "tee /dev/stderr"]), &input).await;
    assert_eq!(outcome.code(), 0);
    assert!(outcome.stdout == input && outcome.stderr == input);
}

#[tokio::test(flavor = "current_thread")]
async fn empty_input_ends_at_once_and_no_input_is_null() {
    let agent = Agent::ready().await;
    assert_eq!(agent.run(piped(&["cat"]), b"").await.code(), 0);
    let outcome = agent.run(Spawn::new(["readlink", "/proc/self/fd/0"]), b"").await;
    assert_eq!(outcome.text(), "/dev/null");
}

#[tokio::test(flavor = "current_thread")]
async fn every_exit_code_and_ending_signal_is_told() {
    let agent = Agent::ready().await;
    for code in [0, 1, 2, 127, 128, 255] {
        assert_eq!(agent.shell(&format!("exit {code}")).await.code(), code);
    }
    for signal in [1, 6, 9, 11, 15] {
        let exit = agent.shell(&format!("kill -{signal} $$")).await.exit.unwrap();
        assert_eq!(
            exit,
            Exit {
                status: ExitStatus::Signal(signal),
                timed_out: false
            }
        );
    }
}

#[tokio::test(flavor = "current_thread")]
async fn signal_reaches_the_whole_group() {
    let agent = Agent::ready().await;
    let mut exec = agent
        .exec(Spawn::new(["sh", "-c", "sleep 1000 & echo $!; wait"]))
        .await;
    assert!(matches!(exec.event().await, HostEvent::Spawned { .. }));
    let HostEvent::Output { data, .. } = exec.event().await else {
        panic!("no output")
    };
    let inner: u32 = std::str::from_utf8(&data).unwrap().trim().parse().unwrap();
    // What is no signal changes nothing.
    for number in [0, -1, 32, 65, i32::MIN] {
        exec.side.signal(number);
    }
    exec.side.signal(15);
    let outcome = patient(exec.finish(b"")).await;
    assert_eq!(outcome.exit.unwrap().status, ExitStatus::Signal(15));
    gone(inner).await;
}

#[tokio::test(flavor = "current_thread")]
async fn commands_do_not_inherit_ignored_or_blocked_signals_descriptors_or_sessions() {
    let agent = Agent::ready().await;
    let status = agent
        .shell("grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l")
        .await;
    let mut lines = status.text().lines();
    let mut set = || u64::from_str_radix(lines.next().unwrap().split_once('\t').unwrap().1, 16).unwrap();
    let (blocked, ignored) = (set(), set());
    assert_eq!(blocked, 0);
    // The agent ignores 13 for itself. Of 32 and 33 the C library decides, and this test's parents.
    assert_eq!(ignored & 0xffff_fffe_7fff_ffff, 0, "{ignored:#x}");
    // Standard streams and the directory being listed.
    assert_eq!(status.text().lines().last(), Some("4"));
    let outcome = agent.shell("cut -d' ' -f1,5,6 /proc/$$/stat").await;
    let pid = outcome.pid.to_string();
    assert_eq!(outcome.text().split(' ').collect::<Vec<_>>(), [pid.as_str(); 3]);
}

#[tokio::test(flavor = "current_thread")]
async fn time_limit_ends_the_group_and_is_told() {
    let agent = Agent::ready().await;
    let spawn = Spawn {
        timeout_ms: Some(100),
        ..Spawn::new(["sh", "-c", "sleep 1000; echo never"])
    };
    let outcome = agent.run(spawn, b"").await;
    assert_eq!(
        outcome.exit,
        Some(Exit {
            status: ExitStatus::Signal(15),
            timed_out: true
        })
    );
    assert!(outcome.stdout.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn time_limit_kills_what_ignores_the_polite_signal() {
    let agent = Agent::ready().await;
    let script = "trap '' TERM; while :; do sleep 1; done";
    let spawn = Spawn {
        timeout_ms: Some(50),
        ..Spawn::new(["sh", "-c", script])
    };
    let outcome = agent.run(spawn, b"").await;
    assert_eq!(
        outcome.exit,
        Some(Exit {
            status: ExitStatus::Signal(9),
            timed_out: true
        })
    );
}

#[tokio::test(flavor = "current_thread")]
async fn time_limit_beyond_all_clocks_is_no_limit() {
    let agent = Agent::ready().await;
    let spawn = Spawn {
        timeout_ms: Some(u64::MAX),
        ..Spawn::new(["true"])
    };
    assert_eq!(agent.run(spawn, b"").await.code(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn environment_is_the_sandboxs_own() {
    let agent = Agent::ready().await;
    let outcome = agent.run(Spawn::new(["env"]), b"").await;
    let text = outcome.text();
    assert!(!text.contains("HOST_SECRET"));
    for line in [
        "FROM_HOST=yes",
        "LANG=C.UTF-8",
        "no_proxy=localhost,127.0.0.1,::1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} not in {text}");
    }
    for name in [
        "PATH=/",
        "HOME=/",
        "https_proxy=http://127.0.0.1:",
        "SSL_CERT_FILE=/",
        "CURL_CA_BUNDLE=/",
    ] {
        assert!(
            text.lines().any(|found| found.starts_with(name)),
            "{name} not in {text}"
        );
    }
    let env = vec![EnvChange::Clear, EnvChange::Set("A".into(), b"\xff b"[..].into())];
    let outcome = agent
        .run(
            Spawn {
                env,
                ..Spawn::new(["/usr/bin/env"])
            },
            b"",
        )
        .await;
    assert_eq!(outcome.stdout, b"A=\xff b\n");
}

#[tokio::test(flavor = "current_thread")]
async fn working_directory_is_the_first_export_or_as_asked() {
    let agent = Agent::ready().await;
    let export = agent.directory.path().canonicalize().unwrap();
    assert_eq!(
        agent.run(Spawn::new(["pwd"]), b"").await.text(),
        export.to_str().unwrap()
    );
    let at = |cwd: &str| Spawn {
        cwd: Some(cwd.into()),
        ..Spawn::new(["pwd"])
    };
    assert_eq!(agent.run(at("/usr"), b"").await.text(), "/usr");
    for bad in ["/no/such/place", "/etc/passwd", "usr", ""] {
        assert_eq!(
            agent.run(at(bad), b"").await.failed(),
            SpawnFailureKind::BadCwd,
            "{bad}"
        );
    }
}

#[tokio::test(flavor = "current_thread")]
async fn failed_starts_are_told_apart() {
    let agent = Agent::ready().await;
    let file = |name: &str, content: &[u8], mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = agent.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    use SpawnFailureKind as Kind;
    let foreign = file("foreign", b"\x7fELF\x02\x01\x01\0\0\0", 0o755);
    let data = file("data", b"text", 0o644);
    let missing_interpreter = file("script", b"#!/no/such/shell\n", 0o755);
    for (argv, kind) in [
        (vec!["no-such-program"], Kind::NotFound),
        (vec!["/no/such/program"], Kind::NotFound),
        (vec![missing_interpreter.as_str()], Kind::NotFound),
        (vec![data.as_str()], Kind::PermissionDenied),
        (vec!["/etc"], Kind::PermissionDenied),
        (vec![foreign.as_str()], Kind::NotExecutable),
        (vec![], Kind::BadRequest),
        (vec![""], Kind::BadRequest),
        (vec!["true", "a\0b"], Kind::BadRequest),
    ] {
        assert_eq!(
            agent.run(Spawn::new(argv.iter().copied()), b"").await.failed(),
            kind,
            "{argv:?}"
        );
    }
    let long = "x".repeat(200_000);
    assert_eq!(
        agent.run(Spawn::new(["true", &long]), b"").await.failed(),
        Kind::ArgumentsTooLong
    );
    let env = vec![EnvChange::Set("A=B".into(), "".into())];
    assert_eq!(
        agent
            .run(
                Spawn {
                    env,
                    ..Spawn::new(["true"])
                },
                b""
            )
            .await
            .failed(),
        Kind::BadRequest
    );
}

#[tokio::test(flavor = "current_thread")]
async fn input_sent_to_a_command_that_fails_to_start_hides_nothing() {
    let agent = Agent::ready().await;
    let outcome = agent.run(piped(&["no-such-program"]), &noise(200_000)).await;
    assert_eq!(outcome.failed(), SpawnFailureKind::NotFound);
}

#[tokio::test(flavor = "current_thread")]
async fn script_without_interpreter_line_runs_in_the_shell() {
    use std::os::unix::fs::PermissionsExt;
    let agent = Agent::ready().await;
    let path = agent.directory.path().join("plain");
    std::fs::write(&path, "echo \"$0:$1\"\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = path.to_str().unwrap();
    let outcome = agent.run(Spawn::new([path, "one"]), b"").await;
    assert_eq!(outcome.text(), format!("{path}:one"));
}

#[tokio::test(flavor = "current_thread")]
async fn long_arguments_pass_whole() {
    let agent = Agent::ready().await;
    let argument = "y".repeat(120_000);
    let outcome = agent.run(Spawn::new(["printf", "%s", &argument]), b"").await;
    assert_eq!(outcome.text(), argument);
}

#[tokio::test(flavor = "current_thread")]
async fn exit_is_told_before_unread_output_and_the_rest_still_comes() {
    let agent = Agent::ready().await;
    // More than the window, so the background writer is still stuck when the shell has ended.
    let mut exec = agent
        .exec(Spawn::new(["sh", "-c", "head -c 600000 /dev/zero & exit 4"]))
        .await;
    let mut held = 0;
    loop {
        match exec.event().await {
            HostEvent::Exited(exit) => {
                assert_eq!(exit.status, ExitStatus::Code(4));
                break;
            }
            HostEvent::Output { data, .. } => held += data.len(),
            _ => {}
        }
    }
    exec.side.consumed(Output::Stdout, held);
    let outcome = patient(exec.finish(b"")).await;
    assert_eq!(held + outcome.stdout.len(), 600_000);
}

#[tokio::test(flavor = "current_thread")]
async fn slow_reader_holds_the_command_up_and_loses_nothing() {
    let agent = Agent::ready().await;
    let mut exec = agent
        .exec(Spawn::new([
            "sh",
            "-c",
            "head -c 2000000 /dev/zero; echo done >&2",
        ]))
        .await;
    let mut held = 0;
    while held < WINDOW as usize {
        if let HostEvent::Output { data, .. } = exec.event().await {
            held += data.len();
        }
    }
    let more = tokio::time::timeout(Duration::from_millis(200), exec.next()).await;
    assert!(more.is_err(), "beyond the window: {more:?}");
    exec.side.consumed(Output::Stdout, held);
    let outcome = patient(exec.finish(b"")).await;
    assert_eq!(held + outcome.stdout.len(), 2_000_000);
    assert_eq!(outcome.stderr, b"done\n");
}

#[tokio::test(flavor = "current_thread")]
async fn input_nobody_reads_is_told_and_dropped() {
    let agent = Agent::ready().await;
    let outcome = agent
        .run(piped(&["sh", "-c", "exec <&-; sleep 0.3"]), &noise(1 << 20))
        .await;
    assert_eq!(outcome.code(), 0);
    assert!(outcome.stdin_gone);
}

#[tokio::test(flavor = "current_thread")]
async fn dropped_stream_kills_the_group() {
    let agent = Agent::ready().await;
    let mut exec = agent
        .exec(Spawn::new(["sh", "-c", "sleep 1000 & echo $!; wait"]))
        .await;
    let HostEvent::Spawned { pid } = exec.event().await else {
        panic!("not started")
    };
    let HostEvent::Output { data, .. } = exec.event().await else {
        panic!("no output")
    };
    let inner: u32 = std::str::from_utf8(&data).unwrap().trim().parse().unwrap();
    drop(exec);
    gone(pid).await;
    gone(inner).await;
}

#[tokio::test(flavor = "current_thread")]
async fn dropped_stream_kills_what_outlives_the_leader() {
    let agent = Agent::ready().await;
    let mut exec = agent.exec(Spawn::new(["sh", "-c", "sleep 1000 & echo $!"])).await;
    let mut inner = String::new();
    loop {
        match exec.event().await {
            HostEvent::Output { data, .. } => inner = String::from_utf8(data).unwrap(),
            HostEvent::Exited(_) if !inner.is_empty() => break,
            _ => {}
        }
    }
    drop(exec);
    gone(inner.trim().parse().unwrap()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn background_process_of_a_finished_command_stays() {
    let agent = Agent::ready().await;
    let outcome = agent
        .shell("sleep 1000 >/dev/null 2>&1 </dev/null & echo $!")
        .await;
    let inner: u32 = outcome.text().parse().unwrap();
    assert_eq!(agent.shell("true").await.code(), 0);
    assert_eq!(
        agent
            .shell(&format!("kill -0 {inner} && kill -9 {inner}"))
            .await
            .code(),
        0
    );
    gone(inner).await;
}

#[tokio::test(flavor = "current_thread")]
async fn orphans_are_reaped() {
    let agent = Agent::ready().await;
    let outcome = agent.shell("(setsid sh -c 'echo $$; exit' & ) ; sleep 0.2").await;
    let orphan: u32 = outcome.text().parse().unwrap();
    patient(async {
        while std::path::Path::new(&format!("/proc/{orphan}")).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn thousand_commands_leave_no_trace_in_the_agent() {
    let agent = Agent::ready().await;
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
            .unwrap()
            .count()
    };
    assert_eq!(agent.run(piped(&["cat"]), b"x").await.stdout, b"x");
    let before = open();
    for round in 0..1000 {
        let outcome = agent.run(Spawn::new(["echo", &round.to_string()]), b"").await;
        assert_eq!((outcome.code(), outcome.text()), (0, round.to_string().as_str()));
    }
    patient(async {
        while open() > before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    assert_eq!(std::fs::read_to_string(children).unwrap_or_default().trim(), "");
}

#[tokio::test(flavor = "current_thread")]
async fn many_commands_run_at_once_and_too_many_are_refused() {
    let agent = Agent::ready().await;
    let mut running = Vec::new();
    let refused = loop {
        let mut exec = agent.exec(piped(&["cat"])).await;
        match exec.event().await {
            HostEvent::Spawned { .. } => running.push(exec),
            HostEvent::SpawnFailed(failure) => break failure,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused.kind, SpawnFailureKind::Exhausted);
    assert_eq!(running.len(), 256);
    let outcome = patient(running.pop().unwrap().finish(b"still here")).await;
    assert_eq!(outcome.stdout, b"still here");
    assert_eq!(agent.shell("true").await.code(), 0, "a place is free again");
}
