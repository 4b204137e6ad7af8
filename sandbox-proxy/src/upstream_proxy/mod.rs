//! A proxy of the host's network, through which upstream is reached.

mod ask;
mod bypass;
mod environment;

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use sandbox_core::credential::{Credential, ExposeSecret, SecretString};
use sandbox_core::host::{Host, is_in};
use zeroize::Zeroizing;

use crate::proxy::parse_host_and_port;
pub(crate) use ask::AskError;
use bypass::Bypasses;

/// A proxy between this host and upstream, as many companies have: HTTP (`CONNECT`, RFC 9110 §9.3.6; plain HTTP by
/// absolute target) or SOCKS5 (RFC 1928, RFC 1929).
///
/// What may be reached is decided before it, as always. Then the target is **named** to the proxy, which looks it up
/// itself, so the addresses behind a name cannot be vetted here. What remains: targets given as addresses are vetted,
/// and names that mean hosts of a private network (`localhost`, one label, `.local`, `.internal`, `.lan`, …) are
/// refused unless their rule permits special ranges. To look names up here and vet them, at the price that the proxy
/// sees addresses instead of names, use [`resolve_here`](Self::resolve_here).
///
/// Reached directly, and vetted: what [`no_proxy`](Self::no_proxy) lists, loopback, and names with a fixed answer.
///
/// ```
/// use sandbox_proxy::UpstreamProxy;
///
/// let proxy = UpstreamProxy::http("proxy.corp.example:3128")?
///     .login("builder", "correct horse".to_owned().into())?
///     .no_proxy("corp.example, 10.0.0.0/8")?;
/// assert_eq!(format!("{proxy:?}"), "UpstreamProxy(http proxy.corp.example:3128)");
/// # Ok::<(), sandbox_proxy::UpstreamProxyError>(())
/// ```
#[derive(Clone)]
pub struct UpstreamProxy {
    pub(crate) protocol: Protocol,
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) login: Option<Login>,
    pub(crate) resolves_here: bool,
    bypasses: Bypasses,
}

/// What is spoken with the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Socks5,
}

/// For the proxy alone.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: SecretString,
}

/// An upstream proxy that was described wrongly. Holds nothing of the description, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamProxyError {
    /// No address.
    #[error("write the upstream proxy as host:port, or as a URL such as http://host:port")]
    Address,
    /// A proxy of another kind.
    #[error("the upstream proxy's URL must begin with http://, socks5:// or socks5h://")]
    Scheme,
    /// User name or password cannot be sent.
    #[error("the upstream proxy's {0}")]
    Login(&'static str),
    /// An entry of the list of exceptions.
    #[error(
        "write {entry:?} as a name, an address, a network such as 10.0.0.0/8, or *, with or without a port"
    )]
    NoProxy {
        /// The entry.
        entry: String,
    },
}

impl UpstreamProxy {
    /// An HTTP proxy at `host:port`.
    ///
    /// # Errors
    /// [`UpstreamProxyError::Address`].
    pub fn http(address: &str) -> Result<Self, UpstreamProxyError> {
        Self::at(Protocol::Http, address, None)
    }

    /// A SOCKS5 proxy at `host:port`.
    ///
    /// # Errors
    /// [`UpstreamProxyError::Address`].
    pub fn socks5(address: &str) -> Result<Self, UpstreamProxyError> {
        Self::at(Protocol::Socks5, address, None)
    }

    /// A proxy by its URL: `http://` (port 80 unless said otherwise), `socks5h://` (port 1080), or `socks5://`, which
    /// is the same with [`resolve_here`](Self::resolve_here), as it is for curl; with `user:password@` if need be, in
    /// percent encoding.
    ///
    /// # Errors
    /// [`UpstreamProxyError`] says which part.
    pub fn from_url(url: &str) -> Result<Self, UpstreamProxyError> {
        environment::url(url)
    }

    /// The proxy that this process's environment names, if any: the first that is set of `https_proxy`, `HTTPS_PROXY`,
    /// `all_proxy`, `ALL_PROXY`, `http_proxy` and `HTTP_PROXY`, with the exceptions of `no_proxy` or `NO_PROXY`. Entries
    /// of those that cannot be read are left out.
    ///
    /// # Errors
    /// The variable holds no proxy that can be used.
    pub fn from_environment() -> Result<Option<Self>, UpstreamProxyError> {
        environment::proxy(|name| std::env::var(name).ok())
    }

    /// Shows the proxy this user name and password: as Basic credentials (RFC 7617), or by RFC 1929.
    ///
    /// # Errors
    /// [`UpstreamProxyError::Login`]: they cannot be sent so.
    pub fn login(mut self, user: &str, password: SecretString) -> Result<Self, UpstreamProxyError> {
        let secret = password.expose_secret();
        let is_control = |text: &str| text.bytes().any(|b| b.is_ascii_control());
        let why = match self.protocol {
            _ if user.is_empty() => Some("user name is empty"),
            _ if is_control(user) || is_control(secret) => {
                Some("user name or password has a control character")
            }
            Protocol::Http if user.contains(':') => {
                Some("user name holds a colon, which Basic credentials cannot")
            }
            Protocol::Socks5 if user.len() > 255 => Some("user name is longer than 255 bytes"),
            Protocol::Socks5 if !(1..=255).contains(&secret.len()) => {
                Some("password is not 1 to 255 bytes long")
            }
            _ => None,
        };
        if let Some(why) = why {
            return Err(UpstreamProxyError::Login(why));
        }
        self.login = Some(Login {
            user: user.to_owned(),
            password,
        });
        Ok(self)
    }

    /// Exceptions, which are reached directly: separated by commas, each a name (with all below it, and with or without
    /// a dot or `*.` before it), an address, a network, or `*` for everything; a port may follow. In addition to
    /// those given before.
    ///
    /// # Errors
    /// [`UpstreamProxyError::NoProxy`]: the first entry that is none of these.
    pub fn no_proxy(mut self, list: &str) -> Result<Self, UpstreamProxyError> {
        self.bypasses
            .add(list)
            .map_err(|entry| UpstreamProxyError::NoProxy {
                entry: entry.to_owned(),
            })?;
        Ok(self)
    }

    /// Looks names up on this host, vets all their addresses as without a proxy, and sends the proxy a vetted address.
    #[must_use]
    pub fn resolve_here(mut self) -> Self {
        self.resolves_here = true;
        self
    }

    /// Whether it is for this target.
    pub(crate) fn carries(&self, host: &Host, port: u16) -> bool {
        let is_own = match host {
            Host::Address(address) => address.is_loopback(),
            Host::Name(name) => is_in(name.as_str(), "localhost"),
        };
        !is_own && !self.bypasses.cover(host, port)
    }

    /// The value of `Proxy-Authorization`.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        let login = self.login.as_ref()?;
        let pair = Zeroizing::new(format!("{}:{}", login.user, login.password.expose_secret()));
        let value = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::try_from(value.as_str()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// What must not come back to the guest.
    pub(crate) fn credential(&self) -> Option<Credential> {
        self.login.as_ref().map(|login| Credential::Basic {
            username: login.user.clone(),
            password: login.password.clone(),
        })
    }

    fn at(protocol: Protocol, address: &str, default_port: Option<u16>) -> Result<Self, UpstreamProxyError> {
        let (host, port) = parse_host_and_port(address, default_port).ok_or(UpstreamProxyError::Address)?;
        Ok(Self {
            protocol,
            host,
            port,
            login: None,
            resolves_here: false,
            bypasses: Bypasses::default(),
        })
    }
}

impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Http => "http",
            Protocol::Socks5 => "socks5",
        };
        write!(f, "UpstreamProxy({protocol} {}:{})", self.host, self.port)
    }
}

/// Whether a name means a host of a private network whoever looks it up: by the IANA's registry of special-use names and
/// RFC 6762 appendix G. A single label is completed by the proxy's search list.
pub(crate) fn is_private_name(name: &str) -> bool {
    const PRIVATE: [&str; 10] = [
        "local",
        "localhost",
        "internal",
        "intranet",
        "lan",
        "home",
        "corp",
        "private",
        "home.arpa",
        "localdomain",
    ];
    !name.contains('.') || PRIVATE.iter().any(|zone| is_in(name, zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_private_networks_are_known_by_their_form() {
        for name in [
            "intranet",
            "localhost",
            "a.localhost",
            "nas.local",
            "metadata.google.internal",
            "x.home.arpa",
        ] {
            assert!(is_private_name(name), "{name}");
        }
        for name in [
            "example.com",
            "local.example",
            "notlocal.xlocal",
            "internal.example.com",
        ] {
            assert!(!is_private_name(name), "{name}");
        }
    }

    #[test]
    fn logins_that_cannot_be_sent_are_refused_and_none_is_shown() {
        let http = UpstreamProxy::http("p.test:1").unwrap();
        let socks = UpstreamProxy::socks5("p.test:1").unwrap();
        let long = "x".repeat(256);
        for (proxy, user, password) in [
            (&http, "a:b", "p"),
            (&http, "", "p"),
            (&http, "a", "p\r\nX: y"),
            (&socks, "a", ""),
            (&socks, &long, "p"),
            (&socks, "a", &long),
        ] {
            let error = proxy.clone().login(user, password.to_owned().into()).unwrap_err();
            assert!(matches!(error, UpstreamProxyError::Login(_)), "{error}");
        }
        let proxy = http.login("user", "hunter2-secret".to_owned().into()).unwrap();
        assert!(!format!("{proxy:?}").contains("hunter2"));
        let header = proxy.authorization().unwrap();
        assert_eq!(header, "Basic dXNlcjpodW50ZXIyLXNlY3JldA==");
        assert!(!format!("{header:?}").contains("dXNl"));
    }
}
