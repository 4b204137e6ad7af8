//! Hosts with their ports, as clients and rules write them: what is read of any text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::uri::Authority;
use proptest::prelude::*;
use sandbox_core::host::Host;

use super::parse_host_and_port;

fn host() -> impl Strategy<Value = Host> {
    let name = "([a-z0-9_]{1,9}\\.){0,3}[a-z]{1,9}";
    prop_oneof![
        name.prop_map(|name| name.parse().unwrap()),
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)).into()),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)).into()),
    ]
}

proptest! {
    #[test]
    fn authority_is_read_as_it_is_written(host in host(), port in 1..=u16::MAX, other in 1..=u16::MAX) {
        let both = Some((host.clone(), port));
        for default in [None, Some(other)] {
            prop_assert_eq!(parse_host_and_port(&format!("{host}:{port}"), default), both.clone());
            prop_assert_eq!(parse_host_and_port(&format!("{host}:{port:07}"), default), both.clone());
        }
        prop_assert_eq!(parse_host_and_port(&host.to_string(), Some(port)), both);
        prop_assert_eq!(parse_host_and_port(&host.to_string(), None), None);
        for mistake in [":0", ":65536", ":", ":+1", ":-1", ": 1", ":1 ", ":1:1", ":0x1", "@", "/", "?", "#", "%"] {
            prop_assert_eq!(parse_host_and_port(&format!("{host}{mistake}"), Some(port)), None, "{}", mistake);
        }
        prop_assert_eq!(parse_host_and_port(&format!("user@{host}:{port}"), None), None);
    }

    #[test]
    fn what_is_read_is_what_another_parser_reads(
        text in "(\\[?[a-fA-F0-9:.]{0,12}\\]?|[a-zA-Z0-9._-]{0,9})([@:/?#%\\[\\]\\\\]?[a-zA-Z0-9.@:/?#%_ -]{0,6}){0,2}",
    ) {
        if let Some((host, port)) = parse_host_and_port(&text, Some(443)) {
            prop_assert_eq!(parse_host_and_port(&format!("{host}:{port}"), None), Some((host.clone(), port)));
            let authority: Authority = text.parse().map_err(|error| TestCaseError::fail(format!("{text} {error}")))?;
            prop_assert_eq!(authority.host().parse::<Host>(), Ok(host));
            prop_assert_eq!(authority.port_u16().unwrap_or(443), port);
            prop_assert!(!text.contains('@'));
        }
    }

    #[test]
    fn any_text_is_an_authority_or_none(text in "\\PC{0,60}") {
        let _ = parse_host_and_port(&text, Some(443));
    }
}
