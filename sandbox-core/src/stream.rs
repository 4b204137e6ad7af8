//! A byte stream between host and guest, whatever carries it.

use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way byte stream with half-close: `shutdown` on the writing side is seen as end of file by the peer
/// while the other direction goes on.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// An owned stream of any kind.
pub type BoxStream = Box<dyn Stream>;
