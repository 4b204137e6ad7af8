//! The kernel's file as the loader reads it, but for one thing: whole pages are not copied into guest memory, they are
//! mapped there. So a start need not wait for them, and all sandboxes share what their guests do not change.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// A kernel that is loaded into guest memory, and into no other: that is what makes mapping the same as reading.
///
/// The file must never change: a guest would see it, and one that is cut short ends its VMM process.
pub(super) struct KernelFile<'a>(pub &'a mut File);

impl Read for KernelFile<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Seek for KernelFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl ReadVolatile for KernelFile<'_> {
    /// Fills all of `memory`, or fails.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        memory: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mapped = self
            .map_whole_pages(memory)
            .map_err(VolatileMemoryError::IOError)?;
        self.0.read_exact_volatile(&mut memory.offset(mapped)?)?;
        Ok(memory.len())
    }
}

impl KernelFile<'_> {
    /// Maps what it can of the file, from where it stands, to the beginning of `memory`, and moves on behind it.
    /// Returns how many bytes that were.
    fn map_whole_pages<B: BitmapSlice>(&mut self, memory: &VolatileSlice<'_, B>) -> io::Result<usize> {
        let page = rustix::param::page_size();
        let at = self.0.stream_position()?;
        // What is past the file's end cannot be mapped; reading it says so.
        let left = self.0.metadata()?.len().saturating_sub(at);
        let whole = memory.len().min(usize::try_from(left).unwrap_or(usize::MAX)) / page * page;
        let guard = memory.ptr_guard_mut();
        let target = guard.as_ptr();
        if whole == 0 || !target.addr().is_multiple_of(page) || !at.is_multiple_of(page as u64) {
            return Ok(0);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let mapped = unsafe { rustix::mm::mmap(std::ptr::null_mut(), whole, access, flags, &*self.0, at) };
        let Ok(source) = mapped else {
            // A file system without mappings: it is read.
            return Ok(0);
        };
        // SAFETY: the source is the mapping just made, which nobody else knows. The target is whole pages within
        // `memory`, which stay mapped, readable and writable; like a read, this changes what is in them, and there
        // are no references into guest memory that could notice.
        unsafe {
            rustix::mm::mremap_fixed(source, whole, whole, MremapFlags::MAYMOVE, target.cast())?;
            // Like all guest memory.
            rustix::mm::madvise(target.cast(), whole, Advice::LinuxDontDump)?;
        }
        self.0.seek(SeekFrom::Start(at + whole as u64))?;
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory;

    const MIB: usize = 1 << 20;

    /// Loads `length` bytes of a file from `from` to `to`, and compares.
    fn load(from: u64, to: u64, length: usize) {
        let content: Vec<u8> = (0..MIB).map(|at| (at * 7 / 3) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let memory = memory::map(&[(0, 2 * MIB as u64)]).unwrap();
        file.seek(SeekFrom::Start(from)).unwrap();
        memory
            .read_exact_volatile_from(GuestAddress(to), &mut KernelFile(&mut file), length)
            .unwrap();
        assert_eq!(file.stream_position().unwrap(), from + length as u64);
        let mut expected = vec![0; 2 * MIB];
        expected[to as usize..][..length].copy_from_slice(&content[from as usize..][..length]);
        let mut all = vec![0; 2 * MIB];
        memory.read_slice(&mut all, GuestAddress(0)).unwrap();
        assert!(all == expected);
        // The guest's own.
        memory
            .write_obj(!content[from as usize], GuestAddress(to))
            .unwrap();
        let mut again = vec![0; MIB];
        file.rewind().unwrap();
        file.read_exact(&mut again).unwrap();
        assert!(again == content);
    }

    #[test]
    fn mapped_memory_holds_what_a_read_would_have_put_there() {
        load(0x2000, 0x1_0000, 0x5000);
        load(0x2000, 0x1_0000, 0x5123);
        load(0, 0x1_0000, MIB);
        load(0x2001, 0x1_0000, 0x5123);
        load(0x2000, 0x1_0010, 0x5123);
        load(0x2000, 0x1_0000, 0x123);
    }

    #[test]
    fn a_file_that_ends_too_early_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 0x3010]).unwrap();
        file.rewind().unwrap();
        let memory = memory::map(&[(0, MIB as u64)]).unwrap();
        let read = memory.read_exact_volatile_from(GuestAddress(0), &mut KernelFile(&mut file), 0x5000);
        assert!(read.is_err());
    }
}
