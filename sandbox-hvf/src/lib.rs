//! macOS Hypervisor.framework backend (arm64): documentation only, for now.
//!
//! It will implement the same hypervisor traits of `sandbox-vmm` as the Linux KVM backend, and
//! `sandbox_core::Backend`. What those traits already grant it:
//!
//! * a vCPU is created, run and dropped on one thread, because `hv_vcpu_run` demands the creating thread;
//! * a separate handle kicks a running vCPU (`hv_vcpus_exit`);
//! * doorbells and interrupt lines are traits, since there is no ioeventfd or irqfd: the slow path is an exit;
//! * the layout writes a device tree for arm64, where x86 gets a command line and an MP table.
//!
//! It is type-checked only once there is code; it cannot be linked or run on Linux.
