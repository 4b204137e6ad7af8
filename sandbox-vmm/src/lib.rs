//! A virtual machine, whatever the hypervisor: memory, virtio-mmio devices, boot, the VMM process.
