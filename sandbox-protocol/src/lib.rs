//! The wire protocol between host and guest agent: types, framing and state machines, no I/O.
//!
//! Two kinds of stream, each carrying [`frame`]d messages:
//!
//! * **Control**, one per sandbox. The agent dials host port [`CONTROL_PORT`] once it is up and says
//!   [`control::Hello`]; then the host sends [`control::Request`]s, each answered by one
//!   [`control::Response`].
//! * **Exec**, one per command. The host dials guest port [`EXEC_PORT`] and runs [`exec::HostSide`]
//!   against the agent's [`exec::AgentSide`].
//!
//! A third kind, to host port [`EGRESS_PORT`], carries one TCP connection's bytes as they are; a fourth, to [`DNS_PORT`] and
//! [`DNS_DATAGRAMS_PORT`], DNS messages.
//!
//! Hostile: every byte that comes from the guest. What a peer may make us hold is bounded by
//! [`frame::Message::MAX_FRAME`] per decoder and by [`exec::WINDOW`] per output channel.

#![forbid(unsafe_code)]

pub mod control;
pub mod exec;
pub mod frame;

mod bytes;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use bytes::ByteString;

/// Version of this protocol, said in [`control::Hello`]. Raised by every change that an older peer
/// would misread.
pub const PROTOCOL_VERSION: u32 = 1;

/// Host port (CID 2) that the agent dials for its control stream.
pub const CONTROL_PORT: u32 = 1024;

/// Guest port that the host dials for each command.
pub const EXEC_PORT: u32 = 1025;

/// Host port (CID 2) that the agent dials for each connection made to the guest's loopback proxy.
pub const EGRESS_PORT: u32 = 3128;

/// Host port (CID 2) that the agent dials for each connection to its DNS stub: messages with their length before them
/// (RFC 1035 §4.2.2).
pub const DNS_PORT: u32 = 53;

/// Host port (CID 2) that the agent dials for datagrams to its DNS stub: the same, and answers are no longer than the
/// datagram may be that the question asks for.
pub const DNS_DATAGRAMS_PORT: u32 = 54;

/// The network of addresses that the host gives to names, and its prefix length. A connection to one of them is a
/// connection to its name.
pub const SYNTHETIC_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);

/// The same for IPv6.
pub const SYNTHETIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd53, 0x4e44, 0x4258, 0, 0, 0, 0, 0), 96);

/// Name under which programs in the guest find the egress proxy, on port [`EGRESS_PORT`].
pub const GATEWAY_NAME: &str = "gateway.sandbox.internal";
