//! AWS Signature Version 4: a request that the client signed with placeholder keys is signed again with real ones.
//!
//! `claim` reads what the client's signature was for and takes it out, `hosts` checks that it fits the host,
//! `payload` and `chunks` deal with the body, `canonical` and `key` make the signature. The secret key never leaves the
//! host; what goes out is a signature and, of temporary keys, the session token.
//!
//! The client's signature is not verified: it says which region, service and headers are meant, and a guest may ask for
//! anything that its placeholder keys could.

mod canonical;
pub(crate) mod chunks;
mod claim;
mod hosts;
mod key;
pub(crate) mod payload;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use http::request::Parts;
use http::{HeaderName, HeaderValue};
use sandbox_core::credential::{Credential, ExposeSecret, SecretString};
use sandbox_core::host::Host;
use tokio::sync::Semaphore;

use super::Service;
use super::inject::InjectError;
use crate::encoding::hex;
use crate::proxy::RequestBody;
pub(crate) use claim::Claim;
use claim::Form;
pub(crate) use hosts::Keys;
pub(super) use hosts::is_of_aws;
use key::{ALGORITHM, Scope};
use payload::Payload;

pub(super) const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
/// Of S3 Express sessions.
pub(super) const SESSION: HeaderName = HeaderName::from_static("x-amz-s3session-token");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// A presigned request is on its way at once: what the client asked for (up to a week) would be a key for whoever sees
/// the address.
const MAX_EXPIRES: u32 = 300;

/// Why a request cannot be signed; it must not go out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignError {
    #[error("the request is not signed: set the placeholder keys that the sandbox has in its environment")]
    Unsigned,
    #[error("the request is signed in two places")]
    Ambiguous,
    #[error(
        "the request is signed with an algorithm that cannot be done again here; only AWS4-HMAC-SHA256 (SigV4) can"
    )]
    Algorithm,
    #[error("the request's signature names no scope of the form date/region/service/aws4_request")]
    Scope,
    #[error(
        "the request's signature is for service {service} in region {region}, which this host does not serve"
    )]
    OtherHost { service: String, region: String },
    #[error("the request asks {service} for keys of its own, which a sandbox does not get")]
    AsksForKeys { service: String },
    #[error(
        "the body is signed in a way that cannot be done again here: x-amz-content-sha256 is of an unknown kind"
    )]
    Payload,
    #[error(
        "the body is longer than {} MiB and comes without its hash: send x-amz-content-sha256, a hash or UNSIGNED-PAYLOAD",
        payload::MAX_BODY_BYTES >> 20
    )]
    TooLarge,
    #[error("the sandbox has too many bodies waiting to be signed")]
    Busy,
    #[error("the body did not come in time to be signed")]
    TooSlow,
    #[error("the client broke off the body")]
    BrokenOff,
    #[error("the signature has a form that cannot be put into the request")]
    Form,
}

/// Real keys for a request, and what they are to sign.
#[derive(Debug)]
pub(crate) struct Signing {
    claim: Claim,
    access_key_id: String,
    secret: SecretString,
    token: Option<SecretString>,
    room: Arc<Semaphore>,
}

impl Signing {
    /// Signs for `claim` with these keys; `None` where the credential is of another kind.
    pub(crate) fn new(claim: Claim, credential: Credential, room: Arc<Semaphore>) -> Option<Self> {
        match credential {
            Credential::Aws {
                access_key_id,
                secret_access_key,
                session_token,
            } => Some(Self {
                claim,
                access_key_id,
                secret: secret_access_key,
                token: session_token,
                room,
            }),
            _ => None,
        }
    }

    /// Signs a request as it will go out: after this, nothing of its head may change but the form of its target.
    /// Gives the body to send, which may have been collected to hash it, or is signed chunk by chunk.
    pub(crate) async fn apply(
        self,
        parts: &mut Parts,
        mut body: RequestBody,
        host: &HeaderValue,
        now: SystemTime,
    ) -> Result<RequestBody, SignError> {
        // Stores of other makers give keys to whoever asks as AWS does.
        let of_keys = Keys::of(&self.claim);
        let payload = self.claim.payload(parts)?;
        // What asks for keys says so in a body that has to be seen.
        let text = match &payload {
            Payload::Literal(_) | Payload::Chunks { .. } if of_keys.is_none() => payload.text(),
            _ => {
                let (whole, digest) = body.collect(&self.room).await?;
                if let Some(keys) = of_keys {
                    keys.check(parts, whole.first())?;
                }
                let text = hex(digest.as_ref());
                if self.claim.is_s3() || parts.headers.contains_key(CONTENT) {
                    let value = HeaderValue::try_from(&text).map_err(|_| SignError::Form)?;
                    parts.headers.insert(CONTENT, value);
                }
                text
            }
        };
        let scope = Scope::new(now, &self.claim.region, &self.claim.service);
        let key = scope.key(&self.secret);
        let signature = match &self.claim.form {
            Form::Header => self.sign_headers(parts, host, &scope, &key, &text)?,
            Form::Query { expires } => self.sign_query(parts, host, &scope, &key, &text, *expires)?,
        };
        if let (Payload::Chunks { trailer }, None) = (payload, of_keys) {
            let place = payload::place_for_chunk(&self.room).await?;
            body.sign_chunks(chunks::Chunks::new(key, scope, signature, trailer, place));
        }
        Ok(body)
    }

    fn sign_headers(
        &self,
        parts: &mut Parts,
        host: &HeaderValue,
        scope: &Scope,
        key: &key::Key,
        payload: &str,
    ) -> Result<String, SignError> {
        let value = HeaderValue::try_from(scope.time()).map_err(|_| SignError::Form)?;
        parts.headers.insert(DATE, value);
        if let Some(token) = &self.token {
            parts.headers.insert(TOKEN, sensitive(token.expose_secret())?);
        }
        let names = canonical::signed_names(&parts.headers, &self.claim.signed);
        let request = canonical::request(parts, host, &names, self.claim.is_s3(), payload);
        let signature = key.sign(&scope.text_to_sign(&request));
        let text = format!(
            "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={signature}",
            self.access_key_id,
            scope.text(),
            names.join(";")
        );
        parts
            .headers
            .insert(http::header::AUTHORIZATION, sensitive(&text)?);
        Ok(signature)
    }

    fn sign_query(
        &self,
        parts: &mut Parts,
        host: &HeaderValue,
        scope: &Scope,
        key: &key::Key,
        payload: &str,
        expires: u32,
    ) -> Result<String, SignError> {
        let names = canonical::signed_names(&parts.headers, &self.claim.signed);
        let credential = format!("{}/{}", self.access_key_id, scope.text());
        let expires = expires.clamp(1, MAX_EXPIRES).to_string();
        let signed = names.join(";");
        let mut added = vec![
            ("X-Amz-Algorithm", ALGORITHM),
            ("X-Amz-Credential", &credential),
            ("X-Amz-Date", scope.time()),
            ("X-Amz-Expires", &expires),
            ("X-Amz-SignedHeaders", &signed),
        ];
        if let Some(token) = &self.token {
            added.push(("X-Amz-Security-Token", token.expose_secret()));
        }
        canonical::add_to_query(parts, &added)?;
        let request = canonical::request(parts, host, &names, self.claim.is_s3(), payload);
        let signature = key.sign(&scope.text_to_sign(&request));
        canonical::add_to_query(parts, &[("X-Amz-Signature", &signature)])?;
        Ok(signature)
    }
}

/// What a request's signature is for, and that it may be signed for this host. Takes the client's signature out.
pub(crate) fn claim(
    parts: &mut Parts,
    service: &Service,
    host: &Host,
    of_aws: bool,
) -> Result<Claim, SignError> {
    let claim = Claim::read(parts)?;
    if of_aws {
        hosts::check(host, &claim)?;
    }
    claim::strip(parts, service)?;
    Ok(claim)
}

/// Whether requests can be signed with these keys.
pub(crate) fn check(credential: &Credential, service: &str) -> Result<(), InjectError> {
    let Credential::Aws {
        access_key_id,
        session_token,
        ..
    } = credential
    else {
        return Err(InjectError::Kind(service.to_owned()));
    };
    let token = session_token.as_ref().map_or("", |token| token.expose_secret());
    sensitive(access_key_id)
        .and(sensitive(token))
        .map(drop)
        .map_err(|_| InjectError::Form(service.to_owned()))
}

fn sensitive(text: &str) -> Result<HeaderValue, SignError> {
    let mut value = HeaderValue::try_from(text).map_err(|_| SignError::Form)?;
    value.set_sensitive(true);
    Ok(value)
}
