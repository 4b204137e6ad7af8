//! Linux KVM on x86_64: the hypervisor traits of `sandbox-vmm`, used inside the helper process, and (feature
//! `backend`) the orchestrator's side that starts that process.

pub mod hypervisor;

pub use hypervisor::KvmHypervisor;
