//! The guest's end of the egress proxy: each TCP connection to loopback becomes a stream to the host.
//!
//! Nothing is read or decided here; the host does both.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    rc::Rc,
    sync::Arc,
};

use sandbox_protocol::EGRESS_PORT;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{Guest, diagnostics::Failed};

/// Connections relayed at once; further ones wait in the listener's backlog. With [`BUFFER`] bounds the
/// agent's memory for them to 8 MiB, and its descriptors.
const MAX_CONNECTIONS: usize = 256;

/// Bytes held per direction of a connection.
const BUFFER: usize = 16 << 10;

/// Starts relaying, and gives the loopback port programs are to use.
pub(crate) async fn start(guest: &Rc<Guest>) -> Result<u16, Failed> {
    // An ordinary process shares loopback with others, so it takes what port is free.
    let wanted = if guest.options.is_machine() {
        EGRESS_PORT as u16
    } else {
        0
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .await
        .map_err(Failed::when("listen for the egress proxy on loopback"))?;
    let port = listener
        .local_addr()
        .map_err(Failed::when("listen for the egress proxy on loopback"))?
        .port();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // A kernel without IPv6 has no such address, and needs none.
    if let Ok(second) = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
        tokio::task::spawn_local(accept(Rc::clone(guest), second, Arc::clone(&slots)));
    }
    tokio::task::spawn_local(accept(Rc::clone(guest), listener, slots));
    Ok(port)
}

async fn accept(guest: Rc<Guest>, listener: TcpListener, slots: Arc<Semaphore>) {
    loop {
        // Never closed, so never an error.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((connection, _)) => {
                let guest = Rc::clone(&guest);
                tokio::task::spawn_local(async move {
                    // Either end's error has already reached the other as a reset or an end.
                    let _ = relay(&guest, connection).await;
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

async fn relay(guest: &Guest, mut connection: TcpStream) -> io::Result<()> {
    let mut stream = match guest.transport.connect(EGRESS_PORT).await {
        Ok(stream) => stream,
        Err(error) => {
            // The client sees a reset, not an orderly end.
            connection.set_zero_linger()?;
            return Err(error);
        }
    };
    connection.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut connection, &mut stream, BUFFER, BUFFER).await?;
    Ok(())
}
