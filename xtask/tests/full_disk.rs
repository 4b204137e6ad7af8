//! Set-up on a disk that is full: told as what it is, and nothing half-made stays.

use std::process::Command;

#[test]
fn artefact_that_does_not_fit_on_the_disk_is_told_and_leaves_nothing() {
    let cache = tempfile::tempdir().expect("a directory");
    // A file system of its own, in namespaces of its own, so that any user can make it.
    let script = "mount -t tmpfs -o size=64k none \"$SANDBOX_CACHE_DIR\" || exit 99
        \"$0\" artifacts layer-template; echo \"exit code $?\"; ls -A \"$SANDBOX_CACHE_DIR\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_xtask"))
        .env("SANDBOX_CACHE_DIR", cache.path())
        .output()
        .expect("unshare is in every Debian");
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
