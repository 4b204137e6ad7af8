//! HTTP/2 on both sides of the proxy, on `h2`: hyper, which has it too, neither sends nor takes interim answers there.
//!
//! * `server`: a client's connection, and the way of each of its requests.
//! * `reply`: where a request's answers go.
//! * `client`: a connection to upstream, and what is sent on it.
//! * `incoming` and `outgoing`: bodies, each with its window; `queue` is what waits for a receiver.
//! * `duplex`: a stream that has become a WebSocket.
//! * `after_others`: when connections write.

mod after_others;
pub(super) mod client;
mod duplex;
mod incoming;
mod outgoing;
mod queue;
mod reply;
pub(super) mod server;

use std::io;

use h2::Reason;

pub(super) use duplex::Duplex;
pub(super) use incoming::Stream;
pub(super) use reply::Reply;

/// Why a stream or its connection broke. Of what the other end says it holds the code alone: `GOAWAY` can carry anything
/// beside it, and this is told to clients.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum Fault {
    /// It was reset, or its connection was ended, with this code.
    #[error("{0}")]
    Reason(Reason),
    /// The connection broke.
    #[error("{0}")]
    Io(io::ErrorKind),
    /// It was used up.
    #[error("the connection takes no more requests")]
    UsedUp,
    /// The other end said more before its answer than anybody would.
    #[error("too many interim answers")]
    TooManyInterim,
    /// The request's body broke off.
    #[error("the client broke its request off")]
    BrokenOff,
}

impl From<h2::Error> for Fault {
    fn from(error: h2::Error) -> Self {
        match (error.reason(), error.get_io()) {
            (Some(reason), _) => Self::Reason(reason),
            (None, Some(error)) => Self::Io(error.kind()),
            (None, None) => Self::UsedUp,
        }
    }
}

impl Fault {
    /// Whether the other end gave the stream up without calling it an error.
    pub(crate) fn is_no_error(self) -> bool {
        matches!(self, Self::Reason(Reason::NO_ERROR))
    }
}
