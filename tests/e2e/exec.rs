//! Commands: standard streams, codes, signals, directory, environment, user, time-out.

use std::time::Duration;

use sandbox::{ExecError, ExitStatus, Stdin, User};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{command, run, sh, sh_ok, shared, shell};

#[test]
fn any_bytes_pass_both_ways_unchanged() {
    run(async {
        // More than every window and pipe on the way, and no text.
        let sent: Vec<u8> = (0..3_000_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let mut child = command("cat").await.stdin(Stdin::Piped).spawn().await.unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let to_send = sent.clone();
        let writer = tokio::spawn(async move {
            stdin.write_all(&to_send).await.unwrap();
            stdin.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_end(&mut received)
            .await
            .unwrap();
        writer.await.unwrap();
        assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(0));
        assert!(
            received == sent,
            "{} of {} bytes came back",
            received.len(),
            sent.len()
        );
    });
}

#[test]
fn stdout_and_stderr_stay_apart() {
    run(async {
        let output = sh("for i in 1 2 3; do echo out$i; echo err$i >&2; done").await;
        assert_eq!(output.stdout, b"out1\nout2\nout3\n");
        assert_eq!(output.stderr, b"err1\nerr2\nerr3\n");
    });
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    run(async {
        assert_eq!(sh("exit 0").await.status, ExitStatus::Code(0));
        assert_eq!(sh("exit 255").await.status, ExitStatus::Code(255));
        assert_eq!(sh("kill -9 $$").await.status, ExitStatus::Signal(9));
    });
}

#[test]
fn signals_reach_the_whole_process_group() {
    run(async {
        // Ready when `sleep` runs: before its exec it would still be a shell, which puts the signal off.
        let script = "trap 'echo caught; exit 3' TERM; sleep 1000 & \
                      until grep -q sleep /proc/$!/comm; do :; done; echo ready; wait";
        let mut child = shell(script).await.spawn().await.unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).await.unwrap();
        child.signal(15).await.unwrap();
        let mut rest = String::new();
        // Ends only when `sleep`, which holds the same pipe, has ended too.
        stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "caught\n");
        assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(3));
    });
}

#[test]
fn a_dropped_child_is_ended_with_all_it_started() {
    run(async {
        let child = shell("sleep 7654 & sleep 7654").await;
        let mut child = child.spawn().await.unwrap();
        let pid = child.id();
        child.stdout.take();
        assert!(sh_ok("ps -eo args").await.contains("sleep 7654"));
        drop(child);
        // Until the kernel has delivered the kill; bounded by the test runner.
        while sh_ok("ps -eo args").await.contains("sleep 7654") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!sh(&format!("kill -0 {pid}")).await.status.success());
    });
}

#[test]
fn directory_environment_and_user_are_as_asked() {
    run(async {
        let sandbox = &shared().await.sandbox;
        let output = sandbox
            .command("pwd")
            .current_dir("/usr/share")
            .output()
            .await
            .unwrap();
        assert_eq!(output.stdout, b"/usr/share\n");
        let show = "echo $FOO-$HOME-$(id -un)-$(id -u)";
        let output = sandbox
            .command("sh")
            .args(["-c", show])
            .env("FOO", "a b")
            .output()
            .await
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "a b-/home/agent-agent-1000\n"
        );
        let root = sandbox
            .command("sh")
            .args(["-c", show])
            .user(User::Root)
            .output()
            .await
            .unwrap();
        assert!(String::from_utf8(root.stdout).unwrap().ends_with("-root-0\n"));
        let bare = sandbox
            .command("/usr/bin/env")
            .env_clear()
            .env("ONLY", "1")
            .output()
            .await
            .unwrap();
        assert_eq!(bare.stdout, b"ONLY=1\n");
        let removed = sandbox
            .command("sh")
            .args(["-c", "echo [$https_proxy]"])
            .env_remove("https_proxy");
        assert_eq!(removed.output().await.unwrap().stdout, b"[]\n");
    });
}

#[test]
fn the_unprivileged_user_can_become_root_inside() {
    run(async { assert_eq!(sh_ok("sudo id -u").await, "0\n") });
}

#[test]
fn a_command_past_its_timeout_is_ended() {
    run(async {
        let sandbox = &shared().await.sandbox;
        let slow = sandbox
            .command("sleep")
            .arg("100000")
            .timeout(Duration::from_millis(300));
        assert_eq!(slow.status().await.unwrap(), ExitStatus::TimedOut);
        let quick = sandbox.command("true").timeout(Duration::from_secs(300));
        assert_eq!(quick.status().await.unwrap(), ExitStatus::Code(0));
    });
}

#[test]
fn commands_that_cannot_run_say_why() {
    run(async {
        let sandbox = &shared().await.sandbox;
        let error = sandbox.command("no-such-program").status().await.unwrap_err();
        assert!(matches!(error, ExecError::NotFound { .. }), "{error}");
        let error = sandbox.command("/etc/passwd").status().await.unwrap_err();
        assert!(matches!(error, ExecError::PermissionDenied { .. }), "{error}");
        let error = sandbox
            .command("true")
            .current_dir("/nowhere")
            .status()
            .await
            .unwrap_err();
        assert!(matches!(error, ExecError::BadWorkingDirectory { .. }), "{error}");
        let error = sandbox.command("true").arg("a\0b").status().await.unwrap_err();
        assert!(matches!(error, ExecError::InvalidCommand { .. }), "{error}");
    });
}

#[test]
fn output_over_the_limit_is_an_error_and_ends_the_command() {
    run(async {
        let endless = command("yes").await.output_limit(100_000).output().await;
        assert!(matches!(
            endless,
            Err(ExecError::OutputTooLarge { limit: 100_000 })
        ));
    });
}

#[test]
fn unread_output_does_not_hold_back_the_exit() {
    run(async {
        let command = shell("head -c 50000 /dev/zero; exit 5").await;
        let mut child = command.spawn().await.unwrap();
        assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(5));
    });
}

#[test]
fn many_commands_run_at_the_same_time() {
    run(async {
        let mut running = tokio::task::JoinSet::new();
        for i in 0..12 {
            running.spawn(async move { (i, sh_ok(&format!("sleep 0.1; echo {i}")).await) });
        }
        while let Some(ended) = running.join_next().await {
            let (i, said) = ended.unwrap();
            assert_eq!(said, format!("{i}\n"));
        }
    });
}
