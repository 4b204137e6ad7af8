//! A stream to the guest over a socket that the VMM process may hold as well.
//!
//! Hostile: the descriptor and whoever shares it. A socket made by the VMM process has one file description for both,
//! so the process can clear `O_NONBLOCK` on it at any time. So each call says for itself that it does not wait.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketType, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Never waits, and gives an error instead of a signal.
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// One stream.
#[derive(Debug)]
pub(super) struct GuestStream(AsyncFd<OwnedFd>);

impl GuestStream {
    /// Takes over a connected Unix stream socket.
    ///
    /// # Errors
    /// It is anything else, or cannot be watched. Closing or using other sorts of descriptors could wait.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let unix = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
            && sockopt::socket_type(&socket)? == SocketType::STREAM;
        if !unix {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the VMM process passed something that is no stream",
            ));
        }
        // SAFETY: an owned descriptor stays open and the same until it is dropped, which only the registration can do.
        unsafe { AsyncFd::register(socket) }.map(Self).map_err(Into::into)
    }

    fn send(
        &self,
        cx: &mut Context<'_>,
        call: impl Fn(&OwnedFd) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match call(ready.get_inner()) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                other => return Poll::Ready(other.map_err(Into::into)),
            }
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let room = to.initialize_unfilled();
            match rustix::net::recv(ready.get_inner(), room, RecvFlags::DONTWAIT) {
                Ok((count, _)) => {
                    to.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.send(cx, |socket| rustix::net::send(socket, data, SEND))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // What is past the most that one call takes is written by the next.
        let data = data.get(..MAX_SLICES).unwrap_or(data);
        self.send(cx, |socket| {
            rustix::net::sendmsg(socket, data, &mut SendAncillaryBuffer::default(), SEND)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(self.0.get_ref(), Shutdown::Write).map_err(Into::into))
    }
}

/// Most pieces of one vectored write (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::net::SocketFlags;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
    }

    /// Runs `body` on a runtime of one thread; false if that thread does not come back.
    fn comes_back<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send + 'static) -> bool {
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(body());
            done.send(()).unwrap();
        });
        wait.recv_timeout(Duration::from_secs(20)).is_ok()
    }

    #[test]
    fn a_peer_that_makes_the_shared_socket_wait_blocks_no_thread() {
        assert!(comes_back(|| async {
            let (ours, theirs) = pair(SocketType::STREAM);
            let shared = ours.try_clone().unwrap();
            let mut stream = GuestStream::new(ours).unwrap();
            rustix::io::write(&theirs, b"x").unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
            rustix::io::ioctl_fionbio(&shared, false).unwrap();
            let limit = Duration::from_millis(50);
            let read = tokio::time::timeout(limit, stream.read_u8()).await;
            assert!(read.is_err(), "nothing to read");
            let written = tokio::time::timeout(limit, stream.write_all(&vec![0; 4 << 20])).await;
            assert!(written.is_err(), "nobody reads");
        }));
    }

    #[test]
    fn bytes_and_ends_pass_in_both_directions() {
        assert!(comes_back(|| async {
            let (ours, theirs) = pair(SocketType::STREAM);
            let (mut one, mut two) = (GuestStream::new(ours).unwrap(), GuestStream::new(theirs).unwrap());
            let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
            let all = sent.clone();
            let writing = async {
                one.write_all(&all).await.unwrap();
                let two_bytes = one
                    .write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")])
                    .await;
                assert_eq!(two_bytes.unwrap(), 2);
                one.shutdown().await.unwrap();
                let mut answer = Vec::new();
                one.read_to_end(&mut answer).await.unwrap();
                answer
            };
            let reading = async {
                let mut got = Vec::new();
                two.read_to_end(&mut got).await.unwrap();
                two.write_all(b"done").await.unwrap();
                two.shutdown().await.unwrap();
                got
            };
            let (answer, got) = tokio::join!(writing, reading);
            assert_eq!(answer, b"done");
            assert!(got == [sent, b"ab".to_vec()].concat());
        }));
    }

    #[test]
    fn what_is_no_unix_stream_is_refused() {
        assert!(comes_back(|| async {
            let (packets, _other) = pair(SocketType::SEQPACKET);
            assert!(GuestStream::new(packets).is_err());
            let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            assert!(GuestStream::new(tcp.into()).is_err());
            assert!(GuestStream::new(std::fs::File::open("/dev/null").unwrap().into()).is_err());
        }));
    }
}
