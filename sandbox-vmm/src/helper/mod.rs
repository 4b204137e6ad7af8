//! The VMM process: started by an orchestrator with a control socket as its standard input, it builds one machine
//! from descriptors handed over, runs it, and ends with it, or with the orchestrator.
//!
//! It opens no path. Its environment is empty, nothing it inherits but descriptors 0 to 2 is left open.

mod jail;
mod log;
mod start;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::control::{Channel, ChannelError, DialOutcome, End, FromVmm, Notice, StartFault, ToVmm, VERSION};
use crate::devices::virtio::GuestFault;
use crate::devices::vsock::{ConnectOutcome, Gateway, HostDials};
use crate::hypervisor::Hypervisor;
use crate::machine::Observer;
use crate::vcpu::VcpuEnd;

/// Hash of the sources this was built from, set by whoever builds the helper to be shipped.
pub const BUILD: &str = match option_env!("SANDBOX_BUILD_HASH") {
    Some(hash) => hash,
    None => "unknown",
};

/// Longest text sent in a message: an errand of a guest's making cannot fill it.
const MAX_TEXT: usize = 1024;

/// Runs the VMM process: the whole of its `main`. Never returns; the process ends with its machine, or at once when
/// the orchestrator goes away.
pub fn run<H: Hypervisor>() -> ! {
    jail::enter();
    share_heap();
    log::install();
    let channel = match rustix::io::dup(rustix::stdio::stdin()) {
        Ok(socket) => Arc::new(Channel::new(socket)),
        Err(error) => fail(&format!("no control socket on standard input: {error}")),
    };
    if let Err(error) = serve::<H>(&channel) {
        fail(&error.to_string());
    }
    end(0)
}

/// Takes messages until the orchestrator goes away.
fn serve<H: Hypervisor>(channel: &Arc<Channel>) -> Result<(), ChannelError> {
    channel.send(
        &FromVmm::Hello {
            version: VERSION,
            build: BUILD.to_owned(),
        },
        &[],
        true,
    )?;
    let mut dials: Option<HostDials> = None;
    loop {
        let (message, descriptors) = match channel.receive::<ToVmm>(true) {
            Ok(received) => received,
            Err(ChannelError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        };
        match message {
            ToVmm::Start(config) if dials.is_none() => {
                match start::start::<H>(config, descriptors, channel) {
                    Ok((handle, ready)) => {
                        dials = Some(handle);
                        // Told before anything of the guest's can be: what it does first comes after this.
                        channel.send(&FromVmm::Started, &[], true)?;
                        ready.go();
                    }
                    Err(fault) => {
                        channel.send(&FromVmm::StartFailed(fault), &[], true)?;
                        return Ok(());
                    }
                }
            }
            ToVmm::Start(_) => return Err(ChannelError::Malformed("a second start")),
            ToVmm::Dial { id, port } => {
                let socket = descriptors.into_iter().next();
                match (&dials, socket) {
                    (Some(dials), Some(socket)) => dials.dial(id, port, socket),
                    _ => return Err(ChannelError::Malformed("a call without a machine or a stream")),
                }
            }
        }
    }
}

/// Passes what devices and processors report on to the orchestrator.
struct Reporter(Arc<Channel>);

impl Reporter {
    /// News that may be lost if the orchestrator does not keep up: a guest that makes news must not stop anyone.
    fn notice(&self, notice: Notice) {
        if let Err(error) = self.0.send(&FromVmm::Notice(notice), &[], false) {
            tracing::warn!(%error, "a notice was lost");
        }
    }
}

impl Observer for Reporter {
    fn device_failed(&self, device: &'static str, fault: &GuestFault) {
        self.notice(Notice::DeviceFailed {
            device: device.to_owned(),
            why: short(&fault.to_string()),
        });
    }

    fn ended(&self, ended: &VcpuEnd) {
        let reason = match ended {
            VcpuEnd::Reset => End::Reset,
            VcpuEnd::Stuck(why) => End::Stuck(short(why)),
            VcpuEnd::Failed(why) => End::Failed(short(why)),
        };
        tracing::info!(?reason, "the machine has ended");
        // Waits for an orchestrator that is slow; one that is gone makes it fail.
        let _ = self.0.send(&FromVmm::Ended(reason), &[], true);
        end(0)
    }
}

impl Gateway for Reporter {
    fn accepted(&self, port: u32, socket: OwnedFd) -> std::io::Result<()> {
        self.0
            .send(&FromVmm::Accepted { port }, &[socket.as_fd()], false)
            .map_err(std::io::Error::other)
    }

    fn dialled(&self, id: u64, outcome: ConnectOutcome) {
        let outcome = match outcome {
            ConnectOutcome::Connected => DialOutcome::Connected,
            ConnectOutcome::Refused => DialOutcome::Refused,
            ConnectOutcome::TooManyStreams => DialOutcome::TooManyStreams,
        };
        // A caller waits for this one, so it is not lost when a guest that opens many streams has filled the socket.
        // The orchestrator never waits for us, so it comes to read it; one that is gone makes this fail.
        if let Err(error) = self.0.send(&FromVmm::Dialled { id, outcome }, &[], true) {
            tracing::warn!(%error, "the outcome of a call was lost");
        }
    }
}

/// One heap for all threads: they allocate little, and each would otherwise map one of its own, and keep it.
fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the C library's, before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

fn host_fault(error: &dyn std::fmt::Display) -> StartFault {
    StartFault::Host(short(&error.to_string()))
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT / 4).collect()
}

fn fail(why: &str) -> ! {
    tracing::error!("{why}");
    end(1)
}

/// Ends the process at once, with all its threads: destructors have nothing to do that the kernel does not.
fn end(code: i32) -> ! {
    // SAFETY: ends the process; nothing is touched afterwards.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    #[test]
    fn the_outcome_of_a_call_is_told_also_after_a_flood_of_streams() {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let (reporter, orchestrator) = (Reporter(Arc::new(Channel::new(ours))), Channel::new(theirs));
        let stream = || rustix::io::dup(&orchestrator).unwrap();
        while reporter.accepted(1024, stream()).is_ok() {}
        let telling = std::thread::spawn(move || reporter.dialled(7, ConnectOutcome::Connected));
        loop {
            match orchestrator.receive::<FromVmm>(true).unwrap().0 {
                FromVmm::Accepted { port: 1024 } => {}
                other => {
                    let outcome = DialOutcome::Connected;
                    assert_eq!(other, FromVmm::Dialled { id: 7, outcome });
                    break;
                }
            }
        }
        telling.join().unwrap();
    }
}
