//! The device behind its registers, with real sockets: a guest that behaves, and one that does not.

use proptest::prelude::*;
use rustix::net::{RecvFlags, recv};

use super::*;
use crate::devices::virtio::testing::Driver;
use crate::devices::vsock::engine::tests::from_guest;
use crate::devices::vsock::wire::{
    OP_CREDIT_UPDATE, OP_DATA, OP_REQUEST, OP_RESET, OP_RESPONSE, OP_SHUTDOWN, TYPE_STREAM,
};

const GUEST: u32 = 3;
const PORT: u32 = 1024;
/// Room for a header and some data.
const BUFFER: usize = HEADER_BYTES + 256;

/// What came out of the device.
#[derive(Clone, Default)]
struct Host {
    streams: Arc<Mutex<Vec<OwnedFd>>>,
    calls: Arc<Mutex<Vec<(u64, ConnectOutcome)>>>,
}

impl Gateway for Host {
    fn accepted(&self, port: u32, socket: OwnedFd) -> std::io::Result<()> {
        assert_eq!(port, PORT);
        self.streams.lock().unwrap().push(socket);
        Ok(())
    }

    fn dialled(&self, id: u64, outcome: ConnectOutcome) {
        self.calls.lock().unwrap().push((id, outcome));
    }
}

fn device() -> (Driver, Host, HostDials) {
    let host = Host::default();
    let device = VsockDevice::new(GUEST, vec![PORT], Box::new(host.clone())).unwrap();
    let dials = device.dials();
    (Driver::start(Box::new(device)), host, dials)
}

fn send(driver: &mut Driver, header: Header, data: &[u8]) {
    driver
        .request(usize::from(TX), &[&header.to_bytes(), data], &[])
        .expect("the packet comes back");
}

/// Gives the device a buffer and returns the packet it puts there.
fn receive(driver: &mut Driver) -> Option<(Header, Vec<u8>)> {
    let packet = driver.request(usize::from(RX), &[], &[BUFFER])?;
    let (header, data) = packet.split_first_chunk().unwrap();
    let header = Header::parse(header);
    Some((header, data[..header.len as usize].to_vec()))
}

fn events(driver: &mut Driver) {
    driver.transport.host_event(TOKEN_DIALS);
    driver.transport.host_event(TOKEN_SOCKETS);
}

/// What a socket of the host gives now; `None` if nothing, empty at the end.
fn read(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    match recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
        Ok((len, _)) => Some(bytes[..len].to_vec()),
        Err(Errno::AGAIN) => None,
        // Closed with something of ours unread.
        Err(Errno::CONNRESET) => Some(Vec::new()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_stream_of_the_guest_carries_bytes_both_ways_until_both_have_finished() {
    let (mut driver, host, _) = device();
    send(&mut driver, from_guest(OP_REQUEST, 9, 0), &[]);
    let (answer, _) = receive(&mut driver).unwrap();
    assert_eq!((answer.op, answer.dst_port), (OP_RESPONSE, 9));
    let socket = host.streams.lock().unwrap().remove(0);

    send(&mut driver, from_guest(OP_DATA, 9, 5), b"hello");
    assert_eq!(read(&socket).unwrap(), b"hello");
    rustix::io::write(&socket, b"world").unwrap();
    events(&mut driver);
    let (answer, data) = receive(&mut driver).unwrap();
    assert_eq!((answer.op, data.as_slice()), (OP_DATA, b"world".as_slice()));

    let finished = Header {
        flags: 3,
        ..from_guest(OP_SHUTDOWN, 9, 0)
    };
    send(&mut driver, finished, &[]);
    assert_eq!(receive(&mut driver).unwrap().0.op, OP_RESET);
    assert_eq!(read(&socket).unwrap(), b"");
}

#[test]
fn a_call_of_the_host_is_told_how_it_went() {
    let (mut driver, host, dials) = device();
    let call = |id| {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        dials.dial(id, 1025, theirs);
        ours
    };
    let (_taken, _refused) = (call(1), call(2));
    events(&mut driver);
    for op in [OP_RESPONSE, OP_RESET] {
        let (asked, _) = receive(&mut driver).unwrap();
        assert_eq!((asked.op, asked.dst_port), (OP_REQUEST, 1025));
        let answer = Header {
            src_port: 1025,
            dst_port: asked.src_port,
            ..from_guest(op, 0, 0)
        };
        send(&mut driver, answer, &[]);
    }
    let told = host.calls.lock().unwrap().clone();
    assert_eq!(
        told,
        [(1, ConnectOutcome::Connected), (2, ConnectOutcome::Refused)]
    );
    let waiting = call(3);
    events(&mut driver);
    driver.restart();
    assert_eq!(
        host.calls.lock().unwrap().last(),
        Some(&(3, ConnectOutcome::Refused))
    );
    assert_eq!(read(&waiting).unwrap(), b"");
}

#[derive(Debug, Clone)]
enum Step {
    /// A packet of this operation to one of few streams, with data that may not be what it says.
    Packet {
        header: Header,
        data: usize,
    },
    /// Room for a packet.
    Buffer(usize),
    HostWrites(usize),
    HostReads(usize),
    HostCloses(usize),
    Call(u32),
    Events,
}

fn packet() -> impl Strategy<Value = Step> {
    let op = prop_oneof![Just(OP_REQUEST), Just(OP_DATA), Just(OP_CREDIT_UPDATE), 0u16..9];
    let len = prop_oneof![0u32..300, any::<u32>()];
    let window = prop_oneof![Just(1u32 << 16), 0u32..8, any::<u32>()];
    let counter = prop_oneof![0u32..8, any::<u32>()];
    (op, 9u32..12, 0u32..8, len, window, counter, 0usize..300, 0u32..16).prop_map(
        |(op, port, flags, len, buf_alloc, fwd_cnt, data, odd)| Step::Packet {
            header: Header {
                flags,
                buf_alloc,
                fwd_cnt,
                dst_port: if odd == 1 { 1 << 16 } else { PORT },
                kind: if odd == 2 { 2 } else { TYPE_STREAM },
                ..from_guest(op, port, if odd < 8 { data as u32 } else { len })
            },
            data,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => packet(),
        3 => (HEADER_BYTES + 1..BUFFER).prop_map(Step::Buffer),
        1 => any::<usize>().prop_map(Step::HostWrites),
        1 => any::<usize>().prop_map(Step::HostReads),
        1 => any::<usize>().prop_map(Step::HostCloses),
        1 => (9u32..12).prop_map(Step::Call),
        2 => Just(Step::Events),
    ]
}

proptest! {
    #[test]
    fn nothing_a_guest_sends_breaks_the_device_or_keeps_a_stream_over_a_reset(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let (mut driver, host, dials) = device();
        let mut calls = Vec::new();
        for step in steps {
            let mut streams = host.streams.lock().unwrap();
            let count = streams.len().max(1);
            match step {
                Step::HostWrites(at) => {
                    if let Some(socket) = streams.get(at % count) {
                        // Fails where the guest is gone.
                        let _ = rustix::net::send(socket, b"some bytes", rustix::net::SendFlags::NOSIGNAL);
                    }
                }
                Step::HostReads(at) => drop(streams.get(at % count).map(read)),
                Step::HostCloses(at) => drop((at % count < streams.len()).then(|| streams.remove(at % count))),
                _ => drop(streams),
            }
            match step {
                Step::Packet { header, data } => send(&mut driver, header, &vec![7; data]),
                Step::Buffer(len) => drop(driver.request(usize::from(RX), &[], &[len])),
                Step::Call(port) => {
                    let pair = rustix::net::socketpair(
                        AddressFamily::UNIX,
                        SocketType::STREAM,
                        SocketFlags::CLOEXEC,
                        None,
                    );
                    let (ours, theirs) = pair.unwrap();
                    dials.dial(calls.len() as u64, port, theirs);
                    calls.push(ours);
                }
                Step::Events => events(&mut driver),
                _ => {}
            }
            prop_assert!(!driver.needs_reset());
        }
        events(&mut driver);
        driver.restart();
        prop_assert_eq!(host.calls.lock().unwrap().len(), calls.len(), "each call is answered once");
        calls.extend(host.streams.lock().unwrap().drain(..));
        for socket in &calls {
            // What had arrived before, and then the end.
            while !read(socket).expect("the device has let go").is_empty() {}
        }
    }
}
