//! The guest's network: none but loopback, on which the agent stands for the host.
//!
//! Programs that know a proxy find one ([`relay`]). For all others names resolve ([`dns`]) to addresses that stand for
//! them, and connections to such an address reach the proxy as well ([`capture`]): every address of the two synthetic
//! networks is one of loopback ([`route`]), and the kernel gives each new connection to them to the agent ([`steer`]).
//!
//! Nothing is decided here; the host does.

mod capture;
mod dns;
mod relay;
mod route;
mod steer;

use std::{future::Future, rc::Rc, sync::Arc};

use sandbox_protocol::control::Configure;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{Guest, diagnostics, diagnostics::Failed};

/// Connections carried at once; further ones wait in their listener's backlog. With [`relay::BUFFER`] bounds the
/// agent's memory for them to 8 MiB, and its descriptors.
const MAX_CONNECTIONS: usize = 256;

/// Starts what `configure` asks for, and gives the loopback port of the proxy.
pub(crate) async fn start(guest: &Rc<Guest>, configure: &Configure) -> Result<Option<u16>, Failed> {
    if !configure.proxy {
        return Ok(None);
    }
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let port = relay::start(guest, &slots).await?;
    // An ordinary process must leave the machine's names and routes alone.
    if guest.options.is_machine() {
        // Names without a way to what they stand for would only make programs wait for what they cannot reach.
        match capture::start(guest, &slots).await {
            Ok(()) => {
                leave_echo_requests_unanswered();
                dns::start(guest, &slots).await?;
            }
            Err(error) => diagnostics::say(&format!(
                "programs that use no proxy stay without network: {error}"
            )),
        }
    }
    Ok(Some(port))
}

/// An answer to an echo request for a synthetic address would be ours, and be taken for one of the host with that name.
fn leave_echo_requests_unanswered() {
    for setting in ["ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"] {
        // Only a wish: a kernel without IPv6 has no such setting.
        let _ = std::fs::write(format!("/proc/sys/net/{setting}"), b"1");
    }
}

/// Serves each connection of a listener, as many at once as there are slots.
async fn accept<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    slots: Arc<Semaphore>,
    serve: impl Fn(TcpStream) -> F,
) {
    loop {
        // Never closed, so never an error.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((connection, _)) => {
                let served = serve(connection);
                tokio::task::spawn_local(async move {
                    served.await;
                    drop(slot);
                });
            }
            Err(_) => {
                // Out of descriptors, or the client is gone. Give others time to finish.
                tokio::time::sleep(crate::exec::ACCEPT_PAUSE).await;
            }
        }
    }
}
