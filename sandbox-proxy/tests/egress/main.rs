//! The proxy from outside: real sockets, real clients, real upstream servers; one test per behaviour.

// Clippy takes helpers of an integration test for ordinary code.
#![allow(clippy::unwrap_used)]

mod asking;
mod audit;
mod buffers;
mod clients;
mod company_proxy;
mod compressed;
// The suite wants a Python that nobody builds any more, and that comes built for this only.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod conformance;
mod dns;
mod faults;
mod floods;
mod grpc;
mod hellos;
mod hostile;
mod huge;
mod interception;
mod interim;
mod keychain;
mod leaks;
mod limits;
mod memory;
mod names;
mod placeholders;
mod plain;
mod policy;
mod quotas;
mod requests;
mod scrubbing;
mod secrets;
mod services;
mod signing;
mod slots;
mod slow;
mod smuggling;
mod sources;
mod streaming;
mod support;
mod together;
mod token_proxy;
mod tunnels;
mod upstream;
mod websocket;
