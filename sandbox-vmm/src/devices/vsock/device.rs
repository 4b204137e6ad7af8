//! Does what the engine says: moves bytes between the guest's rings and sockets. Everything is non-blocking; all
//! sockets sit in one private epoll instance, which is the only thing the event thread watches for us.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use super::connection::Key;
use super::engine::{Action, Engine, MAX_CONNECTIONS, Outgoing};
use super::wire::{HEADER_BYTES, Header};
use crate::devices::virtio::queue::CHAINS_PER_TURN;
use crate::devices::virtio::{
    ActivateError, Activation, Chain, GuestFault, Interrupt, Progress, VirtQueue, VirtioDevice, device_id,
    read_space,
};
use crate::doorbell::Doorbell;

const QUEUE_SIZE: u16 = 128;
const RX: u16 = 0;
const TX: u16 = 1;
/// Socket events taken at once.
const BATCH: usize = 64;

const TOKEN_DIALS: u32 = 0;
const TOKEN_SOCKETS: u32 = 1;

/// How a call from the host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// The guest took it.
    Connected,
    /// Nothing in the guest listens there.
    Refused,
    /// There are as many streams as one guest may have.
    TooManyStreams,
}

/// Where streams go that the guest opens, and the answers to calls from the host. Waits for nothing the
/// guest does.
pub trait Gateway: Send {
    /// The guest opened a stream to `port`; `socket` is the host's end.
    ///
    /// # Errors
    /// The stream cannot be taken; the guest is refused.
    fn accepted(&self, port: u32, socket: OwnedFd) -> std::io::Result<()>;

    /// Call `id` of [`HostDials::dial`] has ended.
    fn dialled(&self, id: u64, outcome: ConnectOutcome);
}

/// Calls guest ports, from any thread.
#[derive(Debug, Clone)]
pub struct HostDials {
    waiting: Arc<Mutex<VecDeque<Dial>>>,
    bell: Doorbell,
}

#[derive(Debug)]
struct Dial {
    id: u64,
    port: u32,
    socket: OwnedFd,
}

impl HostDials {
    /// Calls guest port `port`; `socket` (a stream socket, made non-blocking here) is the VMM's end of the stream.
    /// The gateway is told how it went, by `id`.
    pub fn dial(&self, id: u64, port: u32, socket: OwnedFd) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Dial { id, port, socket });
        self.bell.ring();
    }

    fn take(&self) -> Option<Dial> {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// The socket device.
pub struct VsockDevice {
    guest_cid: u64,
    engine: Engine,
    sockets: HashMap<Key, Socket>,
    poll: OwnedFd,
    dials: HostDials,
    gateway: Box<dyn Gateway>,
    running: Option<Running>,
}

struct Socket {
    fd: OwnedFd,
    /// The host's call that is not answered yet.
    call: Option<u64>,
}

struct Running {
    rx: VirtQueue,
    tx: VirtQueue,
    // Held so that it stays valid; we have no events to report.
    _event: Option<VirtQueue>,
    bells: Vec<Doorbell>,
    interrupt: Interrupt,
}

impl VsockDevice {
    /// A device for guest address `guest_cid`, which may dial `ports` of the host.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(guest_cid: u32, ports: Vec<u32>, gateway: Box<dyn Gateway>) -> std::io::Result<Self> {
        let guest_cid = u64::from(guest_cid);
        Ok(Self {
            guest_cid,
            engine: Engine::new(guest_cid, ports),
            sockets: HashMap::new(),
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            dials: HostDials {
                waiting: Arc::default(),
                bell: Doorbell::new()?,
            },
            gateway,
            running: None,
        })
    }

    /// The handle for calls from the host.
    pub fn dials(&self) -> HostDials {
        self.dials.clone()
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Open(key) => {
                    if let Err(error) = self.open(key) {
                        tracing::warn!(%error, port = key.host_port, "cannot take a stream of the guest");
                        self.sockets.remove(&key);
                        self.engine.refuse(key);
                    }
                }
                Action::Connected(key) => self.connected(key),
                Action::Refused(key) => self.close(key, ConnectOutcome::Refused),
                Action::Close(key) => self.close(key, ConnectOutcome::Refused),
                Action::EndOfInput(key) => self.shutdown(key, Shutdown::Write),
                Action::EndOfOutput(key) => self.shutdown(key, Shutdown::Read),
                // Needs the packet: see `transmit`.
                Action::Data(..) => {}
            }
        }
    }

    fn open(&mut self, key: Key) -> std::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        self.watch(key, &ours)?;
        self.gateway.accepted(key.host_port, theirs)?;
        self.sockets.insert(key, Socket { fd: ours, call: None });
        Ok(())
    }

    /// Edge-triggered: the engine remembers what is ready, so a full ring causes no busy loop.
    fn watch(&self, key: Key, socket: &OwnedFd) -> std::io::Result<()> {
        use epoll::EventFlags;
        let data = epoll::EventData::new_u64((u64::from(key.host_port) << 32) | u64::from(key.guest_port));
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.poll, socket, data, flags)?)
    }

    fn connected(&mut self, key: Key) {
        if let Some(call) = self.sockets.get_mut(&key).and_then(|socket| socket.call.take()) {
            self.gateway.dialled(call, ConnectOutcome::Connected);
        }
    }

    fn close(&mut self, key: Key, outcome: ConnectOutcome) {
        if let Some(Socket { call: Some(call), .. }) = self.sockets.remove(&key) {
            self.gateway.dialled(call, outcome);
        }
    }

    fn shutdown(&self, key: Key, how: Shutdown) {
        if let Some(socket) = self.sockets.get(&key) {
            // Fails only when the other end is gone, which its own event tells.
            let _ = rustix::net::shutdown(&socket.fd, how);
        }
    }

    /// Takes the host's calls.
    fn take_dials(&mut self) {
        self.dials.bell.drain();
        while let Some(Dial { id, port, socket }) = self.dials.take() {
            if self.running.is_none() {
                self.gateway.dialled(id, ConnectOutcome::Refused);
                continue;
            }
            let mut actions = Vec::new();
            let key = self.engine.dial(port, &mut actions);
            self.act(actions);
            let Some(key) = key else {
                self.gateway.dialled(id, ConnectOutcome::TooManyStreams);
                continue;
            };
            let ready = rustix::io::ioctl_fionbio(&socket, true).map_err(Into::into);
            if let Err(error) = ready.and_then(|()| self.watch(key, &socket)) {
                tracing::warn!(%error, "cannot watch a stream of the host");
                self.engine.refuse(key);
                self.gateway.dialled(id, ConnectOutcome::Refused);
                continue;
            }
            self.sockets.insert(
                key,
                Socket {
                    fd: socket,
                    call: Some(id),
                },
            );
        }
    }

    /// Takes what happened to the sockets.
    fn take_socket_events(&mut self) {
        use epoll::EventFlags;
        let mut events = Vec::with_capacity(BATCH);
        let no_wait = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if epoll::wait(
            &self.poll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&no_wait),
        )
        .is_err()
        {
            return;
        }
        for event in events {
            let data = event.data.u64();
            let key = Key {
                host_port: (data >> 32) as u32,
                guest_port: (data & 0xffff_ffff) as u32,
            };
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                self.flush(key);
            }
            let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            if hung_up || flags.intersects(EventFlags::IN | EventFlags::RDHUP) {
                let actions = self.engine.readable(key, hung_up);
                self.act(actions);
            }
        }
    }

    /// Writes what waits for the host, as far as it takes it.
    fn flush(&mut self, key: Key) {
        loop {
            let Some(socket) = self.sockets.get(&key) else {
                return;
            };
            let waiting = self.engine.waiting(key);
            if waiting.is_empty() {
                return;
            }
            let actions = match rustix::io::retry_on_intr(|| rustix::io::write(&socket.fd, waiting)) {
                Ok(len) => self.engine.flushed(key, len),
                Err(Errno::AGAIN) => return,
                Err(_) => self.engine.deaf(key),
            };
            self.act(actions);
        }
    }

    /// Takes one packet of the guest.
    fn transmit(&mut self, chain: &mut Chain) -> Result<(), GuestFault> {
        let header = Header::parse(&chain.reader.read_array::<HEADER_BYTES>()?);
        let actions = self.engine.packet(&header, chain.reader.remaining());
        for action in actions {
            match action {
                Action::Data(key, len) => self.deliver(key, chain, len)?,
                other => self.act(vec![other]),
            }
        }
        Ok(())
    }

    /// Passes a packet's payload on: straight from guest memory if the host is quick, else it waits.
    fn deliver(&mut self, key: Key, chain: &mut Chain, len: usize) -> Result<(), GuestFault> {
        let mut left = len;
        if self.engine.waiting(key).is_empty()
            && let Some(socket) = self.sockets.get(&key)
        {
            match chain.reader.write_to(socket.fd.as_fd(), None, len) {
                Ok(sent) => {
                    left -= sent;
                    self.engine.delivered(key, sent);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.engine.delivered(key, len);
                    let actions = self.engine.deaf(key);
                    self.act(actions);
                    return Ok(());
                }
            }
        }
        if left > 0 {
            // At most the window, which the engine has checked.
            let mut bytes = vec![0; left];
            chain.reader.read(&mut bytes)?;
            let actions = self.engine.keep(key, &bytes);
            self.act(actions);
        }
        Ok(())
    }

    /// Fills the guest's buffers with what is due.
    fn receive(&mut self) -> Result<(), GuestFault> {
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        let result = self.fill(&mut running);
        self.running = Some(running);
        result
    }

    fn fill(&mut self, running: &mut Running) -> Result<(), GuestFault> {
        let mut filled = 0usize;
        while self.engine.has_outgoing() {
            if filled >= CHAINS_PER_TURN {
                if let Some(bell) = running.bells.get(usize::from(RX)) {
                    bell.ring();
                }
                break;
            }
            let Some(mut chain) = running.rx.pop()? else {
                if running.rx.arm()? {
                    continue;
                }
                break;
            };
            match self.fill_one(&mut chain)? {
                Some(written) => {
                    running.rx.push(chain.head(), written)?;
                    filled += 1;
                }
                None => {
                    running.rx.undo_pop();
                    break;
                }
            }
        }
        if filled > 0 {
            running.interrupt.used(&mut running.rx)?;
        }
        Ok(())
    }

    /// Puts one packet into `chain`; `None` if nothing is due after all.
    fn fill_one(&mut self, chain: &mut Chain) -> Result<Option<u32>, GuestFault> {
        let mut payload = chain.writer.split_off(HEADER_BYTES)?;
        loop {
            match self.engine.next() {
                None => return Ok(None),
                Some(Outgoing::Control(header)) => {
                    chain.writer.write(&header.to_bytes())?;
                    return Ok(Some(HEADER_BYTES as u32));
                }
                Some(Outgoing::Data(key, credit)) => {
                    let Some(socket) = self.sockets.get(&key) else {
                        self.engine.drained(key, true);
                        continue;
                    };
                    if payload.remaining() == 0 {
                        return Err(GuestFault::ShortRequest {
                            have: HEADER_BYTES,
                            need: HEADER_BYTES + 1,
                        });
                    }
                    match payload.read_from(socket.fd.as_fd(), None, credit) {
                        Ok(0) => self.engine.drained(key, true),
                        Ok(len) => {
                            let Some(header) = self.engine.sent(key, len) else {
                                continue;
                            };
                            chain.writer.write(&header.to_bytes())?;
                            return Ok(Some(HEADER_BYTES as u32 + header.len));
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            self.engine.drained(key, false);
                        }
                        Err(_) => self.engine.drained(key, true),
                    }
                }
            }
        }
    }
}

impl VirtioDevice for VsockDevice {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_id(&self) -> u32 {
        device_id::VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues.into_iter();
        let rx = queues.next().flatten().ok_or(ActivateError::MissingQueue(RX))?;
        let tx = queues.next().flatten().ok_or(ActivateError::MissingQueue(TX))?;
        let event = queues.next().flatten();
        let (bells, interrupt) = (activation.doorbells, activation.interrupt);
        self.running = Some(Running {
            rx,
            tx,
            _event: event,
            bells,
            interrupt,
        });
        Ok(())
    }

    fn notify(&mut self, queue: u16) -> Result<Progress, GuestFault> {
        let mut progress = Progress::Idle;
        if queue == TX {
            let Some(mut running) = self.running.take() else {
                return Ok(Progress::Idle);
            };
            let result = running.tx.serve(&running.interrupt, |chain| {
                self.transmit(chain)?;
                Ok(0)
            });
            self.running = Some(running);
            progress = result?;
        }
        // What the guest sent may call for answers, and new buffers may take what waits.
        self.receive()?;
        Ok(progress)
    }

    fn reset(&mut self) {
        self.running = None;
        self.engine.clear();
        for (_, socket) in self.sockets.drain() {
            if let Some(call) = socket.call {
                self.gateway.dialled(call, ConnectOutcome::Refused);
            }
        }
    }

    fn host_sources(&self) -> Vec<(BorrowedFd<'_>, u32)> {
        vec![
            (self.dials.bell.as_fd(), TOKEN_DIALS),
            (self.poll.as_fd(), TOKEN_SOCKETS),
        ]
    }

    fn host_event(&mut self, token: u32) -> Result<(), GuestFault> {
        match token {
            TOKEN_DIALS => self.take_dials(),
            _ => self.take_socket_events(),
        }
        self.receive()
    }
}

// Each stream is a descriptor, so the limit of the engine is one of this file.
const _: () = assert!(MAX_CONNECTIONS <= 4096);

#[cfg(test)]
mod tests;
