//! Where connections to synthetic addresses arrive: a listener that sees no first segment but those we hand in, so that a
//! program is told that its connection stands only when there is something to be connected to.
//!
//! What a program sends is dropped by a filter of the listener's socket, silently, as if it were lost, and comes in a
//! copy by a packet socket (packet(7)). It is sent once more, with a mark, when the connection may stand, or answered with
//! a refusal. A program that waits repeats itself (RFC 6298 §5), so nothing depends on any one of these being seen.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::RecvFlags;
use sandbox_protocol::{SYNTHETIC_V4, SYNTHETIC_V6};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpListener, TcpStream},
};

use super::syn::Syn;
use crate::diagnostics::Failed;

/// Of packets that we send (`SO_MARK`): "SBX1".
const MARK: u32 = 0x5342_5831;

/// Headers of IP and TCP: twice the longest of IPv4, and more than those of IPv6 without extensions.
const MAX_HEADERS: usize = 120;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 256;

/// What arrives for one family.
pub(super) struct Door {
    listener: TcpListener,
    /// Copies of first segments.
    arrivals: AsyncFd<OwnedFd>,
    /// Sends packets as they are.
    out: Socket,
}

impl Door {
    /// The synthetic network of the family must be the machine's own already.
    pub(super) fn open(v6: bool) -> Result<Self, Failed> {
        let listener = listen(v6).map_err(Failed::when("listen for connections to synthetic addresses"))?;
        let arrivals = overhear(v6).map_err(Failed::when("overhear first segments"))?;
        let out = send_raw(v6).map_err(Failed::when("open a socket for packets"))?;
        Ok(Self {
            listener,
            arrivals,
            out,
        })
    }

    /// For steering to it.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The next first segment of a program.
    pub(super) async fn arrival(&self) -> Syn {
        let mut packet = [0; MAX_HEADERS];
        loop {
            let received = self
                .arrivals
                .async_io(Interest::READABLE, |socket| {
                    Ok(rustix::net::recv(socket, &mut packet, RecvFlags::empty())?)
                })
                .await;
            // An error is of an interface that has gone down.
            let length = received.map_or(0, |(length, _)| length);
            if let Some(syn) = packet.get(..length).and_then(Syn::parse) {
                return syn;
            }
        }
    }

    /// Lets it in: [`Door::accept`] will give its connection, if the program is still there.
    pub(super) fn let_in(&self, syn: &Syn) -> io::Result<()> {
        self.send(&syn.again()?, syn.flow().to().ip())
    }

    /// Tells the program that nobody is there.
    pub(super) fn refuse(&self, syn: &Syn) -> io::Result<()> {
        self.send(&syn.refusal()?, syn.flow().from().ip())
    }

    /// The next connection that stands, with where it comes from.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (connection, from) = self.listener.accept().await?;
        // It came with the listener's filter, which drops nothing of it, and only costs time.
        let _ = SockRef::from(&connection).detach_filter();
        Ok((connection, from))
    }

    fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        // IPv6 takes no other port than 0 here (ipv6(7)).
        let to = SockAddr::from(SocketAddr::new(to, 0));
        self.out.send_to(packet, &to).map(drop)
    }
}

fn listen(v6: bool) -> io::Result<TcpListener> {
    let (domain, address): (_, IpAddr) = if v6 {
        (Domain::IPV6, SYNTHETIC_V6.0.into())
    } else {
        (Domain::IPV4, SYNTHETIC_V4.0.into())
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if v6 {
        // Of a network that is the machine's own by its route alone.
        socket.set_freebind_v6(true)?;
    }
    // What it accepts bears other ports: they stay free for listeners of programs.
    socket.set_reuse_address(true)?;
    // Not of loopback's own addresses: who finds the listener itself finds a synthetic address like any other.
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.attach_filter(&let_marked_in())?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn overhear(v6: bool) -> io::Result<AsyncFd<OwnedFd>> {
    let (protocol, filter) = if v6 {
        (libc::ETH_P_IPV6, first_segments_v6())
    } else {
        (libc::ETH_P_IP, first_segments_v4())
    };
    // As the kernel wants it: in the order of bytes on the wire. Without an address it hears every interface, and nothing
    // that goes out.
    let protocol = i32::from((protocol as u16).to_be());
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol.into()))?;
    socket.attach_filter(&filter)?;
    socket.set_nonblocking(true)?;
    // What it heard before it had its filter is anybody's.
    while rustix::net::recv(&socket, &mut [0], RecvFlags::empty()).is_ok() {}
    let socket = OwnedFd::from(socket);
    // SAFETY: `OwnedFd` is the same open descriptor for all of its life, which the `AsyncFd` now owns.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

fn send_raw(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    // `IPPROTO_RAW`: packets bring their headers, and nothing is received (raw(7)).
    let socket = Socket::new(domain, Type::RAW, Some(libc::IPPROTO_RAW.into()))?;
    socket.set_mark(MARK)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Loads of the classic BPF (Documentation/networking/filter.rst): into the accumulator, from the packet.
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
/// At the index register and on.
const LOAD_BYTE_ON: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
/// The length of an IPv4 header, into the index register.
const LOAD_LENGTH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Where a load finds the packet's mark.
const OF_MARK: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_MARK) as u32;

/// Offset of the flags in a TCP header, and two of them (RFC 9293 §3.1).
const FLAGS: u32 = 13;
const SYN: u32 = 0x02;
const SYN_AND_ACK: u32 = 0x12;

/// Instructions to jump over when a comparison holds, and when it does not.
const fn step(code: u16, holds: u8, fails: u8, value: u32) -> SockFilter {
    SockFilter::new(code, holds, fails, value)
}

/// Of segments to a listener: all but first ones that are not ours.
fn let_marked_in() -> Vec<SockFilter> {
    vec![
        step(LOAD_WORD, 0, 0, OF_MARK),
        step(EQUAL, 3, 0, MARK),
        step(LOAD_BYTE, 0, 0, FLAGS),
        step(AND, 0, 0, SYN_AND_ACK),
        step(EQUAL, 1, 0, SYN),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

/// Of all packets: first segments to synthetic addresses that are not ours, as much as their headers can be.
fn first_segments_v4() -> Vec<SockFilter> {
    let (network, prefix) = SYNTHETIC_V4;
    let mut code = vec![
        step(LOAD_BYTE, 0, 0, 9),
        step(EQUAL, 0, 11, libc::IPPROTO_TCP as u32),
        // Any but the first fragment.
        step(LOAD_HALF, 0, 0, 6),
        step(ANY_BIT, 9, 0, 0x1fff),
        step(LOAD_WORD, 0, 0, 16),
        step(AND, 0, 0, u32::MAX << (32 - prefix)),
        step(EQUAL, 0, 6, network.to_bits()),
        step(LOAD_LENGTH, 0, 0, 0),
        step(LOAD_BYTE_ON, 0, 0, FLAGS),
    ];
    code.extend(of_others());
    code
}

/// The same of IPv6, without extension headers: the kernel sends none.
fn first_segments_v6() -> Vec<SockFilter> {
    // The prefix is three words.
    let [first, second, third] = [0, 1, 2].map(|word| (SYNTHETIC_V6.0.to_bits() >> (96 - 32 * word)) as u32);
    let mut code = vec![
        step(LOAD_BYTE, 0, 0, 6),
        step(EQUAL, 0, 11, libc::IPPROTO_TCP as u32),
        step(LOAD_WORD, 0, 0, 24),
        step(EQUAL, 0, 9, first),
        step(LOAD_WORD, 0, 0, 28),
        step(EQUAL, 0, 7, second),
        step(LOAD_WORD, 0, 0, 32),
        step(EQUAL, 0, 5, third),
        step(LOAD_BYTE, 0, 0, 40 + FLAGS),
    ];
    code.extend(of_others());
    code
}

/// The end of both, which finds the flags in the accumulator; the last step but one drops the packet.
fn of_others() -> [SockFilter; 6] {
    [
        step(AND, 0, 0, SYN_AND_ACK),
        step(EQUAL, 0, 2, SYN),
        step(LOAD_WORD, 0, 0, OF_MARK),
        step(EQUAL, 0, 1, MARK),
        step(RETURN, 0, 0, 0),
        step(RETURN, 0, 0, MAX_HEADERS as u32),
    ]
}
