//! The orchestrator's side: opens what a machine needs, starts the VMM process and talks to it.
//!
//! Trusts the VMM process with its guest and nothing else: what it says is bounded and checked, and whatever it
//! does, dropping the [`Machine`] ends it.

mod child;
mod console;
mod images;
mod kernel_options;
mod launch;
mod machine;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::backend::{Backend, BackendError, Capabilities, Machine, MachineSpec, Virtualisation};

/// The command that makes missing artefacts.
pub(crate) const MAKE_ARTEFACTS: &str = "cargo xtask artifacts";
/// Present where `/dev/kvm` interprets guest kernels.
const INTERPRETED_MARK: &str = "/sys/module/kvm_pvm";

/// The files that machines are made of. Running machines go on using them: replace one by renaming another over it, and
/// never write into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmImages {
    /// Kernel for hosts with hardware virtualisation: an uncompressed ELF file.
    pub kernel_normal: PathBuf,
    /// Kernel for hosts that interpret guest kernels.
    pub kernel_interpreted: PathBuf,
    /// Root file system that holds the agent.
    pub agent: PathBuf,
    /// Base image, shared by all machines.
    pub base: PathBuf,
    /// File system that each machine gets a private, sparse copy of; its size bounds what a guest can write.
    pub layer_template: PathBuf,
    /// The VMM process's binary.
    pub helper: PathBuf,
    /// The build the helper must report, or `None` to take any (for tests of the helper itself).
    pub helper_build: Option<String>,
}

/// Machines on Linux KVM, each in a process of its own.
#[derive(Debug, Clone)]
pub struct KvmBackend {
    images: Arc<KvmImages>,
    layers: PathBuf,
    extra_options: String,
}

impl KvmBackend {
    /// A backend over these files. Opens nothing yet.
    pub fn new(images: KvmImages) -> Self {
        Self {
            images: Arc::new(images),
            layers: PathBuf::from("/var/tmp"),
            extra_options: String::new(),
        }
    }

    /// Where the private layers of machines are kept, without a name, for as long as they run. `/var/tmp` unless
    /// set; it needs room for what guests write.
    #[must_use]
    pub fn layer_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.layers = directory.into();
        self
    }

    /// Further options for the guest's kernel, after ours; for instance `ignore_loglevel` to hear all it says.
    #[must_use]
    pub fn kernel_options(mut self, options: impl Into<String>) -> Self {
        self.extra_options = options.into();
        self
    }

    /// How this host runs guest code.
    pub fn virtualisation() -> Virtualisation {
        if Path::new(INTERPRETED_MARK).exists() {
            Virtualisation::Interpreted
        } else {
            Virtualisation::Hardware
        }
    }
}

#[async_trait]
impl Backend for KvmBackend {
    fn name(&self) -> &'static str {
        "kvm"
    }

    async fn probe(&self) -> Result<Capabilities, BackendError> {
        images::open_hypervisor()?;
        Ok(Capabilities::new(Self::virtualisation()))
    }

    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, BackendError> {
        let flavour = Self::virtualisation();
        let options = kernel_options::for_host(flavour, &self.extra_options);
        let machine = launch::launch(&self.images, &self.layers, flavour, spec, options).await?;
        Ok(Arc::new(machine))
    }
}
