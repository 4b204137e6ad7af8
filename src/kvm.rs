//! The default backend: KVM with the artefacts of this build.

use std::sync::Arc;

use sandbox_artifacts::{Artifacts, KernelFlavour};
use sandbox_core::backend::Backend;
use sandbox_kvm::{KvmBackend, KvmImages};

/// The files of a [`KvmBackend`] that is set up by hand; the default backend uses the same.
pub fn images(artifacts: &Artifacts) -> KvmImages {
    KvmImages {
        kernel_normal: artifacts.kernel(KernelFlavour::Normal),
        kernel_interpreted: artifacts.kernel(KernelFlavour::Interpreted),
        agent: artifacts.agent_image(),
        base: artifacts.base_image(),
        layer_template: artifacts.layer_template(),
        helper: artifacts.helper(),
        helper_build: Some(artifacts.helper_build().to_owned()),
    }
}

pub(crate) fn backend(artifacts: &Artifacts) -> Arc<dyn Backend> {
    Arc::new(KvmBackend::new(images(artifacts)))
}
