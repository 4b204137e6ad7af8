//! The emulated host: QEMU without acceleration runs a Linux whose KVM has (emulated) hardware to work with.
//!
//! The machine's root is shared with it read-only, under a writable layer in its memory: programs built here run there
//! as they are, and nothing there can change the machine.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::{ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sandbox_artifacts::{
    Kind,
    build::{Builder, ensure_installed},
    cache_directory,
};

use crate::{error::TaskError, machine::memory_mib, progress::Terminal};

/// First and second part of the start inside; see the files.
const FIRST: &str = include_str!("host/first.sh");
const SECOND: &str = include_str!("host/second.sh");

/// File systems of every Linux machine; memory stands in for a disk.
const FSTAB: &str = "\
proc /mnt/root/proc proc defaults 0 0
sysfs /mnt/root/sys sysfs defaults 0 0
devtmpfs /mnt/root/dev devtmpfs defaults 0 0
devpts /mnt/root/dev/pts devpts ptmxmode=666,x-mount.mkdir 0 0
shm /mnt/root/dev/shm tmpfs mode=1777,x-mount.mkdir 0 0
run /mnt/root/run tmpfs mode=755 0 0
cgroup2 /mnt/root/sys/fs/cgroup cgroup2 defaults 0 0
";

/// Memory by default, where the machine has twice as much.
const MEMORY_MIB: u64 = 6144;

/// QEMU's buffer of translated code in MiB; it takes no larger one. When it is full it is emptied, for which all processors
/// stop. One that runs a guest into which VMRUN has just injected an interrupt then delivers that once more (seen in QEMU
/// 7.2: the vector stays noted as an exception until the next exit), and the guest may break: best is never to fill it.
const MAX_TRANSLATIONS_MIB: u64 = 2047;

/// QEMU's first processor, on which nothing runs that could start a guest. Each other processor that loads x87 state also
/// writes the first one's flags, without a lock (`cpu_clear_ignne`, seen in QEMU 7.2 and 10.0): what the first sets at that
/// moment is lost, for instance that a guest it has just entered has nested page tables.
const NO_GUEST_CPUS: u32 = 1;

/// The most processors for commands: the host's kernel knows 8 in all.
pub(crate) const MAX_CPUS: i64 = 7;

/// End of the console that is shown when the host dies.
const CONSOLE_SHOWN: usize = 4000;

/// Variables that describe the outer machine and would be wrong inside.
const NOT_PASSED: [&str; 7] = [
    "_",
    "DISPLAY",
    "OLDPWD",
    "PWD",
    "SHLVL",
    "WAYLAND_DISPLAY",
    "XDG_RUNTIME_DIR",
];

/// An emulated host that can be started.
pub(crate) struct Host {
    kernel: PathBuf,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Virtual processors that the command can use.
    pub(crate) cpus: u32,
    /// A directory that is writable inside.
    pub(crate) out: Option<PathBuf>,
    /// Variables for the command, besides ours.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// How long the command may write nothing before the host is taken for hung and ended.
    pub(crate) patience: Option<Duration>,
}

impl Host {
    /// Builds its kernel and installs QEMU where missing.
    pub(crate) fn set_up(terminal: &Terminal) -> Result<Self, TaskError> {
        ensure_installed(&["iproute2", "qemu-system-x86"], terminal)?;
        let builder = Builder::new(terminal)?;
        builder.ensure_all(&[Kind::KernelHost])?;
        Ok(Self {
            kernel: builder.ensure(Kind::KernelHost)?,
            memory_mib: MEMORY_MIB.min(memory_mib() / 2),
            cpus: 2,
            out: None,
            env: Vec::new(),
            patience: None,
        })
    }

    /// Runs a command in the current directory; its output becomes ours. Returns its exit code.
    pub(crate) fn run(&self, command: &[OsString]) -> Result<u8, TaskError> {
        self.run_into(command, &mut io::stdout())
    }

    /// The same with another place for standard output.
    pub(crate) fn run_into(&self, command: &[OsString], stdout: &mut dyn Write) -> Result<u8, TaskError> {
        let control = Control::new(&cache_directory()?)?;
        let out = match &self.out {
            Some(out) => Some(fs::canonicalize(out).map_err(TaskError::file("find", out))?),
            None => None,
        };
        control.write("first.sh", FIRST.as_bytes(), 0o755)?;
        control.write("second", SECOND.as_bytes(), 0o644)?;
        control.write("fstab", fstab(&control.0, out.as_deref()).as_bytes(), 0o644)?;
        control.device_links()?;
        let cpus = format!("{NO_GUEST_CPUS}-{}", self.cpus);
        control.write("settings", &settings(out.as_deref(), &cpus), 0o644)?;
        control.write("command", &self.script(command)?, 0o644)?;

        let mut qemu = self.qemu(&control.0, out.as_deref());
        qemu.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut qemu = qemu.spawn().map_err(TaskError::start("qemu-system-x86_64"))?;
        let errors = qemu.stderr.take();
        let errors = thread::spawn(move || errors.map(|from| copy(from, &mut io::stderr())));
        let heard = match qemu.stdout.take() {
            Some(from) => copy_patiently(from, stdout, self.patience),
            None => Ok(()),
        };
        if let Err(why) = heard {
            eprintln!("the emulated host is ended: {why}");
            // It may have ended just now.
            let _ = qemu.kill();
        }
        let ended = qemu.wait().map_err(TaskError::start("qemu-system-x86_64"))?;
        let _ = errors.join();
        control.exit_code(ended)
    }

    fn script(&self, command: &[OsString]) -> Result<Vec<u8>, TaskError> {
        let mut script = Vec::new();
        let inherited = env::vars_os().filter(|(name, _)| !NOT_PASSED.iter().any(|other| name == other));
        for (name, value) in inherited.chain(self.env.iter().cloned()) {
            if is_identifier(&name) {
                script.extend([b"export ", name.as_bytes(), b"=", &quoted(&value), b"\n"].concat());
            }
        }
        let here = env::current_dir().map_err(TaskError::file("find", "."))?;
        script.extend(
            [
                b"cd ".as_slice(),
                &quoted(here.as_os_str()),
                b" || exit 126\nexec",
            ]
            .concat(),
        );
        for word in command {
            script.extend([b" ".as_slice(), &quoted(word)].concat());
        }
        script.push(b'\n');
        Ok(script)
    }

    fn qemu(&self, control: &Path, out: Option<&Path>) -> Command {
        // It dies with us, however we end.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        qemu.args([
            "-M",
            "microvm,acpi=off,x-option-roms=off,rtc=on,auto-kernel-cmdline=on",
        ]);
        let translations = format!(
            "tcg,thread=multi,tb-size={}",
            MAX_TRANSLATIONS_MIB.min(memory_mib() / 8)
        );
        // `max` has AMD-V. Without ERMS, kernels clear and copy by eight bytes instead of by one. A page in which code was
        // translated is searched for it at each of these writes, so pages of an ended guest cost the next one seconds.
        qemu.args(["-accel", &translations, "-cpu", "max,-erms"]);
        let cpus = (self.cpus + NO_GUEST_CPUS).to_string();
        qemu.args(["-smp", &cpus, "-m", &self.memory_mib.to_string()]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        qemu.arg("-kernel").arg(&self.kernel);
        qemu.arg("-serial")
            .arg(option("file:", &control.join("console"), ""));
        let mut share = |tag: &str, path: &Path, how: &str| {
            let how = format!(",id={tag},security_model=none,multidevs=remap{how}");
            qemu.arg("-fsdev").arg(option("local,path=", path, &how));
            qemu.args([
                "-device",
                &format!("virtio-9p-device,fsdev={tag},mount_tag={tag}"),
            ]);
        };
        share("root", Path::new("/"), ",readonly=on");
        share("control", control, "");
        if let Some(out) = out {
            share("out", out, "");
        }
        qemu.args(["-device", "virtio-rng-device", "-device", "virtio-serial-device"]);
        for (number, name, path) in [(1, "out", "/proc/self/fd/1"), (2, "err", "/proc/self/fd/2")] {
            qemu.args(["-chardev", &format!("file,id={name},path={path}")]);
            qemu.args([
                "-device",
                &format!("virtserialport,nr={number},chardev={name},name={name}"),
            ]);
        }
        let mut line = OsString::from(
            "console=ttyS0 quiet reboot=t oops=panic panic=-1 noreplace-smp root=root rootfstype=9p \
             rootflags=trans=virtio,version=9p2000.L,msize=512000,cache=loose ro init=",
        );
        line.push(control.join("first.sh"));
        if let Some(khz) = tsc_khz(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
            line.push(format!(" tsc_early_khz={khz} tsc=reliable"));
        }
        qemu.arg("-append").arg(line);
        qemu
    }
}

/// How fast the emulated time stamp counter runs: as fast as this machine's, which the kernel states as half its
/// "bogomips". On a busy machine the emulated kernel fails to measure it, and a KVM that does not know it hangs its
/// guests.
fn tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|line| line.starts_with("bogomips"))?;
    let mega: f64 = line.split(':').nth(1)?.trim().parse().ok()?;
    let khz = (mega * 500.0).round();
    (khz > 0.0).then_some(khz as u64)
}

/// A directory shared with one emulated host; gone when dropped.
struct Control(PathBuf);

impl Control {
    fn new(cache: &Path) -> Result<Self, TaskError> {
        fs::create_dir_all(cache).map_err(TaskError::file("create", cache))?;
        let prefix = ".host-";
        for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let process = name
                .to_string_lossy()
                .strip_prefix(prefix)
                .and_then(|id| id.parse::<u32>().ok());
            // Of a task that was killed: its process is gone.
            if process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = cache.join(format!("{prefix}{}", std::process::id()));
        fs::create_dir(&path).map_err(TaskError::file("create", &path))?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), TaskError> {
        let path = self.0.join(name);
        fs::write(&path, content).map_err(TaskError::file("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(TaskError::file("write", &path))
    }

    /// Links that programs expect in `/dev`, copied there by one process.
    fn device_links(&self) -> Result<(), TaskError> {
        let folder = self.0.join("dev");
        fs::create_dir(&folder).map_err(TaskError::file("create", &folder))?;
        let links = [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")];
        for (name, number) in links {
            let path = folder.join(name);
            symlink(format!("/proc/self/fd{number}"), &path).map_err(TaskError::file("create", &path))?;
        }
        Ok(())
    }

    fn exit_code(&self, qemu: ExitStatus) -> Result<u8, TaskError> {
        let code = fs::read_to_string(self.0.join("code")).ok();
        if let Some(code) = code.and_then(|code| code.trim().parse().ok()) {
            return Ok(code);
        }
        let console = fs::read(self.0.join("console")).unwrap_or_default();
        let end = console.len().saturating_sub(CONSOLE_SHOWN);
        let text = String::from_utf8_lossy(console.get(end..).unwrap_or_default()).into_owned();
        let printable = |c: char| c == '\n' || !c.is_control();
        let text: String = text.chars().filter(|c| printable(*c)).collect();
        Err(TaskError::HostDied {
            console: format!("{text}\n(QEMU: {qemu})"),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is mounted inside, in order, by one process.
fn fstab(control: &Path, out: Option<&Path>) -> String {
    let mut text = String::from(FSTAB);
    let shares = [("control", Some(control)), ("out", out)];
    for (tag, path) in shares.into_iter().filter_map(|(tag, path)| Some((tag, path?))) {
        // A table's fields end at blanks: those inside are written in octal.
        let path = path
            .display()
            .to_string()
            .replace('\\', "\\134")
            .replace(' ', "\\040")
            .replace('\t', "\\011");
        text += &format!(
            "{tag} /mnt/root{path} 9p trans=virtio,version=9p2000.L,msize=512000,x-mount.mkdir 0 0\n"
        );
    }
    text
}

fn settings(out: Option<&Path>, cpus: &str) -> Vec<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let out = quoted(out.unwrap_or(Path::new("")).as_os_str());
    [format!("now={now}\ncpus={cpus}\nout=").as_bytes(), &out, b"\n"].concat()
}

/// Copies until the end, until nothing has come for as long as `patience`, or until the reader takes no more.
fn copy_patiently(mut from: ChildStdout, to: &mut dyn Write, patience: Option<Duration>) -> io::Result<()> {
    let mut buffer = [0; 64 << 10];
    loop {
        if let Some(patience) = patience
            && !readable(&from, patience)
        {
            return Err(io::Error::other(format!("nothing came from it for {patience:?}")));
        }
        let Ok(length @ 1..) = from.read(&mut buffer) else {
            return Ok(());
        };
        to.write_all(buffer.get(..length).unwrap_or_default())?;
        to.flush()?;
    }
}

/// Whether there is something to read, or its end, within a time.
fn readable(from: &ChildStdout, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(from, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => {}
            Ok(0) => return false,
            // Whatever else it is, the next read tells.
            _ => return true,
        }
    }
}

/// Copies until the end; a reader that went away ends nothing but the copy.
fn copy(mut from: impl Read, to: &mut dyn Write) {
    let mut buffer = [0; 64 << 10];
    let mut open = true;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let part = buffer.get(..length).unwrap_or_default();
        open = open && to.write_all(part).and_then(|()| to.flush()).is_ok();
    }
}

/// A path inside one of QEMU's comma-separated options.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    let mut option = OsString::from(before);
    option.push(path.display().to_string().replace(',', ",,"));
    option.push(after);
    option
}

/// For a shell: nothing inside is special.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

fn is_identifier(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let first = name
        .first()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    first
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_nothing_for_too_long_is_not_waited_for() {
        let patience = Some(Duration::from_millis(200));
        for (script, in_time) in [("echo a; echo b", true), ("echo a; sleep 100", false)] {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .spawn()
                .expect("sh");
            let mut said = Vec::new();
            let stdout = child.stdout.take().expect("a pipe");
            assert_eq!(copy_patiently(stdout, &mut said, patience).is_ok(), in_time);
            assert!(said.starts_with(b"a\n"));
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    #[test]
    fn what_nobody_takes_is_not_waited_for() {
        let mut child = Command::new("sh")
            .args(["-c", "echo a; sleep 100"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let stdout = child.stdout.take().expect("a pipe");
        // Room for nothing.
        assert!(copy_patiently(stdout, &mut [0_u8; 0].as_mut_slice(), None).is_err());
        let _ = child.kill();
        let _ = child.wait();
    }

    #[test]
    fn a_shell_gets_every_word_as_it_is() {
        let words: [&[u8]; 4] = [b"", b"it's $HOME `x` \\ \"y\"", b"two\nlines", b"\xff*"];
        for word in words {
            let script = [b"printf %s ".as_slice(), &quoted(OsStr::from_bytes(word))].concat();
            let output = Command::new("sh")
                .arg("-c")
                .arg(OsStr::from_bytes(&script))
                .output()
                .expect("sh");
            assert_eq!(output.stdout, word);
        }
    }

    #[test]
    fn only_what_a_shell_can_export_is_exported() {
        assert!(is_identifier(OsStr::new("_A1")));
        for name in ["", "1A", "A-B", "BASH_FUNC_x%%"] {
            assert!(!is_identifier(OsStr::new(name)), "{name}");
        }
    }
}
