//! Keys from the servers that containers and machines of AWS have.

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use sandbox_core::credential::{CredentialError, Issued};
use zeroize::Zeroizing;

use super::{Aws, MAX_KEYS_BYTES, malformed, parse};
use crate::sources::file;
use crate::sources::http::{Http, HttpError, Plain};

/// Of containers on ECS.
const CONTAINERS: &str = "http://169.254.170.2";
/// Of machines on EC2.
const MACHINES: &str = "http://169.254.169.254";
/// How long a session with a machine's server lasts: one exchange.
const SESSION_SECONDS: &str = "60";

/// The keys of this container's role, if it says where they are.
pub(super) async fn container(aws: &Aws) -> Result<Option<Issued>, CredentialError> {
    let described = "AWS container role";
    let relative = aws.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let full = aws.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let address = match (relative, full) {
        (Some(path), _) if path.starts_with('/') => [CONTAINERS, path.as_str()].concat(),
        (Some(_), _) => return Err(malformed(described, "its relative address is no path")),
        (None, Some(address)) => address,
        (None, None) => return Ok(None),
    };
    let mut request = Request::get(address);
    let token = match aws.path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")? {
        Some(path) => file::read(path, MAX_KEYS_BYTES, || described.to_owned()).await?,
        None => aws
            .variable("AWS_CONTAINER_AUTHORIZATION_TOKEN")
            .map(|token| Zeroizing::new(token.into_bytes())),
    };
    if let Some(token) = token {
        request = request.header("authorization", secret(described, token.trim_ascii())?);
    }
    let (status, text) = send(described, request).await?;
    expect(described, status)?;
    parse(described, &text).map(Some)
}

/// The keys of this machine's role, if it has one (IMDSv2).
pub(super) async fn instance(aws: &Aws) -> Result<Option<Issued>, CredentialError> {
    let described = "AWS machine role";
    let server = aws.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    let server = server.as_deref().unwrap_or(MACHINES).trim_end_matches('/');
    let session = Request::put(format!("{server}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", SESSION_SECONDS);
    let (status, session) = send(described, session).await?;
    expect(described, status)?;
    let session = secret(described, &session)?;
    let roles = format!("{server}/latest/meta-data/iam/security-credentials/");
    let get = |address: &str| Request::get(address).header("x-aws-ec2-metadata-token", session.clone());
    let (status, role) = send(described, get(&roles)).await?;
    if status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    expect(described, status)?;
    let role = std::str::from_utf8(&role)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(c);
    if role.is_empty() || !role.chars().all(is_name) {
        return Err(malformed(described, "its name is none"));
    }
    let (status, text) = send(described, get(&[&roles, role].concat())).await?;
    expect(described, status)?;
    parse(described, &text).map(Some)
}

async fn send(
    described: &str,
    request: http::request::Builder,
) -> Result<(StatusCode, Zeroizing<Vec<u8>>), CredentialError> {
    let failed = |error: HttpError| CredentialError::Failed {
        source_name: described.to_owned(),
        cause: error.into(),
    };
    let request = request
        .body(Full::<Bytes>::default())
        .map_err(|_| failed(HttpError::Address))?;
    let http = Http::new(&[], Plain::Link).map_err(failed)?;
    http.send(request).await.map_err(failed)
}

fn expect(described: &str, status: StatusCode) -> Result<(), CredentialError> {
    if status == StatusCode::OK {
        return Ok(());
    }
    Err(malformed(described, "its server answers with an error"))
}

fn secret(described: &str, text: &[u8]) -> Result<HeaderValue, CredentialError> {
    let mut value = HeaderValue::from_bytes(text)
        .map_err(|_| malformed(described, "its token cannot be put into a header"))?;
    value.set_sensitive(true);
    Ok(value)
}
