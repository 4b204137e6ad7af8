//! What the proxy's benchmark is made of: processes, the load on them, and what was measured.

pub mod cases;
pub mod guest;
pub mod idle;
pub mod load;
pub mod ours;
pub mod pki;
pub mod process;
pub mod subjects;
pub mod upstream;

/// Name of the upstream; nobody looks it up.
pub const HOST: &str = "api.example.com";
/// What the upstream wants in `x-api-key`. Who goes through an intercepting proxy does not know it.
pub const KEY: &str = "sk-bench-0123456789abcdef0123456789abcdef";
/// Body of a small response.
pub const SMALL: usize = 1024;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
