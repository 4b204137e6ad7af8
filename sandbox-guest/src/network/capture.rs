//! Connections of programs that know no proxy: each to a synthetic address is asked for at the egress proxy, with
//! `CONNECT` to that very address and port. The host knows which name it stands for.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
};

use sandbox_protocol::{EGRESS_PORT, SYNTHETIC_V4, SYNTHETIC_V6};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::{accept, relay, route, steer::Steering};
use crate::{Guest, diagnostics::Failed, transport::Stream};

/// The longest head of an answer. The proxy's are a few hundred bytes; a refusal's document is not read.
const MAX_HEAD: usize = 16 << 10;

/// Makes synthetic addresses the guest's own, and starts taking connections to them.
pub(super) async fn start(guest: &Rc<Guest>, slots: &Arc<Semaphore>) -> Result<(), Failed> {
    let mut listeners = vec![listen(Ipv4Addr::LOCALHOST.into()).await?];
    // A kernel without IPv6 has no such address, and needs none.
    listeners.extend(listen(Ipv6Addr::LOCALHOST.into()).await.ok());
    let steering = Steering::new()?;
    for listener in &listeners {
        let v6 = listener.local_addr().is_ok_and(|address| address.is_ipv6());
        steering.add(listener.as_fd(), v6)?;
        let (network, prefix) = if v6 {
            (IpAddr::V6(SYNTHETIC_V6.0), SYNTHETIC_V6.1)
        } else {
            (IpAddr::V4(SYNTHETIC_V4.0), SYNTHETIC_V4.1)
        };
        route::add_local(network, prefix)?;
    }
    steering.begin()?;
    for listener in listeners {
        let guest = Rc::clone(guest);
        let capture = move |connection| {
            let guest = Rc::clone(&guest);
            async move {
                // Either end's error has already reached the other as a reset or an end.
                let _ = capture(&guest, connection).await;
            }
        };
        tokio::task::spawn_local(accept(listener, Arc::clone(slots), capture));
    }
    Ok(())
}

async fn listen(address: IpAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind((address, 0))
        .await
        .map_err(Failed::when("listen for connections to synthetic addresses"))
}

async fn capture(guest: &Guest, connection: TcpStream) -> io::Result<()> {
    // Steered to this listener, it still bears the address that the program meant.
    let meant = connection.local_addr()?;
    match ask(guest, meant).await {
        Ok((stream, early)) => {
            let mut connection = connection;
            connection.write_all(&early).await?;
            relay::carry(connection, stream).await
        }
        Err(error) => {
            // The client sees a reset, not an orderly end.
            connection.set_zero_linger()?;
            Err(error)
        }
    }
}

/// A stream on which the host has connected to what the address stands for, and what already came from there.
async fn ask(guest: &Guest, meant: SocketAddr) -> io::Result<(Stream, Vec<u8>)> {
    let mut stream = guest.transport.connect(EGRESS_PORT).await?;
    let request = format!("CONNECT {meant} HTTP/1.1\r\nHost: {meant}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    let end = loop {
        if let Some(end) = end_of_head(&answer) {
            break end;
        }
        if answer.len() >= MAX_HEAD {
            return Err(io::Error::other("the proxy's answer has no end"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok((stream, answer.split_off(end)))
}

/// Where the head ends and the tunnel begins (RFC 9112 §2.1).
fn end_of_head(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_head_is_of_the_tunnel() {
        let answer = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nSSH-2.0-x\r\n\r\n";
        let end = end_of_head(answer).unwrap();
        assert_eq!(&answer[end..], b"SSH-2.0-x\r\n\r\n");
        assert_eq!(end_of_head(b"HTTP/1.1 200 OK\r\nA: b\r\n\r"), None);
    }
}
