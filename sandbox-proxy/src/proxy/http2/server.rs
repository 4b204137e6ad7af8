//! HTTP/2 towards the guest.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::after_others::after_others;
use super::outgoing::Outgoing;
use super::{Duplex, Fault, Reply, Stream};
use crate::defence::holds;
use crate::proxy::body::ResponseBody;
use crate::proxy::http1::{After, AfterSlot};
use crate::proxy::incoming::Incoming;
use crate::proxy::place::Busy;
use crate::proxy::unless::unless;
use crate::proxy::websocket::Upgrade;
use crate::proxy::{Inner, limits, message, tunnel};

/// Serves a connection until it ends, or until nothing was asked on it for a while: a head that never ends is none. Its
/// requests end with it, also when this is dropped: each waits for its stream beside all else that it waits for.
pub(crate) async fn serve<S, F, R>(inner: Arc<Inner>, stream: S, answer: F) -> Result<(), Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>, AfterSlot) -> R + Send + Sync + 'static,
    R: Future<Output = Response<ResponseBody>> + Send,
{
    let answer = Arc::new(answer);
    let busy = Busy::default();
    let idle = busy.clone().none_for(limits::HEAD_TIME);
    let mut idle = pin!(async {
        idle.await;
        if !holds("h2-idle") {
            std::future::pending().await
        }
    });
    let mut take = |mut request: Request<RecvStream>, reply| {
        request.extensions_mut().insert(busy.begin());
        let (inner, answer) = (Arc::clone(&inner), Arc::clone(&answer));
        tokio::spawn(async move { serve_request(&inner, request, Reply::new(reply), answer.as_ref()).await });
    };
    let Some(connection) = unless(builder().handshake(stream), idle.as_mut()).await else {
        return Ok(());
    };
    let mut connection = connection?;
    if let Some(ended) = unless(after_others(accept(&mut connection, &mut take)), idle).await {
        return ended;
    }
    connection.graceful_shutdown();
    timeout(limits::GOODBYE_TIME, accept(&mut connection, &mut take))
        .await
        .unwrap_or(Ok(()))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    if holds("h2-streams") {
        builder.max_concurrent_streams(limits::H2_STREAMS);
    }
    builder
        .max_header_list_size(if holds("h2-head-bytes") {
            limits::HEAD_BYTES_H2
        } else {
            u32::MAX
        })
        .initial_window_size(limits::bound_h2(
            limits::H2_CLIENT_WINDOW,
            holds("h2-client-window"),
        ))
        .initial_connection_window_size(limits::bound_h2(
            limits::H2_CLIENT_CONNECTION_WINDOW,
            holds("h2-client-connection-window"),
        ))
        .enable_connect_protocol();
    builder
}

/// Takes requests until the connection has ended.
async fn accept<S>(
    connection: &mut Connection<S, Bytes>,
    take: &mut (impl FnMut(Request<RecvStream>, SendResponse<Bytes>) + Send),
) -> Result<(), Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(accepted) = connection.accept().await {
        let (request, reply) = accepted?;
        take(request, reply);
    }
    Ok(())
}

/// One request: its answer, the body of that, and the WebSocket that it may have become.
async fn serve_request<F, R>(inner: &Arc<Inner>, request: Request<RecvStream>, reply: Reply, answer: &F)
where
    F: Fn(Request<Incoming>, AfterSlot) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let is_head = request.method() == Method::HEAD;
    let (request, websocket) = split(request, &reply);
    let slot = AfterSlot::of_stream(reply.clone());
    let response = {
        // On the heap, as it is moved several times until it is a task.
        let mut answered = Box::pin(answer(request, slot.clone()));
        poll_fn(|cx| match answered.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => reply.poll_given_up(cx).map(|()| None),
        })
        .await
    };
    let (Some(response), Some(mut stream)) = (response, reply.take()) else {
        return;
    };
    let (parts, body) = response.into_parts();
    let mut head = Response::from_parts(parts, ());
    if let (Some(After::WebSocket(mut switched)), Some(incoming)) = (slot.take(), websocket) {
        match stream.send_response(head, false) {
            Ok(outgoing) => {
                switched.client = Upgrade::Http2(Duplex::new(incoming, outgoing, None));
                Box::pin(tunnel::serve_websocket(inner, *switched)).await;
            }
            Err(error) => give_up(&mut stream, error),
        }
        return;
    }
    let has_body = !body.is_end_stream() && !is_head;
    let place = body.place();
    if !body.is_end_stream()
        && let Some(length) = body.size_hint().exact()
    {
        head.headers_mut()
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| HeaderValue::from(length));
    }
    match stream.send_response(head, !has_body) {
        Ok(outgoing) if has_body => {
            let outgoing = Outgoing::new(body, outgoing, place);
            outgoing.resetting(Reason::INTERNAL_ERROR).await;
        }
        // Nothing comes but the end, which upstream may say on its own.
        Ok(_) => drop(timeout(limits::GOODBYE_TIME, body.collect()).await),
        Err(error) => give_up(&mut stream, error),
    }
}

/// The request with its body; what asks for a WebSocket has none, and its stream goes on as that.
fn split(request: Request<RecvStream>, reply: &Reply) -> (Request<Incoming>, Option<RecvStream>) {
    let (parts, incoming) = request.into_parts();
    let is_empty = parts
        .headers
        .get(CONTENT_LENGTH)
        .is_none_or(|length| length == "0");
    if parts.method == Method::CONNECT && is_empty {
        return (Request::from_parts(parts, Incoming::Nothing), Some(incoming));
    }
    let mut body = Stream::new(incoming, &parts.headers);
    if message::asks_first(&parts) {
        body = body.asking_first(reply.clone());
    }
    (Request::from_parts(parts, Incoming::Http2(body)), None)
}

/// An answer that cannot be said.
fn give_up(stream: &mut SendResponse<Bytes>, error: h2::Error) {
    tracing::debug!(error = %Fault::from(error), "an answer could not be sent over HTTP/2");
    stream.send_reset(Reason::INTERNAL_ERROR);
}
