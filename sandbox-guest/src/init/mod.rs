//! The guest as the agent makes it: root file system at boot, identity and exports when the host says so,
//! and the machine's end.
//!
//! Order at boot: disks, overlay, pivot, kernel file systems, loopback. Each step needs those before it.

mod exports;
mod files;
mod identity;
mod mounts;
mod trust;

use std::{io, time::Duration};

use rustix::{
    process::{Resource, Rlimit},
    system::RebootCommand,
};
use sandbox_protocol::control::{Configure, Export};

use crate::{diagnostics::Failed, options::Options, users};

/// Open files the agent and, by inheritance, each command may have to begin with. Enough for the most
/// commands and relayed connections at once.
const OPEN_FILES: u64 = 8192;

/// Open files that programs may raise their own limit to.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// Makes an empty machine a system: called once, as PID 1, before anything else.
pub(crate) fn boot() -> Result<(), Failed> {
    mounts::enter_root()?;
    mounts::kernel_file_systems()?;
    identity::raise_loopback()?;
    rest_when_idle();
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(MAX_OPEN_FILES),
    };
    rustix::process::setrlimit(Resource::Nofile, limit).map_err(Failed::when("raise the limit of open files"))
}

/// Statistics of memory are summed up now and then, not each second: that alone would wake an idle guest.
fn rest_when_idle() {
    // Only a wish: a kernel without the setting does without.
    let _ = std::fs::write("/proc/sys/vm/stat_interval", b"60");
}

/// Keeps what an ordinary agent's own parent left open from its commands. The kernel leaves a machine's agent
/// nothing but standard streams.
pub(crate) fn keep_descriptors() -> Result<(), Failed> {
    // SAFETY: takes no pointer; marks descriptors, and closes none.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked != 0 {
        return Err(Failed::when("keep inherited descriptors from commands")(
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

/// Ends all processes but this one and puts what they wrote on the disks.
pub(crate) fn quiesce() {
    // SAFETY: takes no pointer; from PID 1, `-1` means every process but this one.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    rustix::fs::sync();
}

/// Ends the machine. Its monitor takes the reset for the end; there is no power switch to use instead.
pub(crate) fn reset() -> ! {
    rustix::fs::sync();
    let refused = rustix::system::reboot(RebootCommand::Restart);
    crate::diagnostics::say(&format!("cannot reset the machine: {refused:?}"));
    loop {
        // To return would be a kernel panic with a misleading cause.
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// What the host said of this guest, as far as commands need it.
pub(crate) struct Surroundings {
    /// Name of the unprivileged user.
    pub(crate) user: Vec<u8>,
    /// Environment of every command, beyond the user's own.
    pub(crate) env: trust::Variables,
    /// Where commands start that do not say: the first export.
    pub(crate) first_export: Option<Vec<u8>>,
}

impl Surroundings {
    /// Does all that `configure` asks. `proxy_port` is where the egress relay listens.
    pub(crate) fn prepare(
        options: &Options,
        configure: Configure,
        proxy_port: Option<u16>,
    ) -> Result<Self, Failed> {
        let Configure {
            hostname,
            machine_id,
            wall_clock,
            entropy,
            user,
            env,
            ca_pem,
            exports,
            ..
        } = configure;
        let user = user.into_bytes();
        if options.setup {
            // Randomness first, the clock second: all that follows may use them.
            identity::add_entropy(&entropy)?;
            identity::set_clock(wall_clock)?;
            files::make_volatile()?;
            identity::set_names(&hostname, &machine_id)?;
            let account = users::find(|account| account.name == user)
                .map_err(Failed::when("read /etc/passwd in the image"))?;
            if account.is_none() {
                let name = String::from_utf8_lossy(&user).into_owned();
                return Err(Failed::because(
                    format!("find the user `{name}`"),
                    "the image has no such user",
                ));
            }
            exports::mount_device(&exports)?;
        }
        let mut all = trust::environment(options, ca_pem.as_deref(), proxy_port)?;
        all.extend(
            env.into_iter()
                .map(|(name, value)| (name.into_vec(), value.into_vec())),
        );
        let mut surroundings = Self {
            user,
            env: all,
            first_export: None,
        };
        for export in &exports {
            surroundings = surroundings.with_export(options, export)?;
        }
        Ok(surroundings)
    }

    /// The same with one more exported directory.
    pub(crate) fn with_export(&self, options: &Options, export: &Export) -> Result<Self, Failed> {
        if options.setup {
            exports::show(export)?;
        }
        let path = export.path.as_bytes().to_vec();
        Ok(Self {
            user: self.user.clone(),
            env: self.env.clone(),
            first_export: self.first_export.clone().or(Some(path)),
        })
    }
}
