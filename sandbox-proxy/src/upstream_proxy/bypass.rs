//! Exceptions from the upstream proxy, as `NO_PROXY` lists them.

use std::net::IpAddr;
use std::str::FromStr;

use sandbox_core::host::{Host, HostName, is_in};

/// One exception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bypass {
    what: What,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Everything,
    /// A name and all below it.
    Name(HostName),
    /// Addresses that share their first bits with this one.
    Network(IpAddr, u8),
}

impl Bypass {
    pub(super) fn covers(&self, host: &Host, port: u16) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        match (&self.what, host) {
            (What::Everything, _) => true,
            (What::Name(zone), Host::Name(name)) => is_in(name.as_str(), zone.as_str()),
            (What::Network(base, bits), Host::Address(address)) => shares(*base, *address, *bits),
            _ => false,
        }
    }
}

impl FromStr for Bypass {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some((base, bits)) = text.split_once('/') {
            let base: IpAddr = base.parse().map_err(drop)?;
            let bits: u8 = bits.parse().map_err(drop)?;
            let most = if base.is_ipv4() { 32 } else { 128 };
            return (bits <= most)
                .then_some(Self {
                    what: What::Network(base, bits),
                    port: None,
                })
                .ok_or(());
        }
        let (host, port) = match text.rsplit_once(':') {
            // Not the last part of an IPv6 address.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().map_err(drop)?))
            }
            _ => (text, None),
        };
        if host == "*" {
            return Ok(Self {
                what: What::Everything,
                port,
            });
        }
        let host = host
            .strip_prefix("*.")
            .or_else(|| host.strip_prefix('.'))
            .unwrap_or(host);
        let what = match host.parse().map_err(drop)? {
            Host::Name(name) => What::Name(name),
            Host::Address(address) => What::Network(address, if address.is_ipv4() { 32 } else { 128 }),
        };
        Ok(Self { what, port })
    }
}

fn shares(base: IpAddr, address: IpAddr, bits: u8) -> bool {
    let differ = match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => (base.to_bits() ^ address.to_bits()).leading_zeros(),
        (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits() ^ address.to_bits()).leading_zeros(),
        _ => return false,
    };
    differ >= u32::from(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_cover_names_below_addresses_networks_and_ports() {
        for (entry, host, port, covered) in [
            ("corp.example", "corp.example", 443, true),
            ("corp.example", "git.corp.example", 443, true),
            (".corp.example", "git.corp.example", 443, true),
            ("*.corp.example", "git.corp.example", 443, true),
            ("corp.example", "evilcorp.example", 443, false),
            ("corp.example:8443", "corp.example", 443, false),
            ("corp.example:8443", "corp.example", 8443, true),
            ("*", "any.example", 1, true),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("10.0.0.0/8", "ten.example", 443, false),
            ("192.0.2.7", "192.0.2.7", 443, true),
            ("[2001:db8::1]:443", "[2001:db8::1]", 443, true),
            ("2001:db8::/32", "[2001:db8:5::1]", 443, true),
            ("2001:db8::1", "[2001:db8::2]", 443, false),
        ] {
            let bypass: Bypass = entry.parse().unwrap();
            assert_eq!(
                bypass.covers(&host.parse().unwrap(), port),
                covered,
                "{entry} {host}:{port}"
            );
        }
        for bad in ["10.0.0.0/33", "a b", "x:y", "x:99999", "/8", "::/129"] {
            assert!(bad.parse::<Bypass>().is_err(), "{bad}");
        }
    }
}
