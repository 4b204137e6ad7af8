//! Set-up on a disk that is full: told as what it is, and nothing half-made stays.

use std::process::Command;

#[test]
fn artefact_that_does_not_fit_on_the_disk_is_told_and_leaves_nothing() {
    let cache = tempfile::tempdir().expect("a directory");
    // A file system of its own; to make one takes root, as set-up does.
    let script = "mount -t tmpfs -o size=64k none \"$SANDBOX_CACHE_DIR\" || exit 99
        trap 'umount -l \"$SANDBOX_CACHE_DIR\"' EXIT
        \"$0\" artifacts layer-template; echo \"exit code $?\"; ls -A \"$SANDBOX_CACHE_DIR\"";
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        sudo
    };
    let mut variable = std::ffi::OsString::from("SANDBOX_CACHE_DIR=");
    variable.push(cache.path());
    let output = command
        .arg(variable)
        .args(["sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_xtask"))
        .output()
        .expect("env and sudo are there");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        stderr.contains("no space left") && stderr.contains("SANDBOX_CACHE_DIR"),
        "{stdout}\n{stderr}"
    );
    let mut lines = stdout.lines().skip_while(|line| !line.starts_with("exit code"));
    assert_ne!(lines.next(), Some("exit code 0"));
    let left: Vec<&str> = lines.filter(|name| !name.starts_with(".lock-")).collect();
    assert_eq!(left, Vec::<&str>::new(), "{stderr}");
}
