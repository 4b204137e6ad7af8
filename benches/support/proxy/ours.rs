//! Our proxy as a process of its own, as a program would embed it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use sandbox::{Rules, Service, sources};
use sandbox_proxy::{Limits, Proxy};
use tokio::net::TcpListener;

use super::{HOST, KEY, Result};

/// The certificate to trust behind an intercepting proxy of ours on this port, in the run's directory.
pub fn authority_file(port: u16) -> String {
    format!("ours-{port}.pem")
}

/// More streams than any case opens; what is protected by the limit is not what is measured.
const CONNECTIONS: usize = 16384;

/// Serves until the process is killed. With a credential for upstream it intercepts, injects and scrubs.
pub async fn serve(directory: &Path, port: u16, upstream: &[u16], intercept: bool) -> Result<()> {
    let mut rules = Rules::locked_down();
    let mut service = Service::custom("bench");
    for port in upstream {
        rules = rules.allow(&format!("{HOST}:{port} special-ranges"));
        service = service.header(&format!("{HOST}:{port}"), "x-api-key");
    }
    let mut builder = Proxy::builder("bench".parse()?)
        .policy(Arc::new(rules))
        .resolve(HOST.parse()?, vec![Ipv4Addr::LOCALHOST.into()])
        .extra_root(std::fs::read(directory.join("upstream.pem"))?)
        .max_connections(CONNECTIONS)
        .limits(Limits::new().connections_per_host(CONNECTIONS));
    if intercept {
        builder = builder.credential(service, Arc::new(sources::Static::new(KEY)));
    }
    let proxy = builder.build()?;
    if intercept {
        std::fs::write(directory.join(authority_file(port)), proxy.ca_pem()?)?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    Ok(proxy.listen(listener).await?)
}
