//! Linux KVM backend: the hypervisor traits of sandbox-vmm, and Backend.
