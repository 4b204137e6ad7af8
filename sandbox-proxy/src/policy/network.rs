//! Networks: addresses that share their first bits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sandbox_core::host::Host;

use crate::address;
use crate::defence::holds;

/// Addresses that share their first bits. IPv4 and IPv6 never share a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    pub(crate) fn new(address: IpAddr, bits: u8) -> Self {
        Self {
            address: truncate(address, bits),
            bits,
        }
    }

    /// Of one address.
    pub(crate) fn of(address: IpAddr) -> Self {
        Self::new(address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// How many bits its addresses share.
    pub(crate) fn bits(self) -> u8 {
        self.bits
    }

    pub(super) fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Its first and last address as numbers.
    pub(super) fn ends(self) -> (u128, u128) {
        let bits = if holds("network-prefix") {
            u32::from(self.bits)
        } else {
            u32::from(self.bits).saturating_sub(1)
        };
        match self.address {
            IpAddr::V4(first) => {
                let rest = u32::MAX.checked_shr(bits).unwrap_or(0);
                (first.to_bits().into(), (first.to_bits() | rest).into())
            }
            IpAddr::V6(first) => {
                let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
                (first.to_bits(), first.to_bits() | rest)
            }
        }
    }

    pub(super) fn is_special(self) -> bool {
        address::network_is_special(self.address, self.bits)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Host::Address(self.address).fmt(f)?;
        if *self == Self::of(self.address) {
            Ok(())
        } else {
            write!(f, "/{}", self.bits)
        }
    }
}

/// The address with all but its first bits unset.
pub(super) fn truncate(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}
