//! Every limit of the proxy and what it protects. Those of one parser or table stand beside it.
//!
//! # What a guest can make the host hold
//!
//! With `n` connections each way ([`SANDBOX_PART`], at most [`MAX_PER_SANDBOX`]), a guest that uses all it may at once
//! and reads nothing makes the host hold at most:
//!
//! | what | how much | `n` = 128 | `n` = 1024 |
//! |---|---|---|---|
//! | buffers of HTTP/1.1 or of tunnels, both sides and directions | `n` × 4 × 64 KiB | 32 MiB | 256 MiB |
//! | what is read ahead of TLS, both sides | `n` × 2 × [`AHEAD_BYTES`] | 8 MiB | 64 MiB |
//! | uploads over HTTP/2 | [`H2_CLIENTS`] × [`H2_CLIENT_CONNECTION_WINDOW`] | 32 MiB | 32 MiB |
//! | downloads over HTTP/2 | [`H2_UPSTREAMS`] × [`H2_UPSTREAM_CONNECTION_WINDOW`] | 64 MiB | 64 MiB |
//! | bodies that wait for either receiver | [`REQUESTS`] × 2 × (2 × [`H2_SEND_BUFFER`] + 32 frames of 400 bytes) | 77 MiB | 77 MiB |
//! | heads of requests and responses | [`REQUESTS`] × 2 × ([`HEAD_BYTES`] + [`HEAD_FIELDS`] × 144) | 100 MiB | 100 MiB |
//! | decoders of compressed responses | [`MEMORY_UNITS`](crate::scrub::coding::MEMORY_UNITS) | 128 MiB | 128 MiB |
//! | together | | 441 MiB | 721 MiB |
//!
//! To this comes what a service with signatures collects of bodies to hash them, 64 MiB each (see `services::sign`).
//!
//! A request counts among [`REQUESTS`] until the last of its answer has left, not only until it was handed over: over HTTP/2
//! one that nobody reads waits in its connection (`place`). Two things are bounded, and not in the sum: trailers behind a
//! body that nobody takes, whose fields are counted when they come out (4 × [`HEAD_BYTES`] a message at the worst), and
//! the rest of a WebSocket over HTTP/2 that has ended ([`H2_SEND_BUFFER`] each, [`H2_STREAMS`] to a connection).
//!
//! Interim answers that a client does not read are held for it: 8 KiB of them at most on a connection of HTTP/1.1, and as much
//! for a request over HTTP/2 (see `interim`, `http2::reply`). What an upstream of HTTP/2 says before its answer has no window:
//! of one connection, what is read at a time ([`H2_TURN_BYTES`]) may wait.
//!
//! Not in the sum either: what of HTTP/2 waits within its windows is counted by its bytes, and a small frame may keep the
//! buffer that it was read into, eight KiB and more, until it is taken out.
//!
//! `together` in the tests takes all of it at once and measures.
//!
//! A guest that behaves holds next to nothing: buffers grow with what is under way.

use std::time::Duration;

/// Of the process's descriptors (its soft `RLIMIT_NOFILE`), what all sandboxes may hold together: three of four. The
/// rest is for the program around them, for its resolver and for the sandboxes' own machinery.
pub(crate) const PROXY_PART: (usize, usize) = (3, 4);
/// Of the same limit, the part that one sandbox may hold as streams of its guest, and once more as connections to
/// upstream: with the 1024 that many systems start with, 128 each.
pub(crate) const SANDBOX_PART: usize = 8;
/// The same as a number, for processes with a great limit: bounds tasks and memory that a guest can take.
pub(crate) const MAX_PER_SANDBOX: usize = 1024;
/// For a place among the sandbox's upstream connections: bursts end within this, and a guest that holds them all is
/// told so.
pub(crate) const PLACE_TIME: Duration = Duration::from_secs(3);
/// How often those that wait for a place look whether a connection waits that could make room: few wait, and each look
/// goes through the pool.
pub(crate) const PLACE_PAUSE: Duration = Duration::from_millis(250);
/// Streams over the limit that are told so politely at the same time; more than these are just closed.
pub(crate) const TURNED_AWAY: usize = 8;
/// Requests in flight of one sandbox: HTTP/2 has many in one stream.
pub(crate) const REQUESTS: usize = 512;
/// HTTP/2 connections of one sandbox's guest, each with buffers for many requests; further ones are offered HTTP/1.1.
pub(crate) const H2_CLIENTS: usize = 32;
/// HTTP/2 connections of one sandbox to upstream, each with a window for all its responses, until their sockets are
/// closed; further ones are made with HTTP/1.1.
pub(crate) const H2_UPSTREAMS: usize = 16;
/// Requests at once within one HTTP/2 connection of a guest.
pub(crate) const H2_STREAMS: u32 = 128;
/// What one request may upload over HTTP/2 before upstream takes it. The way to the guest is short.
pub(crate) const H2_CLIENT_WINDOW: u32 = 128 << 10;
/// The same for all requests of a connection: some that stand still leave room for others.
pub(crate) const H2_CLIENT_CONNECTION_WINDOW: u32 = 1 << 20;
/// HTTP/2 bytes of one request or response that wait for their receiver: who grants a great window and never reads
/// is held no more than this and two frames.
pub(crate) const H2_SEND_BUFFER: usize = 32 << 10;
/// What one response may bring over HTTP/2 before the guest takes it: a download is not held up by round trips.
pub(crate) const H2_UPSTREAM_WINDOW: u32 = 512 << 10;
/// The same for all responses of a connection: some that nobody reads leave room for others.
pub(crate) const H2_UPSTREAM_CONNECTION_WINDOW: u32 = 4 << 20;
/// Requests on a connection to upstream before it has said how many it takes (RFC 9113 §6.5.2 wants no fewer of it).
pub(crate) const H2_FIRST_STREAMS: usize = 100;
/// Interim answers to one request: none is known that gives as many.
pub(crate) const H2_INTERIM: usize = 256;
/// What is read of a connection at a time before others have their turn: what has no window of its own waits for them.
pub(crate) const H2_TURN_BYTES: usize = 128 << 10;
/// An upload whose answer has come whole goes on as long as it moves once in this time: whoever answered does not have to
/// say that it takes no more (RFC 9113 §8.1).
pub(crate) const UPLOAD_PAUSE: Duration = Duration::from_secs(60);
/// Bytes of one message's head: bounds memory per connection.
pub(crate) const HEAD_BYTES: usize = 64 << 10;
/// Fields of one message's head, or of its trailers. In memory, each takes some 100 bytes beside its own, and HTTP/2 bounds
/// only the whole size, in which each counts as 32. HTTP/1.1 has 100 at most.
pub(crate) const HEAD_FIELDS: usize = 256;
/// [`HEAD_BYTES`] in the type of HTTP/2 settings.
pub(crate) const HEAD_BYTES_H2: u32 = 64 << 10;
/// From the first byte of a request to the end of its head, and between requests: a slow sender holds a stream. An HTTP/2
/// connection with no request under way has this to twice this.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(60);
/// For the answer to a client of HTTP/1.1 that has ended its side, or left: nobody can tell.
pub(crate) const HALF_OPEN_TIME: Duration = Duration::from_secs(3);
/// For an HTTP/2 client to hear that its connection ends.
pub(crate) const GOODBYE_TIME: Duration = Duration::from_secs(5);
/// From the answer to CONNECT to a whole client hello, and as much for the client's handshake after it. Programs read their
/// certificates in between, which on a busy machine takes a small sandbox many seconds.
pub(crate) const CLIENT_HANDSHAKE_TIME: Duration = Duration::from_secs(60);
/// For the handshake with upstream.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(20);
/// For the resolver.
pub(crate) const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// For one address to answer.
pub(crate) const DIAL_TIME: Duration = Duration::from_secs(5);
/// For all addresses of a target together.
pub(crate) const DIAL_ALL_TIME: Duration = Duration::from_secs(15);
/// For a proxy of the host's network to connect to the target: it resolves and dials in our place.
pub(crate) const PROXY_TIME: Duration = Duration::from_secs(30);
/// An HTTP/2 connection on which nothing came for so long, while requests wait, is asked for a sign of life: one whose
/// other end vanished would hold them until [`RESPONSE_TIME`].
pub(crate) const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// For that sign.
pub(crate) const H2_PING_TIME: Duration = Duration::from_secs(20);
/// From one such question on a connection to the next: what the strictest servers want.
pub(crate) const H2_PING_PAUSE: Duration = Duration::from_secs(5 * 60);
/// For the credential's source.
pub(crate) const CREDENTIAL_TIME: Duration = Duration::from_secs(60);
/// For the head of a response, from when the request's body last moved. Models think for minutes before the first byte.
pub(crate) const RESPONSE_TIME: Duration = Duration::from_secs(20 * 60);
/// For upstream to say that it wants the body of a client that asks first (RFC 9110 §10.1.1): some never say so, and
/// clients themselves wait no longer.
pub(crate) const CONTINUE_TIME: Duration = Duration::from_secs(1);
/// For an approver, unless the builder says otherwise.
pub(crate) const APPROVAL_TIME: Duration = Duration::from_secs(60);
/// The longest time that a builder takes, a year; what is longer is as good as none. A clock that is moved on by it stays
/// within what it can say.
pub(crate) const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// A stream on which nothing moves either way is closed: peers that vanished hold nothing for ever.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(30 * 60);
/// An upstream connection that waits for its next request. Servers close theirs after a minute or more.
pub(crate) const POOL_IDLE_TIME: Duration = Duration::from_secs(45);
/// Connections of one sandbox to one host, unless the builder says otherwise: keeps one host from taking all places.
pub(crate) const HOST_CONNECTIONS: usize = 256;
/// Hosts whose bytes and requests are counted each on its own: bounds memory under a guest that visits many names.
pub(crate) const METERED_HOSTS: usize = 4096;
/// What a limited rate was not used for may be used later, for so long.
pub(crate) const RATE_BURST: Duration = Duration::from_secs(1);
/// Waiting HTTP/1.1 connections to one target: bounds descriptors.
pub(crate) const POOL_PER_TARGET: usize = 32;
/// Targets whose connections are remembered: bounds memory under a guest that visits many.
pub(crate) const POOL_TARGETS: usize = 256;
/// How much is copied at once in a tunnel. Taken only while bytes are on their way.
pub(crate) const COPY_BYTES: usize = 64 << 10;
/// How much more than one TLS record is read at once from a peer that sends a lot. Taken only while bytes are on their
/// way.
pub(crate) const AHEAD_BYTES: usize = 32 << 10;

/// A time to wait at most, or for ever where a test run has switched its defence off.
pub(crate) const fn at_most(time: Duration, holds: bool) -> Duration {
    if holds { time } else { Duration::MAX }
}

/// So many places, or as good as endless ones where a test run has switched their defence off.
pub(crate) const fn places(count: usize, holds: bool) -> usize {
    if holds {
        count
    } else {
        tokio::sync::Semaphore::MAX_PERMITS
    }
}

/// A window of HTTP/2 or a bound of it, or the greatest that there can be where a test run has switched its defence off.
pub(crate) const fn bound_h2(size: u32, holds: bool) -> u32 {
    if holds { size } else { i32::MAX.cast_unsigned() }
}
