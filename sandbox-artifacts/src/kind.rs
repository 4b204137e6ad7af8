//! The artefacts there are, and which build of each this program needs.

/// One thing on disk that a sandbox, or the emulated host, is started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// The guest kernel for hosts whose KVM runs ring 0 on the processor.
    KernelNormal,
    /// The guest kernel for hosts whose `/dev/kvm` interprets ring 0.
    KernelInterpreted,
    /// The kernel of the emulated host: `cargo xtask host`.
    KernelHost,
    /// The small disk that holds PID 1 of every guest.
    Agent,
    /// The VMM process's program.
    Helper,
    /// The root file system that all sandboxes share, read-only.
    BaseImage,
    /// An empty file system, copied for each sandbox's private writes.
    LayerTemplate,
}

impl Kind {
    /// Every kind, quick builds first.
    pub const ALL: [Self; 7] = [
        Self::LayerTemplate,
        Self::Agent,
        Self::Helper,
        Self::BaseImage,
        Self::KernelInterpreted,
        Self::KernelNormal,
        Self::KernelHost,
    ];

    /// The name used for its folder and in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KernelNormal => "kernel-normal",
            Self::KernelInterpreted => "kernel-interpreted",
            Self::KernelHost => "kernel-host",
            Self::Agent => "agent",
            Self::Helper => "helper",
            Self::BaseImage => "base-image",
            Self::LayerTemplate => "layer-template",
        }
    }

    /// The artefact's file inside its folder.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::KernelNormal | Self::KernelInterpreted | Self::KernelHost => "vmlinux",
            Self::Agent => "agent.erofs",
            Self::Helper => "sandbox-vmm-kvm",
            Self::BaseImage => "base.erofs",
            Self::LayerTemplate => "layer.ext4",
        }
    }

    /// Hash of what this source tree makes it from, 32 hexadecimal digits. For agent and helper it is also the build
    /// hash that they report when they start.
    #[must_use]
    pub const fn recipe(self) -> &'static str {
        match self {
            Self::KernelNormal => env!("RECIPE_KERNEL_NORMAL"),
            Self::KernelInterpreted => env!("RECIPE_KERNEL_INTERPRETED"),
            Self::KernelHost => env!("RECIPE_KERNEL_HOST"),
            Self::Agent => env!("RECIPE_AGENT"),
            Self::Helper => env!("RECIPE_HELPER"),
            Self::BaseImage => env!("RECIPE_BASE_IMAGE"),
            Self::LayerTemplate => env!("RECIPE_LAYER_TEMPLATE"),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KernelNormal => "guest kernel",
            Self::KernelInterpreted => "guest kernel for interpreted hosts",
            Self::KernelHost => "kernel of the emulated host",
            Self::Agent => "guest agent",
            Self::Helper => "VMM helper",
            Self::BaseImage => "base image",
            Self::LayerTemplate => "layer template",
        })
    }
}
