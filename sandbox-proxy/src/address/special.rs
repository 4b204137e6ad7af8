//! The table of addresses that are no public hosts, row by row from its sources.
//!
//! * IANA IPv4 Special-Purpose Address Registry (RFC 6890, RFC 8190), as of 2026-07-18: every row of it, also those that
//!   are globally reachable, since none is a host that somebody means by a name. Two lie within a wider row here:
//!   0.0.0.0/32 and 192.88.99.2/32. <https://www.iana.org/assignments/iana-ipv4-special-registry/>
//! * IANA IPv6 Special-Purpose Address Registry (the same), as of 2026-07-18: every row.
//!   <https://www.iana.org/assignments/iana-ipv6-special-registry/>
//! * IANA registries "IPv4 Address Space" (224/4 multicast, 240/4 reserved) and "IPv6 Address Space" (what is outside
//!   2000::/3 is not global unicast; `fec0::/10` was site-local, RFC 3879).
//! * Documentation of cloud providers for metadata services, some of which are outside all those.
//!
//! An IPv6 address that is public by its own, but leads to an IPv4 address that is not, counts as that one: see
//! [`embedded_v4`](super::embedded_v4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::embedded_v4;

/// One special range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialRange {
    pub(super) base: IpAddr,
    pub(super) bits: u8,
    /// What it is for, in a few words.
    pub name: &'static str,
    /// Where that is written.
    pub source: &'static str,
}

/// The special range that an address lies in or leads to, if any. IPv4-mapped IPv6 counts as IPv4.
pub fn special_range(address: IpAddr) -> Option<&'static SpecialRange> {
    let address = address.to_canonical();
    let own = match address {
        IpAddr::V4(_) => holding(&V4, address),
        IpAddr::V6(_) => holding(&V6, address),
    };
    own.or_else(|| holding(&V4, embedded_v4(address)?.into()))
}

/// Every range of the table. Narrow ones stand before wide ones that hold them.
pub fn special_ranges() -> impl Iterator<Item = &'static SpecialRange> {
    V4.iter().chain(&V6)
}

fn holding(table: &'static [SpecialRange], address: IpAddr) -> Option<&'static SpecialRange> {
    table.iter().find(|range| range.holds(address, range.bits))
}

/// Whether a network lies within one special range as a whole.
pub(crate) fn network_is_special(base: IpAddr, bits: u8) -> bool {
    special_ranges().any(|range| range.bits <= bits && range.holds(base, range.bits))
}

impl SpecialRange {
    /// Its first address and the length of its prefix in bits.
    pub fn network(&self) -> (IpAddr, u8) {
        (self.base, self.bits)
    }

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

const fn v4(octets: [u8; 4], bits: u8, name: &'static str, source: &'static str) -> SpecialRange {
    let [a, b, c, d] = octets;
    SpecialRange {
        base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        bits,
        name,
        source,
    }
}

/// `high` and `low` are the halves of the address.
const fn v6(high: u64, low: u64, bits: u8, name: &'static str, source: &'static str) -> SpecialRange {
    SpecialRange {
        base: IpAddr::V6(Ipv6Addr::from_bits((high as u128) << 64 | low as u128)),
        bits,
        name,
        source,
    }
}

const METADATA: &str = "cloud metadata";

#[rustfmt::skip]
static V4: [SpecialRange; 32] = [
    // By cloud providers.
    v4([100, 100, 100, 200], 32, METADATA, "Alibaba Cloud ECS"),
    v4([168, 63, 129, 16], 32, METADATA, "Microsoft Azure WireServer"),
    v4([169, 254, 169, 254], 32, METADATA, "AWS, Google Cloud, Azure, DigitalOcean, OpenStack, ..."),
    v4([169, 254, 170, 2], 32, METADATA, "AWS ECS credentials"),
    v4([169, 254, 170, 23], 32, METADATA, "AWS EKS credentials"),
    v4([169, 254, 42, 42], 32, METADATA, "Scaleway"),
    v4([169, 254, 0, 23], 32, METADATA, "Tencent Cloud"),
    v4([192, 0, 0, 192], 32, METADATA, "Oracle Cloud Classic"),
    // By the registry.
    v4([0, 0, 0, 0], 8, "this network", "RFC 791 section 3.2"),
    v4([10, 0, 0, 0], 8, "private use", "RFC 1918"),
    v4([100, 64, 0, 0], 10, "shared address space", "RFC 6598"),
    v4([127, 0, 0, 0], 8, "loopback", "RFC 1122 section 3.2.1.3"),
    v4([169, 254, 0, 0], 16, "link local", "RFC 3927"),
    v4([172, 16, 0, 0], 12, "private use", "RFC 1918"),
    v4([192, 0, 0, 0], 29, "IPv4 service continuity", "RFC 7335"),
    v4([192, 0, 0, 8], 32, "IPv4 dummy address", "RFC 7600"),
    v4([192, 0, 0, 9], 32, "port control anycast", "RFC 7723"),
    v4([192, 0, 0, 10], 32, "TURN anycast", "RFC 8155"),
    v4([192, 0, 0, 170], 31, "NAT64 discovery", "RFC 8880, RFC 7050 section 2.2"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments", "RFC 6890 section 2.1"),
    v4([192, 0, 2, 0], 24, "documentation", "RFC 5737"),
    v4([192, 31, 196, 0], 24, "AS112", "RFC 7535"),
    v4([192, 52, 193, 0], 24, "multicast tunnelling", "RFC 7450"),
    v4([192, 88, 99, 0], 24, "6to4 relay anycast", "RFC 7526 (RFC 3068)"),
    v4([192, 168, 0, 0], 16, "private use", "RFC 1918"),
    v4([192, 175, 48, 0], 24, "AS112", "RFC 7534"),
    v4([198, 18, 0, 0], 15, "benchmarking", "RFC 2544"),
    v4([198, 51, 100, 0], 24, "documentation", "RFC 5737"),
    v4([203, 0, 113, 0], 24, "documentation", "RFC 5737"),
    v4([224, 0, 0, 0], 4, "multicast", "RFC 5771"),
    v4([255, 255, 255, 255], 32, "limited broadcast", "RFC 919, RFC 8190"),
    v4([240, 0, 0, 0], 4, "reserved", "RFC 1112 section 4"),
];

#[rustfmt::skip]
static V6: [SpecialRange; 37] = [
    // By cloud providers.
    v6(0xfd00_0ec2_0000_0000, 0x254, 128, METADATA, "AWS instance metadata"),
    v6(0xfd00_0ec2_0000_0000, 0x23, 128, METADATA, "AWS EKS credentials"),
    v6(0xfd20_00ce_0000_0000, 0x254, 128, METADATA, "Google Cloud"),
    v6(0xfd00_0042_0000_0000, 0x42, 128, METADATA, "Scaleway"),
    v6(0xfe80_0000_0000_0000, 0xa9fe_a9fe, 128, METADATA, "OpenStack"),
    // By the registry.
    v6(0, 1, 128, "loopback", "RFC 4291 section 2.5.3"),
    v6(0, 0, 128, "unspecified", "RFC 4291 section 2.5.2"),
    v6(0, 0, 96, "IPv4-compatible", "RFC 4291 section 2.5.5.1"),
    v6(0, 0xffff_0000_0000, 96, "IPv4-mapped", "RFC 4291 section 2.5.5.2"),
    v6(0, 0xffff_0000_0000_0000, 96, "IPv4-translated", "RFC 2765 section 2.1"),
    v6(0x0064_ff9b_0000_0000, 0, 96, "NAT64", "RFC 6052"),
    v6(0x0064_ff9b_0001_0000, 0, 48, "local-use NAT64", "RFC 8215"),
    v6(0x0100_0000_0000_0000, 0, 64, "discard only", "RFC 6666"),
    v6(0x0100_0000_0000_0001, 0, 64, "dummy prefix", "RFC 9780"),
    v6(0x2001_0000_0000_0000, 0, 32, "Teredo", "RFC 4380, RFC 8190"),
    v6(0x2001_0001_0000_0000, 1, 128, "port control anycast", "RFC 7723"),
    v6(0x2001_0001_0000_0000, 2, 128, "TURN anycast", "RFC 8155"),
    v6(0x2001_0001_0000_0000, 3, 128, "service registration anycast", "RFC 9665"),
    v6(0x2001_0002_0000_0000, 0, 48, "benchmarking", "RFC 5180, RFC errata 1752"),
    v6(0x2001_0003_0000_0000, 0, 32, "multicast tunnelling", "RFC 7450"),
    v6(0x2001_0004_0112_0000, 0, 48, "AS112", "RFC 7535"),
    v6(0x2001_0010_0000_0000, 0, 28, "ORCHID", "RFC 4843"),
    v6(0x2001_0020_0000_0000, 0, 28, "ORCHIDv2", "RFC 7343"),
    v6(0x2001_0030_0000_0000, 0, 28, "drone identifiers", "RFC 9374"),
    v6(0x2001_0000_0000_0000, 0, 23, "IETF protocol assignments", "RFC 2928"),
    v6(0x2001_0db8_0000_0000, 0, 32, "documentation", "RFC 3849"),
    v6(0x2002_0000_0000_0000, 0, 16, "6to4", "RFC 3056"),
    v6(0x2620_004f_8000_0000, 0, 48, "AS112", "RFC 7534"),
    v6(0x3fff_0000_0000_0000, 0, 20, "documentation", "RFC 9637"),
    v6(0x5f00_0000_0000_0000, 0, 16, "segment routing", "RFC 9602"),
    v6(0xfc00_0000_0000_0000, 0, 7, "unique local", "RFC 4193, RFC 8190"),
    v6(0xfe80_0000_0000_0000, 0, 10, "link local", "RFC 4291 section 2.5.6"),
    v6(0xfec0_0000_0000_0000, 0, 10, "site local", "RFC 3879"),
    v6(0xff00_0000_0000_0000, 0, 8, "multicast", "RFC 4291 section 2.7"),
    // All but global unicast, 2000::/3.
    v6(0, 0, 3, "reserved", "RFC 4291 section 4"),
    v6(0x4000_0000_0000_0000, 0, 2, "reserved", "RFC 4291 section 4"),
    v6(0x8000_0000_0000_0000, 0, 1, "reserved", "RFC 4291 section 4"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(address: &str) -> Option<&'static str> {
        special_range(address.parse().unwrap()).map(|range| range.name)
    }

    /// First and last address of a range, its name, and the addresses just before and after it (none where the
    /// address space ends), with what those are in case another row has them.
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        Option<&'static str>,
        &'static str,
        Option<&'static str>,
    );

    #[rustfmt::skip]
    const ROWS: &[Row] = &[
        ("0.0.0.0", "0.255.255.255", "this network", "", None, "1.0.0.0", None),
        ("10.0.0.0", "10.255.255.255", "private use", "9.255.255.255", None, "11.0.0.0", None),
        ("100.64.0.0", "100.127.255.255", "shared address space", "100.63.255.255", None, "100.128.0.0", None),
        ("100.100.100.200", "100.100.100.200", METADATA, "100.100.100.199", Some("shared address space"), "100.100.100.201", Some("shared address space")),
        ("127.0.0.0", "127.255.255.255", "loopback", "126.255.255.255", None, "128.0.0.0", None),
        ("168.63.129.16", "168.63.129.16", METADATA, "168.63.129.15", None, "168.63.129.17", None),
        ("169.254.0.0", "169.254.255.255", "link local", "169.253.255.255", None, "169.255.0.0", None),
        ("169.254.0.23", "169.254.0.23", METADATA, "169.254.0.22", Some("link local"), "169.254.0.24", Some("link local")),
        ("169.254.42.42", "169.254.42.42", METADATA, "169.254.42.41", Some("link local"), "169.254.42.43", Some("link local")),
        ("169.254.169.254", "169.254.169.254", METADATA, "169.254.169.253", Some("link local"), "169.254.169.255", Some("link local")),
        ("169.254.170.2", "169.254.170.2", METADATA, "169.254.170.1", Some("link local"), "169.254.170.3", Some("link local")),
        ("169.254.170.23", "169.254.170.23", METADATA, "169.254.170.22", Some("link local"), "169.254.170.24", Some("link local")),
        ("172.16.0.0", "172.31.255.255", "private use", "172.15.255.255", None, "172.32.0.0", None),
        ("192.0.0.0", "192.0.0.7", "IPv4 service continuity", "191.255.255.255", None, "192.0.0.8", Some("IPv4 dummy address")),
        ("192.0.0.8", "192.0.0.8", "IPv4 dummy address", "192.0.0.7", Some("IPv4 service continuity"), "192.0.0.9", Some("port control anycast")),
        ("192.0.0.9", "192.0.0.9", "port control anycast", "192.0.0.8", Some("IPv4 dummy address"), "192.0.0.10", Some("TURN anycast")),
        ("192.0.0.10", "192.0.0.10", "TURN anycast", "192.0.0.9", Some("port control anycast"), "192.0.0.11", Some("IETF protocol assignments")),
        ("192.0.0.170", "192.0.0.171", "NAT64 discovery", "192.0.0.169", Some("IETF protocol assignments"), "192.0.0.172", Some("IETF protocol assignments")),
        ("192.0.0.192", "192.0.0.192", METADATA, "192.0.0.191", Some("IETF protocol assignments"), "192.0.0.193", Some("IETF protocol assignments")),
        ("192.0.0.11", "192.0.0.255", "IETF protocol assignments", "192.0.0.10", Some("TURN anycast"), "192.0.1.0", None),
        ("192.0.2.0", "192.0.2.255", "documentation", "192.0.1.255", None, "192.0.3.0", None),
        ("192.31.196.0", "192.31.196.255", "AS112", "192.31.195.255", None, "192.31.197.0", None),
        ("192.52.193.0", "192.52.193.255", "multicast tunnelling", "192.52.192.255", None, "192.52.194.0", None),
        ("192.88.99.0", "192.88.99.255", "6to4 relay anycast", "192.88.98.255", None, "192.88.100.0", None),
        ("192.168.0.0", "192.168.255.255", "private use", "192.167.255.255", None, "192.169.0.0", None),
        ("192.175.48.0", "192.175.48.255", "AS112", "192.175.47.255", None, "192.175.49.0", None),
        ("198.18.0.0", "198.19.255.255", "benchmarking", "198.17.255.255", None, "198.20.0.0", None),
        ("198.51.100.0", "198.51.100.255", "documentation", "198.51.99.255", None, "198.51.101.0", None),
        ("203.0.113.0", "203.0.113.255", "documentation", "203.0.112.255", None, "203.0.114.0", None),
        ("224.0.0.0", "239.255.255.255", "multicast", "223.255.255.255", None, "240.0.0.0", Some("reserved")),
        ("240.0.0.0", "255.255.255.254", "reserved", "239.255.255.255", Some("multicast"), "255.255.255.255", Some("limited broadcast")),
        ("255.255.255.255", "255.255.255.255", "limited broadcast", "255.255.255.254", Some("reserved"), "", None),
        ("::", "::", "unspecified", "", None, "::1", Some("loopback")),
        ("::1", "::1", "loopback", "::", Some("unspecified"), "::2", Some("IPv4-compatible")),
        ("::2", "::255.255.255.255", "IPv4-compatible", "::1", Some("loopback"), "::1:0:0", Some("reserved")),
        ("::ffff:0:0:0", "::ffff:0:255.255.255.255", "IPv4-translated", "::fffe:ffff:ffff:ffff", Some("reserved"), "::ffff:1:0:0", Some("reserved")),
        ("64:ff9b::", "64:ff9b::255.255.255.255", "NAT64", "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", Some("reserved"), "64:ff9b::1:0:0", Some("reserved")),
        ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "local-use NAT64", "64:ff9b:0:ffff:ffff:ffff:ffff:ffff", Some("reserved"), "64:ff9b:2::", Some("reserved")),
        ("100::", "100::ffff:ffff:ffff:ffff", "discard only", "ff:ffff::", Some("reserved"), "100:0:0:1::", Some("dummy prefix")),
        ("100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff", "dummy prefix", "100::1", Some("discard only"), "100:0:0:2::", Some("reserved")),
        ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "Teredo", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, "2001:1::", Some("IETF protocol assignments")),
        ("2001:1::1", "2001:1::1", "port control anycast", "2001:1::", Some("IETF protocol assignments"), "2001:1::2", Some("TURN anycast")),
        ("2001:1::2", "2001:1::2", "TURN anycast", "2001:1::1", Some("port control anycast"), "2001:1::3", Some("service registration anycast")),
        ("2001:1::3", "2001:1::3", "service registration anycast", "2001:1::2", Some("TURN anycast"), "2001:1::4", Some("IETF protocol assignments")),
        ("2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", "benchmarking", "2001:1:ffff::", Some("IETF protocol assignments"), "2001:2:1::", Some("IETF protocol assignments")),
        ("2001:3::", "2001:3:ffff:ffff:ffff:ffff:ffff:ffff", "multicast tunnelling", "2001:2:ffff::", Some("IETF protocol assignments"), "2001:4::", Some("IETF protocol assignments")),
        ("2001:4:112::", "2001:4:112:ffff:ffff:ffff:ffff:ffff", "AS112", "2001:4:111:ffff::", Some("IETF protocol assignments"), "2001:4:113::", Some("IETF protocol assignments")),
        ("2001:10::", "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff", "ORCHID", "2001:f:ffff::", Some("IETF protocol assignments"), "2001:20::", Some("ORCHIDv2")),
        ("2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", "ORCHIDv2", "2001:1f:ffff::", Some("ORCHID"), "2001:30::", Some("drone identifiers")),
        ("2001:30::", "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff", "drone identifiers", "2001:2f:ffff::", Some("ORCHIDv2"), "2001:40::", Some("IETF protocol assignments")),
        ("2001:100::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "IETF protocol assignments", "2001:ff::", Some("IETF protocol assignments"), "2001:200::", None),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", None, "2001:db9::", None),
        ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "6to4", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, "2003::", None),
        ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "AS112", "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", None, "2620:4f:8001::", None),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, "3fff:1000::", None),
        ("4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, "5f00::", Some("segment routing")),
        ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "segment routing", "5eff::", Some("reserved"), "5f01::", Some("reserved")),
        ("8000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved", "7fff::", Some("reserved"), "fc00::", Some("unique local")),
        ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "unique local", "fbff::", Some("reserved"), "fe00::", Some("reserved")),
        ("fd00:42::42", "fd00:42::42", METADATA, "fd00:42::41", Some("unique local"), "fd00:42::43", Some("unique local")),
        ("fd00:ec2::23", "fd00:ec2::23", METADATA, "fd00:ec2::22", Some("unique local"), "fd00:ec2::24", Some("unique local")),
        ("fd00:ec2::254", "fd00:ec2::254", METADATA, "fd00:ec2::253", Some("unique local"), "fd00:ec2::255", Some("unique local")),
        ("fd20:ce::254", "fd20:ce::254", METADATA, "fd20:ce::253", Some("unique local"), "fd20:ce::255", Some("unique local")),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link local", "fe7f::", Some("reserved"), "fec0::", Some("site local")),
        ("fe80::a9fe:a9fe", "fe80::a9fe:a9fe", METADATA, "fe80::a9fe:a9fd", Some("link local"), "fe80::a9fe:a9ff", Some("link local")),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site local", "febf::", Some("link local"), "ff00::", Some("multicast")),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast", "feff::", Some("site local"), "", None),
    ];

    #[test]
    fn every_range_ends_where_its_registry_says() {
        for (first, last, wanted, before, is_before, after, is_after) in ROWS {
            assert_eq!(name(first), Some(*wanted), "{first}");
            assert_eq!(name(last), Some(*wanted), "{last}");
            for (neighbour, wanted) in [(before, is_before), (after, is_after)] {
                if !neighbour.is_empty() {
                    assert_eq!(name(neighbour), *wanted, "{neighbour}");
                }
            }
        }
        // Mapped addresses are IPv4, so their own row is never reached.
        let tested =
            |range: &SpecialRange| range.name == "IPv4-mapped" || ROWS.iter().any(|row| row.2 == range.name);
        for range in special_ranges() {
            assert!(tested(range), "{range} is not tested");
            assert!(!range.source.is_empty());
        }
    }

    #[test]
    fn rows_of_the_registry_within_wider_ones_are_special() {
        for (address, wanted) in [("0.0.0.0", "this network"), ("192.88.99.2", "6to4 relay anycast")] {
            assert_eq!(name(address), Some(wanted), "{address}");
            assert!(network_is_special(address.parse().unwrap(), 32), "{address}");
        }
    }

    #[test]
    fn public_hosts_are_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "93.184.216.34",
            "140.82.121.4",
            "::ffff:8.8.8.8",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450:4001:82a::200e",
        ] {
            assert_eq!(name(address), None, "{address}");
        }
    }

    /// The IPv6 addresses that stand for an IPv4 address or lead to it.
    fn embeddings(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
        let bits = u128::from(v4.to_bits());
        let low = |prefix: &str| Ipv6Addr::from_bits(prefix.parse::<Ipv6Addr>().unwrap().to_bits() | bits);
        let six_to_four = |host: u128| Ipv6Addr::from_bits(0x2002 << 112 | bits << 80 | host);
        let teredo = u128::from(!v4.to_bits());
        vec![
            low("::"),
            low("::ffff:0:0"),
            low("::ffff:0:0:0"),
            low("64:ff9b::"),
            low("64:ff9b:1::"),
            low("64:ff9b:1:7:8::"),
            six_to_four(0),
            six_to_four(1),
            Ipv6Addr::from_bits(0x2001 << 112 | 0x4136_e378 << 64 | teredo),
            low("2a00:1450::5efe:0:0"),
            low("2a00:1450::200:5efe:0:0"),
        ]
    }

    proptest! {
        #[test]
        fn what_leads_to_a_special_v4_address_is_special(bits in any::<u32>(), row in 0..V4.len(), inside in any::<bool>()) {
            let mut v4 = Ipv4Addr::from_bits(bits);
            if inside && let (IpAddr::V4(base), prefix) = V4[row].network() {
                let rest = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                v4 = Ipv4Addr::from_bits(base.to_bits() | bits & rest);
            }
            let own = special_range(v4.into());
            for v6 in embeddings(v4) {
                let found = special_range(v6.into());
                // The first addresses of ::/96 are not meant as IPv4.
                if v6.to_bits() > 1 {
                    prop_assert_eq!(embedded_v4(v6.into()), Some(v4), "{}", v6);
                }
                prop_assert!(own.is_none() || found.is_some(), "{} leads to {}", v6, v4);
            }
            // What is the same address by another name is judged the same, and what leads there over a public prefix.
            prop_assert_eq!(special_range(v4.to_ipv6_mapped().into()), own);
            let isatap = Ipv6Addr::from_bits(0x2a00_1450 << 96 | 0x5efe << 32 | u128::from(v4.to_bits()));
            prop_assert_eq!(special_range(isatap.into()), own);
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
