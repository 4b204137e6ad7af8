//! The proxy itself. What a request passes, top to bottom:
//!
//! * `quota`: a place among the guest's streams, or it is turned away.
//! * `front`: what is said to the proxy is parsed: CONNECT, or a target to fetch. `http1` serves it.
//! * `gate`: the policy decides, and whoever it says is to be asked: `asking`.
//! * `route`: what was decided, and all that is done by it.
//! * `tunnel`: bytes of a tunnel that is not read go both ways, once its start was looked at.
//! * `intercept`: TLS of a tunnel that is read ends here, and requests come out of it, by `http1` or `http2`.
//! * `exchange`: each request, from its check to its answer; a credential goes in here.
//! * `message`: heads are checked and cleaned.
//! * `meter`: what may be taken of a host, and in all.
//! * `websocket`: how one is asked for, and opened at upstream.
//! * `pool`: a connection to upstream that waits, if there is one.
//! * `upstream`: else a new one: resolved, vetted, dialled, TLS, HTTP. `dial` takes the address that answers first;
//!   `chain` goes through a proxy of the host's network.
//! * `interim`: what upstream says before it answers.
//! * `body`: bodies pass, counted and scrubbed; `incoming` is what comes of either version.
//! * `refusal`: what is answered wherever one of these says no.
//!
//! Beside the way: `builder` makes the proxy, `live` changes its policy, `look_up` decides on names for the guest's DNS,
//! `limits` has every limit, `place` says how long a request counts, and `io`, `bulk`, `half_open` and `unless` are what
//! streams are held with.

mod asking;
#[cfg(test)]
mod authorities;
mod body;
mod builder;
mod bulk;
mod chain;
mod dial;
mod exchange;
mod front;
mod gate;
mod half_open;
mod http1;
mod http2;
mod incoming;
mod intercept;
mod interim;
mod io;
mod limits;
mod live;
mod look_up;
mod message;
mod meter;
mod place;
mod pool;
mod quota;
mod refusal;
mod route;
mod tunnel;
mod unless;
mod upstream;
mod websocket;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox_core::audit::AuditEvent;
use sandbox_core::credential::CredentialError;
use sandbox_core::host::Host;
use sandbox_core::policy::{Policy, RequestLine, Scheme};
use sandbox_core::{BoxStream, SandboxId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use body::RequestBody;
pub use builder::{ProxyBuilder, ProxyError};
pub(crate) use limits::places;
pub use live::ChangeError;
pub use meter::Limits;
pub(crate) use route::parse_host_and_port;

use crate::audit::Hub;
use crate::audit::record::Record;
use crate::defence::holds;
use crate::dns::{self, Dns};
use crate::resolve::Names;
use crate::scrub::Secrets;
use crate::services::directory::Directory;
use crate::services::{Explanation, PlaceholderTag};
use crate::tls::Ca;
use crate::tls::client::Clients;
use crate::upstream_proxy::UpstreamProxy;
use asking::Asking;
use io::Watched;
use meter::Meters;
use pool::Pool;
use quota::Quota;
use refusal::Refusal;
use unless::unless;

/// The egress proxy of one sandbox. Cheap to clone; all clones are the same proxy.
///
/// Whoever can hand a stream to [`serve`](Self::serve) is the sandbox: nothing said in the stream changes that.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
    /// Ends upstream connections when the last handle is gone.
    _open: Arc<DropGuard>,
}

/// A service that has no credential which its requests can go out with.
#[derive(Debug, thiserror::Error)]
#[error("no credential for service {service} from {source_name}")]
pub struct MissingCredential {
    /// The service's name.
    pub service: String,
    /// What its source calls itself.
    pub source_name: String,
    /// Why there is none, and what to do.
    #[source]
    pub cause: CredentialError,
}

pub(crate) struct Inner {
    sandbox: SandboxId,
    policy: watch::Sender<Arc<dyn Policy>>,
    /// Held while the policy is changed; decisions do not wait for it.
    changing: Mutex<()>,
    asking: Asking,
    services: Directory,
    placeholder_tag: PlaceholderTag,
    names: Names,
    upstream_proxy: Option<UpstreamProxy>,
    pub(crate) dns: dns::State,
    clients: Clients,
    ca: Ca,
    hub: Arc<Hub>,
    secrets: Arc<Secrets>,
    pool: Pool,
    streams: Arc<Quota>,
    upstreams: Arc<Quota>,
    /// For streams over the limit.
    turned_away: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    h2_clients: Arc<Semaphore>,
    h2_upstreams: Arc<Semaphore>,
    /// Memory of decoders, in KiB.
    decoding: Arc<Semaphore>,
    meters: Arc<Meters>,
    closed: CancellationToken,
}

impl Proxy {
    /// Starts building the proxy of this sandbox.
    pub fn builder(sandbox: SandboxId) -> ProxyBuilder {
        ProxyBuilder::new(sandbox)
    }

    /// Serves one stream of the guest: HTTP/1.1 as to a proxy. Ends when the stream has ended, when nothing has moved on
    /// it for 30 to 60 minutes, on [`close`](Self::close), and when the last handle of this proxy is dropped: what is
    /// given back holds none, so keep one as long as it runs. Drops everything that belongs to the stream when dropped.
    /// Needs a tokio runtime.
    pub fn serve(&self, stream: BoxStream) -> impl Future<Output = ()> + Send + use<> {
        let inner = Arc::clone(&self.inner);
        async move {
            let Some(_slot) = inner.streams.try_take() else {
                // On the heap, as all streams would have room for it otherwise.
                Box::pin(turn_away(&inner, stream)).await;
                return;
            };
            let closed = inner.closed.clone();
            let stream = Watched::new(stream);
            let idle = stream.idle(limits::IDLE_TIME);
            let ends = async {
                tokio::select! {
                    () = idle, if holds("idle-timeout") => tracing::debug!("an idle stream was closed"),
                    () = closed.cancelled() => {}
                }
            };
            unless(front::serve(inner, stream), ends).await;
        }
    }

    /// Serves every connection of a listener, for ordinary processes that use the proxy without a machine.
    ///
    /// Everyone who can connect is the sandbox. Ends with an error of the listener; when dropped, all its
    /// connections end.
    ///
    /// # Errors
    /// The listener failed in a way that does not pass.
    pub async fn listen(&self, listener: TcpListener) -> std::io::Result<()> {
        serve_connections(listener, |stream| self.serve(Box::new(stream))).await
    }

    /// Whether every service has a credential that its requests can go out with. For launch, to fail early. A source
    /// has a minute.
    ///
    /// # Errors
    /// The first service that has none.
    pub async fn check_credentials(&self) -> Result<(), MissingCredential> {
        for bound in self.inner.services.bounds() {
            let checked = timeout(limits::CREDENTIAL_TIME, bound.check(&self.inner.sandbox)).await;
            let too_slow = |_| {
                Err(CredentialError::Failed {
                    source_name: bound.source.describe(),
                    cause: "it did not answer in time".into(),
                })
            };
            if let Err(cause) = checked.unwrap_or_else(too_slow) {
                return Err(MissingCredential {
                    service: bound.service.name().to_owned(),
                    source_name: bound.source.describe(),
                    cause,
                });
            }
        }
        Ok(())
    }

    /// The sandbox's DNS, for a stub in the guest to ask.
    pub fn dns(&self) -> Dns {
        Dns::new(Arc::clone(&self.inner), Arc::clone(&self._open))
    }

    /// The sandbox's own certificate authority.
    pub fn ca(&self) -> &Ca {
        &self.inner.ca
    }

    /// The authority's certificate as PEM, for the guest's trust stores. Its keys are made when it is first asked
    /// for, which takes up to tens of milliseconds of computing: not on a thread that others wait for.
    ///
    /// # Errors
    /// [`ProxyError::Ca`]: keys or certificate could not be made.
    pub fn ca_pem(&self) -> Result<String, ProxyError> {
        Ok(self.inner.ca.pem()?)
    }

    /// Environment variables for the guest, with placeholders that make tools start.
    pub fn placeholders(&self) -> Vec<(String, String)> {
        let bounds = self.inner.services.bounds().iter();
        bounds
            .flat_map(|bound| bound.service.variables().cloned())
            .collect()
    }

    /// What this sandbox's placeholders have and no other's. A sandbox that goes on from this one's memory needs the
    /// same: see [`ProxyBuilder::placeholder_tag`].
    pub fn placeholder_tag(&self) -> &PlaceholderTag {
        &self.inner.placeholder_tag
    }

    /// Why a request to this host and port gets a credential, or why not: the answer of the code that decides
    /// it, for a request in which the client sends nothing of its own. What happened to those that were made is in
    /// [`AuditEvent::credential_reason`] and, at level `DEBUG`, in `tracing`.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use sandbox_core::policy::{RequestLine, Scheme};
    /// use sandbox_proxy::{Proxy, Service, sources};
    /// let proxy = Proxy::builder("one".parse().unwrap())
    ///     .credential(Service::github(), Arc::new(sources::Env::new("GITHUB_TOKEN")))
    ///     .build()?;
    /// let line = RequestLine { method: "GET", path: "/" };
    /// let why = proxy.explain_credential(Scheme::Http, &"github.com".parse().unwrap(), 80, line);
    /// assert_eq!(why.to_string(), "github: not injected: the service takes TLS only, and this is plain HTTP");
    /// # Ok::<(), sandbox_proxy::ProxyError>(())
    /// ```
    pub fn explain_credential(
        &self,
        scheme: Scheme,
        host: &Host,
        port: u16,
        request: RequestLine<'_>,
    ) -> Explanation {
        // What is tunnelled is TLS, but for the port of plain HTTP.
        let tls = scheme == Scheme::Tunnel && port != front::HTTP_PORT;
        self.inner.services.explain(tls, host, port, request)
    }

    /// Audit events from now on. A subscriber that is slow loses the oldest and is told how many.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<AuditEvent>> {
        self.inner.hub.subscribe()
    }

    /// Whose proxy it is.
    pub fn sandbox(&self) -> &SandboxId {
        &self.inner.sandbox
    }

    /// Ends all streams and upstream connections, on all clones.
    pub fn close(&self) {
        self.inner.closed.cancel();
    }

    fn new(inner: Inner) -> Self {
        let open = Arc::new(inner.closed.clone().drop_guard());
        Self {
            inner: Arc::new(inner),
            _open: open,
        }
    }
}

impl Inner {
    /// Done when the proxy is closed.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.inner.sandbox)
    }
}

/// Serves every connection of a listener, until it fails in a way that does not pass.
pub(crate) async fn serve_connections<F>(
    listener: TcpListener,
    mut serve: impl FnMut(TcpStream) -> F,
) -> std::io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY could not be set");
                    }
                    streams.spawn(serve(stream));
                }
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    // Out of descriptors: others must end first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            },
            Some(_) = streams.join_next() => {}
        }
    }
}

/// Tells a guest that it has too many streams open.
async fn turn_away(inner: &Inner, mut stream: BoxStream) {
    let refusal = Refusal::busy("the sandbox has too many streams open");
    let record = Record::start(&inner.hub);
    refusal.tell(&record);
    // As many more are refused as the guest likes to open: few of them are told, and none is waited for long.
    let Ok(_permit) = inner.turned_away.try_acquire() else {
        return;
    };
    let tell = async {
        let answer = refusal.raw_response("");
        // A socket that is closed with bytes unread in it loses the answer, too.
        let mut head = [0; 4096];
        if stream.read(&mut head).await.is_ok() && stream.write_all(&answer).await.is_ok() {
            let _ = stream.shutdown().await;
        }
    };
    let _ = timeout(Duration::from_secs(1), tell).await;
}

fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, OutOfMemory};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | OutOfMemory
    ) || io::is_out_of_descriptors(error)
}
