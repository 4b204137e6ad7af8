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
//! Requests that got a credential ask for whole responses without compression (`Accept-Encoding: identity`, no
//! `Range`); one that comes compressed all the same is refused. Headers, trailers and bodies are searched for the secret as it is and in base64, hexadecimal,
//! percent-encoded and JSON forms, across chunks, and each byte found is replaced by `*`. WebSockets are
//! searched as far as a frame border does not split a secret. A host that wants to give a secret away can
//! always do so; secrets shorter than six bytes are not searched for.

#![forbid(unsafe_code)]

pub mod address;
pub mod audit;
pub mod policy;
pub mod proxy;
pub mod resolve;
mod scrub;
pub mod services;
pub mod sources;
pub mod tls;

pub use audit::JsonLines;
pub use policy::{RuleError, Rules};
pub use proxy::{MissingCredential, Proxy, ProxyBuilder, ProxyError};
pub use resolve::Resolver;
pub use services::{ClientCredential, Service};
pub use tls::Ca;
