//! The front: what a guest says to the proxy itself. CONNECT opens a tunnel, an absolute target is fetched.

use std::sync::Arc;

use http::header::HOST;
use http::{Method, Request, Response};
use sandbox_core::policy::Scheme;

use super::body::ResponseBody;
use super::http1::{self, After, AfterSlot};
use super::incoming::Incoming;
use super::io::{Dialled, Watched};
use super::refusal::Refusal;
use super::route::{Route, parse_authority};
use super::{Inner, exchange, intercept, tunnel};
use crate::audit::record::Record;
use crate::defence::holds;

/// The port on which a tunnel is read as plain HTTP.
pub(super) const HTTP_PORT: u16 = 80;

/// Serves one stream of the guest to its end.
pub(crate) async fn serve(inner: Arc<Inner>, stream: Watched) {
    let slot = AfterSlot::default();
    let served = {
        let (inner, after) = (Arc::clone(&inner), slot.clone());
        let answer = move |request| {
            let (inner, after) = (Arc::clone(&inner), after.clone());
            async move { answer(&inner, &after, request).await }
        };
        // On the heap, so that a tunnel does not carry the room of its CONNECT along.
        Box::pin(http1::serve(stream, &slot, answer)).await
    };
    if let Err(error) = served {
        note_malformed(&inner, None, &error);
    }
    match slot.take() {
        Some(After::Tunnel {
            client,
            route,
            upstream,
            record,
        }) => {
            let Ok(client) = client.await else {
                record.outcome("the client went away");
                return;
            };
            let Some(client) = tunnel::client_stream(client) else {
                record.outcome("the client's stream was lost");
                return;
            };
            if !route.tls {
                Box::pin(intercept::serve_plain(inner, route, client, record)).await;
            } else if route.is_read() || !holds("tunnels-stay-opaque") {
                Box::pin(intercept::serve(inner, route, client, upstream, record)).await;
            } else {
                let address = upstream.as_ref().and_then(Dialled::vetted);
                let tunnel = tunnel::serve(Arc::clone(&route), client, upstream, Arc::clone(&record));
                Box::pin(inner.while_allowed(&route, None, address, &record, tunnel)).await;
            }
        }
        Some(After::WebSocket(switched)) => Box::pin(tunnel::serve_websocket(&inner, *switched)).await,
        None => {}
    }
}

/// A head that could not be parsed is an attempt, too; at what is known in a tunnel alone.
pub(crate) fn note_malformed(inner: &Inner, route: Option<&Route>, error: &hyper::Error) {
    if error.is_parse() || error.is_timeout() {
        let record = Record::start(&inner.hub);
        if let Some(route) = route {
            record.target(&route.host_text, route.port);
        }
        record.denied("", &format!("malformed request: {error}"));
    }
}

async fn answer(inner: &Arc<Inner>, slot: &AfterSlot, request: Request<Incoming>) -> Response<ResponseBody> {
    if request.method() == Method::CONNECT {
        let record = Record::start(&inner.hub);
        record.request(&Method::CONNECT, None);
        let target = request
            .uri()
            .authority()
            .map_or("", |authority| authority.as_str())
            .to_owned();
        return match connect(inner, slot, request, &record).await {
            Ok(()) => Response::new(ResponseBody::empty()),
            Err(refusal) => {
                refusal.tell(&record);
                refusal.response(&target)
            }
        };
    }
    match fetch(inner, slot, request).await {
        Ok(response) => response,
        Err((refusal, record)) => {
            refusal.tell(&record);
            refusal.response("")
        }
    }
}

/// Admits a tunnel and prepares it. It starts when the answer is out.
async fn connect(
    inner: &Arc<Inner>,
    slot: &AfterSlot,
    request: Request<Incoming>,
    record: &Arc<Record>,
) -> Result<(), Refusal> {
    let authority = request
        .uri()
        .authority()
        .map_or("", |authority| authority.as_str());
    let (host, port) = parse_authority(authority, None)?;
    let meant = inner.dns.meant(host.clone());
    record.target(&meant.to_string().into(), port);
    let mut hosts = request.headers().get_all(HOST).iter();
    if let Some(header) = hosts.next() {
        // Many clients leave the port out; what they say must be true.
        let text = header.to_str().unwrap_or("");
        let agrees = hosts.next().is_none() && parse_authority(text, Some(port))? == (host.clone(), port);
        if !agrees && holds("connect-host-header") {
            return Err(Refusal::bad_request(
                "the Host header differs from the target of CONNECT",
            ));
        }
    }
    let host = meant;
    let (scheme, tls) = if port == HTTP_PORT && holds("tls-on-plain-port") {
        (Scheme::Http, false)
    } else {
        (Scheme::Tunnel, true)
    };
    let admission = inner.admit(&host, port, scheme, None).await?;
    record.allowed(&admission.rule);
    let route = Route::new(inner, host, port, tls, admission)?;
    if tls && !route.is_read() {
        inner.meters.request(&route.meter)?;
    } else {
        // Its requests are counted.
        inner.meters.check(&route.meter)?;
    }
    // Where requests decide, nothing is resolved or dialled before one of them is allowed.
    let waits = route.admission.inspect && holds("inspect-before-dial");
    if let Some(managed) = route.service.as_ref().filter(|_| !route.is_read()) {
        exchange::explain(&route, record, managed.explain(None));
    }
    let upstream = if !tls || waits || (route.is_read() && route.connections.speaks_h2().is_some()) {
        None
    } else {
        Some(inner.dial(&route).await?)
    };
    slot.set(After::Tunnel {
        client: hyper::upgrade::on(request),
        route,
        upstream,
        record: Arc::clone(record),
    });
    Ok(())
}

/// Fetches an absolute `http://` target.
async fn fetch(
    inner: &Arc<Inner>,
    slot: &AfterSlot,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, (Refusal, Arc<Record>)> {
    match plain_route(inner, &request).await {
        Ok(route) => Ok(exchange::answer(inner, &route, request, slot).await),
        Err((refusal, target)) => {
            let record = Record::start(&inner.hub);
            record.request(request.method(), Some(request.uri().path()));
            if let Some((host, port)) = target {
                record.target(&host.into(), port);
            }
            Err((refusal, record))
        }
    }
}

type Target = Option<(String, u16)>;

async fn plain_route(inner: &Inner, request: &Request<Incoming>) -> Result<Arc<Route>, (Refusal, Target)> {
    let uri = request.uri();
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        let refusal =
            Refusal::bad_request("this is a proxy: send CONNECT host:port or an absolute http:// target");
        return Err((refusal, None));
    };
    let (host, port) =
        parse_authority(authority.as_str(), Some(HTTP_PORT)).map_err(|refusal| (refusal, None))?;
    let target = Some((host.to_string(), port));
    if scheme != "http" && holds("absolute-target-scheme") {
        let refusal = Refusal::bad_request("only http:// targets are fetched; use CONNECT for others");
        return Err((refusal, target));
    }
    let admission = inner.admit(&host, port, Scheme::Http, None).await;
    admission
        .and_then(|admission| Route::new(inner, host, port, false, admission))
        .map_err(|refusal| (refusal, target))
}
