//! Which addresses may be dialled: every one that a name resolved to is vetted, and one bad one refuses them all.

mod embedded;
mod own;
mod special;

use std::net::IpAddr;

use sandbox_core::policy::Policy;

use crate::defence;

pub use embedded::embedded_v4;
pub(crate) use special::network_is_special;
pub use special::{SpecialRange, special_range, special_ranges};

/// Why a target is not dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It lies in a special range, and the rule that allowed the name does not permit that.
    Special(&'static SpecialRange),
    /// A deny rule names the address.
    Rule(String),
}

/// Vets every address; those are dialled, and none is looked up again. The order of answers must not matter, so all
/// are refused where one is.
pub(crate) fn vet(
    addresses: &[IpAddr],
    port: u16,
    permits_special_ranges: bool,
    policy: &dyn Policy,
) -> Result<(), Refusal> {
    vet_by(addresses, port, permits_special_ranges, policy, &own::is_own)
}

/// `is_own`: whether an address is one of this host.
fn vet_by(
    addresses: &[IpAddr],
    port: u16,
    permits_special_ranges: bool,
    policy: &dyn Policy,
    is_own: &dyn Fn(IpAddr) -> bool,
) -> Result<(), Refusal> {
    let all = if defence::holds("vet-all-addresses") {
        addresses
    } else {
        addresses.get(..1).unwrap_or_default()
    };
    for address in all {
        let address = address.to_canonical();
        if let Some(rule) = policy.refuses_address(address, port) {
            return Err(Refusal::Rule(rule.to_owned()));
        }
        if permits_special_ranges {
            continue;
        }
        if let Some(range) = special_range(address)
            && defence::holds("special-ranges")
        {
            return Err(Refusal::Special(range));
        }
        if is_own(address) && defence::holds("own-addresses") {
            return Err(Refusal::Special(&own::THIS_HOST));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rules;

    #[test]
    fn one_bad_address_refuses_all_wherever_it_stands() {
        let rules = Rules::new().deny("192.0.43.0/24");
        let vet = |texts: &[&str], permits| {
            let addresses: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
            vet_by(&addresses, 443, permits, &rules, &|address| {
                address == IpAddr::from([93, 184, 216, 99])
            })
        };
        assert_eq!(vet(&["93.184.216.34", "2606:4700::1111"], false), Ok(()));
        for bad in ["10.0.0.1", "::ffff:10.0.0.1", "93.184.216.99"] {
            for texts in [[bad, "93.184.216.34"], ["93.184.216.34", bad]] {
                assert!(
                    matches!(vet(&texts, false), Err(Refusal::Special(_))),
                    "{texts:?}"
                );
                assert_eq!(vet(&texts, true), Ok(()), "{texts:?}");
            }
        }
        for denied in ["192.0.43.8", "::ffff:192.0.43.8", "64:ff9b::192.0.43.8"] {
            for permits in [false, true] {
                let found = vet(&["93.184.216.34", denied], permits);
                assert!(matches!(found, Err(Refusal::Rule(_))), "{denied} {found:?}");
            }
        }
    }
}
