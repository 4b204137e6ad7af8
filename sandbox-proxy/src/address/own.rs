//! Addresses of this host itself: a public one leads to its services from behind every firewall.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use rustix::io::Errno;

use super::SpecialRange;
use crate::defence::holds;

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
    // Connecting a datagram socket chooses a route, and sends nothing.
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    is_same(local.map(|local| local.ip()), address)
}

/// `local` is where packets to the address would come from.
fn is_same(local: io::Result<IpAddr>, address: IpAddr) -> bool {
    match local {
        Ok(local) => local.to_canonical() == address.to_canonical(),
        Err(error) => {
            // Whoever has no way to it, as hosts without IPv6, cannot dial it, either. Having no descriptor left, for
            // instance, says nothing.
            let is_no_way = matches!(
                Errno::from_io_error(&error),
                Some(
                    Errno::NETUNREACH
                        | Errno::HOSTUNREACH
                        | Errno::ADDRNOTAVAIL
                        | Errno::AFNOSUPPORT
                        | Errno::INVAL
                )
            );
            !is_no_way && holds("own-addresses-unknown")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_host_and_documentation_is_not() {
        assert!(is_own([127, 0, 0, 1].into()));
        assert!(!is_own([192, 0, 2, 1].into()));
    }

    #[test]
    fn question_that_cannot_be_asked_is_answered_with_yes() {
        let address = IpAddr::from([0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111]);
        for (error, own) in [
            (Errno::MFILE, true),
            (Errno::NOBUFS, true),
            (Errno::ACCESS, true),
            (Errno::AFNOSUPPORT, false),
            (Errno::NETUNREACH, false),
        ] {
            assert_eq!(is_same(Err(error.into()), address), own, "{error}");
        }
    }
}
