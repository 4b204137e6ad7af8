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

use super::accept;
use crate::{Guest, diagnostics::Failed, transport::Stream};

/// Bytes held per direction of a connection.
pub(super) const BUFFER: usize = 16 << 10;

/// Starts relaying, so many connections at once, and gives the loopback port programs are to use.
pub(super) async fn start(guest: &Rc<Guest>, most: usize) -> Result<u16, Failed> {
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
    // A kernel without IPv6 has no such address, and needs none.
    let second = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await.ok();
    let slots = Arc::new(Semaphore::new(most));
    for listener in second.into_iter().chain([listener]) {
        let guest = Rc::clone(guest);
        let relay = move |connection| {
            let guest = Rc::clone(&guest);
            async move {
                // Either end's error has already reached the other as a reset or an end.
                let _ = relay(&guest, connection, EGRESS_PORT).await;
            }
        };
        tokio::task::spawn_local(accept(listener, Arc::clone(&slots), relay));
    }
    Ok(port)
}

/// Carries a connection to a port of the host.
pub(super) async fn relay(guest: &Guest, connection: TcpStream, port: u32) -> io::Result<()> {
    match guest.transport.connect(port).await {
        Ok(stream) => carry(connection, stream).await,
        Err(error) => {
            // The client sees a reset, not an orderly end.
            connection.set_zero_linger()?;
            Err(error)
        }
    }
}

/// Carries bytes both ways until both have ended.
pub(super) async fn carry(mut connection: TcpStream, mut stream: Stream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut connection, &mut stream, BUFFER, BUFFER).await?;
    Ok(())
}
