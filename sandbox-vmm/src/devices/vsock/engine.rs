//! All streams of one guest as a pure state machine: packets and socket events in, actions and packets out. No
//! socket, no clock, no ring.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::connection::{Connection, Due, Key, Phase};
use super::wire::{
    HOST_CID, Header, NO_RECEIVE, NO_SEND, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_DATA, OP_REQUEST,
    OP_RESET, OP_RESPONSE, OP_SHUTDOWN, TYPE_STREAM,
};

/// Streams at once, so descriptors of this process.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Of these, streams that the guest dialled: any program in it may dial, and the host must still reach its agent.
const MAX_OF_GUEST: usize = MAX_CONNECTIONS * 3 / 4;
/// Resets waiting for room in the guest's ring. A guest that floods us with nonsense loses some answers; one that
/// behaves never has more streams than this to be reset.
const MAX_RESETS: usize = MAX_CONNECTIONS;
/// Bytes of all streams waiting for slow hosts: what a hostile guest can make this process hold.
const MAX_WAITING: usize = 32 << 20;
/// First port of our own for dialling; below are the well-known ones.
const FIRST_PORT: u32 = 1 << 16;

/// What the shell has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// The guest dialled: give the stream a socket, or call [`Engine::refuse`].
    Open(Key),
    /// The guest answered our call: start watching the socket.
    Connected(Key),
    /// The guest did not take our call. The stream is gone.
    Refused(Key),
    /// The packet's payload is for this stream: write it, or keep it with [`Engine::keep`].
    Data(Key, usize),
    /// Everything is written: shut the socket's writing side.
    EndOfInput(Key),
    /// The guest receives nothing more: shut the socket's reading side.
    EndOfOutput(Key),
    /// The stream is gone: close the socket.
    Close(Key),
}

/// What to put into the guest's next buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// This packet.
    Control(Header),
    /// Up to this many bytes from this stream's socket; report with [`Engine::sent`] or [`Engine::drained`].
    Data(Key, usize),
}

/// All streams.
#[derive(Debug)]
pub(super) struct Engine {
    guest_cid: u64,
    ports: Vec<u32>,
    connections: HashMap<Key, Connection>,
    ready: VecDeque<Key>,
    resets: VecDeque<Key>,
    waiting: usize,
    next_port: u32,
}

impl Engine {
    /// No streams yet; the guest may dial `ports`.
    pub(super) fn new(guest_cid: u64, ports: Vec<u32>) -> Self {
        Self {
            guest_cid,
            ports,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            waiting: 0,
            next_port: FIRST_PORT,
        }
    }

    /// A packet from the guest, with `available` bytes after the header.
    pub(super) fn packet(&mut self, header: &Header, available: usize) -> Vec<Action> {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            tracing::debug!(
                src = header.src_cid,
                dst = header.dst_cid,
                "dropped a packet of another address"
            );
            return Vec::new();
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if header.kind != TYPE_STREAM || len > available {
            return self.reset(key, header.op);
        }
        if header.op == OP_REQUEST {
            return self.dialled(key, header);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.reset(key, header.op);
        };
        if connection.phase == Phase::Orphan {
            return if header.op == OP_RESET {
                Vec::new()
            } else {
                self.reset(key, header.op)
            };
        }
        connection.credit_from_guest(header.buf_alloc, header.fwd_cnt);
        let actions = match (header.op, connection.phase) {
            (OP_RESPONSE, Phase::Dialling) => {
                connection.phase = Phase::Open;
                connection.readable = true;
                vec![Action::Connected(key)]
            }
            (OP_RESET, _) => return self.reset_by_guest(key),
            (OP_DATA, Phase::Open) => {
                if !connection.receive(header.len) {
                    return self.reset(key, header.op);
                }
                if connection.deaf {
                    connection.consume(len);
                    Vec::new()
                } else {
                    vec![Action::Data(key, len)]
                }
            }
            (OP_SHUTDOWN, Phase::Open) => return self.guest_finished(key, header.flags),
            (OP_CREDIT_UPDATE, Phase::Open) => Vec::new(),
            (OP_CREDIT_REQUEST, Phase::Open) => {
                connection.want_credit_update();
                Vec::new()
            }
            _ => return self.reset(key, header.op),
        };
        self.enqueue(key);
        actions
    }

    /// The host dials guest port `port`; `None` if there are too many streams.
    pub(super) fn dial(&mut self, port: u32, actions: &mut Vec<Action>) -> Option<Key> {
        if !self.make_room(MAX_CONNECTIONS, |_| true, actions) {
            return None;
        }
        // Fewer streams than ports, so one is free.
        for _ in 0..=MAX_CONNECTIONS {
            let key = Key {
                host_port: self.next_port,
                guest_port: port,
            };
            self.next_port = self
                .next_port
                .checked_add(1)
                .filter(|next| *next < u32::MAX)
                .unwrap_or(FIRST_PORT);
            if let Entry::Vacant(free) = self.connections.entry(key) {
                free.insert(Connection::new(Phase::Dialling));
                self.enqueue(key);
                return Some(key);
            }
        }
        None
    }

    /// The host cannot take the stream the guest opened.
    pub(super) fn refuse(&mut self, key: Key) {
        self.forget(key);
        self.send_reset(key);
    }

    /// The host socket became readable; `hung_up` if its other end is closed for both directions.
    pub(super) fn readable(&mut self, key: Key, hung_up: bool) -> Vec<Action> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Vec::new();
        };
        connection.hung_up |= hung_up;
        connection.readable = true;
        if connection.phase == Phase::Dialling && hung_up {
            // The caller gave up before the guest answered.
            self.refuse(key);
            return vec![Action::Close(key)];
        }
        if hung_up && !connection.may_send() {
            self.drained(key, true);
        }
        self.enqueue(key);
        Vec::new()
    }

    /// Reading gave nothing: for now, or for ever (`end`).
    pub(super) fn drained(&mut self, key: Key, end: bool) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        connection.readable = false;
        if end {
            connection.finish(if connection.hung_up {
                NO_SEND | NO_RECEIVE
            } else {
                NO_SEND
            });
        }
        self.enqueue(key);
    }

    /// `len` bytes of the stream's socket are in the guest's buffer: the header to go before them.
    pub(super) fn sent(&mut self, key: Key, len: usize) -> Option<Header> {
        let connection = self.connections.get_mut(&key)?;
        connection.send(len);
        let header = header(self.guest_cid, key, connection, OP_DATA, 0);
        self.enqueue(key);
        Some(Header {
            len: u32::try_from(len).ok()?,
            ..header
        })
    }

    /// The host took `len` bytes straight from a packet.
    pub(super) fn delivered(&mut self, key: Key, len: usize) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.consume(len);
            self.enqueue(key);
        }
    }

    /// The host did not take these bytes yet.
    pub(super) fn keep(&mut self, key: Key, bytes: &[u8]) -> Vec<Action> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Vec::new();
        };
        if self.waiting + bytes.len() > MAX_WAITING {
            tracing::warn!("slow readers hold {} bytes: a stream is reset", self.waiting);
            return self.reset(key, OP_DATA);
        }
        self.waiting += bytes.len();
        connection.waiting.extend(bytes);
        Vec::new()
    }

    /// Bytes waiting for the host, the oldest first; empty if there are none.
    pub(super) fn waiting(&self, key: Key) -> &[u8] {
        self.connections
            .get(&key)
            .map_or(&[], |connection| connection.waiting.as_slices().0)
    }

    /// The host took `len` of the waiting bytes.
    pub(super) fn flushed(&mut self, key: Key, len: usize) -> Vec<Action> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Vec::new();
        };
        let len = len.min(connection.waiting.len());
        connection.waiting.drain(..len);
        if connection.waiting.is_empty() {
            // A thousand idle streams should not keep what one burst needed.
            connection.waiting.shrink_to(0);
        }
        connection.consume(len);
        self.waiting = self.waiting.saturating_sub(len);
        self.after_output(key)
    }

    /// Writing to the host failed for good: its reader is gone.
    pub(super) fn deaf(&mut self, key: Key) -> Vec<Action> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Vec::new();
        };
        connection.deaf = true;
        let dropped = connection.waiting.len();
        connection.waiting = VecDeque::new();
        connection.consume(dropped);
        connection.finish(NO_RECEIVE);
        self.waiting = self.waiting.saturating_sub(dropped);
        self.after_output(key)
    }

    /// Whether [`Engine::next`] may have something.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// What to put into the guest's next buffer. Streams take turns.
    pub(super) fn next(&mut self) -> Option<Outgoing> {
        if let Some(key) = self.resets.pop_front() {
            return Some(Outgoing::Control(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                op: OP_RESET,
                ..Header::default()
            }));
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            if !connection.has_work() {
                continue;
            }
            if let Some(due) = connection.take_due() {
                let (op, flags) = match due {
                    Due::Request => (OP_REQUEST, 0),
                    Due::Response => (OP_RESPONSE, 0),
                    Due::CreditUpdate => (OP_CREDIT_UPDATE, 0),
                    Due::CreditRequest => (OP_CREDIT_REQUEST, 0),
                    Due::Shutdown(flags) => (OP_SHUTDOWN, flags),
                };
                let header = header(self.guest_cid, key, connection, op, flags);
                self.enqueue(key);
                return Some(Outgoing::Control(header));
            }
            if connection.has_data() {
                return Some(Outgoing::Data(
                    key,
                    usize::try_from(connection.credit()).unwrap_or(usize::MAX),
                ));
            }
        }
        None
    }

    /// Drops every stream, as after a reset of the device.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.ready.clear();
        self.resets.clear();
        self.waiting = 0;
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.ready.len()
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.resets.len(), self.waiting)
    }

    fn dialled(&mut self, key: Key, header: &Header) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.connections.get(&key).map(|connection| connection.phase) {
            None => {}
            // The guest has forgotten that one and reuses its port.
            Some(Phase::Orphan) => {
                self.forget(key);
                actions.push(Action::Close(key));
            }
            Some(_) => return self.reset(key, header.op),
        }
        if !self.ports.contains(&key.host_port) || !self.make_room(MAX_OF_GUEST, is_of_guest, &mut actions) {
            self.send_reset(key);
            return actions;
        }
        let mut connection = Connection::new(Phase::Open);
        connection.credit_from_guest(header.buf_alloc, header.fwd_cnt);
        connection.readable = true;
        self.connections.insert(key, connection);
        self.enqueue(key);
        actions.push(Action::Open(key));
        actions
    }

    fn guest_finished(&mut self, key: Key, flags: u32) -> Vec<Action> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Vec::new();
        };
        let new = flags & (NO_RECEIVE | NO_SEND) & !connection.guest_finished;
        connection.guest_finished |= new;
        let mut actions = Vec::new();
        if new & NO_RECEIVE != 0 {
            actions.push(Action::EndOfOutput(key));
        }
        actions.extend(self.after_output(key));
        actions
    }

    /// After the host took data or the guest finished: is it time to pass the end on?
    fn after_output(&mut self, key: Key) -> Vec<Action> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Vec::new();
        };
        if connection.phase == Phase::Orphan {
            if connection.waiting.is_empty() {
                self.forget(key);
                return vec![Action::Close(key)];
            }
            return Vec::new();
        }
        if connection.over() {
            self.forget(key);
            self.send_reset(key);
            return vec![Action::Close(key)];
        }
        let end = connection.take_end_of_input();
        self.enqueue(key);
        if end {
            vec![Action::EndOfInput(key)]
        } else {
            Vec::new()
        }
    }

    /// The guest closed for good. What it sent before still belongs to the host.
    fn reset_by_guest(&mut self, key: Key) -> Vec<Action> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Vec::new();
        };
        if connection.phase == Phase::Dialling {
            self.forget(key);
            return vec![Action::Refused(key)];
        }
        if connection.guest_finished & NO_SEND != 0 && !connection.waiting.is_empty() {
            connection.phase = Phase::Orphan;
            return Vec::new();
        }
        self.forget(key);
        vec![Action::Close(key)]
    }

    /// Answers a packet that makes no sense: the stream it names, if any, is gone.
    fn reset(&mut self, key: Key, op: u16) -> Vec<Action> {
        let known = self.connections.get(&key).map(|connection| connection.phase);
        self.forget(key);
        if op != OP_RESET {
            self.send_reset(key);
        }
        match known {
            Some(Phase::Dialling) => vec![Action::Refused(key)],
            Some(_) => vec![Action::Close(key)],
            None => Vec::new(),
        }
    }

    fn send_reset(&mut self, key: Key) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(key);
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            self.waiting = self.waiting.saturating_sub(connection.waiting.len());
            if connection.queued {
                // Left there, a guest that opens and closes streams without taking our answers would pile them up.
                self.ready.retain(|ready| *ready != key);
            }
        }
    }

    /// Room for one more stream among all, and among `most` of its kind. Those whose host is gone and whose guest was told
    /// make way.
    fn make_room(&mut self, most: usize, kind: fn(&Key) -> bool, actions: &mut Vec<Action>) -> bool {
        let all = self.connections.len();
        // Counted only where it may matter.
        let kind_is_full = all >= most && self.connections.keys().filter(|key| kind(key)).count() >= most;
        if all < MAX_CONNECTIONS && !kind_is_full {
            return true;
        }
        let lingering = self
            .connections
            .iter()
            .find(|(key, connection)| connection.lingers() && (kind(key) || !kind_is_full))
            .map(|(key, _)| *key);
        if let Some(key) = lingering {
            self.refuse(key);
            actions.push(Action::Close(key));
        }
        lingering.is_some()
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.queued
            && connection.has_work()
        {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }
}

fn header(guest_cid: u64, key: Key, connection: &mut Connection, op: u16, flags: u32) -> Header {
    let (buf_alloc, fwd_cnt) = connection.announce();
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: key.host_port,
        dst_port: key.guest_port,
        len: 0,
        kind: TYPE_STREAM,
        op,
        flags,
        buf_alloc,
        fwd_cnt,
    }
}

/// Whether the guest dialled: it knows no port of ours but the well-known ones.
fn is_of_guest(key: &Key) -> bool {
    key.host_port < FIRST_PORT
}

#[cfg(test)]
pub(super) mod tests;
