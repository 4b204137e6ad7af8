//! TLS: the sandbox's own certificate authority, what a client hello says, and the client side towards upstream.

mod ca;
pub(crate) mod client;
pub(crate) mod hello;

pub use ca::{Ca, CaError};
