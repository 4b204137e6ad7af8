//! Where the answers to one request over HTTP/2 go: first interim ones, then the one that counts.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode};

use super::Fault;
use crate::defence::holds;
use crate::proxy::place;

/// What interim answers to one request may take that nobody has read, in bytes; further ones are left out, as hints may be
/// (RFC 8297 §2). Nothing tells when they have left, so all of them count.
const INTERIM_BYTES: usize = 8 << 10;
/// What a head takes beside its fields.
const HEAD_BYTES: usize = 256;
/// What a field takes beside its text.
const FIELD_BYTES: usize = 144;

/// Whoever answers the request, and whoever hears what upstream says before, has one of these.
#[derive(Clone)]
pub(crate) struct Reply(Arc<Mutex<Open>>);

struct Open {
    /// Until it is answered, or nobody waits for that any more.
    stream: Option<SendResponse<Bytes>>,
    /// Of what may be said before.
    room: usize,
}

impl Reply {
    pub(super) fn new(stream: SendResponse<Bytes>) -> Self {
        Self(Arc::new(Mutex::new(Open {
            stream: Some(stream),
            room: INTERIM_BYTES,
        })))
    }

    /// Tells the client to go on with its body (RFC 9110 §10.1.1).
    pub(super) fn go_on(&self) {
        if let Some(stream) = &mut self.lock().stream {
            send(stream, StatusCode::CONTINUE, HeaderMap::new());
        }
    }

    /// Passes an interim answer on, unless the answer was there before.
    pub(crate) fn interim(&self, status: StatusCode, mut headers: HeaderMap) {
        let fields = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES);
        let size = HEAD_BYTES + fields.sum::<usize>();
        let mut open = self.lock();
        let left = open.room.checked_sub(size);
        let Open {
            stream: Some(stream),
            room,
        } = &mut *open
        else {
            return;
        };
        match left {
            Some(left) => *room = left,
            None if holds("h2-interim-bytes") => return,
            None => {}
        }
        place::let_go_of_buffer(&mut headers);
        send(stream, status, headers);
    }

    /// The stream, for the answer; nothing is said before it from now on.
    pub(super) fn take(&self) -> Option<SendResponse<Bytes>> {
        self.lock().stream.take()
    }

    /// Done when the client waits for no answer any more.
    pub(super) fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.lock().stream {
            Some(stream) => stream.poll_reset(cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(stream: &mut SendResponse<Bytes>, status: StatusCode, headers: HeaderMap) {
    let mut head = Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = headers;
    if let Err(error) = stream.send_informational(head) {
        tracing::debug!(error = %Fault::from(error), "an interim answer was left out");
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::Request;

    use super::*;

    #[tokio::test]
    async fn client_that_does_not_read_is_held_little_for_and_hears_nothing_after_the_answer() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (requests, connection) = tokio::join!(h2::client::handshake(far), h2::server::handshake(near));
        let ((mut requests, client), mut connection) = (requests.unwrap(), connection.unwrap());
        tokio::spawn(client);
        let request = Request::get("https://one.test/").body(()).unwrap();
        let (mut response, _) = requests.send_request(request, true).unwrap();
        let (_request, stream) = connection.accept().await.unwrap().unwrap();
        let reply = Reply::new(stream);
        let mut hint = HeaderMap::new();
        hint.insert("link", "</a>".parse().unwrap());
        for _ in 0..1000 {
            reply.interim(StatusCode::PROCESSING, hint.clone());
        }
        let mut stream = reply.take().unwrap();
        reply.interim(StatusCode::PROCESSING, HeaderMap::new());
        stream.send_response(Response::new(()), true).unwrap();
        tokio::spawn(async move { connection.accept().await.is_none() });
        let mut count = 0;
        while let Some(interim) = poll_fn(|cx| response.poll_informational(cx)).await {
            assert_eq!(interim.unwrap().headers()["link"], "</a>");
            count += 1;
        }
        assert!(
            count > 1 && count * (HEAD_BYTES + FIELD_BYTES + 8) <= INTERIM_BYTES,
            "{count}"
        );
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    }
}
