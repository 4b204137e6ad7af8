//! Amounts of memory and processors that a machine can have.

use std::fmt;

/// An amount of memory or disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many mebibytes (2^20 bytes); the largest representable amount where that overflows.
    pub const fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// So many gibibytes (2^30 bytes); the largest representable amount where that overflows.
    pub const fn gib(gib: u64) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// The amount in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b >= 1 << 30 && b.is_multiple_of(1 << 30) => write!(f, "{} GiB", b >> 30),
            b if b >= 1 << 20 && b.is_multiple_of(1 << 20) => write!(f, "{} MiB", b >> 20),
            b => write!(f, "{b} bytes"),
        }
    }
}

/// Memory of a guest: 64 MiB to 1 TiB, in whole mebibytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(Size);

impl MemorySize {
    /// Below this a Linux guest with the base image does not come up.
    pub const MIN: Size = Size::mib(64);
    /// Beyond this the guest's physical address space is not laid out.
    pub const MAX: Size = Size::gib(1024);

    /// The amount, never outside [`Self::MIN`] and [`Self::MAX`].
    pub const fn get(self) -> Size {
        self.0
    }
}

impl TryFrom<Size> for MemorySize {
    type Error = ImpossibleResource;

    fn try_from(size: Size) -> Result<Self, ImpossibleResource> {
        if size < Self::MIN || size > Self::MAX || !size.as_bytes().is_multiple_of(1 << 20) {
            return Err(ImpossibleResource::Memory { asked: size });
        }
        Ok(Self(size))
    }
}

/// Number of virtual processors: 1 to 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuCount(u8);

impl CpuCount {
    /// One processor.
    pub const ONE: Self = Self(1);
    /// The guest kernels are configured for so many; more would be silently left out.
    pub const MAX: u32 = 32;

    /// The number, never 0.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u32> for CpuCount {
    type Error = ImpossibleResource;

    fn try_from(count: u32) -> Result<Self, ImpossibleResource> {
        match u8::try_from(count) {
            Ok(small) if small > 0 && count <= Self::MAX => Ok(Self(small)),
            _ => Err(ImpossibleResource::Cpus { asked: count }),
        }
    }
}

/// An amount that no machine can have. The caller's fault: ask for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImpossibleResource {
    /// Memory out of range or not in whole mebibytes.
    #[error("{asked} of memory is not possible: ask for whole MiB from {min} to {max}, for instance Size::gib(2)",
        min = MemorySize::MIN, max = MemorySize::MAX)]
    Memory {
        /// What was asked for.
        asked: Size,
    },
    /// No or too many processors.
    #[error("{asked} CPUs are not possible: ask for 1 to {max}", max = CpuCount::MAX)]
    Cpus {
        /// What was asked for.
        asked: u32,
    },
    /// A writable layer too small to format or larger than its format addresses.
    #[error("a writable layer of {asked} is not possible: ask for {min} to {max}")]
    Disk {
        /// What was asked for.
        asked: Size,
        /// The least possible.
        min: Size,
        /// The most possible.
        max: Size,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_amounts_are_refused_with_the_range() {
        assert!(MemorySize::try_from(Size::mib(256)).is_ok());
        for bad in [
            Size::bytes(0),
            Size::mib(63),
            Size::bytes((256 << 20) + 1),
            Size::gib(2048),
        ] {
            let message = MemorySize::try_from(bad).unwrap_err().to_string();
            assert!(
                message.contains("64 MiB") && message.contains("1024 GiB"),
                "{message}"
            );
        }
        assert_eq!(CpuCount::try_from(0), Err(ImpossibleResource::Cpus { asked: 0 }));
        assert_eq!(
            CpuCount::try_from(257),
            Err(ImpossibleResource::Cpus { asked: 257 })
        );
        assert_eq!(CpuCount::try_from(2).unwrap().get(), 2);
    }
}
