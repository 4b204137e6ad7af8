//! Egress proxy: policy, HTTP and TLS, credential injection, response scrubbing, audit.
//!
//! [`Proxy`] carries what one sandbox may send: it decides by name, resolves, vets every address, dials, puts
//! credentials into requests to known services, takes them out of what comes back, and records every attempt.
//! It works on its own, too: [`Proxy::listen`] serves ordinary processes.
//!
//! # What is read and what is not
//!
//! A tunnel to a host with a credential, or for which the policy wants to see requests, is ended here with a
//! certificate of the sandbox's own authority; its requests must name the host that the tunnel was opened for.
//! Other tunnels are opaque: on port 443 they must start with TLS that asks for that host by name, on other
//! ports TLS is held to the same and everything else goes through. Port 80 is read as plain HTTP.
//!
//! # What scrubbing does and does not do
//!
//! Where a sandbox has credentials, all responses that are read here are searched for every secret that its requests
//! went out with, whichever service it was for: headers, trailers, bodies and WebSocket messages, for the secret as it is
//! and in base64, hexadecimal and UTF-16, with whatever escapes of URIs, JSON and HTML, across chunks and frames and
//! the line breaks of encoders. Each byte found is replaced by `*`. gzip, deflate, brotli and zstd are decoded, and handed
//! on uncompressed. Requests to a service's hosts, on any port and over plain HTTP, too, ask for whole responses (no
//! `Range`) without compression (see [`Service::allow_compression`]), and one that cannot be read is refused. Hosts that
//! get signatures alone are as others here: they never get the key that they could tell.
//!
//! The end of a body waits until it is known not to be part of a secret, and in a way that tells nobody whether it
//! looked like one: what is held back depends on sizes, line ends and times alone. Server-sent events, JSON lines,
//! gRPC, Connect, AWS event streams and WebSocket messages arrive at once. Other streams that fall silent arrive up to
//! their last line after 50 ms; what comes after it, at most some hundred bytes, waits until they go on or end.
//!
//! A host that wants to give a secret away can always do so: by encoding it otherwise, by telling it in parts, by
//! splitting it between two events. Opaque tunnels are not searched. Secrets shorter than six bytes are not
//! searched for.
//!
//! # What a guest can take
//!
//! All proxies of a process share its descriptors. One sandbox holds an eighth of the soft `RLIMIT_NOFILE` as streams
//! and another as connections to upstream (at most 1024 each; see [`ProxyBuilder::max_connections`]), all together three
//! quarters, and none more than are left for the others. What is over it is answered with 503 and recorded. A guest
//! that does its worst makes the host hold about 440 MiB with 128 connections each way, and 720 MiB with 1024.
//!
//! Up to 250 denials in ten seconds are recorded one by one. Beyond that, of those that say the same the first is recorded
//! at once and the rest as a count every ten seconds; sinks that take every attempt, as [`AuditLog`] does, get each.

#![forbid(unsafe_code)]

pub mod address;
pub mod audit;
pub mod dns;
mod encoding;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod memory;
pub mod policy;
pub mod proxy;
pub mod resolve;
mod scrub;
pub mod services;
pub mod sources;
pub mod tls;
mod upstream_proxy;

pub use audit::{AuditKey, AuditLog, JsonLines};
pub use dns::Dns;
pub use memory::{MemoryPrivacy, keep_memory_private};
pub use policy::{RuleError, Rules};
pub use proxy::{ChangeError, Limits, MissingCredential, Proxy, ProxyBuilder, ProxyError};
pub use resolve::Resolver;
pub(crate) use sandbox_core::defence;
pub use services::{ClientCredential, Explanation, Service};
pub use tls::Ca;
pub use upstream_proxy::{UpstreamProxy, UpstreamProxyError};
