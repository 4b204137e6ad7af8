//! Endpoints of services: which requests they are for, and where the credential goes in those.

use http::HeaderName;
use sandbox_core::host::{Host, HostName, InvalidHost};

use crate::policy::might_be;

/// Some requests to one host, or to some hosts, on one port, and where the credential goes in them.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) hosts: Hosts,
    pub(crate) port: u16,
    /// Of which paths; none means all.
    pub(crate) paths: Vec<PathPattern>,
    pub(crate) placement: Placement,
    /// Whether its answers are tokens, which pass where the placement is [`Placement::Issued`].
    pub(crate) issues_tokens: bool,
}

/// Which hosts an endpoint is for: wildcards mean what they mean in rules of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Hosts {
    /// This one.
    Exact(Host),
    /// `*.`: names with one label more.
    Children(HostName),
    /// `**.`: names with one label more or several.
    Descendants(HostName),
}

/// Where the credential goes in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// A header of this name, its value after a prefix: `Bearer `, or nothing.
    Header {
        name: HeaderName,
        prefix: String,
        /// Encodes the secret, as one registry wants it.
        base64: bool,
    },
    /// `Authorization: Basic` (RFC 7617).
    Basic(Basic),
    /// A query parameter.
    Query { name: String },
    /// Wherever in the service's places the client has a placeholder: bare, after a scheme, or as one half of Basic. A
    /// request without one gets nothing.
    InPlace,
    /// As a signature (AWS Signature Version 4) in the place of the client's. Some rules are AWS's own.
    SigV4 { of_aws: bool },
    /// Nowhere: a bearer token that the service itself gave to the client goes through.
    Issued,
}

/// Which part of Basic the secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Basic {
    /// The password of this user.
    PasswordOf(String),
    /// The user name, beside this password.
    UserWith(String),
    /// Both: `user:password`.
    Pair,
}

/// A path with a `*` at its start, its end, or both; matched against the path as the client sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathPattern {
    text: String,
    open_start: bool,
    open_end: bool,
}

impl Endpoint {
    /// Whether requests with this path are among its own.
    pub(crate) fn has_path(&self, path: &str) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|pattern| pattern.matches(path))
    }

    /// Whether some server might take this path for one of its own. `None` where nobody can say.
    pub(crate) fn might_have_path(&self, path: &str) -> Option<bool> {
        might_be(path, |reading| {
            self.paths.iter().any(|pattern| pattern.matches_reading(reading))
        })
    }
}

impl Hosts {
    /// Parses `host`, `*.name` or `**.name`.
    pub(crate) fn parse(text: &str) -> Result<Self, Option<InvalidHost>> {
        let (make, base): (fn(HostName) -> Self, _) = if let Some(base) = text.strip_prefix("**.") {
            (Self::Descendants, base)
        } else if let Some(base) = text.strip_prefix("*.") {
            (Self::Children, base)
        } else {
            return text.parse().map(Self::Exact).map_err(Some);
        };
        let base: HostName = base.parse().map_err(Some)?;
        // Nobody owns all names under a top-level domain.
        if base.as_str().contains('.') {
            Ok(make(base))
        } else {
            Err(None)
        }
    }
}

impl std::fmt::Display for Hosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Children(base) => write!(f, "*.{base}"),
            Self::Descendants(base) => write!(f, "**.{base}"),
        }
    }
}

impl PathPattern {
    /// Parses it; `None` if a `*` stands elsewhere, or nothing can match.
    pub(crate) fn parse(pattern: &str) -> Option<Self> {
        let (open_start, text) = match pattern.strip_prefix('*') {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let (open_end, text) = match text.strip_suffix('*') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let starts = open_start || text.starts_with('/');
        (starts && !text.contains('*')).then(|| Self {
            text: text.to_owned(),
            open_start,
            open_end,
        })
    }

    fn matches(&self, path: &str) -> bool {
        match (self.open_start, self.open_end) {
            (false, false) => path == self.text,
            (false, true) => path.starts_with(&self.text),
            (true, false) => path.ends_with(&self.text),
            (true, true) => path.contains(&self.text),
        }
    }

    /// The same for a path as the policy reads it: in lower case, and without a slash at its end.
    fn matches_reading(&self, reading: &str) -> bool {
        let as_read = Self {
            text: self.text.to_ascii_lowercase(),
            ..*self
        };
        as_read.matches(reading) || as_read.matches(&[reading, "/"].concat())
    }
}

impl Placement {
    pub(crate) fn bearer() -> Self {
        Self::Header {
            name: http::header::AUTHORIZATION,
            prefix: "Bearer ".to_owned(),
            base64: false,
        }
    }

    /// For people; names places, never values.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Header { name, prefix, .. } if prefix.is_empty() => format!("in header {name}"),
            Self::Header { name, prefix, .. } => format!("in header {name} after \"{}\"", prefix.trim_end()),
            Self::Basic(_) => "as Basic in header authorization".to_owned(),
            Self::Query { name } => format!("in query parameter {name}"),
            Self::InPlace => "in the placeholder's place".to_owned(),
            Self::SigV4 { .. } => "as a signature in the place of the client's".to_owned(),
            Self::Issued => "as a token that the service gave to the client".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_whole_or_open_where_a_star_is() {
        for (pattern, path, wanted) in [
            ("/token", "/token", true),
            ("/token", "/token/", false),
            ("/api/*", "/api/x", true),
            ("/api/*", "/apix", false),
            ("*/info/refs", "/a/b.git/info/refs", true),
            ("*/info/refs", "/info/refs/x", false),
            ("*/lfs/*", "/a/lfs/b", true),
            ("*", "/", true),
        ] {
            assert_eq!(
                PathPattern::parse(pattern).unwrap().matches(path),
                wanted,
                "{pattern} {path}"
            );
        }
        for bad in ["", "a", "/a*b", "/**"] {
            assert!(PathPattern::parse(bad).is_none(), "{bad}");
        }
    }
}
