//! A request's place among those of its sandbox, until the last of its answer has left.
//!
//! Over HTTP/2 that is later than when the answer was handed over: what a client does not read waits in its connection, as
//! long as the client likes, and its next requests come in beside it. So whatever waits there holds the place: the data
//! by what owns its bytes (`http2::queue`), a head by one of its values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use crate::defence::holds;

/// Held by a request and by all of its answer.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    _permit: OwnedSemaphorePermit,
    /// Over HTTP/1.1 there is none: its answers are written one by one.
    connection: Option<Busy>,
}

/// An HTTP/2 connection of a guest, as long as a request is under way on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Busy(Arc<Begun>);

#[derive(Debug, Default)]
struct Begun {
    requests: AtomicU64,
}

impl Place {
    pub(crate) fn new(permit: OwnedSemaphorePermit, connection: Option<Busy>) -> Self {
        Self(Arc::new(Held {
            _permit: permit,
            connection,
        }))
    }

    /// Makes a head or trailers hold the place until they are gone. Without fields they take no memory to speak of.
    pub(crate) fn on_head(&self, headers: &mut HeaderMap) {
        if self.0.connection.is_none() {
            return;
        }
        let_go_of_buffer(headers);
        if holds("h2-answers-hold-places") {
            self.hold(headers);
        }
    }

    /// Makes the head of a request over HTTP/2 hold the place until it is gone: it may wait for its turn in its connection
    /// when nobody waits for its answer any more.
    pub(crate) fn on_request(&self, headers: &mut HeaderMap) {
        if holds("h2-requests-hold-places") {
            // To leave it out is to say the same (RFC 9110 §12.5.1).
            if headers.is_empty() {
                headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
            }
            self.hold(headers);
        }
    }

    fn hold(&self, headers: &mut HeaderMap) {
        if let Some(value) = headers.values_mut().next() {
            let data = Bytes::copy_from_slice(value.as_bytes());
            let holding = Bytes::from_owner(Holding {
                data,
                _place: self.clone(),
            });
            // The same bytes are a value still.
            if let Ok(mut holding) = HeaderValue::from_maybe_shared(holding) {
                // Never kept in a table of what was sent before, which would hold the place as long as the connection.
                holding.set_sensitive(true);
                *value = holding;
            }
        }
    }
}

/// Data and the place that it holds.
struct Holding {
    data: Bytes,
    _place: Place,
}

impl AsRef<[u8]> for Holding {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Busy {
    /// For one more request.
    pub(crate) fn begin(&self) -> Self {
        self.0.requests.fetch_add(1, Relaxed);
        self.clone()
    }

    /// Ends when no request was under way for `limit` to twice that. `self` and one more, from which requests begin, are
    /// none.
    pub(crate) async fn none_for(self, limit: Duration) {
        let state = || (self.0.requests.load(Relaxed), Arc::strong_count(&self.0) <= 2);
        let mut before = state();
        loop {
            sleep(limit).await;
            let now = state();
            if before == now && now.1 {
                return;
            }
            before = now;
        }
    }
}

/// Takes values out of the buffer that they came in: one that a table of HPACK keeps would hold all of its message's head.
pub(crate) fn let_go_of_buffer(headers: &mut HeaderMap) {
    if !holds("head-buffers") {
        return;
    }
    for value in headers.values_mut() {
        if let Ok(mut copy) = HeaderValue::from_bytes(value.as_bytes()) {
            copy.set_sensitive(value.is_sensitive());
            *value = copy;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn place_is_held_by_what_waits_for_a_client_of_http2() {
        for connection in [None, Some(Busy::default())] {
            let places = Arc::new(Semaphore::new(1));
            let permit = Arc::clone(&places).try_acquire_owned().unwrap();
            let is_held = connection.is_some();
            let place = Place::new(permit, connection);
            let mut head = HeaderMap::new();
            head.insert("x-one", HeaderValue::from_static("one"));
            place.on_head(&mut head);
            assert_eq!(head["x-one"], "one");
            drop(place);
            assert_eq!(places.available_permits() == 0, is_held);
            drop(head);
            assert_eq!(places.available_permits(), 1);
        }
    }

    #[test]
    fn request_that_waits_for_its_turn_holds_its_place() {
        let places = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&places).try_acquire_owned().unwrap();
        let place = Place::new(permit, None);
        let mut head = HeaderMap::new();
        place.on_request(&mut head);
        drop(place);
        assert_eq!(places.available_permits(), 0);
        assert_eq!(head["accept"], "*/*");
        drop(head);
        assert_eq!(places.available_permits(), 1);
    }

    #[test]
    fn values_let_go_of_the_buffer_that_they_came_in() {
        let whole = Arc::new([b'x'; 1024]);
        struct Buffer(Arc<[u8; 1024]>);
        impl AsRef<[u8]> for Buffer {
            fn as_ref(&self) -> &[u8] {
                &*self.0
            }
        }
        let buffer = Bytes::from_owner(Buffer(Arc::clone(&whole)));
        let mut head = HeaderMap::new();
        let value = HeaderValue::from_maybe_shared(buffer.slice(..4)).unwrap();
        head.insert("x-one", value);
        drop(buffer);
        let_go_of_buffer(&mut head);
        assert_eq!(Arc::strong_count(&whole), 1);
        assert_eq!(head["x-one"], "xxxx");
    }
}
