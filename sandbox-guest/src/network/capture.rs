//! Connections of programs that know no proxy: each to a synthetic address is asked for at the egress proxy, with
//! `CONNECT` to that very address and port. The host knows which name it stands for.
//!
//! The program's first segment waits for the answer ([`Door`]): a connection stands if the host has it, and is refused if
//! not.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use sandbox_protocol::{EGRESS_PORT, SYNTHETIC_V4, SYNTHETIC_V6};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, OnceCell, Semaphore, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::{
    door::Door,
    relay, route,
    steer::Steering,
    syn::{Flow, Syn},
};
use crate::{Guest, diagnostics, diagnostics::Failed, transport::Stream};

/// The longest head of an answer. The proxy's are a few hundred bytes; a refusal's document is not read.
const MAX_HEAD: usize = 16 << 10;

/// Fields of such a head: more than the proxy has.
const MAX_FIELDS: usize = 32;

/// A program's first wait before it repeats itself (RFC 6298 §2.1).
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// How long a program is taken to wait that was heard once: what was heard need not be the first that it said, so that the
/// next may take long.
const FIRST_PATIENCE: Duration = Duration::from_secs(40);

/// The longest that one is waited for whom nothing more is heard of.
const MAX_PATIENCE: Duration = Duration::from_secs(120);

/// For a program's kernel to finish a connection that was let in: it is the same kernel. One whose program has gone away
/// holds a place so long.
const STANDING_TIME: Duration = Duration::from_secs(2);

/// New connections in [`PACE_TIME`]; whoever comes after them repeats itself. A program that connects without end leaves
/// the agent time for the others.
const PACE: u32 = 64;
const PACE_TIME: Duration = Duration::from_millis(100);

/// The host's answer that it cannot now (RFC 9110 §15.6.4).
const BUSY: u16 = 503;

/// What takes connections to synthetic addresses, once somebody asks for a name.
pub(super) struct Capture {
    guest: Rc<Guest>,
    most: usize,
    started: OnceCell<bool>,
}

impl Capture {
    /// Will take so many connections at once.
    pub(super) fn new(guest: &Rc<Guest>, most: usize) -> Rc<Self> {
        Rc::new(Self {
            guest: Rc::clone(guest),
            most,
            started: OnceCell::new(),
        })
    }

    /// Starts it, unless it has started: the guests of interpreted hosts would pay for it with a part of their boot.
    /// Whether it runs. Where it cannot, names would only make programs wait for what they cannot reach.
    pub(super) async fn is_started(&self) -> bool {
        let start = async {
            let started = start(&self.guest, self.most).await;
            if let Err(error) = &started {
                diagnostics::say(&format!(
                    "programs that use no proxy stay without network: {error}"
                ));
            }
            started.is_ok()
        };
        *self.started.get_or_init(|| start).await
    }
}

/// Makes synthetic addresses the guest's own, and starts taking connections to them.
async fn start(guest: &Rc<Guest>, most: usize) -> Result<(), Failed> {
    let mut steering = Steering::new()?;
    let mut doors = Vec::new();
    for v6 in [false, true] {
        let (network, prefix) = if v6 {
            (IpAddr::V6(SYNTHETIC_V6.0), SYNTHETIC_V6.1)
        } else {
            (IpAddr::V4(SYNTHETIC_V4.0), SYNTHETIC_V4.1)
        };
        match route::add_local(network, prefix).and_then(|()| Door::open(v6)) {
            Ok(door) => {
                steering.add(door.listener(), v6)?;
                doors.push(door);
            }
            // A kernel without IPv6 has no such addresses, and needs none.
            Err(_) if v6 && !super::has_v6() => {}
            Err(error) => return Err(error),
        }
    }
    steering.begin()?;
    leave_echo_requests_unanswered();
    let slots = Arc::new(Semaphore::new(most));
    for door in doors {
        let entrance = Rc::new(Entrance {
            guest: Rc::clone(guest),
            door,
            slots: Arc::clone(&slots),
            waiting: RefCell::default(),
        });
        tokio::task::spawn_local(Rc::clone(&entrance).ask_for_arrivals());
        tokio::task::spawn_local(entrance.hand_out_connections());
    }
    Ok(())
}

/// An answer to an echo request for a synthetic address would be ours, and be taken for one of the host with that name.
/// Loopback's own addresses do not answer either: the setting knows no difference.
fn leave_echo_requests_unanswered() {
    for setting in ["ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"] {
        // Only a wish: a kernel without IPv6 has no such setting.
        let _ = std::fs::write(format!("/proc/sys/net/{setting}"), b"1");
    }
}

/// What arrives for one family, and who waits there.
struct Entrance {
    guest: Rc<Guest>,
    door: Door,
    /// Places of connections, from their first segment to their end.
    slots: Arc<Semaphore>,
    /// Those whose connection does not stand yet.
    waiting: RefCell<HashMap<Flow, Waiting>>,
}

/// A program that waits for its connection.
struct Waiting {
    heard: Rc<Heard>,
    connection: oneshot::Sender<TcpStream>,
}

impl Entrance {
    async fn ask_for_arrivals(self: Rc<Self>) {
        let mut pace = Pace::default();
        loop {
            let syn = self.door.arrival().await;
            if let Some(waiting) = self.waiting.borrow().get(&syn.flow()) {
                if waiting.heard.again(syn) {
                    // It has not got through, or is of another program with the same ends.
                    let _ = self.door.let_in(&waiting.heard.latest.borrow());
                }
                continue;
            }
            // Where there is no place the program waits: it will repeat itself.
            if !pace.allows() {
                continue;
            }
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                continue;
            };
            let (connection, stands) = oneshot::channel();
            let flow = syn.flow();
            let heard = Rc::new(Heard::first(syn));
            let waiting = Waiting {
                heard: Rc::clone(&heard),
                connection,
            };
            self.waiting.borrow_mut().insert(flow, waiting);
            let entrance = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                // Either end's error has already reached the other as a refusal, a reset or an end.
                let _ = entrance.serve(flow, &heard, stands).await;
                drop(slot);
            });
        }
    }

    async fn hand_out_connections(self: Rc<Self>) {
        loop {
            match self.door.accept().await {
                Ok((connection, from)) => {
                    let waiting = connection
                        .local_addr()
                        .ok()
                        .and_then(|to| self.waiting.borrow_mut().remove(&Flow::new(from, to)));
                    let unclaimed = match waiting {
                        Some(waiting) => waiting.connection.send(connection).err(),
                        None => Some(connection),
                    };
                    if let Some(connection) = unclaimed {
                        // The program sees a reset, not an orderly end.
                        let _ = connection.set_zero_linger();
                    }
                }
                Err(_) => {
                    // Out of descriptors, or the client is gone. Give others time to finish.
                    tokio::time::sleep(crate::exec::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Sees one connection through, from its first segment to its end.
    async fn serve(&self, flow: Flow, heard: &Heard, stands: oneshot::Receiver<TcpStream>) -> io::Result<()> {
        let granted = self.grant(flow, heard, stands).await;
        // Unless it stands, in which case whoever has these ends now is another.
        if granted.is_err() {
            self.waiting.borrow_mut().remove(&flow);
        }
        let (mut connection, stream, early) = granted?;
        connection.write_all(&early).await?;
        relay::carry(connection, stream).await
    }

    async fn grant(
        &self,
        flow: Flow,
        heard: &Heard,
        stands: oneshot::Receiver<TcpStream>,
    ) -> io::Result<(TcpStream, Stream, Vec<u8>)> {
        let asked = tokio::select! {
            asked = ask(&self.guest, flow.to()) => asked,
            () = heard.no_more() => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        let (stream, early) = match asked {
            Ok(answer) => answer,
            Err(error) => {
                // Whatever is no answer passes, as being busy does: a program that waits will repeat itself.
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    self.door.refuse(&heard.latest.borrow())?;
                }
                return Err(error);
            }
        };
        heard.is_let_in.set(true);
        self.door.let_in(&heard.latest.borrow())?;
        match timeout(STANDING_TIME, stands).await {
            Ok(Ok(connection)) => Ok((connection, stream, early)),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// What was heard of a program that waits for its connection. One that still waits repeats itself, after up to twice as
/// long each time (RFC 6298 §5.5); nothing else tells it from one that has gone away, for which no question is to be kept.
struct Heard {
    /// The last first segment: another program may have come by the ends of one that has gone away.
    latest: RefCell<Syn>,
    at: Cell<Instant>,
    patience: Cell<Duration>,
    once_more: Notify,
    is_let_in: Cell<bool>,
}

impl Heard {
    fn first(syn: Syn) -> Self {
        Self {
            latest: RefCell::new(syn),
            at: Cell::new(Instant::now()),
            patience: Cell::new(FIRST_PATIENCE),
            once_more: Notify::new(),
            is_let_in: Cell::new(false),
        }
    }

    /// Notes that it was heard once more, and gives whether it may come in already.
    fn again(&self, syn: Syn) -> bool {
        let now = Instant::now();
        let wait = FIRST_WAIT.max(now - self.at.replace(now));
        self.patience.set(MAX_PATIENCE.min(wait * 3));
        self.latest.replace(syn);
        self.once_more.notify_one();
        self.is_let_in.get()
    }

    /// Ends when it has been silent for longer than one that waits would be.
    async fn no_more(&self) {
        loop {
            let silent = self.at.get() + self.patience.get();
            tokio::select! {
                () = sleep_until(silent) => return,
                () = self.once_more.notified() => {}
            }
        }
    }
}

/// How many came lately.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    came: u32,
}

impl Pace {
    fn allows(&mut self) -> bool {
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since >= PACE_TIME) {
            *self = Self {
                since: Some(now),
                came: 0,
            };
        }
        self.came = self.came.saturating_add(1);
        self.came <= PACE
    }
}

/// A stream on which the host has connected to what the address stands for, and what already came from there. That the host
/// says no is `ConnectionRefused`, and nothing else is.
async fn ask(guest: &Guest, meant: SocketAddr) -> io::Result<(Stream, Vec<u8>)> {
    // Its own refusal is none of the host's about the target.
    let connected = guest.transport.connect(EGRESS_PORT).await;
    let mut stream = connected.map_err(|_| io::ErrorKind::NotConnected)?;
    let request = format!("CONNECT {meant} HTTP/1.1\r\nHost: {meant}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if let Some((status, end)) = parse_head(&answer)? {
            return match status {
                200 => Ok((stream, answer.split_off(end))),
                BUSY => Err(io::ErrorKind::ResourceBusy.into()),
                _ => Err(io::ErrorKind::ConnectionRefused.into()),
            };
        }
        if answer.len() >= MAX_HEAD {
            return Err(io::Error::other("the proxy's answer has no end"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The status of a whole head and where the tunnel begins; nothing while there is more to come.
fn parse_head(answer: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(answer).map_err(io::Error::other)?;
    Ok(match parsed {
        httparse::Status::Complete(end) => Some((response.code.unwrap_or_default(), end)),
        httparse::Status::Partial => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn() -> Syn {
        let packet = etherparse::PacketBuilder::ipv4([127, 0, 0, 1], [198, 18, 0, 1], 64);
        let mut bytes = Vec::new();
        packet.tcp(1, 2, 3, 4).syn().write(&mut bytes, &[]).unwrap();
        Syn::parse(&bytes).unwrap()
    }

    /// How long one is waited for that repeats itself after each of these seconds, and then no more.
    async fn waited_for(waits: &[u64]) -> u64 {
        let (heard, begun) = (Heard::first(syn()), Instant::now());
        let repeat = async {
            for wait in waits {
                tokio::time::sleep(Duration::from_secs(*wait)).await;
                heard.again(syn());
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = heard.no_more() => {}
            () = repeat => {}
        }
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn who_repeats_itself_as_those_who_wait_do_is_heard_until_it_stops() {
        assert_eq!(waited_for(&[1, 1, 2, 4, 8, 16]).await, 32 + 48);
        assert_eq!(waited_for(&[1]).await, 1 + 3);
        // Heard late, so that it is silent for longer than those who have just begun.
        assert_eq!(waited_for(&[8, 16, 32]).await, 56 + 96);
        assert_eq!(waited_for(&[]).await, 40);
        // Nobody draws it out.
        assert_eq!(waited_for(&[39, 110]).await, 39 + 110 + 120);
    }

    #[tokio::test(start_paused = true)]
    async fn pace_holds_over_time() {
        let mut pace = Pace::default();
        for _ in 0..3 {
            assert_eq!((0..1000).filter(|_| pace.allows()).count(), PACE as usize);
            tokio::time::sleep(PACE_TIME).await;
        }
    }

    #[test]
    fn what_was_said_last_is_what_is_let_in() {
        let heard = Heard::first(syn());
        assert!(!heard.again(syn()), "nothing is decided");
        heard.is_let_in.set(true);
        assert!(heard.again(syn()));
    }

    #[test]
    fn what_follows_the_head_is_of_the_tunnel() {
        let answer = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nSSH-2.0-x\r\n\r\n";
        let (status, end) = parse_head(answer).unwrap().unwrap();
        assert_eq!((status, &answer[end..]), (200, &b"SSH-2.0-x\r\n\r\n"[..]));
        assert_eq!(parse_head(b"HTTP/1.1 403 Forbidden\r\nA: b\r\n\r").unwrap(), None);
        assert!(parse_head(b"SSH-2.0-x\r\n").is_err());
    }
}
