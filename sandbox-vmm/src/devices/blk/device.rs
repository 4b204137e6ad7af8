//! Serves one file as a disk, one request after the other, on a thread of its own.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::wire::{self, Request, SECTOR_BYTES};
use crate::devices::virtio::{
    ActivateError, Activation, Chain, Dispatch, GuestFault, Interrupt, Progress, VirtQueue, VirtioDevice,
    device_id, read_space,
};

/// Requests in flight, which here means waiting: one is served at a time.
const QUEUE_SIZE: u16 = 128;
/// Longest transfer of one request. Linux sends 1.25 MiB at most; more would keep a reset waiting.
const MAX_TRANSFER: usize = 4 << 20;

/// Whether the guest may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskAccess {
    /// Writes fail, on our side and, if the descriptor says so, on the kernel's.
    ReadOnly,
    /// Writes go to the file.
    ReadWrite,
}

/// What the host could not do for a disk. The guest got an I/O error and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskTrouble {
    /// The file system of the file is full.
    OutOfSpace,
    /// Anything else, by its `errno`.
    Io(i32),
}

/// Called when the host fails; must not wait.
pub type OnTrouble = Box<dyn Fn(DiskTrouble) + Send>;

/// One disk.
pub struct BlockDevice {
    file: OwnedFd,
    bytes: u64,
    access: DiskAccess,
    /// Whether what is written can outlive a crash of the host. A file without a name cannot, so waiting for the host's
    /// disk would be in vain, and would let a guest keep it busy.
    durable: bool,
    name: [u8; wire::ID_BYTES],
    on_trouble: OnTrouble,
    troubled: bool,
    running: Option<(VirtQueue, Interrupt)>,
}

impl BlockDevice {
    /// A disk of the size that `file` has now, rounded down to whole sectors. If it has no name, nothing is ever made
    /// durable. `name` is what the guest can ask for,
    /// cut at 20 bytes.
    ///
    /// # Errors
    /// The file's size cannot be read.
    pub fn new(
        file: OwnedFd,
        access: DiskAccess,
        name: &str,
        on_trouble: OnTrouble,
    ) -> std::io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut id = [0; wire::ID_BYTES];
        for (to, from) in id.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let bytes = size - size % SECTOR_BYTES;
        Ok(Self {
            file,
            bytes,
            access,
            durable: access == DiskAccess::ReadWrite && stat.st_nlink > 0,
            name: id,
            on_trouble,
            troubled: false,
            running: None,
        })
    }

    /// Answers one request. Returns how many bytes were written to the chain.
    fn answer(&mut self, chain: &mut Chain) -> Result<u32, GuestFault> {
        let request = Request::parse(chain.reader.read_array()?);
        let room = chain.writer.remaining();
        let data = room
            .checked_sub(1)
            .ok_or(GuestFault::ShortRequest { have: 0, need: 1 })?;
        let mut status = chain.writer.split_off(data)?;
        let result = self.perform(request, chain);
        status.write(&[result])?;
        Ok(chain.written().saturating_add(1))
    }

    fn perform(&mut self, request: Request, chain: &mut Chain) -> u8 {
        let result = match request {
            Request::Read(sector) => match self.range(sector, chain.writer.remaining()) {
                Some(range) => self.read(chain, range),
                None => return wire::STATUS_IO_ERROR,
            },
            Request::Write(_) if self.access == DiskAccess::ReadOnly => return wire::STATUS_IO_ERROR,
            Request::Write(sector) => match self.range(sector, chain.reader.remaining()) {
                Some(range) => self.write(chain, range),
                None => return wire::STATUS_IO_ERROR,
            },
            Request::Flush if !self.durable => return wire::STATUS_OK,
            Request::Flush => rustix::fs::fdatasync(&self.file).map_err(Into::into),
            Request::GetId => {
                let room = chain.writer.remaining().min(self.name.len());
                let name = self.name.get(..room).unwrap_or(&[]);
                return if chain.writer.write(name).is_ok() {
                    wire::STATUS_OK
                } else {
                    wire::STATUS_IO_ERROR
                };
            }
            Request::Unknown => return wire::STATUS_UNSUPPORTED,
        };
        match result {
            Ok(()) => {
                self.troubled = false;
                wire::STATUS_OK
            }
            Err(error) => {
                self.report(&error);
                wire::STATUS_IO_ERROR
            }
        }
    }

    /// The byte range of a transfer, if it is whole sectors inside the disk and not too long.
    fn range(&self, sector: u64, len: usize) -> Option<(u64, u64)> {
        let start = sector.checked_mul(SECTOR_BYTES)?;
        let end = start.checked_add(len as u64)?;
        let whole = (len as u64).is_multiple_of(SECTOR_BYTES);
        (whole && len <= MAX_TRANSFER && end <= self.bytes).then_some((start, end))
    }

    fn read(&self, chain: &mut Chain, (mut at, end): (u64, u64)) -> std::io::Result<()> {
        while at < end {
            let max = usize::try_from(end - at).unwrap_or(usize::MAX);
            match chain.writer.read_from(self.file.as_fd(), Some(at), max)? {
                // The file was cut short behind our back.
                0 => return Err(Errno::IO.into()),
                moved => at += moved as u64,
            }
        }
        Ok(())
    }

    fn write(&self, chain: &mut Chain, (mut at, end): (u64, u64)) -> std::io::Result<()> {
        while at < end {
            let max = usize::try_from(end - at).unwrap_or(usize::MAX);
            match chain.reader.write_to(self.file.as_fd(), Some(at), max)? {
                0 => return Err(Errno::IO.into()),
                moved => at += moved as u64,
            }
        }
        Ok(())
    }

    /// Tells the orchestrator once per spell of trouble: a guest that retries must not flood it.
    fn report(&mut self, error: &std::io::Error) {
        if std::mem::replace(&mut self.troubled, true) {
            return;
        }
        let errno = error.raw_os_error().unwrap_or(0);
        tracing::warn!(%error, "a disk request failed on the host");
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG]
            .iter()
            .any(|full| full.raw_os_error() == errno);
        (self.on_trouble)(if full {
            DiskTrouble::OutOfSpace
        } else {
            DiskTrouble::Io(errno)
        });
    }
}

impl VirtioDevice for BlockDevice {
    fn name(&self) -> &'static str {
        "blk"
    }

    fn device_id(&self) -> u32 {
        device_id::BLOCK
    }

    fn features(&self) -> u64 {
        let read_only = match self.access {
            DiskAccess::ReadOnly => wire::F_READ_ONLY,
            DiskAccess::ReadWrite => 0,
        };
        let flush = if self.durable { wire::F_FLUSH } else { 0 };
        wire::F_SEG_MAX | read_only | flush
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn dispatch(&self) -> Dispatch {
        Dispatch::OwnThread
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // Header and status take a descriptor each.
        let space = wire::config(self.bytes / SECTOR_BYTES, u32::from(QUEUE_SIZE) - 2);
        read_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.running = Some(activation.only_queue()?);
        Ok(())
    }

    fn notify(&mut self, _queue: u16) -> Result<Progress, GuestFault> {
        let Some((mut queue, interrupt)) = self.running.take() else {
            return Ok(Progress::Idle);
        };
        let result = queue.serve(&interrupt, |chain| self.answer(chain));
        self.running = Some((queue, interrupt));
        result
    }

    fn reset(&mut self) {
        self.running = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::testing::Driver;

    const SECTORS: u64 = 16;

    fn disk(access: DiskAccess) -> (Driver, std::fs::File, Arc<Mutex<Vec<DiskTrouble>>>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(
            &(0..SECTORS * SECTOR_BYTES)
                .map(|at| (at / 512) as u8)
                .collect::<Vec<_>>(),
        )
        .unwrap();
        let troubles = Arc::new(Mutex::new(Vec::new()));
        let seen = troubles.clone();
        let on_trouble = Box::new(move |trouble| seen.lock().unwrap().push(trouble));
        let device = BlockDevice::new(file.try_clone().unwrap().into(), access, "disk", on_trouble).unwrap();
        (Driver::start(Box::new(device)), file, troubles)
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes
    }

    #[test]
    fn reads_give_the_files_sectors_and_status_ok() {
        let (mut driver, ..) = disk(DiskAccess::ReadOnly);
        let answer = driver.request(0, &[&header(0, 3)], &[512, 1]).unwrap();
        assert_eq!(answer, [vec![3; 512], vec![0]].concat());
    }

    #[test]
    fn writes_reach_the_file_and_never_a_read_only_one() {
        let (mut driver, mut file, _) = disk(DiskAccess::ReadWrite);
        assert_eq!(driver.request(0, &[&header(1, 2), &[9; 512]], &[1]).unwrap(), [0]);
        file.seek(SeekFrom::Start(2 * 512)).unwrap();
        let mut sector = [0; 512];
        file.read_exact(&mut sector).unwrap();
        assert_eq!(sector, [9; 512]);
        let (mut driver, ..) = disk(DiskAccess::ReadOnly);
        assert_eq!(driver.request(0, &[&header(1, 2), &[9; 512]], &[1]).unwrap(), [1]);
    }

    #[test]
    fn requests_outside_the_disk_are_io_errors_and_do_not_grow_it() {
        let (mut driver, file, troubles) = disk(DiskAccess::ReadWrite);
        for sector in [SECTORS, SECTORS - 1 + u64::MAX / 512, u64::MAX, 1 << 55] {
            assert_eq!(
                driver.request(0, &[&header(1, sector), &[9; 512]], &[1]).unwrap(),
                [1]
            );
            assert_eq!(
                driver.request(0, &[&header(0, sector)], &[512, 1]).unwrap()[512],
                1
            );
        }
        assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
        assert!(troubles.lock().unwrap().is_empty());
    }

    #[test]
    fn parts_of_a_sector_are_refused() {
        let (mut driver, ..) = disk(DiskAccess::ReadWrite);
        assert_eq!(driver.request(0, &[&header(0, 0)], &[100, 1]).unwrap()[100], 1);
    }

    #[test]
    fn a_request_without_room_for_a_status_breaks_only_the_device() {
        let (mut driver, ..) = disk(DiskAccess::ReadWrite);
        assert!(driver.request(0, &[&header(0, 0)], &[]).is_none());
        assert!(driver.needs_reset());
        driver.restart();
        assert_eq!(driver.request(0, &[&header(0, 1)], &[512, 1]).unwrap()[0], 1);
    }

    #[test]
    fn a_host_error_is_told_once_until_something_works_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 8192]).unwrap();
        // Opened for reading only, so that writes fail on the host.
        let read_only = std::fs::File::open(file.path()).unwrap();
        let troubles = Arc::new(Mutex::new(Vec::new()));
        let seen = troubles.clone();
        let on_trouble = Box::new(move |trouble| seen.lock().unwrap().push(trouble));
        let device = BlockDevice::new(read_only.into(), DiskAccess::ReadWrite, "disk", on_trouble).unwrap();
        let mut driver = Driver::start(Box::new(device));
        for _ in 0..3 {
            assert_eq!(driver.request(0, &[&header(1, 0), &[1; 512]], &[1]).unwrap(), [1]);
        }
        assert_eq!(*troubles.lock().unwrap(), [DiskTrouble::Io(libc::EBADF)]);
    }

    #[test]
    fn only_a_file_with_a_name_is_made_durable() {
        let device = |file: &std::fs::File, access| {
            let file = file.try_clone().unwrap();
            BlockDevice::new(file.into(), access, "disk", Box::new(|_| {})).unwrap()
        };
        // A pipe's end in the place of the file makes any attempt to flush fail.
        let flush = |mut device: BlockDevice| {
            device.file = rustix::pipe::pipe().unwrap().1;
            let offered = device.features() & wire::F_FLUSH != 0;
            let answer = Driver::start(Box::new(device)).request(0, &[&header(4, 0)], &[1]);
            (offered, answer.unwrap())
        };
        let named = tempfile::NamedTempFile::new().unwrap();
        let nameless = tempfile::tempfile().unwrap();
        let (read_only, read_write) = (DiskAccess::ReadOnly, DiskAccess::ReadWrite);
        assert_eq!(flush(device(named.as_file(), read_write)), (true, vec![1]));
        assert_eq!(flush(device(named.as_file(), read_only)), (false, vec![0]));
        assert_eq!(flush(device(&nameless, read_write)), (false, vec![0]));
    }

    #[test]
    fn the_guest_can_ask_for_the_name() {
        let (mut driver, ..) = disk(DiskAccess::ReadOnly);
        let answer = driver.request(0, &[&header(8, 0)], &[20, 1]).unwrap();
        assert!(answer.starts_with(b"disk\0"));
        assert_eq!(driver.request(0, &[&header(77, 0)], &[1]).unwrap(), [2]);
    }

    proptest! {
        #[test]
        fn any_request_is_answered_and_none_changes_the_size(
            requests in proptest::collection::vec(
                (
                    prop_oneof![0u32..10, any::<u32>()],
                    prop_oneof![0..2 * SECTORS, any::<u64>()],
                    proptest::collection::vec(0usize..1200, 0..4),
                    proptest::collection::vec(0usize..1200, 0..4),
                ),
                1..8,
            ),
        ) {
            let (mut driver, file, troubles) = disk(DiskAccess::ReadWrite);
            for (kind, sector, readable, writable) in requests {
                let (header, data) = (header(kind, sector), vec![9; 1200]);
                let mut parts = vec![header.as_slice()];
                parts.extend(readable.iter().map(|len| &data[..*len]));
                let answer = driver.request(0, &parts, &writable);
                // Without room for a status there is nothing to answer with.
                prop_assert_eq!(answer.is_some(), writable.iter().sum::<usize>() > 0);
                prop_assert_eq!(driver.needs_reset(), answer.is_none());
                if answer.is_none() {
                    driver.restart();
                }
            }
            prop_assert_eq!(file.metadata().unwrap().len(), SECTORS * SECTOR_BYTES);
            prop_assert!(troubles.lock().unwrap().is_empty());
        }
    }
}
