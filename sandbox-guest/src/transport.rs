//! Streams to and from the host: vsock in a machine, Unix sockets in an ordinary process.
//!
//! Both are handled as the runtime's Unix stream: reading, writing and shutting down are the same calls on
//! any connected stream socket, and the type never looks at the address family.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
};

/// One stream to or from the host.
pub(crate) type Stream = tokio::net::UnixStream;

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// Where the host is.
#[derive(Debug, Clone)]
pub(crate) enum Transport {
    /// Virtual sockets; the host has CID 2.
    Vsock,
    /// Sockets in a directory: `host-PORT.sock` to dial, `guest-PORT.sock` to listen on.
    Unix(PathBuf),
}

/// Accepts the host's streams.
pub(crate) enum Listener {
    Vsock(AsyncFd<OwnedFd>),
    Unix(UnixListener),
}

impl Transport {
    /// Dials a port of the host.
    pub(crate) async fn connect(&self, port: u32) -> io::Result<Stream> {
        match self {
            Self::Vsock => connect_vsock(port).await,
            Self::Unix(directory) => Stream::connect(socket(directory, "host", port)).await,
        }
    }

    /// Listens on a port of the guest.
    pub(crate) fn listen(&self, port: u32) -> io::Result<Listener> {
        match self {
            Self::Vsock => {
                let socket = vsock_socket()?;
                let address = vsock_address(libc::VMADDR_CID_ANY, port);
                // SAFETY: `address` is a valid `sockaddr_vm` of the length given, and outlives the call.
                check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
                // SAFETY: takes no pointer.
                check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
                // SAFETY: `OwnedFd` is the same open descriptor for all of its life, which the `AsyncFd` now owns.
                let listener = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
                Ok(Listener::Vsock(listener))
            }
            Self::Unix(directory) => Ok(Listener::Unix(UnixListener::bind(socket(
                directory, "guest", port,
            ))?)),
        }
    }
}

impl Listener {
    /// The next stream. Dropping the future loses none.
    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => Ok(listener.accept().await?.0),
            Self::Vsock(listener) => {
                let socket = listener.async_io(Interest::READABLE, accept_vsock).await?;
                into_stream(socket)
            }
        }
    }
}

fn socket(directory: &Path, side: &str, port: u32) -> PathBuf {
    directory.join(format!("{side}-{port}.sock"))
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

fn vsock_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointer.
    let raw = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn accept_vsock(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: both address pointers may be null, which asks for no address.
    let raw = check(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            flags,
        )
    })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

async fn connect_vsock(port: u32) -> io::Result<Stream> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_HOST, port);
    // SAFETY: `address` is a valid `sockaddr_vm` of the length given, and outlives the call.
    let started =
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) });
    match started {
        Ok(_) => return into_stream(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let stream = into_stream(socket)?;
    stream.writable().await?;
    match rustix::net::sockopt::socket_error(stream.as_fd())? {
        Ok(()) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// `socket` is a non-blocking stream socket.
fn into_stream(socket: OwnedFd) -> io::Result<Stream> {
    Stream::from_std(StdUnixStream::from(socket))
}
