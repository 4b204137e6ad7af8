//! Tunnels that are not read: bytes go both ways as they come, once the start of the stream was looked at.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sandbox_core::policy::RequestLine;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::io::poll_read_buf;

use super::Inner;
use super::http1::{Served, Switched};
use super::intercept::refuse;
use super::io::{Client, Dialled, Prefixed, Watched};
use super::limits;
use super::refusal::Refusal;
use super::route::Route;
use super::websocket::Upgrade;
use crate::audit::record::Record;
use crate::defence::holds;
use crate::scrub::{Messages, NoFrame};
use crate::tls::hello::{self, Sniffer, Start};

/// The port on which nothing but TLS is carried.
const TLS_PORT: u16 = 443;

/// Takes a guest's stream back from the HTTP server, without its wrapping.
pub(crate) fn client_stream(upgraded: Upgraded) -> Option<Client> {
    let parts = upgraded.downcast::<TokioIo<Served<Watched>>>().ok()?;
    Some(Prefixed::new(
        parts.read_buf,
        parts.io.into_inner().into_inner().into_inner().into_inner(),
    ))
}

/// A stream's start, and the bytes it was told from.
pub(crate) struct Heard {
    pub(crate) start: Start,
    pub(crate) seen: Vec<u8>,
}

/// Waits for a client hello for the route's host. `None` where something else came; then the client was told.
pub(crate) async fn expect_hello(
    client: &mut Client,
    route: &Route,
    deadline: Instant,
    record: &Record,
) -> Option<Heard> {
    let mut seen = Vec::new();
    let deadline = if holds("handshake-timeout") {
        deadline
    } else {
        deadline + limits::IDLE_TIME
    };
    let start = match timeout_at(deadline, hello::read(client, &mut seen)).await {
        Ok(Ok(start)) => start,
        Ok(Err(_)) => Start::Nothing,
        Err(_) => {
            let refusal = Refusal::denied("", "no TLS in time");
            refusal.tell(record);
            // Nothing but TLS is waited for here, so it is told in that language.
            let target = route.shown();
            let told = refuse(client, &Start::Broken, &refusal, &target);
            let _ = timeout(limits::GOODBYE_TIME, told).await;
            return None;
        }
    };
    let why = match &start {
        Start::Tls(hello) if hello.is_for(&route.host) || !holds("sni-matches-authority") => {
            return Some(Heard { start, seen });
        }
        Start::Tls(_) => NAME_DIFFERS,
        Start::Other if !holds("only-tls-on-443") && !route.is_read() => return Some(Heard { start, seen }),
        Start::Other | Start::Broken => "only TLS is carried in this tunnel",
        Start::Nothing => {
            record.outcome("the client said nothing");
            return None;
        }
    };
    let refusal = Refusal::denied(&route.admission.rule, why);
    refusal.tell(record);
    let target = route.shown();
    let told = refuse(client, &start, &refusal, &target);
    // A client that does not listen is not waited for.
    let _ = timeout_at(deadline, told).await;
    None
}

const NAME_DIFFERS: &str = "the TLS server name differs from the target of CONNECT, or cannot be read";

/// Serves an opaque tunnel.
pub(crate) async fn serve(
    route: Arc<Route>,
    mut client: Client,
    upstream: Option<Dialled>,
    record: Arc<Record>,
) {
    let Some(mut upstream) = upstream else {
        record.outcome("no connection to upstream");
        return;
    };
    let mut out = Direction::default();
    if route.port == TLS_PORT {
        let deadline = Instant::now() + limits::CLIENT_HANDSHAKE_TIME;
        // On the heap: tunnels live long, and their first step must not.
        let Some(heard) = Box::pin(expect_hello(&mut client, &route, deadline, &record)).await else {
            return;
        };
        out.buffer.extend_from_slice(&heard.seen);
        record.add_out(heard.seen.len());
    } else {
        // Some protocols let the server speak first, so nothing is waited for.
        out.sniffer = Some(Box::default());
    }
    let host = route.host.clone();
    let is_fine = move |start: &Start| match start {
        Start::Tls(hello) => hello.is_for(&host) || !holds("sni-on-any-port"),
        Start::Broken => !holds("broken-hello"),
        Start::Other | Start::Nothing => true,
    };
    let ended = relay(
        &mut client,
        &mut upstream,
        out,
        Direction::default(),
        &is_fine,
        &record,
    )
    .await;
    if let Err(error) = ended {
        if error.kind() == io::ErrorKind::PermissionDenied {
            let refusal = Refusal::denied(&route.admission.rule, NAME_DIFFERS);
            refusal.tell(&record);
            let deadline = Instant::now() + limits::CLIENT_HANDSHAKE_TIME;
            let start = Start::Tls(hello::Hello::default());
            let _ = timeout_at(deadline, refuse(&mut client, &start, &refusal, "")).await;
        } else {
            record.outcome(&format!("the tunnel broke: {}", error.kind()));
        }
    }
}

/// Serves a WebSocket after its handshake, until a new policy does not let it be. What comes back is scrubbed if the
/// sandbox has credentials.
pub(crate) async fn serve_websocket(inner: &Inner, switched: Switched) {
    let Switched {
        client,
        upstream,
        scrubber,
        record,
        route,
        path,
        held: _held,
    } = switched;
    let line = RequestLine {
        method: "GET",
        path: &path,
    };
    let frames = relay_websocket(client, upstream, scrubber, &record);
    inner
        .while_allowed(&route, Some(line), None, &record, frames)
        .await;
}

async fn relay_websocket(client: Upgrade, upstream: Upgrade, scrubber: Option<Messages>, record: &Record) {
    let (Some(mut client), Some(mut upstream)) = (client.stream().await, upstream.stream().await) else {
        record.outcome("the upgrade did not come about");
        return;
    };
    let back = Direction {
        scrubber: scrubber.map(Box::new),
        ..Direction::default()
    };
    let ended = relay(
        &mut client,
        &mut upstream,
        Direction::default(),
        back,
        &|_| true,
        record,
    )
    .await;
    if let Err(error) = ended {
        record.outcome(&format!("the WebSocket broke: {}", error.kind()));
    }
}

/// One direction of a relay. Holds memory only while bytes are on their way.
#[derive(Default)]
struct Direction {
    buffer: BytesMut,
    /// Looks at the first bytes, which wait until it has made up its mind.
    sniffer: Option<Box<Sniffer>>,
    scrubber: Option<Box<Messages>>,
    unflushed: bool,
    read_all: bool,
    /// Why no more of it is read, where that is not its end.
    broken: Option<NoFrame>,
    done: bool,
}

/// Copies both ways until both have ended, or one has failed.
async fn relay<A, B>(
    client: &mut A,
    upstream: &mut B,
    mut out: Direction,
    mut back: Direction,
    is_fine: &(dyn Fn(&Start) -> bool + Sync),
    record: &Record,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let ended = poll_fn(|cx| {
        let sent = out.poll(cx, client, upstream, is_fine, &|bytes| record.add_out(bytes))?;
        let received = back.poll(cx, upstream, client, is_fine, &|bytes| record.add_in(bytes))?;
        if sent.is_ready() && received.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    })
    .await;
    match back.broken {
        Some(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        None => ended,
    }
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        is_fine: &dyn Fn(&Start) -> bool,
        count: &dyn Fn(usize),
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.done {
            while self.sniffer.is_none() && !self.buffer.is_empty() {
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, &self.buffer))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buffer.advance(written);
                self.unflushed = true;
            }
            if self.read_all {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                self.done = true;
                break;
            }
            let before = self.buffer.len();
            self.buffer.reserve(limits::COPY_BYTES);
            match poll_read_buf(Pin::new(&mut *reader), cx, &mut self.buffer) {
                Poll::Ready(read) => {
                    let read = read?;
                    count(read);
                    self.take_in(before, read, is_fine)?;
                }
                Poll::Pending => {
                    if self.buffer.is_empty() {
                        self.buffer = BytesMut::new();
                    }
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Looks at what was just read.
    fn take_in(&mut self, before: usize, read: usize, is_fine: &dyn Fn(&Start) -> bool) -> io::Result<()> {
        self.read_all = read == 0;
        if let Some(sniffer) = &mut self.sniffer {
            let new = self.buffer.get(before..).unwrap_or(&[]);
            match sniffer.push(new) {
                Some(start) if !is_fine(&start) => return Err(io::ErrorKind::PermissionDenied.into()),
                Some(_) => self.sniffer = None,
                None => {}
            }
        }
        if let Some(scrubber) = &mut self.scrubber {
            let new = self.buffer.split_off(before);
            if let Err(error) = scrubber.data(&new, &mut self.buffer) {
                // For the reader the stream has ended; its answers to what came before still go the other way.
                self.broken = Some(error);
                self.scrubber = None;
                self.read_all = true;
            }
        }
        Ok(())
    }
}
