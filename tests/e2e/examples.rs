//! Every example, run as the program that a reader would start: it ends well and says what it is there to show.

use std::path::Path;
use std::process::Command;

use crate::fixture::fresh_directory;

/// Runs an example in `directory` and gives its standard output.
fn example(name: &str, directory: &Path) -> String {
    let deps = std::env::current_exe().unwrap();
    let program = deps.parent().unwrap().with_file_name("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing: run `cargo build --examples`",
        program.display()
    );
    // Error messages are for people, without the places in the code.
    let mut command = Command::new(program);
    command.env_remove("RUST_BACKTRACE").current_dir(directory);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name} ended with {}: {said}\n{errors}",
        output.status
    );
    said
}

fn one_call_allowed_and_one_denied(said: &str) {
    assert!(said.contains("hello from the API"), "the right key: {said}");
    assert!(
        said.contains("(exit code 56)"),
        "curl's code for a refused CONNECT: {said}"
    );
    assert!(!said.contains("the-real-key"), "{said}");
}

#[test]
fn quickstart_calls_its_api_and_is_denied_elsewhere() {
    let workspace = fresh_directory("quickstart");
    std::fs::write(workspace.join("seen-inside"), "").unwrap();
    let said = example("quickstart", &workspace);
    assert!(said.contains("\nseen-inside\n"), "the workspace: {said}");
    one_call_allowed_and_one_denied(&said);
}

#[test]
fn demo_shows_the_main_job_and_no_key() {
    let workspace = fresh_directory("demo");
    let script =
        "git init -q && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first-commit";
    let mut git = Command::new("sh");
    assert!(
        git.args(["-c", script])
            .current_dir(&workspace)
            .status()
            .unwrap()
            .success()
    );
    let said = example("demo", &workspace);
    for shown in [
        "first-commit",
        "entries in",
        "ls: cannot access '/home/agent/.ssh'",
        "Failed to connect to 169.254.169.254",
        "EXAMPLE_API_KEY=placeholder",
        "(HTTP 200)",
        "x-api-key: ***",
        "the API got 2 calls, 2 of them with the real key",
        "DENIED  CONNECT example.org:443",
        "DENIED  CONNECT api.example.com:22",
    ] {
        assert!(said.contains(shown), "no {shown:?} in: {said}");
    }
    assert!(!said.contains("sk-demo"), "{said}");
}

#[test]
fn orchestrator_keeps_three_agents_apart() {
    let said = example("orchestrator", &fresh_directory("orchestrator"));
    for name in ["ada", "bob", "cyd"] {
        assert!(said.contains(&format!("Allowed {name}.example.com")), "{said}");
        assert!(
            said.contains(&format!("{name} left \"{{\\\"answer\\\"")),
            "{said}"
        );
        assert!(!said.contains(&format!("key-of-{name}")), "{said}");
    }
    let denied = said.lines().filter(|line| line.starts_with("Denied ")).count();
    assert_eq!(denied, 6, "nobody reaches another's API: {said}");
    assert!(!said.contains("reached"), "{said}");
}

#[test]
fn custom_policy_decides_and_asks() {
    let said = example("custom_policy", &fresh_directory("custom-policy"));
    for shown in [
        "HTTP 200",
        "asked about ask.example.com:443, said no",
        "Allowed api.example.com by rule \"office hours\"",
        "Denied ask.example.com by rule \"somebody has to say yes\"",
        "Denied other.example.com by rule \"not on the list\"",
    ] {
        assert!(said.contains(shown), "no {shown:?} in: {said}");
    }
}

#[test]
fn custom_credentials_mints_a_token_per_request_that_the_guest_never_sees() {
    let said = example("custom_credentials", &fresh_directory("custom-credentials"));
    let (guest, api) = said.split_once("at the API:").unwrap();
    assert_eq!(guest.matches("authorization: Bearer ***").count(), 2, "{said}");
    assert!(!guest.contains("-for-minted"), "{said}");
    let mut tokens: Vec<_> = api.lines().filter(|line| line.contains("-for-minted")).collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 2, "a new one each time: {said}");
}

#[test]
fn custom_backend_makes_the_same_calls_without_a_microvm() {
    let said = example("custom_backend", &fresh_directory("custom-backend"));
    one_call_allowed_and_one_denied(&said);
}
