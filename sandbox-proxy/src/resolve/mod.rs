//! Names to addresses. Asked only for names that the policy has allowed; what comes back is vetted elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;

use async_trait::async_trait;
use sandbox_core::host::HostName;

/// Protects the vetting and dialling from an answer without end; real answers hold a handful.
const MAX_ADDRESSES: usize = 16;

/// Looks names up. Its answers are not trusted: each address is vetted before one is dialled.
#[async_trait]
pub trait Resolver: Send + Sync + fmt::Debug {
    /// The addresses of a name, best first.
    ///
    /// # Errors
    /// The look-up failed or the name does not exist.
    async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>>;
}

/// The host's own resolver (`getaddrinfo`).
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

#[async_trait]
impl Resolver for System {
    async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// Fixed answers before a resolver: a name that has one is never looked up.
#[derive(Debug)]
pub(crate) struct Names {
    fixed: HashMap<HostName, Vec<IpAddr>>,
    resolver: Box<dyn Resolver>,
}

impl Names {
    pub(crate) fn new(fixed: HashMap<HostName, Vec<IpAddr>>, resolver: Box<dyn Resolver>) -> Self {
        Self { fixed, resolver }
    }

    pub(crate) async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        let mut addresses = match self.fixed.get(name) {
            Some(fixed) => fixed.clone(),
            None => self.resolver.lookup(name).await?,
        };
        addresses.truncate(MAX_ADDRESSES);
        for address in &mut addresses {
            *address = address.to_canonical();
        }
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(addresses)
    }
}
