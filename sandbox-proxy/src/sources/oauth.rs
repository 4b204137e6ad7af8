//! Access tokens of OAuth 2.0 (RFC 6749), got and renewed on the host: the guest sees neither them nor what they are
//! got with.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use sandbox_core::SandboxId;
use sandbox_core::credential::{
    Credential, CredentialError, CredentialRequest, CredentialSource, ExposeSecret, Issued, SecretString,
};
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::http::{Http, HttpError, Plain};
use super::kept::MARGIN;
use super::shared::{Keep, Shared, cause};
use crate::defence;
use crate::encoding::percent_encode;
use crate::upstream_proxy::UpstreamProxy;

/// How long a token is kept that came without `expires_in`.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Bounds what a server may say of its token's life, so that no time overflows.
const MAX_LIFETIME: u64 = 366 * 86400;
/// So long requests get the failure of the last try: a guest cannot make the host ask the token server in a loop, which
/// would lock the account out.
const FAILURE_TIME: Duration = Duration::from_secs(2);
/// So long a token that is still good serves after its renewal failed.
const RETRY_TIME: Duration = Duration::from_secs(10);

/// What takes a new refresh token, to store it.
type Store = dyn Fn(&SecretString) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

/// Bearer tokens from a token server: by a refresh token (RFC 6749 §6) or for the client itself (§4.4).
///
/// A token serves all requests until a minute before it ends ([`renew_before`](Self::renew_before)); then one request,
/// however many wait, gets the next. Clones share it. A refresh token that the server replaces is used from then on,
/// and handed to [`on_new_refresh_token`](Self::on_new_refresh_token) to be stored; one that changes where it is stored
/// is taken when the next token is due.
///
/// ```
/// use sandbox_proxy::sources::{File, OAuth2};
/// let source = OAuth2::refresh("https://auth.example.com/token", "my-client", File::new("/run/secrets/refresh"))
///     .scope("repository.read");
/// ```
#[derive(Debug, Clone)]
pub struct OAuth2 {
    settings: Arc<Settings>,
    state: Arc<State>,
}

#[derive(Debug, Clone)]
struct Settings {
    token_url: String,
    client_id: String,
    client_secret: Option<Arc<dyn CredentialSource>>,
    secret_in_body: bool,
    /// Without one, tokens are for the client itself.
    refresh: Option<Arc<dyn CredentialSource>>,
    parameters: Vec<(String, String)>,
    renew_before: Duration,
    store: Option<StoreFn>,
    roots: Vec<Vec<u8>>,
    plain: Plain,
    proxy: Option<UpstreamProxy>,
}

#[derive(Clone)]
struct StoreFn(Arc<Store>);

impl fmt::Debug for StoreFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreFn")
    }
}

#[derive(Debug, Default)]
struct State {
    shared: Shared,
    http: OnceLock<Http>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// What the refresh token's source gave last.
    read: Option<SecretString>,
    /// The refresh token to use: that, or what the server gave in its place.
    current: Option<SecretString>,
    /// The last token.
    last: Option<Issued>,
    /// When renewal is tried again.
    retry: Option<Instant>,
}

/// Why a token server gave no token. The [source](std::error::Error::source) of a
/// [`CredentialError::Failed`]; never holds what was sent or came back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OAuthError {
    /// The server could not be asked: its address, the network, TLS.
    #[error("the token server could not be asked")]
    Exchange {
        /// The cause.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused (RFC 6749 §5.2), with this code.
    #[error("the token server refused: {code}")]
    Refused {
        /// `invalid_client`, `invalid_scope` and so on; `other` for what the RFC does not know.
        code: &'static str,
    },
    /// The server answered with this status and no code.
    #[error("the token server answered with status {status}")]
    Status {
        /// The status.
        status: u16,
    },
    /// The answer is none of RFC 6749 §5.1, or its token cannot be sent.
    #[error("the token server's answer cannot be used: {why}")]
    Answer {
        /// What is wrong with it.
        why: &'static str,
    },
}

impl OAuthError {
    /// The one that an error of [`OAuth2`] holds, if it holds one.
    pub fn of(error: &CredentialError) -> Option<&Self> {
        cause(error)
    }
}

/// Codes of RFC 6749 §5.2.
const CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

/// What a server answers, well or badly.
#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    token_type: Option<String>,
    expires_in: Option<serde_json::Value>,
    refresh_token: Option<String>,
    error: Option<String>,
}

impl OAuth2 {
    /// Tokens for whom the refresh token is of, which `refresh_token` gives.
    pub fn refresh(
        token_url: impl Into<String>,
        client_id: impl Into<String>,
        refresh_token: impl CredentialSource + 'static,
    ) -> Self {
        Self::new(token_url.into(), client_id.into(), Some(Arc::new(refresh_token)))
    }

    /// Tokens for the client itself. It needs a secret.
    pub fn client_credentials(
        token_url: impl Into<String>,
        client_id: impl Into<String>,
        client_secret: impl CredentialSource + 'static,
    ) -> Self {
        Self::new(token_url.into(), client_id.into(), None).client_secret(client_secret)
    }

    fn new(token_url: String, client_id: String, refresh: Option<Arc<dyn CredentialSource>>) -> Self {
        Self {
            settings: Arc::new(Settings {
                token_url,
                client_id,
                client_secret: None,
                secret_in_body: false,
                refresh,
                parameters: Vec::new(),
                renew_before: MARGIN,
                store: None,
                roots: Vec::new(),
                plain: Plain::Never,
                proxy: None,
            }),
            state: Arc::default(),
        }
    }

    /// The client's secret, sent as Basic (RFC 6749 §2.3.1).
    #[must_use]
    pub fn client_secret(self, secret: impl CredentialSource + 'static) -> Self {
        self.with(|settings| settings.client_secret = Some(Arc::new(secret)))
    }

    /// Sends the client's secret as a parameter of the body, for servers that do not take Basic.
    #[must_use]
    pub fn client_secret_in_body(self) -> Self {
        self.with(|settings| settings.secret_in_body = true)
    }

    /// Asks for this scope, or several with spaces between.
    #[must_use]
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.parameter("scope", scope)
    }

    /// A further parameter of the request, for instance `audience`. Not for secrets.
    #[must_use]
    pub fn parameter(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|settings| settings.parameters.push((name.into(), value.into())))
    }

    /// How long before its end a token is renewed; a minute at first. Tokens that do not live that long serve one
    /// request, and those that wait with it.
    #[must_use]
    pub fn renew_before(self, margin: Duration) -> Self {
        self.with(|settings| settings.renew_before = margin)
    }

    /// Is called with each new refresh token that the server gives in place of the old one, which is of no use any more:
    /// store it where the source reads. It may block. Where it fails, the token is kept in memory and the failure logged.
    #[must_use]
    pub fn on_new_refresh_token(
        self,
        store: impl Fn(&SecretString) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.with(|settings| settings.store = Some(StoreFn(Arc::new(store))))
    }

    /// Trusts another root for the token server, as PEM or DER.
    #[must_use]
    pub fn extra_root(self, certificate: impl Into<Vec<u8>>) -> Self {
        self.with(|settings| settings.roots.push(certificate.into()))
    }

    /// Reaches the token server through a proxy of the host's network, unless it is one of the proxy's exceptions. What
    /// is sent and what comes back stay within TLS with the token server. At first no proxy is used, whatever the
    /// environment says: give [`UpstreamProxy::from_environment`] for that.
    #[must_use]
    pub fn upstream_proxy(self, proxy: UpstreamProxy) -> Self {
        self.with(|settings| settings.proxy = Some(proxy))
    }

    /// Also asks a token server on this host without TLS. For stand-ins.
    #[must_use]
    pub fn plain_loopback_allowed(self) -> Self {
        self.with(|settings| settings.plain = Plain::Loopback)
    }

    /// Changes settings; what was got with the old ones is of no use.
    fn with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.settings;
        change(Arc::make_mut(&mut settings));
        Self {
            settings,
            state: Arc::default(),
        }
    }
}

#[async_trait]
impl CredentialSource for OAuth2 {
    fn describe(&self) -> String {
        format!(
            "OAuth client {} at {}",
            self.settings.client_id, self.settings.token_url
        )
    }

    async fn fetch(&self, request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let keep = Keep {
            to_its_end: true,
            margin: self.settings.renew_before,
            failure: if defence::holds("oauth-failure-pause") {
                FAILURE_TIME
            } else {
                Duration::ZERO
            },
            ..Keep::default()
        };
        let renewal = Renewal {
            source: self.clone(),
            sandbox: request.sandbox.clone(),
            service: request.service.to_owned(),
        };
        // A guest that goes away must not break the exchange off: the server may have replaced the refresh token.
        let run = || async move { renewal.run().await };
        self.state.shared.fetch_whole(keep, run, || self.describe()).await
    }
}

/// One exchange with the token server.
struct Renewal {
    source: OAuth2,
    sandbox: SandboxId,
    service: String,
}

impl Renewal {
    async fn run(self) -> Result<Issued, CredentialError> {
        let fallback = {
            let held = self.held();
            let good = held
                .last
                .clone()
                .filter(|last| last.outlasts(SystemTime::now(), RETRY_TIME));
            match (&held.retry, good) {
                (Some(retry), Some(last)) if Instant::now() < *retry => return Ok(last),
                (_, good) => good,
            }
        };
        let renewed = self.renew().await;
        let mut held = self.held();
        match (renewed, fallback) {
            (Ok(issued), _) => {
                held.last = Some(issued.clone());
                held.retry = None;
                Ok(issued)
            }
            // Revoked: the old token is, too.
            (Err(error @ (CredentialError::Ended { .. } | CredentialError::NotFound { .. })), _) => {
                held.last = None;
                Err(error)
            }
            (Err(error), Some(last)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a token could not be renewed yet"
                );
                held.retry = Some(Instant::now() + RETRY_TIME);
                Ok(last)
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn renew(&self) -> Result<Issued, CredentialError> {
        let settings = &self.source.settings;
        let secret = match &settings.client_secret {
            Some(source) => Some(self.read(source.as_ref()).await?),
            None => None,
        };
        let refresh = match &settings.refresh {
            Some(source) => Some(self.current(self.read(source.as_ref()).await?)),
            None => None,
        };
        let request = self.request(secret.as_ref(), refresh.as_ref())?;
        let answer = self.http()?.send(request).await;
        let (status, text) = answer.map_err(|error| self.exchange(error))?;
        let answer = self.parse(status, &text)?;
        let mut also_secret: Vec<_> = secret.into_iter().chain(refresh.clone()).collect();
        if let Some(new) = answer.refresh_token {
            let new = SecretString::from(new);
            if refresh.is_some_and(|old| old.expose_secret() != new.expose_secret()) {
                self.replace(&new).await;
                also_secret.push(new);
            }
        }
        let token = answer.access_token.map(Zeroizing::new);
        let token = token.filter(|token| !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic()));
        let Some(token) = token else {
            return Err(self.unusable("it has no access_token that a header can hold"));
        };
        if !answer
            .token_type
            .is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"))
        {
            return Err(self.unusable("its token_type is not bearer"));
        }
        let seconds = match &answer.expires_in {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_u64(),
        };
        let lifetime = seconds.map_or(UNKNOWN_LIFETIME, |seconds: u64| {
            Duration::from_secs(seconds.min(MAX_LIFETIME))
        });
        let issued = Issued::new(Credential::Bearer(SecretString::from(token.as_str())));
        Ok(Issued {
            also_secret,
            ..issued.until(SystemTime::now() + lifetime)
        })
    }

    /// The refresh token to use, when its source gives this one.
    fn current(&self, read: SecretString) -> SecretString {
        let mut held = self.held();
        let is_same = held
            .read
            .as_ref()
            .is_some_and(|last| last.expose_secret() == read.expose_secret());
        match &held.current {
            Some(current) if is_same => current.clone(),
            _ => {
                held.read = Some(read.clone());
                held.current = Some(read.clone());
                read
            }
        }
    }

    /// Takes a new refresh token and has it stored.
    async fn replace(&self, new: &SecretString) {
        self.held().current = Some(new.clone());
        let Some(store) = self.source.settings.store.clone() else {
            return;
        };
        let new = new.clone();
        let stored = tokio::task::spawn_blocking(move || (store.0)(&new)).await;
        let failure = match stored {
            Ok(Ok(())) => return,
            // What the callback says might repeat what it was given.
            Ok(Err(_)) => "its store refused it",
            Err(_) => "its store panicked",
        };
        let source = self.source.describe();
        tracing::error!(source, failure, "a new refresh token is in memory alone");
    }

    async fn read(&self, source: &dyn CredentialSource) -> Result<SecretString, CredentialError> {
        let request = CredentialRequest {
            sandbox: &self.sandbox,
            service: &self.service,
            target: None,
        };
        match source.fetch(&request).await?.credential {
            Credential::Token(text) | Credential::Bearer(text) => Ok(text),
            _ => Err(CredentialError::Malformed {
                source_name: source.describe(),
                why: "it is no single text",
            }),
        }
    }

    fn request(
        &self,
        secret: Option<&SecretString>,
        refresh: Option<&SecretString>,
    ) -> Result<Request<Full<Bytes>>, CredentialError> {
        let settings = &self.source.settings;
        let mut form = Zeroizing::new(String::with_capacity(4096));
        let mut add = |name: &str, value: &str| {
            if !form.is_empty() {
                form.push('&');
            }
            percent_encode(name, b"", &mut form);
            form.push('=');
            percent_encode(value, b"", &mut form);
        };
        match refresh {
            Some(token) => {
                add("grant_type", "refresh_token");
                add("refresh_token", token.expose_secret());
            }
            None => add("grant_type", "client_credentials"),
        }
        for (name, value) in &settings.parameters {
            add(name, value);
        }
        let mut request = Request::post(settings.token_url.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json");
        match secret {
            Some(secret) if !settings.secret_in_body => {
                let mut pair = Zeroizing::new(String::new());
                percent_encode(&settings.client_id, b"", &mut pair);
                pair.push(':');
                percent_encode(secret.expose_secret(), b"", &mut pair);
                let pair = Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes()));
                let value = Zeroizing::new(["Basic ", pair.as_str()].concat());
                let mut value = HeaderValue::try_from(value.as_str())
                    .map_err(|_| self.unusable("the client's secret cannot be sent"))?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            _ => {
                add("client_id", &settings.client_id);
                if let Some(secret) = secret {
                    add("client_secret", secret.expose_secret());
                }
            }
        }
        let body = Bytes::from_owner(Zeroizing::new(form.as_bytes().to_vec()));
        request
            .body(Full::new(body))
            .map_err(|_| self.exchange(HttpError::Address))
    }

    fn parse(&self, status: StatusCode, text: &[u8]) -> Result<Answer, CredentialError> {
        let answer = serde_json::from_slice::<Answer>(text).ok();
        if let Some(error) = answer.as_ref().and_then(|answer| answer.error.as_deref()) {
            // What is wrong with the grant no renewal will mend.
            if error == "invalid_grant" && self.source.settings.refresh.is_some() {
                return Err(CredentialError::Ended {
                    source_name: self.source.describe(),
                });
            }
            let code = CODES
                .iter()
                .find(|code| **code == error)
                .copied()
                .unwrap_or("other");
            return Err(self.failed(OAuthError::Refused { code }));
        }
        if status != StatusCode::OK {
            let status = status.as_u16();
            return Err(self.failed(OAuthError::Status { status }));
        }
        answer.ok_or_else(|| self.unusable("it is not JSON"))
    }

    fn http(&self) -> Result<&Http, CredentialError> {
        let state = &self.source.state;
        if let Some(http) = state.http.get() {
            return Ok(http);
        }
        let settings = &self.source.settings;
        let http = Http::new(&settings.roots, settings.plain).map_err(|error| self.exchange(error))?;
        Ok(state.http.get_or_init(|| http.through(settings.proxy.clone())))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.source
            .state
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, error: HttpError) -> CredentialError {
        self.failed(OAuthError::Exchange { cause: error.into() })
    }

    fn unusable(&self, why: &'static str) -> CredentialError {
        self.failed(OAuthError::Answer { why })
    }

    fn failed(&self, error: OAuthError) -> CredentialError {
        CredentialError::Failed {
            source_name: self.source.describe(),
            cause: error.into(),
        }
    }
}
