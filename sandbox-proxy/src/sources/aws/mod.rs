//! Keys for AWS, from where its own tools have them. Each place gives [`Credential::Aws`].

mod profile;
mod server;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::credential::{
    Credential, CredentialError, CredentialRequest, CredentialSource, Issued, SecretString,
};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::command;
use super::kept::MARGIN;
use super::shared::{Keep, Shared};
use crate::defence;

/// Keys with a session token and dates in JSON have a few KiB.
const MAX_KEYS_BYTES: usize = 64 << 10;

/// Keys for AWS, to sign requests with: for [`Service::aws`](crate::Service::aws) and
/// [`Service::sigv4`](crate::Service::sigv4).
///
/// [`Aws::standard`] looks where AWS's command line does. Files and variables are read for each request; keys that end
/// are kept until a minute before that.
#[derive(Debug, Clone)]
pub struct Aws {
    places: Vec<Place>,
    profile: Option<String>,
    files: Option<(PathBuf, PathBuf)>,
    variables: Variables,
    /// AWS's own command-line tool: a program, and what comes before its arguments.
    tool: Vec<OsString>,
    shared: Arc<Shared>,
}

/// Where keys are.
#[derive(Debug, Clone)]
enum Place {
    Environment,
    /// The role that variables name.
    WebIdentity,
    Profile,
    Process(Vec<OsString>),
    Container,
    Instance,
}

/// The environment; of a test's making in tests.
#[derive(Clone)]
struct Variables(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<OsString> + Send + Sync;

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Variables")
    }
}

/// Keys as `credential_process` prints them and as containers and machines are told them. Field names differ.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Keys {
    version: Option<u32>,
    access_key_id: String,
    secret_access_key: String,
    #[serde(alias = "Token")]
    session_token: Option<String>,
    expiration: Option<String>,
}

/// A file is named by a path that leads somewhere else in each directory.
#[derive(Debug, thiserror::Error)]
#[error("the path in {0} is not absolute: write it from / on")]
struct RelativePath(&'static str);

impl Aws {
    /// Where AWS's own tools look on a developer's machine: the variables `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and
    /// `AWS_SESSION_TOKEN`, then the role of `AWS_ROLE_ARN` and `AWS_WEB_IDENTITY_TOKEN_FILE`, for which AWS's
    /// command-line tool must be installed, then the profile `AWS_PROFILE`, or `default`, as [`profile`](Self::profile)
    /// does.
    pub fn standard() -> Self {
        Self::at(vec![Place::Environment, Place::WebIdentity, Place::Profile])
    }

    /// The variables with keys alone.
    pub fn environment() -> Self {
        Self::at(vec![Place::Environment])
    }

    /// A profile of `~/.aws/credentials` and `~/.aws/config` (or where `AWS_SHARED_CREDENTIALS_FILE` and
    /// `AWS_CONFIG_FILE` say, by absolute paths): keys, or a `credential_process` that is run without a shell. Profiles that take a role or
    /// sign in (single sign-on, web identity) are asked for with `aws configure export-credentials`: AWS's command-line
    /// tool must be installed for them.
    pub fn profile(name: impl Into<String>) -> Self {
        Self {
            profile: Some(name.into()),
            ..Self::at(vec![Place::Profile])
        }
    }

    /// What a command prints in the form of a `credential_process`, for instance
    /// `aws configure export-credentials --profile dev`. Keys without an end are asked for again for each request.
    pub fn process<A: Into<OsString>>(command: impl IntoIterator<Item = A>) -> Self {
        Self::at(vec![Place::Process(
            command.into_iter().map(Into::into).collect(),
        )])
    }

    /// Also asks the server of a container's role, where all before have nothing
    /// (`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, `…_FULL_URI`).
    #[must_use]
    pub fn or_container(self) -> Self {
        self.or(Place::Container)
    }

    /// Also asks for the role of the machine that this program runs on (IMDSv2), where all before have nothing. The guest
    /// then acts as the machine: be sure that it may.
    #[must_use]
    pub fn or_instance(self) -> Self {
        self.or(Place::Instance)
    }

    /// Reads the profile from these files, credentials and configuration.
    #[must_use]
    pub fn files(self, credentials: impl Into<PathBuf>, config: impl Into<PathBuf>) -> Self {
        Self {
            files: Some((credentials.into(), config.into())),
            shared: Arc::default(),
            ..self
        }
    }

    fn at(places: Vec<Place>) -> Self {
        Self {
            places,
            profile: None,
            files: None,
            variables: Variables(Arc::new(|name| std::env::var_os(name))),
            tool: vec!["aws".into()],
            shared: Arc::default(),
        }
    }

    fn or(mut self, place: Place) -> Self {
        self.places.push(place);
        self.shared = Arc::default();
        self
    }

    fn variable(&self, name: &str) -> Option<String> {
        let value = (self.variables.0)(name)?.into_string().ok()?;
        (!value.is_empty()).then_some(value)
    }

    /// The file that a variable names. A relative path is an error: it would lead to whatever directory the program runs
    /// in, for instance a workspace that the guest writes to, and commands that stand in such files run on the host.
    fn path(&self, variable: &'static str) -> Result<Option<PathBuf>, CredentialError> {
        match self.variable(variable).map(PathBuf::from) {
            Some(path) if path.is_relative() && defence::holds("source-absolute-paths") => {
                Err(CredentialError::Failed {
                    source_name: self.describe(),
                    cause: RelativePath(variable).into(),
                })
            }
            path => Ok(path),
        }
    }

    async fn ask(self) -> Result<Issued, CredentialError> {
        for place in &self.places {
            let found = match place {
                Place::Environment => self.of_environment()?,
                Place::WebIdentity => self.of_web_identity().await?,
                Place::Profile => profile::keys(&self).await?,
                Place::Process(command) => Some(self.of_process(command).await?),
                Place::Container => server::container(&self).await?,
                Place::Instance => server::instance(&self).await?,
            };
            if let Some(issued) = found {
                return Ok(issued);
            }
        }
        Err(CredentialError::NotFound {
            source_name: self.describe(),
        })
    }

    fn of_environment(&self) -> Result<Option<Issued>, CredentialError> {
        let id = self.variable("AWS_ACCESS_KEY_ID");
        let secret = self.variable("AWS_SECRET_ACCESS_KEY");
        match (id, secret) {
            (None, None) => Ok(None),
            (Some(id), Some(secret)) => {
                let token = self.variable("AWS_SESSION_TOKEN");
                issue("environment variables AWS_…", id, secret, token).map(Some)
            }
            _ => Err(malformed(
                "environment variables AWS_…",
                "one of key id and key is missing",
            )),
        }
    }

    /// The keys of the role that variables name, if they do: the tool reads them itself, and says what is missing.
    async fn of_web_identity(&self) -> Result<Option<Issued>, CredentialError> {
        if self.path("AWS_WEB_IDENTITY_TOKEN_FILE")?.is_none() {
            return Ok(None);
        }
        let described = "role of AWS_WEB_IDENTITY_TOKEN_FILE";
        profile::of_tool(self, described.to_owned(), None).await.map(Some)
    }

    async fn of_process(&self, command: &[OsString]) -> Result<Issued, CredentialError> {
        let described = "credential process";
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| malformed(described, "it is an empty command"))?;
        let text = command::output(program, arguments, MAX_KEYS_BYTES)
            .await
            .map_err(|error| CredentialError::Failed {
                source_name: format!("{described} {}", program.display()),
                cause: error.into(),
            })?;
        parse(described, &text)
    }
}

#[async_trait]
impl CredentialSource for Aws {
    fn describe(&self) -> String {
        let places: Vec<_> = self
            .places
            .iter()
            .map(|place| match place {
                Place::Environment => "environment".to_owned(),
                Place::WebIdentity => "web identity".to_owned(),
                Place::Profile => match &self.profile {
                    Some(name) => format!("profile {name}"),
                    None => "profile".to_owned(),
                },
                Place::Process(_) => "process".to_owned(),
                Place::Container => "container role".to_owned(),
                Place::Instance => "machine role".to_owned(),
            })
            .collect();
        format!("AWS keys ({})", places.join(", "))
    }

    async fn fetch(&self, _request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let keep = Keep {
            to_its_end: true,
            margin: MARGIN,
            ..Keep::default()
        };
        let source = self.clone();
        self.shared
            .fetch_whole(keep, || source.ask(), || self.describe())
            .await
    }
}

/// Parses keys in JSON.
fn parse(source_name: &str, text: &[u8]) -> Result<Issued, CredentialError> {
    if text.len() > MAX_KEYS_BYTES {
        return Err(malformed(source_name, "it is longer than 64 KiB"));
    }
    let keys: Keys =
        serde_json::from_slice(text).map_err(|_| malformed(source_name, "it is not keys in JSON"))?;
    if keys.version.is_some_and(|version| version != 1) {
        return Err(malformed(source_name, "its version is not 1"));
    }
    let issued = issue(
        source_name,
        keys.access_key_id,
        keys.secret_access_key,
        keys.session_token,
    )?;
    let Some(expiration) = keys.expiration else {
        return Ok(issued);
    };
    let end = OffsetDateTime::parse(&expiration, &Rfc3339)
        .map_err(|_| malformed(source_name, "its expiration is no time"))?;
    Ok(issued.until(end.into()))
}

/// Checks keys: what is sent or signed with is one word.
fn issue(
    source_name: &str,
    id: String,
    secret: String,
    token: Option<String>,
) -> Result<Issued, CredentialError> {
    let (secret, token) = (SecretString::from(secret), token.map(SecretString::from));
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    use sandbox_core::credential::ExposeSecret;
    let id_is_word = is_word(&id) && id.len() <= 128 && !id.contains(['/', ',']);
    if !id_is_word
        || !is_word(secret.expose_secret())
        || token
            .as_ref()
            .is_some_and(|token| !is_word(token.expose_secret()))
    {
        return Err(malformed(
            source_name,
            "a key is empty or has a space or control character",
        ));
    }
    Ok(Issued::new(Credential::Aws {
        access_key_id: id,
        secret_access_key: secret,
        session_token: token,
    }))
}

fn malformed(source_name: &str, why: &'static str) -> CredentialError {
    CredentialError::Malformed {
        source_name: source_name.to_owned(),
        why,
    }
}
