//! Messages from sockets and streams, and their answers back.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sandbox_core::BoxStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use super::answer::MAX_QUERY_BYTES;
use super::{Dns, Transport};
use crate::defence;
use crate::proxy::{places, serve_connections};

/// Messages a second of one sandbox, and how many may come at once. Protects the host's processors from a guest that
/// asks without end: what is over it waits. A program that starts asks for tens of names.
const PER_SECOND: u32 = 2000;
const AT_ONCE: u32 = 500;
/// Streams of one sandbox at once, besides those of its connections: names still resolve when all of those are in use. The
/// guest's stub needs fewer; what is over it ends at once.
const MAX_STREAMS: usize = 16;
/// Between two messages of a stream, and for the rest of one (RFC 7766 §6.2.3 wants seconds): whoever falls silent holds
/// no stream.
const STREAM_IDLE: Duration = Duration::from_secs(30);
/// For the client to take an answer.
const SEND_TIME: Duration = Duration::from_secs(5);

/// Places for streams.
#[derive(Debug)]
pub(super) struct Places(Semaphore);

impl Default for Places {
    fn default() -> Self {
        Self(Semaphore::new(places(MAX_STREAMS, defence::holds("dns-streams"))))
    }
}

/// When the next message may be answered.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all that was answered would have been answered at the even pace.
    even: Mutex<Option<Instant>>,
}

impl Dns {
    /// Answers the datagrams of a socket. Everyone who can send to it is the sandbox. Ends with an error of the socket
    /// that does not pass, or with the proxy.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn serve(&self, socket: UdpSocket) -> io::Result<()> {
        let closed = self.inner.closed();
        closed
            .run_until_cancelled(self.serve_datagrams(&socket))
            .await
            .unwrap_or(Ok(()))
    }

    /// Answers the messages of one stream, each with its length in two bytes before it (RFC 1035 §4.2.2). Ends with the
    /// stream, or when nothing comes for a while. `transport` is what the client itself speaks: answers that end as
    /// [datagrams](Transport::Datagram) are cut to what those hold.
    pub async fn serve_stream(&self, mut stream: BoxStream, transport: Transport) {
        let Ok(_place) = self.inner.dns.places.0.try_acquire() else {
            tracing::debug!("a stream of DNS messages ends: too many are open");
            return;
        };
        let closed = self.inner.closed();
        let served = closed
            .run_until_cancelled(self.serve_messages(&mut stream, transport))
            .await;
        if let Some(Err(error)) = served {
            tracing::debug!(%error, "a stream of DNS messages ended");
        }
    }

    /// Answers every connection of a listener, as [`serve_stream`](Self::serve_stream).
    ///
    /// # Errors
    /// The listener failed in a way that does not pass.
    pub async fn listen(&self, listener: TcpListener) -> io::Result<()> {
        serve_connections(listener, |stream| {
            let dns = self.clone();
            async move { dns.serve_stream(Box::new(stream), Transport::Stream).await }
        })
        .await
    }

    async fn serve_datagrams(&self, socket: &UdpSocket) -> io::Result<()> {
        // One more than is taken, to know those that are too long.
        let mut query = vec![0; MAX_QUERY_BYTES + 1];
        loop {
            let (length, client) = match socket.recv_from(&mut query).await {
                Ok(received) => received,
                // What Linux says when a client of before is gone.
                Err(error) if is_of_a_client(&error) => continue,
                Err(error) => return Err(error),
            };
            self.inner.dns.pace.turn().await;
            let answer = self.answer(query.get(..length).unwrap_or(&[]), Transport::Datagram);
            if !answer.is_empty()
                && let Ok(Err(error)) = timeout(SEND_TIME, socket.send_to(&answer, client)).await
            {
                tracing::debug!(%error, "a DNS answer could not be sent");
            }
        }
    }

    async fn serve_messages(&self, stream: &mut BoxStream, transport: Transport) -> io::Result<()> {
        let mut query = Vec::new();
        loop {
            let read = timeout(STREAM_IDLE, async {
                let length = usize::from(stream.read_u16().await?);
                if length > MAX_QUERY_BYTES {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the message is too long",
                    ));
                }
                query.resize(length, 0);
                stream.read_exact(&mut query).await.map(drop)
            });
            match read.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            }
            self.inner.dns.pace.turn().await;
            let answer = self.answer(&query, transport);
            let Ok(length) = u16::try_from(answer.len()) else {
                return Ok(());
            };
            // A client whose message gets no answer speaks no DNS.
            if answer.is_empty() {
                return Ok(());
            }
            let framed = [&length.to_be_bytes(), &answer[..]].concat();
            timeout(SEND_TIME, stream.write_all(&framed)).await??;
        }
    }
}

impl Pace {
    /// Waits until it is this message's turn.
    async fn turn(&self) {
        let room = Duration::from_secs(1) * AT_ONCE / PER_SECOND;
        let start = {
            let mut even = self.even.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let at = even.unwrap_or(now).max(now);
            *even = Some(at + Duration::from_secs(1) / PER_SECOND);
            at
        };
        // Most need not wait: asking the timer costs more than the answer.
        if start > Instant::now() + room && defence::holds("dns-pace") {
            sleep_until(start - room).await;
        }
    }
}

fn is_of_a_client(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn messages_beyond_the_pace_wait() {
        let pace = Pace::default();
        let start = Instant::now();
        for _ in 0..AT_ONCE {
            pace.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "a burst goes through");
        for _ in 0..10 * PER_SECOND {
            pace.turn().await;
        }
        // The clock is the test's: it goes on only where somebody waits.
        let elapsed = start.elapsed().as_secs();
        assert!((9..=10).contains(&elapsed), "{elapsed}");
    }
}
