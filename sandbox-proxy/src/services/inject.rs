//! Puts a credential into a request, and takes out what the client put in its places.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use sandbox_core::credential::{Credential, ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::endpoint::{Basic, Endpoint, Placement};
use super::issued::Tokens;
use super::places::{self, Found, is_owned_by_proxy};
use super::{ClientCredential, Service, query};
use crate::defence::holds;

/// Why nothing was injected; the request must not go out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InjectError {
    #[error("the client sent a credential of its own, which service {0} rejects")]
    Rejected(String),
    #[error("the credential of service {0} has a form that cannot be put into a header")]
    Form(String),
    #[error("the credential of service {0} must be user:password")]
    Pair(String),
    #[error("the credential of service {0} is of a kind that this proxy cannot send")]
    Kind(String),
}

/// Whose credential a request goes out with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Injected {
    /// That of the source.
    Managed,
    /// The client's own, as the service says.
    Own,
    /// A token that the service gave to the client.
    Issued,
    /// None: the client has no token that the service gave to it.
    NotIssued,
    /// None: the client has no placeholder where one is asked for.
    NotAsked,
    /// None: the service takes none here.
    NotHere,
}

/// Does with a request what needs no credential of the source. `None`: it needs one.
pub(crate) fn prepare(
    parts: &mut Parts,
    service: &Service,
    endpoint: Option<&Endpoint>,
    tokens: &Tokens,
) -> Result<Option<Injected>, InjectError> {
    places::strip_overrides(&mut parts.headers);
    let placement = endpoint.map(|endpoint| &endpoint.placement);
    let is_issued = placement == Some(&Placement::Issued);
    match service.client_credential {
        ClientCredential::Pass if places::hold_clients_own(parts, service) => {
            return Ok(Some(Injected::Own));
        }
        ClientCredential::Reject
            if !is_issued
                && places::hold_clients_own(parts, service)
                && holds("client-credential-reject") =>
        {
            return Err(InjectError::Rejected(service.name.clone()));
        }
        _ => {}
    }
    match placement {
        None => strip_all(parts, service).map(|()| Some(Injected::NotHere)),
        Some(Placement::Issued) => {
            let token = places::bearer(&parts.headers);
            strip_all(parts, service)?;
            let injected = match token {
                Some((token, value)) if tokens.has(&token) => {
                    parts.headers.insert(AUTHORIZATION, value);
                    Injected::Issued
                }
                _ => Injected::NotIssued,
            };
            Ok(Some(injected))
        }
        Some(Placement::InPlace) => {
            let found = places::placeholders(parts, service);
            if !found.headers.is_empty() || !found.parameters.is_empty() {
                return Ok(None);
            }
            strip_all(parts, service).map(|()| Some(Injected::NotAsked))
        }
        Some(_) => Ok(None),
    }
}

/// The credential as the endpoint wants it, so that each of its parts is known as a secret.
pub(crate) fn shaped(
    credential: Credential,
    service: &Service,
    endpoint: &Endpoint,
) -> Result<Credential, InjectError> {
    match (&credential, &endpoint.placement) {
        (Credential::Token(pair), Placement::Basic(Basic::Pair)) => {
            let (user, password) = pair
                .expose_secret()
                .split_once(':')
                .ok_or_else(|| InjectError::Pair(service.name.clone()))?;
            Ok(Credential::Basic {
                username: user.to_owned(),
                password: password.into(),
            })
        }
        _ => Ok(credential),
    }
}

/// Replaces whatever stands in the service's places by `credential`.
pub(crate) fn replace(
    parts: &mut Parts,
    service: &Service,
    endpoint: &Endpoint,
    credential: &Credential,
) -> Result<(), InjectError> {
    // No form of a secret holds a line break, which the scrubber relies on; no header can hold any of these.
    let unprintable = |secret: &SecretString| secret.expose_secret().chars().any(char::is_control);
    if credential.secrets().any(unprintable) && holds("unprintable-credentials") {
        return Err(InjectError::Form(service.name.clone()));
    }
    let asked = match endpoint.placement {
        Placement::InPlace => places::placeholders(parts, service),
        _ => places::Placeholders::default(),
    };
    strip_all(parts, service)?;
    match (credential, &endpoint.placement) {
        (Credential::Token(secret), Placement::Header { name, prefix, base64 }) => {
            let encoded = base64.then(|| SecretString::from(BASE64_STANDARD.encode(secret.expose_secret())));
            set_header(parts, name, prefix, encoded.as_ref().unwrap_or(secret), service)
        }
        (Credential::Token(secret), Placement::Basic(Basic::PasswordOf(user))) => {
            set_basic(parts, AUTHORIZATION, user, secret.expose_secret(), service)
        }
        (Credential::Token(secret), Placement::Basic(Basic::UserWith(password))) => {
            set_basic(parts, AUTHORIZATION, secret.expose_secret(), password, service)
        }
        (Credential::Token(secret), Placement::Query { name }) => set_query(parts, name, secret, service),
        (Credential::Token(secret), Placement::InPlace) => {
            for (name, found) in asked.headers {
                match found {
                    Found::Bare => set_header(parts, &name, "", secret, service)?,
                    Found::After(scheme) => {
                        set_header(parts, &name, &format!("{scheme} "), secret, service)?;
                    }
                    Found::User(password) => {
                        set_basic(parts, name, secret.expose_secret(), &password, service)?;
                    }
                    Found::Password(user) => {
                        set_basic(parts, name, &user, secret.expose_secret(), service)?;
                    }
                }
            }
            let mut parameters = asked.parameters.iter();
            parameters.try_for_each(|name| set_query(parts, name, secret, service))
        }
        (Credential::Bearer(secret), _) => set_header(parts, &AUTHORIZATION, "Bearer ", secret, service),
        (Credential::Header { name, value }, _) => match HeaderName::try_from(name.as_str()) {
            Ok(name) if !is_owned_by_proxy(&name) => {
                places::strip_header(&mut parts.headers, &name);
                set_header(parts, &name, "", value, service)
            }
            _ => Err(InjectError::Form(service.name.clone())),
        },
        (Credential::Basic { username, password }, _) => {
            set_basic(parts, AUTHORIZATION, username, password.expose_secret(), service)
        }
        (Credential::Query { name, value }, _) => set_query(parts, name, value, service),
        _ => Err(InjectError::Kind(service.name.clone())),
    }
}

/// Takes the client's credentials out of headers and query.
fn strip_all(parts: &mut Parts, service: &Service) -> Result<(), InjectError> {
    places::strip(&mut parts.headers, service);
    if holds("client-credential-parameters") {
        query::set(parts, &service.stripped_parameters, None)
            .map_err(|query::Unwritable| InjectError::Form(service.name.clone()))?;
    }
    Ok(())
}

fn set_header(
    parts: &mut Parts,
    name: &HeaderName,
    prefix: &str,
    secret: &SecretString,
    service: &Service,
) -> Result<(), InjectError> {
    let text = Zeroizing::new([prefix, secret.expose_secret()].concat());
    let mut value =
        HeaderValue::try_from(text.as_str()).map_err(|_| InjectError::Form(service.name.clone()))?;
    // Out of HPACK's tables and of `Debug`.
    value.set_sensitive(holds("sensitive-headers"));
    parts.headers.insert(name, value);
    Ok(())
}

fn set_basic(
    parts: &mut Parts,
    header: HeaderName,
    user: &str,
    password: &str,
    service: &Service,
) -> Result<(), InjectError> {
    // With a colon in the user name it would be another pair (RFC 7617 §2).
    if user.contains(':') {
        return Err(InjectError::Form(service.name.clone()));
    }
    let pair = Zeroizing::new([user, ":", password].concat());
    let encoded = SecretString::from(BASE64_STANDARD.encode(pair.as_bytes()));
    set_header(parts, &header, "Basic ", &encoded, service)
}

fn set_query(
    parts: &mut Parts,
    name: &str,
    value: &SecretString,
    service: &Service,
) -> Result<(), InjectError> {
    query::set(parts, &[], Some((name, value)))
        .map_err(|query::Unwritable| InjectError::Form(service.name.clone()))
}
