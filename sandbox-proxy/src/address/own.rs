//! Addresses of this host itself: a public one leads to its services from behind every firewall.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::SpecialRange;

/// Told where an address is one of this host's.
pub(super) static THIS_HOST: SpecialRange = SpecialRange {
    base: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    bits: 128,
    name: "this host itself",
    source: "the host's interfaces",
};

/// Whether this host has the address. The kernel knows: what is sent there would come from there.
///
/// Nothing is sent. Where the question cannot be asked, the answer is yes; where there is no way to the address, no.
pub(super) fn is_own(address: IpAddr) -> bool {
    let any = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let Ok(socket) = UdpSocket::bind((any, 0)) else {
        // Hosts without IPv6 cannot dial it, either.
        return address.is_ipv4();
    };
    // Connecting a datagram socket chooses a route, and sends nothing.
    socket.connect((address, 9)).is_ok()
        && socket
            .local_addr()
            .map_or(true, |local| local.ip().to_canonical() == address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_host_and_documentation_is_not() {
        assert!(is_own([127, 0, 0, 1].into()));
        assert!(!is_own([192, 0, 2, 1].into()));
    }
}
