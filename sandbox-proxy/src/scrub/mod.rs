//! Takes injected secrets out of what comes back, as a stream, across the borders of chunks.
//!
//! This is a net under a host that echoes by mistake (error pages, debug endpoints, `Location`). A host that is
//! allowed and wants to tell a secret can always encode it in a way nobody foresaw.
//!
//! # Nothing is told by what is held back
//!
//! A secret that is split between chunks is only found if the end of a chunk waits for the next one. Would just
//! those ends wait that look like the start of a secret, then whoever chooses what comes back (a guest whose words
//! are echoed, by a model for instance) could see from the sizes and times of chunks whether a guess is a start of
//! the secret, and so find it out byte by byte. So **what waits does not depend on whether it looks like a secret**:
//!
//! - The last [`tail`](patterns::Patterns::tail) bytes of a stream always wait. Their number depends on the length of the
//!   secrets alone, which is no secret: what replaces one shows it, too.
//! - Where nothing that is looked for can go on, the stream is *settled* and nothing waits. That is at the end of a
//!   stream and of a WebSocket message, and, for formats in which events must arrive when they happen, at
//!   borders that the format defines: the end of a line where the content is lines (SSE, NDJSON), of a
//!   message where it is framed (gRPC, Connect, AWS event streams). Such borders are found by their own bytes;
//!   no secret that can be sent holds a line break. See `framing`.
//! - Other streams are settled up to their last line once nothing has come for [`LINE_PAUSE`], and wholly after
//!   [`PAUSE`]. A stream of unknown format that stalls in the middle of a message arrives late. A host that
//!   itself pauses that long in the middle of a secret gives it away in two parts.
//!
//! Replacing takes place byte for byte, so lengths that were announced stay true, and only a whole secret is ever
//! replaced: header values, which come whole, tell a guesser nothing either.

mod body;
mod forms;
mod framing;
mod hold;
mod patterns;
mod secrets;
mod websocket;

use std::time::Duration;

pub(crate) use body::Scrubber;
pub(crate) use framing::Framing;
pub(crate) use secrets::Secrets;
pub(crate) use websocket::Messages;

/// What a secret is replaced by, byte for byte.
const FILLER: u8 = b'*';
/// How long a stream must be silent before its last whole line no longer waits: longer than the gaps inside what a
/// server sends at once, shorter than what a person notices.
const LINE_PAUSE: Duration = Duration::from_millis(50);
/// How long a stream must be silent before nothing waits: longer than the gaps that a guest can bring about by
/// reading slowly, which are a few round trips to upstream.
const PAUSE: Duration = Duration::from_secs(5);
