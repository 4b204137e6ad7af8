//! Resolvers whose answers a test has written down.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use sandbox_core::host::HostName;
use sandbox_proxy::Resolver;

/// Answers from a list, one entry per question, and counts.
#[derive(Debug, Clone, Default)]
pub struct Scripted {
    pub asked: Arc<AtomicUsize>,
    pub answers: Vec<Vec<IpAddr>>,
}

#[async_trait]
impl Resolver for Scripted {
    async fn lookup(&self, _name: &HostName) -> io::Result<Vec<IpAddr>> {
        let turn = self.asked.fetch_add(1, Relaxed);
        let answer = self.answers.get(turn).cloned();
        answer.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// One of the names leads here, in this order; the others nowhere.
#[derive(Debug, Clone)]
pub struct Leads(pub &'static str, pub Vec<IpAddr>);

#[async_trait]
impl Resolver for Leads {
    async fn lookup(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        match name.as_str() == self.0 {
            true => Ok(self.1.clone()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
