//! The guest's network: none but loopback, on which the agent stands for the host.
//!
//! Programs that know a proxy find one ([`relay`]). For all others names resolve ([`dns`]) to addresses that stand for
//! them, and connections to such an address reach the proxy as well ([`capture`]): every address of the two synthetic
//! networks is one of loopback ([`route`]), the kernel gives each new connection to them to the agent ([`steer`]), and a
//! connection stands when the host has it ([`door`]). No program can take such an address for its own ([`guard`]).
//!
//! Nothing is decided here; the host does.

mod bpf;
mod capture;
mod dns;
mod door;
mod guard;
mod relay;
mod route;
mod steer;
mod syn;

use std::{future::Future, rc::Rc, sync::Arc};

use sandbox_protocol::control::Configure;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use self::capture::Capture;
use crate::{
    Guest,
    diagnostics::{self, Failed},
};

/// Connections carried at once of those to the proxy, and of those to synthetic addresses; further ones wait: in their
/// listener's backlog, or by repeating themselves. With [`relay::BUFFER`] bounds the agent's memory for them to 16 MiB, and its descriptors.
const MAX_CONNECTIONS: usize = 256;

/// Starts what `configure` asks for, and gives the loopback port of the proxy.
pub(crate) async fn start(guest: &Rc<Guest>, configure: &Configure) -> Result<Option<u16>, Failed> {
    if !configure.proxy {
        return Ok(None);
    }
    let port = relay::start(guest, MAX_CONNECTIONS).await?;
    // An ordinary process must leave the machine's names and routes alone.
    if guest.options.is_machine() {
        match guard::begin() {
            Ok(()) => dns::start(guest, Capture::new(guest, MAX_CONNECTIONS)).await?,
            Err(error) => diagnostics::say(&format!("names are not resolved: {error}")),
        }
    }
    Ok(Some(port))
}

fn has_v6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
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
