//! The DNS stub: messages that programs send to loopback go to the host as they are, and so do its answers back.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use sandbox_protocol::{DNS_DATAGRAMS_PORT, DNS_PORT};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::relay;
use crate::{Guest, diagnostics::Failed};

/// Port of DNS (RFC 1035 §4.2), over UDP and TCP.
const PORT: u16 = 53;

/// Datagrams forwarded at once. Further ones wait in the socket's buffer; what finds no room there is lost, as
/// datagrams may be.
const MAX_DATAGRAMS: usize = 64;

/// The longest datagram that is read whole: a question with the largest buffer that resolvers announce.
const MAX_MESSAGE: usize = 4096;

/// For the host to answer. Programs ask again after five seconds.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Starts answering on loopback.
pub(super) async fn start(guest: &Rc<Guest>, slots: &Arc<Semaphore>) -> Result<(), Failed> {
    let address = (Ipv4Addr::LOCALHOST, PORT);
    let listener = TcpListener::bind(address)
        .await
        .map_err(Failed::when("listen for DNS over TCP"))?;
    let socket = UdpSocket::bind(address)
        .await
        .map_err(Failed::when("listen for DNS over UDP"))?;
    relay::serve(guest, listener, slots, DNS_PORT);
    tokio::task::spawn_local(forward(Rc::clone(guest), Rc::new(socket)));
    Ok(())
}

async fn forward(guest: Rc<Guest>, socket: Rc<UdpSocket>) {
    let slots = Arc::new(Semaphore::new(MAX_DATAGRAMS));
    let mut message = [0; MAX_MESSAGE];
    loop {
        // Never closed, so never an error.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        // Errors are of a client that has gone away.
        let Ok((length, client)) = socket.recv_from(&mut message).await else {
            continue;
        };
        let question = message.get(..length).unwrap_or_default().to_vec();
        let (guest, socket) = (Rc::clone(&guest), Rc::clone(&socket));
        tokio::task::spawn_local(async move {
            // Without an answer the program asks again.
            let _ = timeout(ANSWER_TIME, exchange(&guest, &socket, &question, client)).await;
            drop(slot);
        });
    }
}

/// One question and its answer, each with its length before it (RFC 1035 §4.2.2) on a stream of their own.
async fn exchange(guest: &Guest, socket: &UdpSocket, question: &[u8], client: SocketAddr) -> io::Result<()> {
    let mut stream = guest.transport.connect(DNS_DATAGRAMS_PORT).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), question].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    socket.send_to(&answer, client).await.map(drop)
}
