//! Exceptions from the upstream proxy, as `NO_PROXY` lists them: a grammar of its own, for the matcher of rules.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use sandbox_core::host::Host;
use sandbox_core::policy::Scheme;

use crate::policy::{Network, Pattern, Patterns, Target};

/// Targets that are reached directly.
#[derive(Debug, Clone, Default)]
pub(super) struct Bypasses {
    patterns: Vec<Pattern>,
    /// Made when first asked.
    found: OnceLock<Arc<Patterns>>,
}

impl Bypasses {
    /// Adds entries, which commas separate, or tells the first that is none.
    pub(super) fn add<'l>(&mut self, list: &'l str) -> Result<(), &'l str> {
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            self.patterns.extend(parse(entry).ok_or(entry)?);
        }
        self.found = OnceLock::new();
        Ok(())
    }

    pub(super) fn cover(&self, host: &Host, port: u16) -> bool {
        let found = self.found.get_or_init(|| Arc::new(Patterns::new(&self.patterns)));
        found.last(host, port, Scheme::Tunnel).is_some()
    }
}

/// What one entry stands for.
fn parse(text: &str) -> Option<Vec<Pattern>> {
    let network =
        |address: IpAddr, bits, port| Pattern::whole(Target::Network(Network::new(address, bits)), port);
    if let Some((base, bits)) = text.split_once('/') {
        let base: IpAddr = base.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        return (bits <= most).then(|| vec![network(base, bits, None)]);
    }
    let (host, port) = match text.rsplit_once(':') {
        // Not the last part of an IPv6 address.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (text, None),
    };
    if host == "*" {
        let every = [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|zero| network(zero, 0, port));
        let names = Pattern::whole(Target::AnyName, port);
        return Some([names].into_iter().chain(every).collect());
    }
    let host = host
        .strip_prefix("*.")
        .or_else(|| host.strip_prefix('.'))
        .unwrap_or(host);
    let target = match host.parse().ok()? {
        // A name and all below it.
        Host::Name(name) => Target::Domain(name),
        Host::Address(address) => Target::Network(Network::of(address)),
    };
    Some(vec![Pattern::whole(target, port)])
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
            ("*", "192.0.2.7", 1, true),
            ("*:80", "[2001:db8::1]", 80, true),
            ("*:80", "any.example", 81, false),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("10.0.0.0/8", "ten.example", 443, false),
            ("192.0.2.7", "192.0.2.7", 443, true),
            ("[2001:db8::1]:443", "[2001:db8::1]", 443, true),
            ("2001:db8::/32", "[2001:db8:5::1]", 443, true),
            ("2001:db8::1", "[2001:db8::2]", 443, false),
        ] {
            let mut bypasses = Bypasses::default();
            bypasses.add(entry).unwrap();
            assert_eq!(
                bypasses.cover(&host.parse().unwrap(), port),
                covered,
                "{entry} {host}:{port}"
            );
        }
        for bad in ["10.0.0.0/33", "a b", "x:y", "x:99999", "/8", "::/129"] {
            assert_eq!(Bypasses::default().add(bad), Err(bad));
        }
    }
}
