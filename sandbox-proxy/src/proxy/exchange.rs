//! One request and its response, wherever the stream is read: check, ask, clean, inject, send, scrub.

use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{EXPECT, SET_COOKIE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::TrySendError;
use sandbox_core::credential::CredentialError;
use tokio::time::timeout;

use super::Inner;
use super::body::{RequestBody, ResponseBody, Streamed};
use super::http1::AfterSlot;
use super::http2;
use super::incoming::{Incoming, IncomingError};
use super::interim::{Hints, Interim};
use super::message::{self, Coded};
use super::place::{Busy, Place};
use super::pool::{Checkin, Lane, Sender};
use super::refusal::Refusal;
use super::route::{Route, Scrubbing};
use super::upstream::Offer;
use super::websocket::{self, Asked, Opened};
use super::{chain, gate, limits};
use crate::audit::record::Record;
use crate::defence::holds;
use crate::scrub::coding::Decoder;
use crate::scrub::{Framing, Scrubber};
use crate::services::bound::{Bound, BoundError, CredentialId, ToSign};
use crate::services::inject::Injected;
use crate::services::sign::SignError;
use crate::services::{CredentialReason, Explanation, issued};

/// A connection that waited may have been closed by upstream meanwhile; then the next is tried.
const SEND_ATTEMPTS: usize = 3;

/// Answers a request on an admitted route. `after` is where a WebSocket goes on.
pub(crate) async fn answer(
    inner: &Arc<Inner>,
    route: &Arc<Route>,
    request: Request<Incoming>,
    after: &AfterSlot,
) -> Response<ResponseBody> {
    let record = Record::start(&inner.hub);
    record.target(&route.host_text, route.port);
    // A WebSocket over HTTP/2 is asked for by CONNECT, and everywhere else by GET.
    let method = if request.extensions().get::<h2::ext::Protocol>().is_some() {
        &Method::GET
    } else {
        request.method()
    };
    record.request(method, Some(request.uri().path()));
    record.allowed(&route.admission.rule);
    let unanswered = Unanswered(Some(&record));
    let response = match exchange(inner, route, request, after, &record).await {
        Ok(response) => response,
        Err(refusal) => {
            refusal.tell(&record);
            refusal.response(&route.shown())
        }
    };
    unanswered.answered();
    record.status(response.status());
    response
}

/// Tells the record of a request whose client goes away before there is an answer.
struct Unanswered<'a>(Option<&'a Record>);

impl Unanswered<'_> {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.0 {
            record.outcome("the client went away before the answer");
        }
    }
}

/// Awaits on the heap what most requests do without: their futures are made and moved with room for all there may be.
async fn exchange(
    inner: &Arc<Inner>,
    route: &Arc<Route>,
    mut request: Request<Incoming>,
    after: &AfterSlot,
    record: &Arc<Record>,
) -> Result<Response<ResponseBody>, Refusal> {
    inner.check_records()?;
    let permit = Arc::clone(&inner.requests)
        .try_acquire_owned()
        .map_err(|_| Refusal::busy("the sandbox has too many requests open"))?;
    let place = Place::new(permit, request.extensions_mut().remove::<Busy>());
    let client_upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, incoming) = request.into_parts();
    let websocket = Asked::of(&mut parts, client_upgrade);
    let is_plain_get = is_plain_get(&parts, &incoming);
    // Who speaks HTTP/1.0 knows of no interim answers (RFC 9110 §15.2).
    let interim = after
        .interim
        .as_ref()
        .filter(|_| parts.version >= Version::HTTP_11);
    let unanswered = interim.map(Interim::begin);
    parts.extensions.clear();
    message::check(&parts, route)?;
    if websocket.is_some() {
        websocket::check_body(&incoming)?;
    }
    inner.meters.request(&route.meter)?;
    let renewed;
    let route = if route.admission.is_of(&inner.policy()) || !holds("policy-for-open-streams") {
        route
    } else {
        // The tunnel was admitted under a policy that has been replaced since.
        let admission = inner.admit(&route.host, route.port, route.scheme(), None).await?;
        record.allowed(&admission.rule);
        renewed = Route::new(inner, route.host.clone(), route.port, route.tls, admission)?;
        &renewed
    };
    let admitted;
    let route = if route.admission.inspect {
        let admission = inner.admit_request(route, &parts).await?;
        record.allowed(&admission.rule);
        admitted = Route::new(inner, route.host.clone(), route.port, route.tls, admission)?;
        &admitted
    } else {
        route
    };
    let asks_first = message::asks_first(&parts);
    message::clean_request(&mut parts);
    let Claimed {
        service,
        issuer,
        to_sign,
        credential,
    } = inject(inner, route, &mut parts, record).await?;
    let lane = match credential {
        None if route.service.is_some() => route.own_connections(inner).lane(None),
        credential => route.connections.lane(credential),
    };
    let is_alone = message::signs_connection_in(&parts.headers) && holds("pool-sign-in");
    if route.scrubbing != Scrubbing::Never {
        let whole = route.scrubbing == Scrubbing::All;
        message::make_scrubbable(&mut parts.headers, whole, route.compressed);
    }
    let is_managed = service.is_some();
    let mut body =
        RequestBody::new(incoming, Arc::clone(record), service, place.clone()).asking_first(asks_first);
    if let Some(signing) = to_sign {
        let signed = signing.apply(&mut parts, body, &route.host_header, SystemTime::now());
        body = Box::pin(signed).await.map_err(unsigned)?;
    }
    let request = Request::from_parts(parts, body);
    let (mut response, mut checkin) = match websocket {
        Some(asked) => match Box::pin(asked.send(inner, route, &lane, request)).await? {
            Opened::Switched(mut accepted) => {
                keep_session(&mut accepted.response, is_managed);
                return Ok(asked.switch(inner, route, accepted, after, record, place));
            }
            Opened::Declined(response, checkin) => {
                // One that goes through a company's proxy by CONNECT must not carry what is for that proxy later.
                let is_other = route.forward.is_some() && holds("pool-forwarded");
                (response, checkin.filter(|_| !is_other))
            }
        },
        None => {
            let offer = if is_alone { Offer::Alone } else { Offer::Any };
            let scrubs = route.scrubbing != Scrubbing::Never;
            let hints = || {
                let secrets = scrubs.then(|| Arc::clone(&inner.secrets));
                Some(unanswered.as_ref()?.hints(secrets, is_managed))
            };
            let answered = send(inner, route, &lane, request, offer, &hints, record).await?;
            if route.forward.is_some() && answered.0.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
                return Err(chain::refused(answered.0.status()));
            }
            answered
        }
    };
    if is_alone || message::signs_connection_in(response.headers()) && holds("pool-sign-in-response") {
        // Closed when the response has ended; one of HTTP/2 signs nobody in.
        checkin = checkin.filter(|checkin| matches!(checkin, Checkin::H2 { .. }));
    }
    keep_session(&mut response, is_managed);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && holds("unasked-upgrade") {
        return Err(Refusal::upstream(
            "http_protocol_error",
            "upstream switched protocols unasked",
        ));
    }
    let response = pass(inner, route, response, checkin, record, &place)?;
    match issuer {
        Some(bound) => Box::pin(note_tokens(&bound, response, is_plain_get, &place)).await,
        None => Ok(response),
    }
}

/// Keeps the session that a credential opened on the host: it is a credential, too, and the client's cookies do not go
/// to this host.
fn keep_session(response: &mut Response<Incoming>, is_managed: bool) {
    if is_managed && holds("set-cookie") {
        response.headers_mut().remove(SET_COOKIE);
    }
}

/// Whether a request says who asks in its head alone. By `POST`, a token server gives a token to whoever the body names,
/// and the body is the client's own.
fn is_plain_get(parts: &Parts, body: &Incoming) -> bool {
    parts.method == Method::GET && body.is_end_stream() && !parts.headers.keys().any(gate::is_override)
}

/// Remembers the tokens that a service gives to the sandbox, if they are known to be for the managed credential.
async fn note_tokens(
    bound: &Bound,
    response: Response<ResponseBody>,
    is_plain_get: bool,
    place: &Place,
) -> Result<Response<ResponseBody>, Refusal> {
    let (mut parts, body) = response.into_parts();
    let body = timeout(
        limits::RESPONSE_TIME,
        Limited::new(body, issued::MAX_ANSWER_BYTES).collect(),
    );
    let Ok(Ok(answer)) = body.await else {
        return Err(Refusal::upstream(
            "http_response_incomplete",
            "the token server's answer did not come, or is too long",
        ));
    };
    let mut answer = answer.to_bytes();
    if parts.status == StatusCode::OK && (is_plain_get || !holds("issued-tokens-by-get")) {
        bound.tokens.note(&answer);
    }
    if let Some(rest) = issued::without_refresh_token(&answer)
        && holds("no-refresh-tokens")
    {
        message::set_decoded(&mut parts.headers);
        answer = rest.into();
    }
    Ok(Response::from_parts(
        parts,
        ResponseBody::collected(answer, place.clone()),
    ))
}

/// What the route's service has to do with a request.
#[derive(Default)]
struct Claimed {
    /// It has a say in the request's trailers, too.
    service: Option<Arc<Bound>>,
    /// Answers are its tokens.
    issuer: Option<Arc<Bound>>,
    /// What the request is to be signed with.
    to_sign: ToSign,
    /// Which credential it goes out with.
    credential: Option<CredentialId>,
}

/// Puts the credential of the route's service in, if it has one.
async fn inject(
    inner: &Inner,
    route: &Route,
    parts: &mut Parts,
    record: &Record,
) -> Result<Claimed, Refusal> {
    let Some(managed) = &route.service else {
        return Ok(Claimed::default());
    };
    let bound = &managed.bound;
    let chosen = managed.choose(gate::request_line(parts));
    let mut told = managed.explain(chosen);
    if !managed.is_site() {
        explain(route, record, told);
        return Ok(Claimed::default());
    }
    if let Some(name) = parts.headers.keys().find(|name| gate::is_override(name))
        && managed.tells_methods_apart()
        && holds("service-override-headers")
    {
        told.reason = CredentialReason::OtherRequest;
        explain(route, record, told);
        let detail =
            format!("{name} would make another request of it than the service's targets see; leave it out");
        return Err(Refusal::credential(detail, true));
    }
    let endpoint = chosen.map(|chosen| chosen.endpoint);
    let target = (&route.host, route.port);
    let injected = timeout(
        limits::at_most(limits::CREDENTIAL_TIME, holds("credential-time")),
        bound.inject(parts, endpoint, target, &inner.sandbox, &inner.secrets),
    );
    let result = match injected.await {
        Ok(Ok(put)) => {
            match put.injected {
                Injected::Managed => record.credential(&bound.name),
                Injected::Own => told.reason = CredentialReason::ClientsOwn,
                Injected::NotIssued => told.reason = CredentialReason::NotIssued,
                Injected::NotAsked => told.reason = CredentialReason::NoPlaceholder,
                Injected::Issued | Injected::NotHere => {}
            }
            let is_issuer = endpoint.is_some_and(|endpoint| endpoint.issues_tokens);
            Ok(Claimed {
                service: (put.injected != Injected::Own).then(|| Arc::clone(bound)),
                issuer: is_issuer.then(|| Arc::clone(bound)),
                to_sign: put.to_sign,
                credential: put.credential,
            })
        }
        Ok(Err(error)) => {
            // Which file or command of the host it is, is no business of the guest.
            record.outcome(&error.to_string());
            told.reason = CredentialReason::from(&error);
            if let BoundError::Sign(error) = error {
                explain(route, record, told);
                return Err(unsigned(error));
            }
            let is_denial = told.reason == CredentialReason::Rejected;
            let refusal = match error {
                BoundError::Source { service, cause } => {
                    let detail = format!(
                        "there is no credential for service {service} now; the host's audit log says why"
                    );
                    match cause {
                        CredentialError::Failed { .. } => Refusal::source_failed(detail),
                        _ => Refusal::credential(detail, is_denial),
                    }
                }
                error => Refusal::credential(error.to_string(), is_denial),
            };
            Err(refusal)
        }
        Err(_) => {
            told.reason = CredentialReason::SourceTimeout;
            Err(Refusal::timeout(
                "proxy_internal_error",
                &format!(
                    "the source of the credential of service {} took too long",
                    bound.service.name()
                ),
            ))
        }
    };
    explain(route, record, told);
    result
}

/// A request that cannot be signed.
fn unsigned(error: SignError) -> Refusal {
    match error {
        SignError::Busy => Refusal::busy(&error.to_string()),
        SignError::TooSlow => Refusal::timeout("proxy_internal_error", &error.to_string()),
        error => Refusal::credential(error.to_string(), true),
    }
}

/// Writes down why a request, or a tunnel that is not read, has a credential or none.
pub(super) fn explain(route: &Route, record: &Record, why: Explanation) {
    tracing::debug!(target: "sandbox_proxy::credentials", host = %route.host, port = route.port, %why);
    record.credential_reason(why);
}

/// A request that was not answered.
struct Failure {
    error: IncomingError,
    /// The request, if nothing of it was sent.
    unsent: Option<Box<Request<RequestBody>>>,
}

impl From<TrySendError<Request<RequestBody>>> for Failure {
    fn from(mut failure: TrySendError<Request<RequestBody>>) -> Self {
        Self {
            unsent: failure.take_message().map(Box::new),
            error: failure.into_error().into(),
        }
    }
}

impl From<http2::client::Failed> for Failure {
    fn from(failure: http2::client::Failed) -> Self {
        Self {
            unsent: failure.unsent,
            error: failure.fault.into(),
        }
    }
}

async fn send(
    inner: &Inner,
    route: &Arc<Route>,
    lane: &Lane,
    request: Request<RequestBody>,
    offer: Offer,
    hints: &(dyn Fn() -> Option<Hints> + Sync),
    record: &Record,
) -> Result<(Response<Incoming>, Option<Checkin>), Refusal> {
    let (mut parts, mut body) = request.into_parts();
    for attempt in 1.. {
        let waiting = match offer {
            Offer::Any if attempt < SEND_ATTEMPTS => lane.checkout().await,
            _ => None,
        };
        let (sender, is_new) = match waiting {
            Some(sender) => (sender, false),
            None => (inner.connect(route, None, offer).await?, true),
        };
        match &sender {
            Sender::H1(_) => message::target_h1(&mut parts, route),
            Sender::H2(..) => message::target_h2(&mut parts, route),
        }
        let mut request = Request::from_parts(parts, body);
        let (result, checkin) = match sender {
            Sender::H1(mut h1) => {
                hear_interim(&mut request, hints());
                let sent = async {
                    let response = h1.try_send_request(request).await?;
                    Ok::<_, Failure>(response.map(Incoming::Http1))
                };
                (in_time(record, sent).await, Checkin::h1(lane, h1))
            }
            Sender::H2(mut h2, under_way) => {
                // From an attempt before this one. Over HTTP/2 few upstreams say that they want a body.
                request.headers_mut().remove(EXPECT);
                if is_new {
                    lane.put(Sender::h2(&h2));
                }
                let sent = async { Ok(h2.send(request, hints()).await?) };
                (in_time(record, sent).await, Checkin::h2(under_way))
            }
        };
        let failure = match result {
            Some(Ok(response)) => return Ok((response, Some(checkin))),
            Some(Err(failure)) => failure,
            None => {
                return Err(Refusal::timeout(
                    "http_response_timeout",
                    "upstream did not answer in time",
                ));
            }
        };
        match failure.unsent {
            Some(unsent) if !is_new && holds("send-again") => (parts, body) = unsent.into_parts(),
            _ => {
                let error = failure.error;
                tracing::debug!(%error, "upstream failed");
                return Err(Refusal::upstream(
                    "http_response_incomplete",
                    format!("upstream failed: {error}"),
                ));
            }
        }
    }
    Err(Refusal::internal("no connection to send on"))
}

/// Takes what upstream says over HTTP/1.1 before it answers. Upstream is asked whether it wants the body of a client that
/// asks first.
fn hear_interim(request: &mut Request<RequestBody>, hints: Option<Hints>) {
    let wanted = request.body_mut().wait_for_upstream();
    if wanted.is_some() {
        let headers = request.headers_mut();
        headers.insert(EXPECT, HeaderValue::from_static(message::CONTINUE));
    }
    if wanted.is_none() && hints.is_none() {
        return;
    }
    hyper::ext::on_informational(request, move |interim| {
        if let Some(wanted) = wanted
            .as_ref()
            .filter(|_| interim.status() == StatusCode::CONTINUE)
        {
            wanted.notify_one();
        }
        if let Some(hints) = &hints {
            hints.pass(interim.status(), interim.headers());
        }
    });
}

/// Waits for the head of a response as long as one may take, from when the request's body last moved. `None` is that
/// none came.
async fn in_time<T>(record: &Record, response: impl Future<Output = T>) -> Option<T> {
    let time = limits::at_most(limits::RESPONSE_TIME, holds("response-time"));
    let mut response = pin!(response);
    loop {
        let sent = record.bytes_out();
        match timeout(time, response.as_mut()).await {
            Ok(response) => return Some(response),
            Err(_) if record.bytes_out() == sent => return None,
            Err(_) => {}
        }
    }
}

/// Hands a response to the client as it comes.
fn pass(
    inner: &Inner,
    route: &Route,
    response: Response<Incoming>,
    checkin: Option<Checkin>,
    record: &Arc<Record>,
    place: &Place,
) -> Result<Response<ResponseBody>, Refusal> {
    let (mut parts, incoming) = response.into_parts();
    if message::has_too_many_fields(&parts.headers) {
        return Err(Refusal::upstream(
            "http_response_header_section_size",
            "upstream's response has too many header fields",
        ));
    }
    // Among them the reason phrase, which can hold anything.
    if holds("reason-phrase") {
        parts.extensions.clear();
    }
    let ended = incoming.is_end_stream();
    let (mut scrubber, mut decoder) = (None, None);
    if route.scrubbing != Scrubbing::Never {
        let at_service = route.scrubbing == Scrubbing::All;
        let framing = Framing::of(&parts.headers);
        let mut searched = true;
        match message::coded(parts.status, &parts.headers) {
            Coded::Plain => {}
            Coded::Readable(codings) => {
                message::set_decoded(&mut parts.headers);
                // Events cannot wait for others to fill a block with them.
                let blocks = at_service && framing == Framing::Unknown;
                decoder = (!ended).then(|| Decoder::new(&codings, &inner.decoding, blocks));
            }
            Coded::Unreadable if ended => {}
            Coded::Unreadable if at_service && holds("refuse-unknown-coding") => {
                return Err(Refusal::unsearchable(
                    "upstream's response is compressed in a way that cannot be searched for secrets",
                ));
            }
            Coded::Unreadable => searched = false,
        }
        scrubber = searched.then(|| Scrubber::new(Arc::clone(&inner.secrets), framing));
        inner.secrets.patterns().scrub_headers(&mut parts.headers);
    }
    message::clean_response(&mut parts.headers);
    place.on_head(&mut parts.headers);
    let mut checkin = checkin;
    if ended && let Some(checkin) = checkin.take() {
        checkin.done();
    }
    let record = Arc::clone(record);
    let body = Streamed::new(incoming, record, decoder, scrubber, checkin, place.clone());
    Ok(Response::from_parts(parts, ResponseBody::Stream(Box::new(body))))
}

impl Refusal {
    /// Writes the refusal into the record of its attempt.
    pub(crate) fn tell(&self, record: &Record) {
        record.status(self.status);
        if self.is_denial {
            record.denied(self.rule.as_deref().unwrap_or(""), &self.detail);
        } else {
            record.outcome(&self.detail);
        }
    }
}
