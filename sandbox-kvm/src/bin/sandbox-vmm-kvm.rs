//! The VMM process of one sandbox on KVM. Started by the backend, with a control socket as standard input.

fn main() {
    sandbox_vmm::helper::run::<sandbox_kvm::KvmHypervisor>()
}
