//! What makes this guest itself: randomness, time, names.

use std::{fmt::Write as _, fs, io, os::fd::AsRawFd};

use rustix::time::{ClockId, Timespec};
use sandbox_protocol::{
    GATEWAY_NAME,
    control::{EntropySeed, WallClock},
};

use super::files;
use crate::diagnostics::Failed;

/// Longest host name: one DNS label.
const MAX_HOSTNAME: usize = 63;

/// `_IOW('R', 0x03, int[2])`: adds to the kernel's entropy and counts it.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// `_IO('R', 0x07)`: makes the generator take up what was added at once.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Kernel's `struct rand_pool_info` with room for one seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; 32],
}

/// Gives the kernel's generator a seed that no other guest has.
pub(super) fn add_entropy(seed: &EntropySeed) -> Result<(), Failed> {
    let what = "add to the kernel's entropy";
    let device = fs::OpenOptions::new()
        .write(true)
        .open("/dev/random")
        .map_err(Failed::when(what))?;
    let info = PoolInfo {
        entropy_bits: 256,
        bytes: 32,
        seed: seed.0,
    };
    // SAFETY: the request reads one `rand_pool_info` and as many bytes after it as that says, which `info` has.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if added != 0 {
        return Err(Failed::when(what)(io::Error::last_os_error()));
    }
    // SAFETY: the request takes no argument.
    let reseeded = unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) };
    if reseeded != 0 {
        return Err(Failed::when("reseed the kernel's generator")(
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

/// Steps the wall clock.
pub(super) fn set_clock(time: WallClock) -> Result<(), Failed> {
    let time = Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    rustix::time::clock_settime(ClockId::Realtime, time).map_err(Failed::when("set the clock"))
}

/// Host name and machine id, in the kernel and in the files that tell of them.
pub(super) fn set_names(hostname: &str, machine_id: &[u8; 16]) -> Result<(), Failed> {
    if !is_label(hostname) {
        return Err(Failed::because("set the host name", "it is not a DNS label"));
    }
    rustix::system::sethostname(hostname.as_bytes()).map_err(Failed::when("set the host name"))?;
    let id = machine_id
        .iter()
        .fold(String::with_capacity(33), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
    files::put("/etc/hostname", format!("{hostname}\n").as_bytes())?;
    files::put("/etc/machine-id", format!("{id}\n").as_bytes())?;
    files::put("/etc/hosts", hosts(hostname).as_bytes())?;
    // Names are the host's business: the agent hands on what is asked here, or nobody answers, and that at once.
    files::put("/etc/resolv.conf", b"nameserver 127.0.0.1\n")
}

/// Brings the loopback interface up; the kernel then gives it its addresses.
pub(super) fn raise_loopback() -> Result<(), Failed> {
    let what = "bring up the loopback interface";
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .map_err(Failed::when(what))?;
    // SAFETY: all-zero is a valid `ifreq`: integers, an empty name and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request reads one `ifreq`, whose name is zero-terminated and whose flags are set.
    let raised = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as libc::Ioctl,
            &raw const request,
        )
    };
    if raised != 0 {
        return Err(Failed::when(what)(io::Error::last_os_error()));
    }
    Ok(())
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost {GATEWAY_NAME} {hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n"
    )
}

fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=MAX_HOSTNAME).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_labels() {
        assert!(is_label("box-1"));
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "a.b", "a b", "a\nb", long.as_str()] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[test]
    fn hosts_file_names_localhost_first_and_the_guest_itself() {
        assert!(hosts("box").starts_with("127.0.0.1\tlocalhost gateway.sandbox.internal box\n"));
    }
}
