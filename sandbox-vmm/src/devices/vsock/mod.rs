//! Streams between guest and host (virtio 1.2 §5.10): the sandbox's only network.
//!
//! A pure state machine (`engine.rs`) takes packets and socket events and says what to do; `device.rs` does it. Each
//! stream is one socket pair: one end here, the other with the orchestrator, passed through a [`Gateway`].
//!
//! Hostile: every packet. Ours: the sockets and their pace. Malformed packets reset their stream, never the device;
//! packets from or to other CIDs are dropped. Data waits for a slow host in bounded buffers, announced as credit.

mod connection;
mod device;
mod engine;
mod wire;

pub use device::{ConnectOutcome, Gateway, HostDials, VsockDevice};
