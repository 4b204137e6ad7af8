//! A virtual machine, whatever the hypervisor: memory, virtio-mmio devices, boot, the VMM process.
//!
//! Everything here runs in the helper process of one sandbox and is exposed to its guest; nothing here names a
//! hypervisor. A backend implements the traits of [`hypervisor`] and calls [`helper::run`] from a tiny binary; the
//! orchestrator speaks [`control`] to that process.
//!
//! | where | what |
//! |---|---|
//! | [`devices`] | the virtio transport, and one folder per device |
//! | [`layout`] | which address, slot and interrupt belongs to what |
//! | [`memory`] | the guest's memory |
//! | [`boot`] | what the kernel finds when it starts |
//! | [`hypervisor`] | the traits of a hypervisor |

pub mod boot;
pub mod control;
pub mod devices;
pub mod doorbell;
pub mod event_loop;
pub mod fs;
pub mod helper;
pub mod hypervisor;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod vcpu;
