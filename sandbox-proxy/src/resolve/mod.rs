//! Names to addresses. Asked only for names that the policy has allowed; what comes back is vetted elsewhere.

mod servers;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::host::HostName;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::defence::holds;

pub use servers::{NameServers, NameServersError};

/// Protects the vetting and dialling from an answer without end; real answers hold a handful.
const MAX_ADDRESSES: usize = 16;
/// Look-ups under way of one sandbox. Protects the threads that block in the host's resolver: the whole process
/// shares them, and a guest that asks for names whose servers never answer would take them all.
const MAX_LOOKUPS: usize = 32;
/// How long a look-up counts that nobody waits for any more: a blocked thread cannot be called off, and the host's
/// resolver gives up by itself within this time.
const LOOKUP_TIME: Duration = Duration::from_secs(40);

/// Looks names up. Its answers are not trusted: each address is vetted before one is dialled.
///
/// It is asked for up to 32 names of a sandbox at a time; further look-ups wait for one of them to end. A request waits
/// 10 s for its look-up, which goes on for 40 s at most, so that what it takes of the host is counted until then.
#[async_trait]
pub trait Resolver: Send + Sync + fmt::Debug {
    /// The addresses of a name, best first. The first 16 are used: all of them are vetted, and one that is refused
    /// refuses the name. None at all is a look-up that failed.
    ///
    /// # Errors
    /// The look-up failed or the name does not exist.
    async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>>;
}

#[async_trait]
impl<R: Resolver + ?Sized> Resolver for Box<R> {
    async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        (**self).lookup(name).await
    }
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
    resolver: Arc<dyn Resolver>,
    lookups: Arc<Semaphore>,
}

impl Names {
    pub(crate) fn new(fixed: HashMap<HostName, Vec<IpAddr>>, resolver: Box<dyn Resolver>) -> Self {
        Self {
            fixed,
            resolver: resolver.into(),
            lookups: Arc::new(Semaphore::new(if holds("look-ups") {
                MAX_LOOKUPS
            } else {
                Semaphore::MAX_PERMITS
            })),
        }
    }

    /// Whether the name has a fixed answer.
    pub(crate) fn is_fixed(&self, name: &HostName) -> bool {
        self.fixed.contains_key(name)
    }

    /// Looks a name up. `held` is what the look-up takes of the host, and is given back only when it has ended:
    /// even if its asker goes away.
    pub(crate) async fn lookup<T>(&self, name: &HostName, held: T) -> io::Result<(Vec<IpAddr>, T)>
    where
        T: Send + 'static,
    {
        let (mut addresses, held) = match self.fixed.get(name) {
            Some(fixed) => (fixed.clone(), held),
            None => self.ask(name, held).await?,
        };
        if holds("resolved-addresses") {
            addresses.truncate(MAX_ADDRESSES);
        }
        for address in &mut addresses {
            *address = address.to_canonical();
        }
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok((addresses, held))
    }

    /// Asks the resolver, in a task of its own: it counts until it has ended, even if its asker goes away.
    async fn ask<T>(&self, name: &HostName, held: T) -> io::Result<(Vec<IpAddr>, T)>
    where
        T: Send + 'static,
    {
        let permit = Arc::clone(&self.lookups)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let (resolver, name) = (Arc::clone(&self.resolver), name.clone());
        let asked = tokio::spawn(async move {
            let _permit = permit;
            let found = timeout(LOOKUP_TIME, resolver.lookup(&name)).await;
            Ok((found??, held))
        });
        asked.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many addresses as a number in the name says.
    #[derive(Debug)]
    struct Many;

    #[async_trait]
    impl Resolver for Many {
        async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
            let number: u8 = name.as_str().trim_end_matches(".test").parse().unwrap();
            Ok((0..number).map(|last| IpAddr::from([192, 0, 2, last])).collect())
        }
    }

    #[tokio::test]
    async fn first_addresses_of_an_answer_are_used_and_none_is_a_failure() {
        let fixed = |number: u8| (0..number).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        let name = |text: &str| -> HostName { text.parse().unwrap() };
        let answers = [(name("many.test"), fixed(200)), (name("none.test"), fixed(0))];
        let names = Names::new(answers.into(), Box::new(Many));
        for (asked, wanted) in [("3.test", 3), ("16.test", 16), ("17.test", 16), ("many.test", 16)] {
            let (addresses, ()) = names.lookup(&name(asked), ()).await.unwrap();
            let first: Vec<IpAddr> = fixed(wanted);
            assert_eq!(addresses, first, "{asked}");
        }
        for asked in ["0.test", "none.test"] {
            let error = names.lookup(&name(asked), ()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{asked}");
        }
    }
}
