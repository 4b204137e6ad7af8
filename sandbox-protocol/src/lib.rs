//! The wire protocol between host and guest agent: types and framing, no I/O.
