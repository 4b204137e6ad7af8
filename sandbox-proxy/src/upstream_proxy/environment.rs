//! Proxies as URLs and environment variables describe them.

use sandbox_core::credential::SecretString;
use zeroize::Zeroizing;

use super::{Protocol, UpstreamProxy, UpstreamProxyError};
use crate::encoding::unescape;

/// In the order in which they are asked: nearly all that goes out is TLS.
const VARIABLES: [&str; 6] = [
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "http_proxy",
    "HTTP_PROXY",
];
const EXCEPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];

pub(super) fn proxy(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<UpstreamProxy>, UpstreamProxyError> {
    let set = |name: &&str| {
        variable(name)
            .map(Zeroizing::new)
            .filter(|value| !value.is_empty())
    };
    let Some(found) = VARIABLES.iter().find_map(set) else {
        return Ok(None);
    };
    let mut proxy = url(&found)?;
    for entry in EXCEPTIONS
        .iter()
        .find_map(set)
        .unwrap_or_default()
        .split([',', ' '])
    {
        match proxy.clone().no_proxy(entry) {
            Ok(with) => proxy = with,
            Err(_) => tracing::warn!(entry, "an entry of NO_PROXY cannot be read and is left out"),
        }
    }
    Ok(Some(proxy))
}

pub(super) fn url(url: &str) -> Result<UpstreamProxy, UpstreamProxyError> {
    // Many write the address alone.
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (protocol, port, resolves_here) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Protocol::Http, 80, false),
        "socks5" => (Protocol::Socks5, 1080, true),
        "socks5h" => (Protocol::Socks5, 1080, false),
        _ => return Err(UpstreamProxyError::Scheme),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (login, address) = match rest.rsplit_once('@') {
        Some((login, address)) => (Some(login), address),
        None => (None, rest),
    };
    let mut proxy = UpstreamProxy::at(protocol, address, Some(port))?;
    proxy.resolves_here = resolves_here;
    let Some(login) = login else {
        return Ok(proxy);
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let bad = UpstreamProxyError::Login("user name or password has a bad percent encoding");
    let (Some(user), Some(password)) = (decoded(user), decoded(password)) else {
        return Err(bad);
    };
    proxy.login(&user, SecretString::from(password.as_str().to_owned()))
}

/// Without percent encoding (RFC 3986 §2.1).
fn decoded(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = if first == b'%' {
            unescape(tail)?
        } else {
            (first, tail)
        };
        bytes.push(byte);
        rest = after;
    }
    std::str::from_utf8(&bytes)
        .ok()
        .map(|text| Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use sandbox_core::credential::ExposeSecret;

    use super::*;

    fn environment(set: &[(&str, &str)]) -> Result<Option<UpstreamProxy>, UpstreamProxyError> {
        proxy(|name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn environment_names_the_proxy_and_its_exceptions() {
        assert!(environment(&[]).unwrap().is_none());
        assert!(environment(&[("https_proxy", "")]).unwrap().is_none());
        let proxy = environment(&[
            ("http_proxy", "http://plain.test"),
            ("HTTPS_PROXY", "http://us%20er:p%40ss@proxy.test:3128/"),
            ("NO_PROXY", "corp.example, 10.0.0.0/8 ,???"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!(format!("{proxy:?}"), "UpstreamProxy(http proxy.test:3128)");
        let login = proxy.login.as_ref().unwrap();
        assert_eq!(
            (login.user.as_str(), login.password.expose_secret()),
            ("us er", "p@ss")
        );
        for (host, carried) in [
            ("example.com", true),
            ("git.corp.example", false),
            ("10.9.9.9", false),
            ("127.0.0.1", false),
            ("localhost", false),
        ] {
            assert_eq!(proxy.carries(&host.parse().unwrap(), 443), carried, "{host}");
        }
        let socks = environment(&[("ALL_PROXY", "socks5h://p.test")])
            .unwrap()
            .unwrap();
        assert_eq!((socks.port, socks.resolves_here), (1080, false));
        let socks = environment(&[("ALL_PROXY", "socks5://p.test:9")])
            .unwrap()
            .unwrap();
        assert_eq!((socks.port, socks.resolves_here), (9, true));
    }

    #[test]
    fn what_is_no_proxy_is_said_without_its_text() {
        for (url, error) in [
            ("ftp://p.test", UpstreamProxyError::Scheme),
            ("https://u:geheim@p.test", UpstreamProxyError::Scheme),
            ("http://u:geheim@", UpstreamProxyError::Address),
            ("http://p.test:port", UpstreamProxyError::Address),
            ("http://p.test/path", UpstreamProxyError::Address),
        ] {
            let found = super::url(url).unwrap_err();
            assert!(!found.to_string().contains("geheim") && !format!("{found:?}").contains("geheim"));
            assert_eq!(found, error, "{url}");
        }
        assert!(matches!(
            super::url("http://u:%zz@p.test"),
            Err(UpstreamProxyError::Login(_))
        ));
    }
}
