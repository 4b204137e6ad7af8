//! Networks of which every address is this machine's own, by route netlink (rtnetlink(7)).

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::diagnostics::Failed;

/// Index of the loopback interface: always the first.
const LOOPBACK: u32 = 1;

/// Makes each address of a network one of loopback.
pub(super) fn add_local(network: IpAddr, prefix: u8) -> Result<(), Failed> {
    request(&message(network, prefix)).map_err(Failed::when(format!(
        "make {network}/{prefix} addresses of loopback"
    )))
}

/// Sends one request and takes the kernel's word on it.
fn request(message: &[u8]) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // `NETLINK_ROUTE` is protocol 0.
        None,
    )?;
    rustix::net::send(&socket, message, SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    // `struct nlmsghdr`, then `struct nlmsgerr`, which begins with an error number, 0 or negative.
    let number = answer.get(..length).and_then(|answer| answer.get(16..20));
    match number
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `RTM_NEWROUTE` of type `RTN_LOCAL` in the local table.
fn message(network: IpAddr, prefix: u8) -> Vec<u8> {
    let (family, address) = match network {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    // `struct rtmsg`: family, lengths of destination and source, type of service, table, protocol, scope, type, flags.
    let mut body = vec![
        family as u8,
        prefix,
        0,
        0,
        libc::RT_TABLE_LOCAL,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_HOST,
        libc::RTN_LOCAL,
    ];
    body.extend(0_u32.to_ne_bytes());
    let mut attributes = vec![
        (libc::RTA_DST, address),
        (libc::RTA_OIF, LOOPBACK.to_ne_bytes().to_vec()),
    ];
    if network.is_ipv4() {
        // Without it the source is the destination: a program whose own port happens to be the one it connects to would
        // reach itself.
        attributes.push((libc::RTA_PREFSRC, Ipv4Addr::LOCALHOST.octets().to_vec()));
    }
    for (kind, value) in attributes {
        // `struct rtattr`: length with this header, and type. All values here end on a border of four bytes.
        body.extend((4 + value.len() as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
    }
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
    // `struct nlmsghdr`: length, type, flags, number, port.
    let mut message = Vec::from((16 + body.len() as u32).to_ne_bytes());
    message.extend(libc::RTM_NEWROUTE.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn lengths_are_those_of_the_whole_and_of_its_parts() {
        for (network, length) in [
            (IpAddr::V4(Ipv4Addr::LOCALHOST), 16 + 12 + 8 + 8 + 8),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), 16 + 12 + 20 + 8),
        ] {
            let message = message(network, 8);
            assert_eq!(message.len(), length);
            assert_eq!(message[..4], (length as u32).to_ne_bytes());
        }
    }
}
