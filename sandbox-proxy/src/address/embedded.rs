//! IPv4 addresses inside IPv6 ones: whoever forwards or translates them reaches the IPv4 host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::defence;

/// The IPv4 address that an IPv6 address stands for or leads to, if any.
///
/// | form | where the IPv4 address is | by |
/// |---|---|---|
/// | IPv4-mapped `::ffff:0:0/96`, -compatible `::/96` | last 32 bits | RFC 4291 §2.5.5 |
/// | IPv4-translated `::ffff:0:0:0/96` | last 32 bits | RFC 7915 §2 (first in RFC 2765) |
/// | NAT64 `64:ff9b::/96` | last 32 bits | RFC 6052 §2.2 |
/// | local-use NAT64 `64:ff9b:1::/48` | last 32 bits: the common choice of a /96 in it | RFC 8215 |
/// | 6to4 `2002::/16` | bits 16 to 48 | RFC 3056 §2 |
/// | Teredo `2001::/32` | last 32 bits, inverted: the client | RFC 4380 §4 |
/// | ISATAP, in any prefix | last 32 bits, after `0:5efe` or `200:5efe` | RFC 5214 §6.1 |
pub fn embedded_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else {
        return None;
    };
    if !defence::holds("embedded-v4") {
        return None;
    }
    let low = Ipv4Addr::from_bits(low_half(v6) as u32);
    match v6.segments() {
        // The unspecified address and loopback are no IPv4 addresses.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Some(low),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(low),
        [0x2002, high, rest, ..] => Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(rest))),
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!low.to_bits())),
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Some(low),
        _ => None,
    }
}

/// The last 64 bits.
fn low_half(address: Ipv6Addr) -> u64 {
    address.to_bits() as u64
}
