//! Synthetic addresses: which name has which. Bounded; the one that was not asked for longest gives way.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sandbox_core::host::HostName;

use crate::defence;

/// The network of synthetic IPv4 addresses and its prefix length: set aside for benchmarks of networks (RFC 2544), so no
/// host is there, and the proxy refuses to dial it.
pub const SYNTHETIC_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// The network of synthetic IPv6 addresses and its prefix length: unique local (RFC 4193), which the proxy refuses to
/// dial, too. The last 32 bits are the IPv4 address of the same name.
pub const SYNTHETIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd53, 0x4e44, 0x4258, 0, 0, 0, 0, 0), 96);

/// Names that have an address at a time; bounds the memory of a guest that asks for more and more of them, to about
/// 5 MiB.
const MAX_NAMES: usize = 8192;
/// Offsets into the network that are given out, in turn: one that gave way comes back only after all others, so that no
/// name is taken for another by a program that kept an address. Network and broadcast address are left out.
const OFFSETS: std::ops::Range<u32> = 1..(1 << 17) - 1;

#[derive(Debug)]
pub(super) struct Table {
    by_name: HashMap<HostName, u32>,
    by_offset: HashMap<u32, Entry>,
    /// Offsets by when they were last asked for, oldest first.
    by_use: BTreeMap<u64, u32>,
    next_offset: u32,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    name: HostName,
    used: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            by_name: HashMap::new(),
            by_offset: HashMap::new(),
            by_use: BTreeMap::new(),
            next_offset: OFFSETS.start,
            uses: 0,
        }
    }
}

impl Table {
    /// The addresses of a name, which it gets now if it has none.
    pub(super) fn addresses_of(&mut self, name: HostName) -> (Ipv4Addr, Ipv6Addr) {
        let offset = match self.by_name.get(&name) {
            Some(offset) => *offset,
            None => self.add(name),
        };
        self.touch(offset);
        let v4 = SYNTHETIC_V4.0.to_bits() | offset;
        let v6 = SYNTHETIC_V6.0.to_bits() | u128::from(v4);
        (Ipv4Addr::from_bits(v4), Ipv6Addr::from_bits(v6))
    }

    /// The name that has this address.
    pub(super) fn name_of(&mut self, address: IpAddr) -> Option<HostName> {
        let v4 = match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_bits(),
            IpAddr::V6(v6) => {
                let low = u32::try_from(v6.to_bits() & u128::from(u32::MAX)).ok()?;
                let is_ours = v6.to_bits() == SYNTHETIC_V6.0.to_bits() | u128::from(low);
                is_ours.then_some(low)?
            }
        };
        let offset = v4 ^ SYNTHETIC_V4.0.to_bits();
        let name = self.by_offset.get(&offset)?.name.clone();
        self.touch(offset);
        Some(name)
    }

    pub(super) fn len(&self) -> usize {
        self.by_offset.len()
    }

    fn add(&mut self, name: HostName) -> u32 {
        if self.by_offset.len() >= MAX_NAMES
            && defence::holds("dns-table-size")
            && let Some((_, oldest)) = self.by_use.pop_first()
            && let Some(gone) = self.by_offset.remove(&oldest)
        {
            self.by_name.remove(&gone.name);
        }
        // There are more offsets than names, so one is free.
        while self.by_offset.contains_key(&self.next_offset) {
            self.advance();
        }
        let offset = self.next_offset;
        self.advance();
        self.by_name.insert(name.clone(), offset);
        self.by_offset.insert(offset, Entry { name, used: 0 });
        offset
    }

    fn advance(&mut self) {
        self.next_offset += 1;
        if !OFFSETS.contains(&self.next_offset) {
            self.next_offset = OFFSETS.start;
        }
    }

    /// Notes that an offset was asked for just now.
    fn touch(&mut self, offset: u32) {
        let Some(entry) = self.by_offset.get_mut(&offset) else {
            return;
        };
        self.uses += 1;
        self.by_use.remove(&entry.used);
        entry.used = self.uses;
        self.by_use.insert(self.uses, offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(index: usize) -> HostName {
        format!("h{index}.example").parse().unwrap()
    }

    #[test]
    fn names_keep_their_addresses_and_addresses_their_names() {
        let mut table = Table::default();
        let (v4, v6) = table.addresses_of(name(1));
        let (other, _) = table.addresses_of(name(2));
        assert_ne!(v4, other);
        assert_eq!(table.addresses_of(name(1)), (v4, v6));
        assert_eq!(table.name_of(v4.into()), Some(name(1)));
        assert_eq!(table.name_of(v6.into()), Some(name(1)));
        assert_eq!(table.name_of(other.to_ipv6_mapped().into()), Some(name(2)));
        for stranger in [
            "198.18.0.0",
            "198.19.255.255",
            "8.8.8.8",
            "fd53:4e44:4258::c613:ff",
            "::1",
        ] {
            assert_eq!(table.name_of(stranger.parse().unwrap()), None, "{stranger}");
        }
        assert!(crate::address::special_range(v4.into()).is_some());
        assert!(crate::address::special_range(v6.into()).is_some());
    }

    #[test]
    fn table_is_bounded_and_what_is_in_use_stays() {
        let mut table = Table::default();
        let (kept, _) = table.addresses_of(name(0));
        let (idle, _) = table.addresses_of(name(1));
        for index in 2..3 * MAX_NAMES {
            table.addresses_of(name(index));
            // A connection to it, from time to time.
            if index % 1000 == 0 {
                assert_eq!(table.name_of(kept.into()), Some(name(0)));
            }
        }
        assert_eq!(table.len(), MAX_NAMES);
        assert_eq!((table.by_name.len(), table.by_use.len()), (MAX_NAMES, MAX_NAMES));
        assert_eq!(table.name_of(idle.into()), None);
        assert_eq!(table.addresses_of(name(0)).0, kept);
        assert_ne!(
            table.addresses_of(name(1)).0,
            idle,
            "it is not given out again so soon"
        );
    }

    #[test]
    fn addresses_go_round_without_clashes() {
        let mut table = Table::default();
        for index in 0..usize::try_from(OFFSETS.end).unwrap() + 5000 {
            let (address, _) = table.addresses_of(name(index));
            assert_eq!(table.name_of(address.into()), Some(name(index)));
            assert!(OFFSETS.contains(&(address.to_bits() ^ SYNTHETIC_V4.0.to_bits())));
        }
    }
}
