//! Tests that want a process to themselves: this program again, for the inner half of one of them.

use std::ffi::{OsStr, OsString};
use std::process::Command;

/// Holds what the outer half of a test tells the inner one.
const TOLD: &str = "SANDBOX_TEST_INNER";

/// This program, to run nothing but one test of a module, which is named as `module_path!()` does. A shell runs
/// `first` before it: limits that the process is to have.
pub fn inner_half(module: &str, test: &str, first: &str, told: impl AsRef<OsStr>) -> Command {
    // Tests are named without the name of their program.
    let (_, module) = module.split_once("::").unwrap();
    let script = format!("set -e\n{first}\nexec \"$0\" --exact \"$1::$2\" --nocapture");
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args([module, test])
        .env(TOLD, told);
    command
}

/// What the outer half tells; `None` among all the other tests, where an inner half has nothing to do.
pub fn told() -> Option<OsString> {
    std::env::var_os(TOLD)
}

/// Waits for an inner half, which must have been found, and have passed.
pub fn assert_passes(mut inner: Command) {
    let output = inner.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
