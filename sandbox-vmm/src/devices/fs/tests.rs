//! The device behind its registers, driven as a guest's driver would.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::{FsDevice, Tag, TagError};
use crate::devices::virtio::{IrqLine, MmioTransport};
use crate::fs::{Access, IdMap, Limits, MAX_REQUEST, SelfFds, Server};
use crate::memory::{self, GuestRam};

/// Longer than any request takes; only a broken test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

const RING: u16 = 16;

/// An interrupt line that tells the test.
struct Line(Mutex<Sender<()>>);

impl IrqLine for Line {
    fn pulse(&self) {
        _ = self.0.lock().unwrap().send(());
    }
}

/// A driver with two rings at fixed places.
struct Driver {
    transport: MmioTransport,
    memory: GuestRam,
    interrupts: Receiver<()>,
    available: [u16; 2],
    directory: tempfile::TempDir,
}

impl Driver {
    fn new(threads: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f"), b"content").unwrap();
        let limits = Limits::of_this_process();
        let server = Arc::new(Server::new(
            SelfFds::open().unwrap(),
            IdMap::of_this_process(1000, 1000),
            limits,
        ));
        let export = std::fs::File::open(directory.path()).unwrap();
        server.add_export(export.into(), Access::ReadWrite).unwrap();
        let device = FsDevice::new(Tag::new("sandbox").unwrap(), server, threads).unwrap();
        let memory = memory::map(&[(0, 8 << 20)]).unwrap();
        let (sender, interrupts) = channel();
        let line = Arc::new(Line(Mutex::new(sender)));
        let transport = MmioTransport::new(Box::new(device), memory.clone(), line).unwrap();
        let mut driver = Self {
            transport,
            memory,
            interrupts,
            available: [0; 2],
            directory,
        };
        driver.start();
        driver
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn table(queue: u16) -> u64 {
        0x10000 * (1 + u64::from(queue))
    }

    fn start(&mut self) {
        self.set(0x70, 0);
        self.available = [0; 2];
        self.set(0x70, 1);
        self.set(0x70, 3);
        self.set(0x24, 1);
        self.set(0x20, 1);
        self.set(0x70, 11);
        for queue in 0..2u16 {
            let table = Self::table(queue);
            self.memory
                .write_slice(&[0; 0x3000], GuestAddress(table))
                .unwrap();
            self.set(0x30, queue.into());
            self.set(0x38, RING.into());
            self.set(0x80, table as u32);
            self.set(0x90, table as u32 + 0x1000);
            self.set(0xa0, table as u32 + 0x2000);
            self.set(0x44, 1);
        }
        self.set(0x70, 15);
        assert_eq!(self.get(0x70), 15);
    }

    /// Puts a request on a ring: one descriptor to read at a megabyte boundary, one to write after it.
    fn send(&mut self, queue: u16, request: &[u8], room: u32) {
        let table = Self::table(queue);
        let at = self.available[usize::from(queue)];
        let first = (at * 2) % RING;
        let place = 0x100000 + u64::from(queue) * 0x200000 + u64::from(first) * 0x20000;
        self.memory.write_slice(request, GuestAddress(place)).unwrap();
        let put = |index: u16, address: u64, len: u32, flags: u16, next: u16| {
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.to_le_bytes());
            self.memory
                .write_slice(&descriptor, GuestAddress(table + 16 * u64::from(index)))
                .unwrap();
        };
        let second = (first + 1) % RING;
        put(first, place, request.len() as u32, u16::from(room > 0), second);
        put(second, place + 0x10000, room, 2, 0);
        let slot = GuestAddress(table + 0x1000 + 4 + 2 * u64::from(at % RING));
        self.memory.write_obj(first, slot).unwrap();
        self.available[usize::from(queue)] = at.wrapping_add(1);
        self.memory
            .write_obj(at.wrapping_add(1), GuestAddress(table + 0x1002))
            .unwrap();
        self.set(0x50, queue.into());
        self.transport.notify(queue);
    }

    fn used(&self, queue: u16) -> u16 {
        self.memory
            .read_obj(GuestAddress(Self::table(queue) + 0x2002))
            .unwrap()
    }

    /// Waits until all that was sent on a ring is used.
    fn wait(&self, queue: u16) {
        while self.used(queue) != self.available[usize::from(queue)] {
            self.interrupts.recv_timeout(PATIENCE).expect("an interrupt");
        }
    }

    /// Sends a request and waits for its answer: errno and body.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let first = (self.available[1] * 2) % RING;
        self.send(1, &message(opcode, node, body), 0x8000);
        self.wait(1);
        let place = 0x100000 + 0x200000 + u64::from(first) * 0x20000 + 0x10000;
        let mut reply = vec![0; 0x8000];
        self.memory.read_slice(&mut reply, GuestAddress(place)).unwrap();
        let word = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
        let (len, error) = (word(0) as usize, word(4).cast_signed());
        (-error, reply[16..len].to_vec())
    }

    fn init(&mut self) {
        let words = [7u32, 41, 1 << 17, u32::MAX];
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(self.ask(26, 0, &body).0, 0);
    }

    /// The node of the file `f`.
    fn file(&mut self) -> u64 {
        let node = |reply: &[u8]| u64::from_le_bytes(reply[..8].try_into().unwrap());
        let (error, export) = self.ask(1, 1, b"0\0");
        assert_eq!(error, 0);
        let (error, file) = self.ask(1, node(&export), b"f\0");
        assert_eq!(error, 0);
        node(&file)
    }
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend((40 + body.len() as u32).to_le_bytes());
    message.extend(opcode.to_le_bytes());
    message.extend(9u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

#[test]
fn configuration_shows_tag_and_queues() {
    let mut driver = Driver::new(1);
    assert_eq!(driver.get(0x08), 26);
    let mut tag = [0; 8];
    driver.transport.read(0x100, &mut tag);
    assert_eq!(&tag, b"sandbox\0");
    assert_eq!(driver.get(0x100 + 36), 1);
    assert_eq!(driver.get(0x100 + 40), 0);
    assert_eq!(driver.get(0xffc), 0);
}

#[test]
fn tags_that_do_not_fit_are_refused() {
    assert_eq!(Tag::new(""), Err(TagError));
    assert_eq!(Tag::new("a\0b"), Err(TagError));
    assert_eq!(Tag::new(&"x".repeat(37)), Err(TagError));
    assert!(Tag::new(&"x".repeat(36)).is_ok());
}

#[test]
fn a_file_is_read_over_the_rings() {
    let mut driver = Driver::new(2);
    driver.init();
    let file = driver.file();
    let (error, opened) = driver.ask(14, file, &[0; 8]);
    assert_eq!(error, 0);
    let mut read = opened[..8].to_vec();
    read.extend(3u64.to_le_bytes());
    read.extend(100u32.to_le_bytes());
    read.extend([0; 20]);
    assert_eq!(driver.ask(15, file, &read), (0, b"tent".to_vec()));
}

#[test]
fn requests_without_reply_are_taken_off_both_rings() {
    let mut driver = Driver::new(2);
    driver.init();
    let file = driver.file();
    for queue in [0, 1] {
        driver.send(queue, &message(2, file, &1u64.to_le_bytes()), 0);
        driver.wait(queue);
    }
    assert_eq!(driver.ask(3, file, &[0; 16]).0, 116, "forgotten");
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let mut driver = Driver::new(4);
    driver.init();
    for _ in 0..50 {
        for _ in 0..RING / 2 {
            driver.send(1, &message(1, 1, b"0\0"), 0x1000);
        }
        driver.wait(1);
    }
}

#[test]
fn a_reset_in_the_middle_leaves_guest_memory_alone_and_the_device_usable() {
    let mut driver = Driver::new(2);
    for _ in 0..50 {
        driver.init();
        for _ in 0..RING / 2 {
            driver.send(1, &message(1, 1, b"0\0"), 0x1000);
        }
        driver.set(0x70, 0);
        let used = driver.used(1);
        driver
            .memory
            .write_slice(&[0xaa; 0x1000], GuestAddress(0x22000))
            .unwrap();
        assert!(used <= RING);
        std::thread::yield_now();
        let mut ring = [0; 0x1000];
        driver
            .memory
            .read_slice(&mut ring, GuestAddress(0x22000))
            .unwrap();
        assert_eq!(ring, [0xaa; 0x1000]);
        driver.start();
    }
    driver.init();
    driver.file();
}

#[test]
fn an_overlong_request_fails_the_device_and_a_reset_mends_it() {
    let mut driver = Driver::new(1);
    driver.init();
    let bell = driver.transport.doorbells()[0].clone();
    bell.drain();
    let table = Driver::table(1);
    let at = driver.available[1];
    // One readable buffer, longer than any request that was agreed on.
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&0x100000u64.to_le_bytes());
    descriptor[8..12].copy_from_slice(&(MAX_REQUEST as u32 + 1).to_le_bytes());
    driver
        .memory
        .write_slice(&descriptor, GuestAddress(table))
        .unwrap();
    let slot = GuestAddress(table + 0x1004 + 2 * u64::from(at));
    driver.memory.write_obj(0u16, slot).unwrap();
    driver
        .memory
        .write_obj(at + 1, GuestAddress(table + 0x1002))
        .unwrap();
    driver.transport.notify(1);
    // The worker finds it, and rings for the transport to hear of it.
    let mut waiting = [rustix::event::PollFd::new(&bell, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut waiting, Some(&limit)), Ok(1));
    driver.transport.notify(0);
    assert!(driver.transport.take_fault().is_some());
    assert_ne!(driver.get(0x70) & 64, 0);
    driver.start();
    driver.init();
    driver.file();
}

#[test]
fn garbage_on_the_rings_does_no_harm() {
    let mut driver = Driver::new(2);
    driver.init();
    for request in [
        &[][..],
        &[0; 39],
        &[0xff; 40],
        &[0xff; 4000],
        &message(15, 2, &[0xff; 40]),
    ] {
        for room in [0, 1, 15, 16, 0x8000] {
            if request.is_empty() && room == 0 {
                continue;
            }
            driver.send(1, request, room);
            driver.wait(1);
        }
    }
    driver.file();
    assert_eq!(
        std::fs::read(driver.directory.path().join("f")).unwrap(),
        b"content"
    );
}
