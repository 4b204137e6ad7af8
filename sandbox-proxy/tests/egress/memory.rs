//! Where the memory of a process that holds credentials may end up.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use sandbox_proxy::keep_memory_private;

use crate::support::{Running, Upstream, assert_passes, inner_half, told};

/// Runs an inner half that may dump as much as it likes, in a directory of its own.
fn run(test: &str, first: &str) -> (Output, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut inner = inner_half(module_path!(), test, first, "dies");
    (inner.current_dir(&directory).output().unwrap(), directory)
}

#[test]
fn process_that_dies_leaves_no_core_dump() {
    if told().is_some() {
        let _privacy = keep_memory_private().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        std::process::abort();
    }
    let test = "process_that_dies_leaves_no_core_dump";
    let (output, directory) = run(test, "ulimit -c unlimited || ulimit -c $(ulimit -H -c)");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{told}");
    assert!(!output.status.core_dumped());
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn memory_is_locked_where_that_is_allowed_and_goes_on_growing_where_it_is_not() {
    if told().is_some() {
        let privacy = keep_memory_private().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmLck:"))
            .unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        assert_eq!(kib > 0, privacy.is_locked, "{kib} KiB");
        let may = getrlimit(Resource::Memlock).current.is_none();
        assert!(privacy.is_locked || !may);
        let much = vec![1_u8; 64 << 20];
        assert!(much.iter().all(|byte| *byte == 1));
        return;
    }
    let test = "memory_is_locked_where_that_is_allowed_and_goes_on_growing_where_it_is_not";
    for limit in ["ulimit -l 64", "ulimit -l unlimited 2>/dev/null || true"] {
        let (output, _directory) = run(test, limit);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let passed = output.status.success() && stdout.contains("1 passed");
        assert!(passed, "{limit}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn keys_of_the_authority_are_in_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut inner = inner_half(module_path!(), "authority_at_work", "", "works");
    inner.current_dir(&directory);
    inner.envs(["HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"].map(|name| (name, directory.path())));
    assert_passes(inner);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
}

/// The inner half of the test above: does nothing in a process of its own right.
#[tokio::test]
async fn authority_at_work() {
    if told().is_none() {
        return;
    }
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::managed(&upstream).await;
    let response = running.get(&upstream.at("api.test"), "/").await;
    assert_eq!(response.status(), 200);
    // Nor in one that has no name any more.
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(file) = std::fs::metadata(entry.path()) else {
            continue;
        };
        let info = std::fs::read_to_string(std::path::Path::new("/proc/self/fdinfo").join(entry.file_name()));
        let flags = info.ok().and_then(|info| {
            let flags = info
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))?
                .trim()
                .to_owned();
            u32::from_str_radix(&flags, 8).ok()
        });
        let is_written = flags.is_some_and(|flags| flags & 3 != 0);
        assert!(
            !(file.is_file() && is_written),
            "{:?}",
            std::fs::read_link(entry.path())
        );
    }
}
