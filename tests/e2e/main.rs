//! End-to-end tests: real microVMs, real programs in them, a real HTTPS API outside.
//!
//! Every test asserts behaviour and none a time. A cold boot is never free, so tests share one running sandbox
//! ([`fixture::shared`]) unless they change or end it. The tests of `core` are the ones that run directly also
//! where guest kernels are interpreted and everything is slow.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is test code; clippy sees that of #[test] functions only"
)]

mod backends;
mod capture;
mod core;
mod credentials;
mod database;
mod examples;
mod exec;
mod faults;
mod fixture;
mod identity;
mod isolation;
mod memory_search;
mod network;
mod workspace;
