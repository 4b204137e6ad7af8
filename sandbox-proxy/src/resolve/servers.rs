//! Name servers that the user names, instead of the host's own resolver.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;
use sandbox_core::host::HostName;

use super::Resolver;

/// For one answer of one server; all attempts together stay within the time that the proxy gives a look-up.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts at each server.
const ATTEMPTS: usize = 2;
/// Answers kept, by their time to live: a sandbox asks for the same few hosts again and again.
const CACHED: u64 = 1024;

/// Asks these name servers, over UDP, and over TCP where an answer does not fit (RFC 1035, RFC 7766). Names are asked for
/// as they are: no search list, no hosts file, nothing of the host's own configuration.
///
/// ```
/// use sandbox_proxy::Proxy;
/// use sandbox_proxy::resolve::NameServers;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let servers = NameServers::new(["9.9.9.9:53".parse()?, "[2620:fe::fe]:53".parse()?])?;
/// let proxy = Proxy::builder("one".parse()?).resolver(servers).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NameServers {
    resolver: TokioResolver,
    servers: Vec<SocketAddr>,
}

/// Name servers that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NameServersError {
    /// None was given.
    #[error("give at least one name server, as address:port")]
    None,
    /// The resolver could not be made.
    #[error("the resolver could not be made")]
    Resolver(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl NameServers {
    /// Asks these servers, the faster ones first.
    ///
    /// # Errors
    /// No server was given, or the resolver could not be made.
    pub fn new(servers: impl IntoIterator<Item = SocketAddr>) -> Result<Self, NameServersError> {
        let servers: Vec<_> = servers.into_iter().collect();
        if servers.is_empty() {
            return Err(NameServersError::None);
        }
        let config = servers.iter().map(|server| {
            let on_port = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
            NameServerConfig::new(server.ip(), true, connections)
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), config.collect());
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        options.cache_size = CACHED;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.use_hosts_file = ResolveHosts::Never;
        // Makes answers harder to forge.
        options.case_randomization = true;
        let resolver = builder
            .build()
            .map_err(|error| NameServersError::Resolver(error.into()))?;
        Ok(Self { resolver, servers })
    }
}

#[async_trait]
impl Resolver for NameServers {
    async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        // With its dot, so that nothing is put after it.
        let name = Name::from_ascii(format!("{name}.")).map_err(io::Error::other)?;
        let found = self.resolver.lookup_ip(name).await.map_err(|error| {
            if error.is_no_records_found() {
                io::Error::new(io::ErrorKind::NotFound, error)
            } else {
                io::Error::other(error)
            }
        })?;
        Ok(found.iter().collect())
    }
}

impl fmt::Debug for NameServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NameServers").field(&self.servers).finish()
    }
}
