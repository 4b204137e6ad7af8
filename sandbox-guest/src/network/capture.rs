//! Connections of programs that know no proxy: each to a synthetic address is asked for at the egress proxy, with
//! `CONNECT` to that very address and port. The host knows which name it stands for.
//!
//! The kernel has completed the connection by then, so one that is denied is reset, and not refused.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use sandbox_protocol::{EGRESS_PORT, SYNTHETIC_V4, SYNTHETIC_V6};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OnceCell, Semaphore},
};

use super::{accept, relay, route, steer::Steering};
use crate::{Guest, diagnostics, diagnostics::Failed, transport::Stream};

/// The longest head of an answer. The proxy's are a few hundred bytes; a refusal's document is not read.
const MAX_HEAD: usize = 16 << 10;

/// Fields of such a head: more than the proxy has.
const MAX_FIELDS: usize = 32;

/// How long the host may still take when the program has closed its half. One that is gone is told from one that has
/// nothing to say by nothing else, and what it asked for must not be kept for it, where people are asked for minutes.
const PATIENCE_OF_THE_SILENT: Duration = Duration::from_secs(5);

/// What takes connections to synthetic addresses, once somebody asks for a name.
pub(super) struct Capture {
    guest: Rc<Guest>,
    most: usize,
    started: OnceCell<bool>,
}

impl Capture {
    /// Will take so many connections at once.
    pub(super) fn new(guest: &Rc<Guest>, most: usize) -> Rc<Self> {
        Rc::new(Self {
            guest: Rc::clone(guest),
            most,
            started: OnceCell::new(),
        })
    }

    /// Starts it, unless it has started: the guests of interpreted hosts would pay for it with a part of their boot.
    /// Whether it runs. Where it cannot, names would only make programs wait for what they cannot reach.
    pub(super) async fn is_started(&self) -> bool {
        let start = async {
            let started = start(&self.guest, self.most).await;
            if let Err(error) = &started {
                diagnostics::say(&format!(
                    "programs that use no proxy stay without network: {error}"
                ));
            }
            started.is_ok()
        };
        *self.started.get_or_init(|| start).await
    }
}

/// Makes synthetic addresses the guest's own, and starts taking connections to them.
async fn start(guest: &Rc<Guest>, most: usize) -> Result<(), Failed> {
    let mut listeners = vec![listen(Ipv4Addr::LOCALHOST.into()).await?];
    // A kernel without IPv6 has no such address, and needs none.
    listeners.extend(listen(Ipv6Addr::LOCALHOST.into()).await.ok());
    let mut steering = Steering::new()?;
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
    leave_echo_requests_unanswered();
    let slots = Arc::new(Semaphore::new(most));
    for listener in listeners {
        let guest = Rc::clone(guest);
        let capture = move |connection| {
            let guest = Rc::clone(&guest);
            async move {
                // Either end's error has already reached the other as a reset or an end.
                let _ = capture(&guest, connection).await;
            }
        };
        tokio::task::spawn_local(accept(listener, Arc::clone(&slots), capture));
    }
    Ok(())
}

/// An answer to an echo request for a synthetic address would be ours, and be taken for one of the host with that name.
/// Loopback's own addresses do not answer either: the setting knows no difference.
fn leave_echo_requests_unanswered() {
    for setting in ["ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"] {
        // Only a wish: a kernel without IPv6 has no such setting.
        let _ = std::fs::write(format!("/proc/sys/net/{setting}"), b"1");
    }
}

async fn listen(address: IpAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind((address, 0))
        .await
        .map_err(Failed::when("listen for connections to synthetic addresses"))
}

async fn capture(guest: &Guest, mut connection: TcpStream) -> io::Result<()> {
    // Steered to this listener, it still bears the address that the program meant.
    let meant = connection.local_addr()?;
    let asking = async {
        // Whoever finds the listener itself finds nothing.
        if is_synthetic(meant.ip()) {
            ask(guest, meant).await
        } else {
            Err(io::ErrorKind::ConnectionRefused.into())
        }
    };
    let asked = tokio::select! {
        asked = asking => asked,
        () = gone(&connection) => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    match asked {
        Ok((stream, early)) => {
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

/// Ends some time after the program has closed its half without a word, or at once when the connection breaks.
async fn gone(connection: &TcpStream) {
    match connection.peek(&mut [0]).await {
        Ok(0) => tokio::time::sleep(PATIENCE_OF_THE_SILENT).await,
        Ok(_) => std::future::pending().await,
        Err(_) => {}
    }
}

fn is_synthetic(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let (network, prefix) = SYNTHETIC_V4;
            (address.to_bits() ^ network.to_bits()) >> (32 - prefix) == 0
        }
        IpAddr::V6(address) => {
            let (network, prefix) = SYNTHETIC_V6;
            (address.to_bits() ^ network.to_bits()) >> (128 - prefix) == 0
        }
    }
}

/// A stream on which the host has connected to what the address stands for, and what already came from there.
async fn ask(guest: &Guest, meant: SocketAddr) -> io::Result<(Stream, Vec<u8>)> {
    let mut stream = guest.transport.connect(EGRESS_PORT).await?;
    let request = format!("CONNECT {meant} HTTP/1.1\r\nHost: {meant}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if let Some((status, end)) = parse_head(&answer)? {
            return match status {
                200 => Ok((stream, answer.split_off(end))),
                _ => Err(io::ErrorKind::ConnectionRefused.into()),
            };
        }
        if answer.len() >= MAX_HEAD {
            return Err(io::Error::other("the proxy's answer has no end"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The status of a whole head and where the tunnel begins; nothing while there is more to come.
fn parse_head(answer: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(answer).map_err(io::Error::other)?;
    Ok(match parsed {
        httparse::Status::Complete(end) => Some((response.code.unwrap_or_default(), end)),
        httparse::Status::Partial => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_outside_the_two_networks_are_nobodys() {
        for inside in ["198.18.0.0", "198.19.255.255", "fd53:4e44:4258::c612:1"] {
            assert!(is_synthetic(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "127.0.0.1",
            "198.17.255.255",
            "198.20.0.0",
            "::1",
            "fd53:4e44:4258::1:0:0",
        ] {
            assert!(!is_synthetic(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn what_follows_the_head_is_of_the_tunnel() {
        let answer = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nSSH-2.0-x\r\n\r\n";
        let (status, end) = parse_head(answer).unwrap().unwrap();
        assert_eq!((status, &answer[end..]), (200, &b"SSH-2.0-x\r\n\r\n"[..]));
        assert_eq!(parse_head(b"HTTP/1.1 403 Forbidden\r\nA: b\r\n\r").unwrap(), None);
        assert!(parse_head(b"SSH-2.0-x\r\n").is_err());
    }
}
