//! Messages with descriptors over a SEQPACKET socket. Both ends use it; a message is one packet, so there is no
//! framing to get out of step.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{MAX_DISKS, MAX_EXPORTS};

/// Longest message. Bounds what a compromised peer can make the other side read and decode at once.
pub const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Most descriptors of one message: those of a start. Below the kernel's own limit of 253.
pub const MAX_DESCRIPTORS: usize = 4 + MAX_DISKS + MAX_EXPORTS;

/// Why a message could not be passed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side closed its end.
    #[error("the other side has gone")]
    Closed,
    /// Nothing to receive, or no room to send, right now.
    #[error("the channel is not ready")]
    NotReady,
    /// The peer sent what is no message of this protocol, or too much. Its fault.
    #[error("the peer broke the control protocol: {0}")]
    Malformed(&'static str),
    /// Our message is too long to send. A bug of ours, or a configuration beyond all bounds.
    #[error("a control message of {0} bytes is too long")]
    TooLong(usize),
    /// The system failed.
    #[error("the control socket failed: {0}")]
    Io(#[from] std::io::Error),
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Takes over a connected SEQPACKET socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one message. Waits for room only if `wait`.
    ///
    /// # Errors
    /// [`ChannelError::NotReady`] without `wait` when the peer does not keep up; see the others.
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
        wait: bool,
    ) -> Result<(), ChannelError> {
        let bytes = postcard::to_allocvec(message).map_err(|_| ChannelError::TooLong(usize::MAX))?;
        if bytes.len() > MAX_MESSAGE_BYTES || descriptors.len() > MAX_DESCRIPTORS {
            return Err(ChannelError::TooLong(bytes.len()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(ChannelError::TooLong(bytes.len()));
        }
        let flags = if wait {
            SendFlags::NOSIGNAL
        } else {
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT
        };
        let packet = [IoSlice::new(&bytes)];
        rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.0, &packet, &mut ancillary, flags))
            .map(drop)
            .map_err(classify)
    }

    /// Receives one message and its descriptors, which are close-on-exec. Waits for one only if `wait`.
    ///
    /// # Errors
    /// [`ChannelError::NotReady`] without `wait` when there is none; see the others.
    pub fn receive<M: DeserializeOwned>(&self, wait: bool) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        let mut bytes = [0u8; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = if wait {
            RecvFlags::CMSG_CLOEXEC
        } else {
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT
        };
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
        })
        .map_err(classify)?;
        // Collected first, so that they are closed whatever comes next.
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ChannelError::Malformed("a message that is too long"));
        }
        // No message of ours is empty, so this is the end.
        let packet = bytes
            .get(..received.bytes)
            .filter(|packet| !packet.is_empty())
            .ok_or(ChannelError::Closed)?;
        match postcard::take_from_bytes(packet) {
            Ok((message, [])) => Ok((message, descriptors)),
            Ok(_) => Err(ChannelError::Malformed("bytes after a message")),
            Err(_) => Err(ChannelError::Malformed("a message that does not decode")),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn classify(errno: Errno) -> ChannelError {
    match errno {
        Errno::AGAIN => ChannelError::NotReady,
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => ChannelError::Closed,
        other => ChannelError::Io(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;
    use crate::control::{FromVmm, ToVmm};

    fn pair() -> (Channel, OwnedFd) {
        let (one, two) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Channel::new(one), two)
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (one, two) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        one.send(&ToVmm::Dial { id: 7, port: 1025 }, &[writer.as_fd()], true)
            .unwrap();
        drop(writer);
        let (message, descriptors) = Channel::new(two).receive::<ToVmm>(true).unwrap();
        assert_eq!(message, ToVmm::Dial { id: 7, port: 1025 });
        rustix::io::write(&descriptors[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 4]).unwrap(), 1);
    }

    #[test]
    fn the_end_and_nothing_are_told_apart() {
        let (one, two) = pair();
        assert!(matches!(one.receive::<ToVmm>(false), Err(ChannelError::NotReady)));
        drop(two);
        assert!(matches!(one.receive::<ToVmm>(false), Err(ChannelError::Closed)));
        assert!(matches!(
            one.send(&FromVmm::Started, &[], false),
            Err(ChannelError::Closed)
        ));
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_on_both_sides() {
        let (one, two) = pair();
        let long = FromVmm::Hello {
            version: 1,
            build: "x".repeat(MAX_MESSAGE_BYTES),
        };
        assert!(matches!(
            one.send(&long, &[], true),
            Err(ChannelError::TooLong(_))
        ));
        rustix::net::send(&two, &vec![0; MAX_MESSAGE_BYTES + 1], SendFlags::empty()).unwrap();
        assert!(matches!(
            one.receive::<FromVmm>(true),
            Err(ChannelError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 1..512)) {
            let (one, two) = pair();
            rustix::net::send(&two, &bytes, SendFlags::empty()).unwrap();
            let _ = one.receive::<ToVmm>(true);
            rustix::net::send(&two, &bytes, SendFlags::empty()).unwrap();
            let _ = one.receive::<FromVmm>(true);
        }
    }
}
