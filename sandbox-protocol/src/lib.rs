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
//! A third kind, to host port [`EGRESS_PORT`], carries one TCP connection's bytes as they are.
//!
//! Hostile: every byte that comes from the guest. What a peer may make us hold is bounded by
//! [`frame::Message::MAX_FRAME`] per decoder and by [`exec::WINDOW`] per output channel.

#![forbid(unsafe_code)]

pub mod control;
pub mod exec;
pub mod frame;

mod bytes;

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

/// Name under which programs in the guest find the egress proxy, on port [`EGRESS_PORT`].
pub const GATEWAY_NAME: &str = "gateway.sandbox.internal";
