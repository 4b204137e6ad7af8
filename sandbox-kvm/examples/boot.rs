//! Boots a kernel in this very process, for looking at the VMM alone: `boot KERNEL [MIB] [OPTIONS] [DISK...]`.
use std::fs::File;
use std::sync::{Arc, mpsc};

use sandbox_kvm::KvmHypervisor;
use sandbox_vmm::devices::virtio::GuestFault;
use sandbox_vmm::hypervisor::Hypervisor;
use sandbox_vmm::machine::{Machine, MachineConfig, Observer};
use sandbox_vmm::vcpu::VcpuEnd;

struct Print(mpsc::Sender<VcpuEnd>);

impl Observer for Print {
    fn device_failed(&self, device: &'static str, fault: &GuestFault) {
        eprintln!("{device}: {fault}");
    }
    fn ended(&self, end: &VcpuEnd) {
        let _ = self.0.send(end.clone());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let kernel = File::open(args.get(1).ok_or("which kernel?")?)?;
    let memory: u64 = args.get(2).map_or(Ok(256), |mib| mib.parse())?;
    let options = args.get(3).cloned().unwrap_or_default();
    let device = File::options().read(true).write(true).open("/dev/kvm")?;
    let console = std::io::stdout();
    let console = std::os::fd::AsFd::as_fd(&console).try_clone_to_owned()?;
    let hypervisor = KvmHypervisor::open(Some(device.into()))?;
    let (end, ended) = mpsc::channel();
    let config = MachineConfig {
        memory: memory << 20,
        cpus: 1,
        kernel,
        options,
        console: Some(console),
        devices: vec![],
    };
    Machine::build(&hypervisor, config, Arc::new(Print(end)))?.run()?;
    eprintln!("{:?}", ended.recv()?);
    Ok(())
}
