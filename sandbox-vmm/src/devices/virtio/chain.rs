//! One request of the driver: buffers to read from, then buffers to write to, each checked against guest memory.
//! Data moves by copy or straight between guest memory and a descriptor; no reference to guest memory is ever made.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::fault::GuestFault;
use crate::memory::GuestRam;

/// Buffers handed to one vectored system call; the most Linux takes (`IOV_MAX`).
const MAX_VECTORS: usize = 1024;

/// A descriptor chain, parsed once. Its descriptors were copied out of the table, so the guest cannot change them
/// any more; it can still change the bytes they point at.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// What the driver wrote for us.
    pub reader: Reader,
    /// Where the driver waits for our answer.
    pub writer: Writer,
}

impl Chain {
    /// Walks the chain, at most `size` descriptors long.
    pub(super) fn parse(
        queue: u16,
        size: u16,
        mut raw: virtio_queue::DescriptorChain<&vm_memory::GuestMemoryMmap<()>>,
        memory: &GuestRam,
    ) -> Result<Self, GuestFault> {
        let head = raw.head_index();
        let mut readable = Segments::new(memory.clone());
        let mut writable = Segments::new(memory.clone());
        let mut descriptors = 0u16;
        loop {
            // The iterator ends quietly at a bad index, a loop or an overlong chain; a whole chain ends only after a
            // descriptor that has no next.
            let Some(descriptor) = raw.next() else {
                return Err(GuestFault::BrokenChain { queue, head });
            };
            descriptors += 1;
            if descriptors > size {
                return Err(GuestFault::BrokenChain { queue, head });
            }
            if descriptor.is_write_only() {
                writable.push(descriptor.addr(), descriptor.len())?;
            } else if !writable.list.is_empty() {
                return Err(GuestFault::MixedChain { queue, head });
            } else {
                readable.push(descriptor.addr(), descriptor.len())?;
            }
            if !descriptor.has_next() {
                break;
            }
        }
        Ok(Self {
            head,
            reader: Reader(readable),
            writer: Writer(writable),
        })
    }

    /// First descriptor: what [`super::VirtQueue::push`] wants.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes written to the writable part so far: what [`super::VirtQueue::push`] wants.
    pub fn written(&self) -> u32 {
        u32::try_from(self.writer.written()).unwrap_or(u32::MAX)
    }
}

/// The readable buffers of a chain, consumed from the front.
#[derive(Debug)]
pub struct Reader(Segments);

impl Reader {
    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Bytes consumed so far.
    pub fn consumed(&self) -> usize {
        self.0.done
    }

    /// Copies exactly `into.len()` bytes out.
    ///
    /// # Errors
    /// [`GuestFault::ShortRequest`] when fewer are left; nothing is consumed then.
    pub fn read(&mut self, into: &mut [u8]) -> Result<(), GuestFault> {
        self.0.require(into.len())?;
        let mut at = 0;
        while let Some(rest) = into.get_mut(at..).filter(|rest| !rest.is_empty()) {
            let Some((address, len)) = self.0.front(rest.len()) else {
                break;
            };
            if let Some(part) = rest.get_mut(..len) {
                self.0
                    .memory
                    .read_slice(part, address)
                    .map_err(|_| outside(address, len))?;
            }
            self.0.advance(len);
            at += len;
        }
        Ok(())
    }

    /// Copies a fixed number of bytes out, such as a request header.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], GuestFault> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Leaves out up to `count` bytes.
    pub fn skip(&mut self, count: usize) {
        self.0.skip(count);
    }

    /// Writes up to `max` bytes to `file`: one `pwritev` at `offset`, or one `writev` where there is none (sockets).
    /// Returns what the system call took, which is also consumed.
    ///
    /// # Errors
    /// What the system call said, but never `EINTR`.
    pub fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
        max: usize,
    ) -> std::io::Result<usize> {
        self.0.transfer(file, offset, max, &WRITE)
    }
}

/// The writable buffers of a chain, filled from the front.
#[derive(Debug)]
pub struct Writer(Segments);

impl Writer {
    /// Bytes of room left.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.0.done
    }

    /// Copies all of `bytes` in.
    ///
    /// # Errors
    /// [`GuestFault::ShortRequest`] when there is less room; nothing is written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), GuestFault> {
        self.0.require(bytes.len())?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some((address, len)) = self.0.front(rest.len()) else {
                break;
            };
            let (part, after) = rest.split_at(len);
            self.0
                .memory
                .write_slice(part, address)
                .map_err(|_| outside(address, len))?;
            self.0.advance(len);
            rest = after;
        }
        Ok(())
    }

    /// Splits off everything after the next `count` bytes: fill the returned part first, then write the header that
    /// goes before it. [`Writer::written`] of each counts its own bytes only.
    ///
    /// # Errors
    /// [`GuestFault::ShortRequest`] when there are fewer than `count` bytes of room.
    pub fn split_off(&mut self, count: usize) -> Result<Writer, GuestFault> {
        self.0.require(count)?;
        let mut front = Segments::new(self.0.memory.clone());
        front.done = self.0.done;
        while front.remaining < count {
            let Some((address, len)) = self.0.front(count - front.remaining) else {
                break;
            };
            front.list.push_back((address, len));
            front.remaining += len;
            self.0.advance(len);
        }
        let mut rest = std::mem::replace(&mut self.0, front);
        rest.done = 0;
        Ok(Writer(rest))
    }

    /// Reads up to `max` bytes from `file` into the buffers: one `preadv` at `offset`, or one `readv` where there is
    /// none (sockets). Returns what the system call gave; 0 is the end of the file.
    ///
    /// # Errors
    /// What the system call said, but never `EINTR`.
    pub fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
        max: usize,
    ) -> std::io::Result<usize> {
        self.0.transfer(file, offset, max, &READ)
    }
}

/// A pair of vectored system calls: at a position, and where there is none.
struct Direction {
    at: unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
    here: unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int) -> libc::ssize_t,
}

/// From the file to guest memory.
const READ: Direction = Direction {
    at: libc::preadv,
    here: libc::readv,
};

/// From guest memory to the file.
const WRITE: Direction = Direction {
    at: libc::pwritev,
    here: libc::writev,
};

/// Buffers in guest memory, each inside one region; what both directions share.
#[derive(Debug)]
struct Segments {
    memory: GuestRam,
    list: VecDeque<(GuestAddress, usize)>,
    remaining: usize,
    done: usize,
}

impl Segments {
    fn new(memory: GuestRam) -> Self {
        Self {
            memory,
            list: VecDeque::new(),
            remaining: 0,
            done: 0,
        }
    }

    /// Adds a buffer after checking that it lies inside one region of guest memory.
    fn push(&mut self, address: GuestAddress, len: u32) -> Result<(), GuestFault> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len == 0 {
            return Ok(());
        }
        self.slice(address, len).ok_or_else(|| outside(address, len))?;
        self.remaining += len;
        self.list.push_back((address, len));
        Ok(())
    }

    fn slice(&self, address: GuestAddress, len: usize) -> Option<VolatileSlice<'_>> {
        GuestMemoryBackend::get_slice(&*self.memory, address, len).ok()
    }

    fn require(&self, need: usize) -> Result<(), GuestFault> {
        if need > self.remaining {
            return Err(GuestFault::ShortRequest {
                have: self.remaining,
                need,
            });
        }
        Ok(())
    }

    /// The next piece, at most `max` bytes.
    fn front(&self, max: usize) -> Option<(GuestAddress, usize)> {
        self.list.front().map(|&(address, len)| (address, len.min(max)))
    }

    /// Drops `count` bytes of the first buffer.
    fn advance(&mut self, count: usize) {
        let Some((address, len)) = self.list.front_mut() else {
            return;
        };
        let count = count.min(*len);
        address.0 += count as u64;
        *len -= count;
        if *len == 0 {
            self.list.pop_front();
        }
        self.remaining -= count;
        self.done += count;
    }

    fn skip(&mut self, count: usize) {
        let mut left = count;
        while let Some((_, len)) = self.front(left).filter(|_| left > 0) {
            self.advance(len);
            left -= len;
        }
    }

    /// Moves up to the next `max` bytes by one system call and consumes what it moved.
    fn transfer(
        &mut self,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
        max: usize,
        direction: &Direction,
    ) -> std::io::Result<usize> {
        let mut vectors = Vec::with_capacity(self.list.len().min(MAX_VECTORS));
        let mut total = 0usize;
        for &(address, len) in self.list.iter().take(MAX_VECTORS) {
            let len = len.min(max - total);
            if len == 0 {
                break;
            }
            let Some(slice) = self.slice(address, len) else {
                break;
            };
            vectors.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: len,
            });
            total += len;
        }
        if total == 0 {
            return Ok(0);
        }
        // At most MAX_VECTORS, so it fits.
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        loop {
            let (fd, vectors) = (file.as_raw_fd(), vectors.as_ptr());
            // SAFETY: the vectors describe live guest memory, checked above, to which no Rust reference exists; so the
            // kernel may read it, and write it as well. They and the descriptor outlive the call.
            let result = unsafe {
                match offset {
                    Some(at) => (direction.at)(fd, vectors, count, at.cast_signed()),
                    None => (direction.here)(fd, vectors, count),
                }
            };
            if let Ok(moved) = usize::try_from(result) {
                self.skip(moved);
                return Ok(moved);
            }
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

fn outside(address: GuestAddress, len: usize) -> GuestFault {
    GuestFault::OutsideMemory {
        address: address.0,
        len: len as u64,
    }
}
