//! Which addresses may be dialled: every one that a name resolved to is vetted, and one bad one refuses them all.

mod embedded;
mod special;

use std::net::IpAddr;

use sandbox_core::policy::Policy;

use crate::defence;

pub use embedded::embedded_v4;
pub(crate) use special::network_is_special;
pub use special::{SpecialRange, special_range};

/// Why a target is not dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It lies in a special range, and the rule that allowed the name does not permit that.
    Special(&'static SpecialRange),
    /// A deny rule names the address.
    Rule(String),
}

/// Vets every address. The order of answers must not matter, so all are refused where one is.
pub(crate) fn vet(
    addresses: &[IpAddr],
    port: u16,
    permits_special_ranges: bool,
    policy: &dyn Policy,
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
        if let (false, Some(range)) = (permits_special_ranges, special_range(address))
            && defence::holds("special-ranges")
        {
            return Err(Refusal::Special(range));
        }
    }
    Ok(())
}
