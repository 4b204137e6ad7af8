//! The rule grammar. Text becomes a [`Rule`] here and nowhere else; an error points at the character.
//!
//! ```text
//! rule    = [ ("http" / "https") "://" ] host [ ":" ports ] [ SP "special-ranges" ]
//! host    = "**" / [ "*." / "**." ] name / address [ "/" bits ] / "[" address "]" [ "/" bits ]
//! ports   = "*" / port [ "-" port ]
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sandbox_core::host::{Host, HostName};
use sandbox_core::policy::Scheme;

use crate::address;

/// Protects the parser and the audit log from a rule that is no rule.
const MAX_RULE_BYTES: usize = 512;
/// The option that lets a name resolve to a special range.
const SPECIAL_RANGES: &str = "special-ranges";

/// What a rule does. Ordered: of two rules of one level, the greater decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    Allow,
    Ask,
    Deny,
}

/// One parsed rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) action: Action,
    pub(super) level: i16,
    pub(super) target: Target,
    pub(super) first_port: u16,
    pub(super) last_port: u16,
    /// `None`: whatever is spoken there.
    pub(super) scheme: Option<Scheme>,
    /// The option was given.
    pub(super) special_ranges: bool,
    /// Action and target, as written.
    pub(super) text: Box<str>,
}

/// Which hosts a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    AnyName,
    Exact(HostName),
    /// Names one label below.
    Child(HostName),
    /// Names any number of labels below.
    Descendant(HostName),
    Network(Network),
}

/// Addresses that share their first bits. IPv4 and IPv6 never share a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Network {
    address: IpAddr,
    bits: u8,
}

/// A text that is no rule: where it stops being one, and what to write instead.
///
/// Its `Display` shows the rule with a caret under the character:
///
/// ```
/// let error = sandbox_proxy::Rules::new().allow("example.com:https").validate().unwrap_err();
/// assert_eq!(error.offset(), 12);
/// assert_eq!(
///     error.to_string(),
///     "write a port from 1 to 65535, a range as in 8000-8999, or *\n  example.com:https\n              ^"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    text: String,
    offset: usize,
    advice: String,
}

impl RuleError {
    /// The rule (or line) that could not be parsed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where it stops being a rule, in bytes from its start.
    pub fn offset(&self) -> usize {
        self.offset
    }

    fn new(text: &str, offset: usize, advice: impl Into<String>) -> Self {
        Self {
            text: text.to_owned(),
            offset,
            advice: advice.into(),
        }
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Control characters would move the caret, and could do worse to a terminal.
        let shown: String = self
            .text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let before = self.text.get(..self.offset).unwrap_or(&self.text).chars().count();
        write!(f, "{}\n  {shown}\n  {:before$}^", self.advice, "")
    }
}

impl std::error::Error for RuleError {}

/// Parses a line of a rule file; `None` where it holds no rule.
pub(super) fn line(line: &str) -> Result<Option<Rule>, RuleError> {
    let code = match line.find('#') {
        Some(0) => "",
        Some(at) if line.as_bytes()[at - 1].is_ascii_whitespace() => &line[..at],
        _ => line,
    };
    let trimmed = code.trim();
    if trimmed.is_empty() {
        return Ok(None);
    }
    let start = code.len() - code.trim_start().len();
    let (word, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
    let action = match word {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        "ask" => Action::Ask,
        _ => {
            return Err(RuleError::new(
                line,
                start,
                "start the line with allow, deny or ask",
            ));
        }
    };
    let rest_at = start + trimmed.len() - rest.trim_start().len();
    match rule(action, rest.trim_start()) {
        Ok(rule) => Ok(Some(rule)),
        Err(error) => Err(RuleError {
            text: line.to_owned(),
            offset: rest_at + error.offset,
            ..error
        }),
    }
}

/// Parses one target.
pub(super) fn rule(action: Action, text: &str) -> Result<Rule, RuleError> {
    if text.len() > MAX_RULE_BYTES {
        return Err(RuleError::new(
            text,
            MAX_RULE_BYTES,
            "a rule has at most 512 bytes",
        ));
    }
    let mut input = Input { text, at: 0 };
    let scheme = if input.take("http://") {
        Some(Scheme::Http)
    } else if input.take("https://") {
        Some(Scheme::Tunnel)
    } else {
        None
    };
    let target = input.target()?;
    let ports = if input.take(":") {
        Some(input.ports()?)
    } else {
        None
    };
    let special_ranges = input.options()?;
    let ((first_port, last_port), scheme) = match (ports, scheme, action) {
        (Some(ports), scheme, _) => (ports, scheme),
        (None, Some(Scheme::Http), _) => ((80, 80), Some(Scheme::Http)),
        // Whoever denies a host means all of it.
        (None, None, Action::Deny) => ((1, u16::MAX), None),
        (None, _, _) => ((443, 443), Some(Scheme::Tunnel)),
    };
    let verb = match action {
        Action::Allow => "allow",
        Action::Ask => "ask",
        Action::Deny => "deny",
    };
    Ok(Rule {
        action,
        level: 0,
        target,
        first_port,
        last_port,
        // A port rule is no licence for clear text on the TLS port.
        scheme: match (action, scheme) {
            (Action::Allow | Action::Ask, None) if (first_port, last_port) == (443, 443) => {
                Some(Scheme::Tunnel)
            }
            _ => scheme,
        },
        special_ranges,
        text: format!("{verb} {}", text.trim()).into(),
    })
}

impl Rule {
    /// Whether port and scheme match; the target is the matcher's business.
    pub(super) fn covers(&self, port: u16, scheme: Scheme) -> bool {
        (self.first_port..=self.last_port).contains(&port) && self.scheme.is_none_or(|s| s == scheme)
    }

    /// Whether no port and no scheme is left out.
    pub(super) fn covers_all_ports(&self) -> bool {
        self.first_port <= 1 && self.last_port == u16::MAX && self.scheme.is_none()
    }

    /// Whether its targets may be in special ranges: by option, or because it names nothing else.
    pub(super) fn permits_special_ranges(&self) -> bool {
        self.special_ranges || matches!(&self.target, Target::Network(network) if network.is_special())
    }
}

impl Network {
    fn new(address: IpAddr, bits: u8) -> Self {
        Self {
            address: truncate(address, bits),
            bits,
        }
    }

    pub(super) fn bits(self) -> u8 {
        self.bits
    }

    pub(super) fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// The network of so many bits that holds `address`.
    pub(super) fn around(address: IpAddr, bits: u8) -> Self {
        Self::new(address, bits)
    }

    fn is_special(self) -> bool {
        address::network_is_special(self.address, self.bits)
    }
}

fn truncate(address: IpAddr, bits: u8) -> IpAddr {
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

struct Input<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Input<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn take(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    fn error<T>(&self, advice: impl Into<String>) -> Result<T, RuleError> {
        Err(RuleError::new(self.text, self.at, advice))
    }

    /// Everything up to the first of `stops`.
    fn until(&self, stops: &[char]) -> &'a str {
        let rest = self.rest();
        rest.find(stops).and_then(|end| rest.get(..end)).unwrap_or(rest)
    }

    fn target(&mut self) -> Result<Target, RuleError> {
        if self.take("[") {
            let inside = self.until(&[']']);
            let Ok(address) = inside.parse::<Ipv6Addr>() else {
                return self.error("write an IPv6 address between the brackets");
            };
            self.at += inside.len();
            if !self.take("]") {
                return self.error("close the bracket after the IPv6 address");
            }
            return self.network(address.into());
        }
        let word = self.until(&[' ', '\t', '/']);
        // Two colons and more: IPv6 without brackets, so without a port.
        if word.bytes().filter(|b| *b == b':').count() > 1 {
            let Ok(address) = word.parse::<Ipv6Addr>() else {
                return self.error("write an IPv6 address, in brackets if a port follows");
            };
            self.at += word.len();
            return self.network(address.into());
        }
        let host = self.until(&[' ', '\t', '/', ':']);
        if host == "**" {
            self.at += host.len();
            return Ok(Target::AnyName);
        }
        if host == "*" {
            return self.error("write ** for every name, or *.example.com for the names below one");
        }
        if let Ok(address) = host.parse::<Ipv4Addr>() {
            self.at += host.len();
            return self.network(address.into());
        }
        let wild: fn(HostName) -> Target = if self.take("**.") {
            Target::Descendant
        } else if self.take("*.") {
            Target::Child
        } else {
            Target::Exact
        };
        let name = self.until(&[' ', '\t', '/', ':']);
        if let Some(star) = name.find('*') {
            self.at += star;
            return self.error("a star stands only at the start, as in *.example.com or **.example.com");
        }
        if let Some(at) = name.find('@') {
            self.at += at;
            return self.error("a rule has no user name; write only the host");
        }
        let parsed = match name.parse::<HostName>() {
            Ok(parsed) => parsed,
            Err(error) => return self.error(format!("write a host name or an address here: {error}")),
        };
        self.at += name.len();
        if self.rest().starts_with('/') {
            return self.error("rules by path are not supported yet; end the rule here");
        }
        Ok(wild(parsed))
    }

    fn network(&mut self, address: IpAddr) -> Result<Target, RuleError> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let mut bits = most;
        if self.take("/") {
            let number = self.until(&[' ', '\t', ':']);
            bits = match number.parse::<u8>() {
                Ok(bits) if bits <= most && !number.starts_with('+') => bits,
                _ => return self.error(format!("write the network's length in bits, from 0 to {most}")),
            };
            if truncate(address, bits) != address {
                return self.error(format!(
                    "the address has bits set past /{bits}; write {}/{bits}",
                    truncate(address, bits)
                ));
            }
            self.at += number.len();
        }
        // The form in which targets are compared.
        Ok(Target::Network(match address.to_canonical() {
            IpAddr::V4(v4) if address.is_ipv6() && bits >= 96 => Network::new(v4.into(), bits - 96),
            _ => Network::new(address, bits),
        }))
    }

    fn ports(&mut self) -> Result<(u16, u16), RuleError> {
        if self.take("*") {
            return Ok((1, u16::MAX));
        }
        let first = self.port()?;
        let last = if self.take("-") { self.port()? } else { first };
        if last < first {
            return self.error("the range ends before it starts; write the smaller port first");
        }
        Ok((first, last))
    }

    fn port(&mut self) -> Result<u16, RuleError> {
        let rest = self.rest();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        match rest.get(..digits).unwrap_or("").parse() {
            Ok(0) | Err(_) => self.error("write a port from 1 to 65535, a range as in 8000-8999, or *"),
            Ok(port) => {
                self.at += digits;
                Ok(port)
            }
        }
    }

    /// What follows the target; whether special ranges are permitted.
    fn options(&mut self) -> Result<bool, RuleError> {
        let mut special_ranges = false;
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            if self.rest().is_empty() {
                return Ok(special_ranges);
            }
            if self.rest().starts_with('/') {
                return self.error("rules by path are not supported yet; end the rule here");
            }
            let word = self.until(&[' ', '\t']);
            if blank == 0 || word != SPECIAL_RANGES {
                return self.error("only the option special-ranges, after a space, may follow here");
            }
            special_ranges = true;
            self.at += word.len();
        }
    }
}

/// What a matcher looks up for a target: shared with it so that both read names the same way.
pub(super) fn parents(host: &Host) -> impl Iterator<Item = &str> {
    let name = host.name().map_or("", HostName::as_str);
    name.match_indices('.').filter_map(|(dot, _)| name.get(dot + 1..))
}
