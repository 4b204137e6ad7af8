//! Profiles in the two files that AWS's tools share.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use sandbox_core::credential::{CredentialError, Issued};
use zeroize::Zeroizing;

use super::{Aws, issue, malformed};
use crate::defence;
use crate::sources::file;

/// People have some hundred profiles.
const MAX_FILE_BYTES: usize = 1 << 20;
/// Settings that say that keys come from elsewhere.
const ELSEWHERE: [&str; 5] = [
    "role_arn",
    "sso_session",
    "sso_start_url",
    "web_identity_token_file",
    "login_session",
];

type Settings = HashMap<String, Zeroizing<String>>;

/// The keys of the profile, if there is one.
pub(super) async fn keys(aws: &Aws) -> Result<Option<Issued>, CredentialError> {
    let named = aws.profile.clone().or_else(|| aws.variable("AWS_PROFILE"));
    let name = named.as_deref().unwrap_or("default");
    let described = format!("AWS profile {name}");
    let (credentials, config) = match &aws.files {
        Some((credentials, config)) => (Some(credentials.clone()), Some(config.clone())),
        None => (
            path(aws, "AWS_SHARED_CREDENTIALS_FILE", "credentials")?,
            path(aws, "AWS_CONFIG_FILE", "config")?,
        ),
    };
    let mut settings = Settings::new();
    // Keys of the first file are not mixed with those of the second.
    for (path, in_config) in [(credentials, false), (config, true)] {
        let Some(path) = path else { continue };
        let described = format!("file {}", path.display());
        let Some(text) = file::read(path, MAX_FILE_BYTES, || described.clone()).await? else {
            continue;
        };
        if text.len() > MAX_FILE_BYTES {
            return Err(malformed(&described, "it is longer than 1 MiB"));
        }
        let text = std::str::from_utf8(&text).map_err(|_| malformed(&described, "it is not UTF-8"))?;
        let section = section(text, name, in_config);
        if settings.contains_key("aws_access_key_id") {
            continue;
        }
        for (key, value) in section {
            settings.entry(key).or_insert(value);
        }
    }
    let get = |key: &str| settings.get(key).map(|value| value.as_str());
    if let Some(id) = get("aws_access_key_id") {
        let secret = get("aws_secret_access_key")
            .ok_or_else(|| malformed(&described, "it has no aws_secret_access_key"))?;
        let token = get("aws_session_token").filter(|token| !token.is_empty());
        return issue(&described, id.into(), secret.into(), token.map(str::to_owned)).map(Some);
    }
    if let Some(command) = get("credential_process") {
        let words = words(command)
            .ok_or_else(|| malformed(&described, "a quote in its credential_process does not end"))?;
        return aws.of_process(&words).await.map(Some);
    }
    if ELSEWHERE.iter().any(|key| settings.contains_key(*key)) {
        if aws.files.is_some() {
            return Err(malformed(
                &described,
                "it takes a role or signs in: outside the usual files, use Aws::process with `aws configure export-credentials`",
            ));
        }
        return of_tool(aws, described, Some(name)).await.map(Some);
    }
    Ok(None)
}

/// What such a profile, or a role, needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "`aws configure export-credentials` failed, which profiles that take a role or sign in and roles in variables need: see whether it works"
)]
struct ToolFailed(#[source] Box<dyn std::error::Error + Send + Sync>);

/// The keys of a profile that takes a role or signs in, or of the role that variables name: AWS's own tool knows how,
/// and keeps what it signed in to.
pub(super) async fn of_tool(
    aws: &Aws,
    described: String,
    profile: Option<&str>,
) -> Result<Issued, CredentialError> {
    // It reads these itself, and runs commands that stand there.
    for variable in ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "HOME"] {
        aws.path(variable)?;
    }
    let mut command = aws.tool.clone();
    command.extend(["configure", "export-credentials", "--format", "process"].map(OsString::from));
    // With a profile it reads no variables.
    command.extend(profile.map(|name| OsString::from(format!("--profile={name}"))));
    aws.of_process(&command).await.map_err(|error| match error {
        CredentialError::Failed { cause, .. } => CredentialError::Failed {
            source_name: described,
            cause: Box::new(ToolFailed(cause)),
        },
        other => other,
    })
}

/// Where a file is, if anything says so.
fn path(aws: &Aws, variable: &'static str, file: &str) -> Result<Option<PathBuf>, CredentialError> {
    if let Some(path) = aws.path(variable)? {
        return Ok(Some(path));
    }
    let home = aws.variable("HOME").map(PathBuf::from);
    let home = home.filter(|home| home.is_absolute() || !defence::holds("source-absolute-paths"));
    Ok(home.map(|home| home.join(".aws").join(file)))
}

/// The settings of a profile: its section is `[name]`, in the configuration `[profile name]` unless it is the default.
fn section(text: &str, name: &str, in_config: bool) -> Settings {
    let mut settings = Settings::new();
    let mut is_own = false;
    for line in text.lines() {
        // Settings of settings are set in.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default().trim();
            let profile = header
                .strip_prefix("profile")
                .filter(|rest| in_config && rest.starts_with([' ', '\t']))
                .map(|rest| rest.trim().trim_matches(['"', '\'']));
            is_own = profile == Some(name) || (header == name && (!in_config || name == "default"));
        } else if let (true, Some((key, value))) = (is_own, line.split_once('=')) {
            let value = Zeroizing::new(value.trim().to_owned());
            settings.insert(key.trim().to_ascii_lowercase(), value);
        }
    }
    settings
}

/// Splits a command as a shell would, without anything else that a shell does. `None`: a quote does not end.
fn words(command: &str) -> Option<Vec<OsString>> {
    let mut words = Vec::new();
    let (mut word, mut is_word, mut quote) = (String::new(), false, None);
    let mut characters = command.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => (quote, is_word) = (Some(c), true),
            ('\\', None | Some('"')) => {
                word.push(characters.next()?);
                is_word = true;
            }
            (' ' | '\t', None) => {
                if is_word {
                    words.push(std::mem::take(&mut word).into());
                }
                is_word = false;
            }
            _ => {
                word.push(c);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word.into());
    }
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_by_a_shell() {
        let split = |text: &str| {
            let words = words(text)?;
            Some(
                words
                    .iter()
                    .map(|w| w.to_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
                    .join("|"),
            )
        };
        assert_eq!(
            split("a  b 'c d' \"e \\\" f\" g\\ h ''").as_deref(),
            Some("a|b|c d|e \" f|g h|")
        );
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("a \\"), None);
    }
}
