//! Linux KVM on x86_64: the hypervisor traits of `sandbox-vmm`, used inside the helper process, and (feature
//! `backend`) the orchestrator's side that starts that process.

#[cfg(feature = "backend")]
pub mod backend;
pub mod hypervisor;

#[cfg(feature = "backend")]
pub use backend::{KvmBackend, KvmImages};
pub use hypervisor::KvmHypervisor;
