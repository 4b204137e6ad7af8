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
    sync::{OnceCell, Semaphore, oneshot},
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

/// For a program's kernel to finish a connection that was let in: it is the same kernel.
const STANDING_TIME: Duration = Duration::from_secs(5);

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
            Err(_) if v6 => {}
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
        loop {
            let syn = self.door.arrival().await;
            if let Some(waiting) = self.waiting.borrow().get(&syn.flow()) {
                waiting.heard.again();
                continue;
            }
            // Where there is no place the program waits: it will repeat itself.
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                continue;
            };
            let heard = Rc::new(Heard::now());
            let (connection, stands) = oneshot::channel();
            let waiting = Waiting {
                heard: Rc::clone(&heard),
                connection,
            };
            self.waiting.borrow_mut().insert(syn.flow(), waiting);
            let entrance = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                // Either end's error has already reached the other as a refusal, a reset or an end.
                let _ = entrance.serve(&syn, &heard, stands).await;
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
    async fn serve(&self, syn: &Syn, heard: &Heard, stands: oneshot::Receiver<TcpStream>) -> io::Result<()> {
        let granted = self.grant(syn, heard, stands).await;
        // Unless it stands, in which case whoever has these ends now is another.
        if granted.is_err() {
            self.waiting.borrow_mut().remove(&syn.flow());
        }
        let (mut connection, stream, early) = granted?;
        connection.write_all(&early).await?;
        relay::carry(connection, stream).await
    }

    async fn grant(
        &self,
        syn: &Syn,
        heard: &Heard,
        stands: oneshot::Receiver<TcpStream>,
    ) -> io::Result<(TcpStream, Stream, Vec<u8>)> {
        let asked = tokio::select! {
            asked = ask(&self.guest, syn.flow().to()) => asked,
            () = heard.no_more() => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        let (stream, early) = match asked {
            Ok(answer) => answer,
            Err(error) => {
                self.door.refuse(syn)?;
                return Err(error);
            }
        };
        self.door.let_in(syn)?;
        match timeout(STANDING_TIME, stands).await {
            Ok(Ok(connection)) => Ok((connection, stream, early)),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// When a program was last heard that waits for its connection. One that still waits repeats itself, after twice as long
/// each time (RFC 6298 §5.5); nothing else tells it from one that has gone away, for which no question is to be kept.
struct Heard {
    last: Cell<Instant>,
    wait: Cell<Duration>,
}

impl Heard {
    fn now() -> Self {
        Self {
            last: Cell::new(Instant::now()),
            wait: Cell::new(FIRST_WAIT),
        }
    }

    fn again(&self) {
        let now = Instant::now();
        self.wait.set(FIRST_WAIT.max(now - self.last.replace(now)));
    }

    /// Ends when it has been silent for longer than one that waits would be.
    async fn no_more(&self) {
        loop {
            let silent = self.last.get() + self.wait.get() * 3;
            if silent <= Instant::now() {
                return;
            }
            sleep_until(silent).await;
        }
    }
}

/// A stream on which the host has connected to what the address stands for, and what already came from there.
async fn ask(guest: &Guest, meant: SocketAddr) -> io::Result<(Stream, Vec<u8>)> {
    let mut stream = guest.transport.connect(EGRESS_PORT).await?;
    let request = format!("CONNECT {meant} HTTP/1.1\r\nHost: {meant}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if let Some((status, end)) = parse_head(&answer)? {
            return match status {
                200 => Ok((stream, answer.split_off(end))),
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

    #[tokio::test(start_paused = true)]
    async fn who_repeats_itself_as_those_who_wait_do_is_heard_until_it_stops() {
        let heard = Heard::now();
        let begun = Instant::now();
        let repeat = async {
            for wait in [1, 1, 2, 4, 8, 16] {
                tokio::time::sleep(Duration::from_secs(wait)).await;
                heard.again();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = heard.no_more() => {}
            () = repeat => {}
        }
        assert_eq!(begun.elapsed().as_secs(), 32 + 48);
        let silent = Heard::now();
        let begun = Instant::now();
        silent.no_more().await;
        assert_eq!(begun.elapsed().as_secs(), 3);
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
