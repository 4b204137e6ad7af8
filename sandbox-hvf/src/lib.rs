//! macOS Hypervisor.framework backend (documentation only, for now).
