//! The guest's memory: anonymous, private to the VMM process, never in a core dump.
//! Every access by a guest address goes through here and is checked against the regions.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Guest memory as devices hold it: cheap to clone, shared by all threads of the VMM.
///
/// The guest writes to it at any time, so nothing read from it may be read twice and believed to be equal, and no
/// Rust reference into it may ever be made.
pub type GuestRam = Arc<GuestMemoryMmap<()>>;

/// Why guest memory could not be made. The host's fault.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host did not give the address space.
    #[error("cannot map {bytes} bytes of guest memory: {detail}; free memory or ask for a smaller sandbox")]
    Map {
        /// Size of the region that failed.
        bytes: u64,
        /// What the system said.
        detail: String,
    },
}

/// Maps zeroed memory for each `(start, length in bytes)`; the host commits pages when the guest touches them.
///
/// # Errors
/// [`MemoryError::Map`] when the host refuses, or when ranges overlap or are not in order.
pub fn map(ranges: &[(u64, u64)]) -> Result<GuestRam, MemoryError> {
    let fail = |bytes: u64, detail: String| MemoryError::Map { bytes, detail };
    let mut regions = Vec::with_capacity(ranges.len());
    for &(start, bytes) in ranges {
        let size = usize::try_from(bytes).map_err(|error| fail(bytes, error.to_string()))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapping = MmapRegion::build(None, size, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map_err(|error| fail(bytes, error.to_string()))?;
        // SAFETY: the range is a mapping of exactly `size` bytes that was just made; the advice changes no content.
        unsafe { libc::madvise(mapping.as_ptr().cast(), size, libc::MADV_DONTDUMP) };
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| fail(bytes, "the region ends past the address space".to_owned()))?;
        regions.push(region);
    }
    let total = ranges.iter().map(|range| range.1).sum();
    GuestMemoryMmap::from_regions(regions)
        .map(Arc::new)
        .map_err(|error| fail(total, error.to_string()))
}
