//! Names for the guest. Allowed names get a synthetic address, denied ones do not exist; neither makes a query.
//!
//! The guest's stub forwards each message to [`Dns`]. A connection to a synthetic address says nothing but which name
//! was meant: `CONNECT` to it is an attempt at that name ([`Dns::name_of`]) and its port, decided and resolved like any. So a look-up carries nothing out, not even for a name that is allowed.
//!
//! | question | answer |
//! |---|---|
//! | `A`, `AAAA` of a name that some rule lets through on some port | a synthetic address, stable while in use |
//! | any type, of any other name | `NXDOMAIN` with the extended error 18, "Prohibited" (RFC 8914), and the rule |
//! | other types of an allowed name, among them `HTTPS`, `SVCB`, `TXT`, `MX`, `SRV` | no data |
//! | `ANY` | one `HINFO` (RFC 8482) |
//! | `PTR` of a synthetic address | its name |
//! | `localhost`, names below it, `gateway.sandbox.internal` | loopback |
//! | names that ask about the resolver or the network (`use-application-dns.net`, `resolver.arpa`, `ipv4only.arpa`) | `NXDOMAIN` |
//! | classes other than `IN`, zone transfers | `REFUSED` |
//! | other operations; messages that cannot be read or hold not just one question; EDNS after version 0 | `NOTIMP`; `FORMERR`; `BADVERS` |
//! | responses, and what is too short for a header | silence |

mod answer;
mod serve;
mod table;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::rr::{Name, RecordType};
use sandbox_core::host::{Host, HostName, is_in};
use tokio_util::sync::DropGuard;

use crate::defence;
use crate::proxy::Inner;
use answer::Known;
use serve::{Pace, Places};
use table::Table;

pub use answer::Transport;
pub use table::{SYNTHETIC_V4, SYNTHETIC_V6};

/// The guest's own proxy, which listens on its loopback.
const GATEWAY: &str = "gateway.sandbox.internal";
/// Names that exist to ask about the resolver or the network around it: whether DNS over HTTPS may be used in its place,
/// where it offers encryption (RFC 9462), whether there is NAT64 (RFC 7050). Or never to exist (RFC 6761, RFC 7686).
const NEVER: [&str; 5] = [
    "use-application-dns.net",
    "resolver.arpa",
    "ipv4only.arpa",
    "invalid",
    "onion",
];

/// The DNS of one sandbox. Cheap to clone; all clones give the same addresses.
///
/// ```
/// use sandbox_proxy::{Proxy, dns::Transport};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dns = Proxy::builder("one".parse()?).build()?.dns();
/// let too_short_to_answer = dns.answer(b"?", Transport::Datagram);
/// assert!(too_short_to_answer.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Dns {
    inner: Arc<Inner>,
    /// It is a handle of the proxy, too.
    _open: Arc<DropGuard>,
}

/// What the DNS of a sandbox keeps.
#[derive(Debug, Default)]
pub(crate) struct State {
    table: Mutex<Table>,
    pace: Pace,
    places: Places,
}

impl State {
    /// What is meant: the name, where the host is a synthetic address that stands for one.
    pub(crate) fn meant(&self, host: Host) -> Host {
        match host {
            Host::Address(address) if defence::holds("synthetic-address-is-its-name") => {
                self.table().name_of(address).map_or(host, Host::Name)
            }
            other => other,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dns {
    pub(crate) fn new(inner: Arc<Inner>, open: Arc<DropGuard>) -> Self {
        Self { inner, _open: open }
    }

    /// Answers one message (RFC 1035 §4). Empty where nothing is to be sent back. Any bytes are taken; the answer is
    /// computed from them, the policy and the table of synthetic addresses alone: nothing is waited for.
    pub fn answer(&self, query: &[u8], transport: Transport) -> Vec<u8> {
        answer::respond(query, transport, |name, kind| self.find(name, kind))
    }

    /// The name that a synthetic address stands for; `None` for any other address, and after it gave way to newer ones.
    pub fn name_of(&self, address: IpAddr) -> Option<HostName> {
        self.table().name_of(address)
    }

    fn find(&self, name: &Name, kind: RecordType) -> Known {
        if name.is_root() {
            return Known::Addresses(None, None);
        }
        if let Some(known) = self.find_reverse(name) {
            return known;
        }
        let Some(name) = host_name(name) else {
            // No host has such a name, so no rule can allow it; what it says is in the record.
            self.inner.record_look_up(&name.to_ascii(), kind.into(), "");
            return Known::Denied("no host has such a name".to_owned());
        };
        let text = name.as_str();
        if is_in(text, "localhost") {
            return Known::Addresses(Some(Ipv4Addr::LOCALHOST), Some(Ipv6Addr::LOCALHOST));
        }
        if text == GATEWAY {
            return Known::Addresses(Some(Ipv4Addr::LOCALHOST), None);
        }
        if NEVER.iter().any(|zone| is_in(text, zone)) {
            return Known::Missing;
        }
        let host = Host::Name(name.clone());
        match self.inner.admit_name(&host, kind.into()) {
            Err(rule) if defence::holds("dns-denies-names") => Known::Denied(rule),
            _ => {
                // The defence is that nothing stands here: whoever runs the name's servers would read the question.
                #[cfg(feature = "mutants")]
                if !defence::holds("dns-asks-nobody") {
                    self.inner.look_up_in_vain(&name);
                }
                let (v4, v6) = self.table().addresses_of(name);
                Known::Addresses(Some(v4), Some(v6))
            }
        }
    }

    /// Addresses, asked for their names.
    fn find_reverse(&self, name: &Name) -> Option<Known> {
        let text = name.to_ascii().to_ascii_lowercase();
        let text = text.trim_end_matches('.');
        if !is_in(text, "in-addr.arpa") && !is_in(text, "ip6.arpa") {
            return None;
        }
        let Ok(network) = name.parse_arpa_name() else {
            return Some(Known::Missing);
        };
        let address = network.addr();
        if network.prefix_len() != network.max_prefix_len() {
            return Some(Known::Missing);
        }
        if address.is_loopback() {
            return Some(Known::Name("localhost".to_owned()));
        }
        let found = self.table().name_of(address);
        Some(found.map_or(Known::Missing, |name| Known::Name(name.to_string())))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.dns.table()
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dns({})", self.table().len())
    }
}

/// The name in the form that rules compare. Bytes that no host name has are not mapped to some that it may have.
fn host_name(name: &Name) -> Option<HostName> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        let is_fine = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !label.iter().all(is_fine) && defence::holds("dns-host-names") {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
    }
    text.parse().ok()
}
