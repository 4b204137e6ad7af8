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
//! - Other streams are settled up to their last line once nothing has come for [`LINE_PAUSE`]. What an encoder broke
//!   into lines is found across them if the lines come without such a pause.
//! - Nothing else goes out because of time. A guest can stop a stream where it likes: by reading nothing of other
//!   streams on the same HTTP/2 connection it uses up the window that they share. Were a tail given out after
//!   some silence, however long, a secret could be stopped in its middle and fetched in two parts. The price: a
//!   stream of no known format that falls silent within a line keeps its last few hundred bytes until it goes on or
//!   ends.
//!
//! - The search itself takes no longer for what is like a secret, up to eight bytes of it: see `search`.
//! - How well something was compressed tells what stands beside what. Where secrets go, upstream is asked not to compress;
//!   what is compressed all the same goes out in whole blocks: see `coding`.
//!
//! Replacing takes place byte for byte, so lengths that were announced stay true, and only a whole secret is ever
//! replaced: header values, which come whole, tell a guesser nothing either.

mod body;
pub(crate) mod coding;
mod forms;
mod framing;
mod hold;
mod patterns;
mod search;
mod secrets;
mod view;
mod websocket;

use std::time::Duration;

pub(crate) use body::Scrubber;
pub(crate) use framing::Framing;
pub(crate) use secrets::Secrets;
pub(crate) use websocket::{Messages, NoFrame};

/// What a secret is replaced by, byte for byte.
const FILLER: u8 = b'*';
/// How long a stream must be silent before its last whole line no longer waits: longer than the gaps inside what a
/// server sends at once, shorter than what a person notices.
const LINE_PAUSE: Duration = Duration::from_millis(50);
