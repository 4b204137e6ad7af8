//! The example that needs no machine, run as a reader would run it.

// Clippy takes helpers of an integration test for ordinary code.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

/// Runs the example with these arguments.
fn example(arguments: &[&str]) -> Output {
    let deps = std::env::current_exe().unwrap();
    let program = deps
        .parent()
        .unwrap()
        .with_file_name("examples")
        .join("proxy_only");
    assert!(
        program.exists(),
        "{} is missing: run `cargo build --examples`",
        program.display()
    );
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn core_proxy_only_adds_the_key_and_denies_the_rest() {
    let output = example(&[]);
    let (said, log) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}{log}");
    assert!(said.contains("x-api-key: ****"), "the API got a key: {said}");
    assert!(
        said.ends_with("exit code 56\n"),
        "curl's for a refused CONNECT: {said}"
    );
    assert!(
        log.contains("\"credential\":\"example\"") && log.contains("\"host\":\"example.org\""),
        "{log}"
    );
    assert!(!said.contains("the-real-key") && !log.contains("the-real-key"));
}

#[test]
fn core_proxy_only_runs_any_command_and_ends_with_its_code() {
    let script =
        "echo \"$EXAMPLE_API_KEY\"; curl -sS -o /dev/null -w '%{http_code}' \"$EXAMPLE_API/any\"; exit 7";
    let output = example(&["sh", "-c", script]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "placeholder\n200",
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(7));
}
