//! The DNS stub: messages that programs send to loopback go to the host as they are, and so do its answers back.

use std::{io, net::Ipv4Addr, rc::Rc, sync::Arc, time::Duration};

use sandbox_protocol::{DNS_DATAGRAMS_PORT, DNS_PORT};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::{accept, capture::Capture, relay};
use crate::{Guest, diagnostics::Failed};

/// Port of DNS (RFC 1035 §4.2), over UDP and TCP.
const PORT: u16 = 53;

/// Datagrams forwarded at once. Further ones wait in the socket's buffer; what finds no room there is lost, as
/// datagrams may be. With [`MAX_CONNECTIONS`] no more than the host takes.
const MAX_DATAGRAMS: usize = 8;

/// Connections at once; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 8;

/// The longest datagram that is read whole: a question with the largest buffer that resolvers announce.
const MAX_MESSAGE: usize = 4096;

/// For the host to answer; after that the program is told that nobody does.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Starts answering on loopback.
pub(super) async fn start(guest: &Rc<Guest>, capture: Rc<Capture>) -> Result<(), Failed> {
    let address = (Ipv4Addr::LOCALHOST, PORT);
    let listener = TcpListener::bind(address)
        .await
        .map_err(Failed::when("listen for DNS over TCP"))?;
    let socket = UdpSocket::bind(address)
        .await
        .map_err(Failed::when("listen for DNS over UDP"))?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stub = Rc::new(Stub {
        guest: Rc::clone(guest),
        capture,
        socket,
    });
    let of_streams = Rc::clone(&stub);
    let serve = move |connection| {
        let stub = Rc::clone(&of_streams);
        async move {
            // Either end's error has already reached the other as a reset or an end.
            if stub.capture.is_started().await {
                let _ = relay::relay(&stub.guest, connection, DNS_PORT).await;
            }
        }
    };
    tokio::task::spawn_local(accept(listener, slots, serve));
    tokio::task::spawn_local(forward(stub));
    Ok(())
}

struct Stub {
    guest: Rc<Guest>,
    capture: Rc<Capture>,
    socket: UdpSocket,
}

async fn forward(stub: Rc<Stub>) {
    let slots = Arc::new(Semaphore::new(MAX_DATAGRAMS));
    let mut message = [0; MAX_MESSAGE];
    loop {
        // Never closed, so never an error.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        // Errors are of a client that has gone away.
        let Ok((length, client)) = stub.socket.recv_from(&mut message).await else {
            continue;
        };
        let question = message.get(..length).unwrap_or_default().to_vec();
        let stub = Rc::clone(&stub);
        tokio::task::spawn_local(async move {
            let answer = match timeout(ANSWER_TIME, stub.exchange(&question)).await {
                Ok(Ok(answer)) => answer,
                _ => failure(question),
            };
            if !answer.is_empty() {
                // The client may have gone away.
                let _ = stub.socket.send_to(&answer, client).await;
            }
            drop(slot);
        });
    }
}

impl Stub {
    /// One question and its answer, each with its length before it (RFC 1035 §4.2.2) on a stream of their own.
    async fn exchange(&self, question: &[u8]) -> io::Result<Vec<u8>> {
        if !self.capture.is_started().await {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut stream = self.guest.transport.connect(DNS_DATAGRAMS_PORT).await?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes(), question].concat())
            .await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// The question as an answer that says "server failure" (RFC 1035 §4.1.1); empty where it is no question.
fn failure(mut question: Vec<u8>) -> Vec<u8> {
    const RESPONSE: u8 = 0x80;
    const RECURSION_AVAILABLE: u8 = 0x80;
    const SERVER_FAILURE: u8 = 2;
    match question.get_mut(..12) {
        Some([_, _, flags, more, ..]) if *flags & RESPONSE == 0 => {
            *flags |= RESPONSE;
            *more = RECURSION_AVAILABLE | SERVER_FAILURE;
            question
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_fails_at_once() {
        let question = b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        let answer = failure(question.clone());
        assert_eq!(answer[..4], [0x12, 0x34, 0x81, 0x82]);
        assert_eq!(answer[4..], question[4..]);
        assert!(failure(answer).is_empty(), "no answer to an answer");
        assert!(failure(vec![0; 11]).is_empty());
    }
}
