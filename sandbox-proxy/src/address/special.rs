//! The table of addresses that are no public hosts.
//!
//! From the IANA registries "IPv4 Special-Purpose Address Space" and "IPv6 Special-Purpose Address Space"
//! (RFC 6890), "IPv6 Global Unicast Address Assignments", RFC 3879 (site-local) and RFC 4291 §2.5.5
//! (embedded IPv4); and from the documentation of cloud providers for metadata services outside those.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One special range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialRange {
    base: IpAddr,
    bits: u8,
    /// What it is for, in a few words.
    pub name: &'static str,
}

/// The special range that an address lies in, if any. IPv4-mapped IPv6 counts as IPv4.
pub fn special_range(address: IpAddr) -> Option<&'static SpecialRange> {
    match address.to_canonical() {
        IpAddr::V4(_) => &V4[..],
        IpAddr::V6(_) => &V6[..],
    }
    .iter()
    .find(|range| range.holds(address.to_canonical(), range.bits))
}

/// Whether a network lies within one special range as a whole.
pub(crate) fn network_is_special(base: IpAddr, bits: u8) -> bool {
    V4.iter()
        .chain(&V6)
        .any(|range| range.bits <= bits && range.holds(base, range.bits))
}

impl SpecialRange {
    /// Whether `address` shares the first `bits` bits with this range.
    fn holds(&self, address: IpAddr, bits: u8) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differ = base.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(bits)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differ = base.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(bits)
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for SpecialRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} ({})", self.base, self.bits, self.name)
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8, name: &'static str) -> SpecialRange {
    SpecialRange {
        base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        bits,
        name,
    }
}

const fn v6(high: [u16; 4], low: [u16; 4], bits: u8, name: &'static str) -> SpecialRange {
    SpecialRange {
        base: IpAddr::V6(Ipv6Addr::new(
            high[0], high[1], high[2], high[3], low[0], low[1], low[2], low[3],
        )),
        bits,
        name,
    }
}

/// No low half.
const Z: [u16; 4] = [0; 4];

/// Narrow ranges stand before wide ones that hold them, so that the telling name is found.
static V4: [SpecialRange; 19] = [
    v4(100, 100, 100, 200, 32, "cloud metadata"),
    v4(168, 63, 129, 16, 32, "cloud metadata"),
    v4(169, 254, 169, 254, 32, "cloud metadata"),
    v4(0, 0, 0, 0, 8, "this network"),
    v4(10, 0, 0, 0, 8, "private use"),
    v4(100, 64, 0, 0, 10, "shared address space"),
    v4(127, 0, 0, 0, 8, "loopback"),
    v4(169, 254, 0, 0, 16, "link local"),
    v4(172, 16, 0, 0, 12, "private use"),
    v4(192, 0, 0, 0, 24, "IETF protocol assignments"),
    v4(192, 0, 2, 0, 24, "documentation"),
    v4(192, 88, 99, 0, 24, "6to4 relay anycast"),
    v4(192, 168, 0, 0, 16, "private use"),
    v4(198, 18, 0, 0, 15, "benchmarking"),
    v4(198, 51, 100, 0, 24, "documentation"),
    v4(203, 0, 113, 0, 24, "documentation"),
    v4(224, 0, 0, 0, 4, "multicast"),
    v4(255, 255, 255, 255, 32, "limited broadcast"),
    v4(240, 0, 0, 0, 4, "reserved"),
];

static V6: [SpecialRange; 27] = [
    v6([0xfd00, 0xec2, 0, 0], [0, 0, 0, 0x254], 128, "cloud metadata"),
    v6([0xfd20, 0xce, 0, 0], [0, 0, 0, 0x254], 128, "cloud metadata"),
    v6(Z, [0, 0, 0, 1], 128, "loopback"),
    v6(Z, Z, 128, "unspecified"),
    v6(Z, Z, 96, "IPv4-compatible"),
    v6(Z, [0, 0xffff, 0, 0], 96, "IPv4-mapped"),
    v6(Z, [0xffff, 0, 0, 0], 96, "IPv4-translated"),
    v6([0x64, 0xff9b, 0, 0], Z, 96, "NAT64"),
    v6([0x64, 0xff9b, 1, 0], Z, 48, "local-use NAT64"),
    v6([0x100, 0, 0, 0], Z, 64, "discard only"),
    v6([0x100, 0, 0, 1], Z, 64, "dummy prefix"),
    v6([0x2001, 0, 0, 0], Z, 32, "Teredo"),
    v6([0x2001, 0x2, 0, 0], Z, 48, "benchmarking"),
    v6([0x2001, 0x10, 0, 0], Z, 28, "ORCHID"),
    v6([0x2001, 0x20, 0, 0], Z, 28, "ORCHIDv2"),
    v6([0x2001, 0, 0, 0], Z, 23, "IETF protocol assignments"),
    v6([0x2001, 0xdb8, 0, 0], Z, 32, "documentation"),
    v6([0x2002, 0, 0, 0], Z, 16, "6to4"),
    v6([0x3fff, 0, 0, 0], Z, 20, "documentation"),
    v6([0x5f00, 0, 0, 0], Z, 16, "segment routing"),
    v6([0xfc00, 0, 0, 0], Z, 7, "unique local"),
    v6([0xfe80, 0, 0, 0], Z, 10, "link local"),
    v6([0xfec0, 0, 0, 0], Z, 10, "site local"),
    v6([0xff00, 0, 0, 0], Z, 8, "multicast"),
    // Global unicast is 2000::/3; the rest is reserved.
    v6([0, 0, 0, 0], Z, 3, "reserved"),
    v6([0x4000, 0, 0, 0], Z, 2, "reserved"),
    v6([0x8000, 0, 0, 0], Z, 1, "reserved"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_range_is_known_by_its_ends() {
        for (address, name) in [
            ("0.0.0.0", "this network"),
            ("0.255.255.255", "this network"),
            ("10.0.0.0", "private use"),
            ("10.255.255.255", "private use"),
            ("100.64.0.0", "shared address space"),
            ("100.127.255.255", "shared address space"),
            ("100.100.100.200", "cloud metadata"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("168.63.129.16", "cloud metadata"),
            ("169.254.169.254", "cloud metadata"),
            ("169.254.170.2", "link local"),
            ("172.16.0.0", "private use"),
            ("172.31.255.255", "private use"),
            ("192.0.0.192", "IETF protocol assignments"),
            ("192.0.2.1", "documentation"),
            ("192.88.99.1", "6to4 relay anycast"),
            ("192.168.255.255", "private use"),
            ("198.18.0.0", "benchmarking"),
            ("198.19.255.255", "benchmarking"),
            ("198.51.100.9", "documentation"),
            ("203.0.113.9", "documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "limited broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::127.0.0.1", "IPv4-compatible"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "cloud metadata"),
            ("::ffff:0:127.0.0.1", "IPv4-translated"),
            ("64:ff9b::7f00:1", "NAT64"),
            ("64:ff9b::808:808", "NAT64"),
            ("64:ff9b:1::1", "local-use NAT64"),
            ("100::1", "discard only"),
            ("2001::1", "Teredo"),
            ("2001:0:ffff::", "Teredo"),
            ("2001:2::1", "benchmarking"),
            ("2001:1f::1", "ORCHID"),
            ("2001:2f::1", "ORCHIDv2"),
            ("2001:1ff::1", "IETF protocol assignments"),
            ("2001:db8::1", "documentation"),
            ("2002:7f00:1::", "6to4"),
            ("3fff:fff::1", "documentation"),
            ("5f00::1", "segment routing"),
            ("fc00::1", "unique local"),
            ("fd00:ec2::254", "cloud metadata"),
            ("fd20:ce::254", "cloud metadata"),
            ("fdff:ffff::", "unique local"),
            ("fe80::1", "link local"),
            ("febf::1", "link local"),
            ("fec0::1", "site local"),
            ("ff02::1", "multicast"),
            ("1::1", "reserved"),
            ("4000::1", "reserved"),
            ("9000::1", "reserved"),
        ] {
            let found = special_range(address.parse().unwrap());
            assert_eq!(found.map(|range| range.name), Some(name), "{address}");
        }
    }

    #[test]
    fn neighbours_of_special_ranges_are_public() {
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2003::1",
            "2606:4700::1111",
            "3fff:1000::1",
        ] {
            assert_eq!(special_range(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn only_networks_inside_one_special_range_are_special() {
        for (base, bits, special) in [
            ("10.0.0.0", 8, true),
            ("10.1.0.0", 16, true),
            ("0.0.0.0", 0, false),
            ("10.0.0.0", 7, false),
            ("8.8.8.0", 24, false),
            ("127.0.0.1", 32, true),
            ("fd00::", 8, true),
            ("::", 0, false),
        ] {
            assert_eq!(
                network_is_special(base.parse().unwrap(), bits),
                special,
                "{base}/{bits}"
            );
        }
    }
}
