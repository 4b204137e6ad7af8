//! The one form of a request that both sides hash.

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri};
use zeroize::Zeroizing;

use super::SignError;
use crate::encoding::percent_encode;
use crate::services::query::decoded;

/// The names of the headers to sign, in order: what the client signed as far as it is still there, and all of AWS's.
pub(super) fn signed_names(headers: &HeaderMap, claimed: &[String]) -> Vec<String> {
    let mut names: Vec<String> = headers
        .keys()
        .map(|name| name.as_str())
        // Set by the proxy for each connection.
        .filter(|name| *name != HOST.as_str())
        .filter(|name| name.starts_with("x-amz-") || claimed.iter().any(|claimed| claimed == name))
        .map(str::to_owned)
        .collect();
    names.push(HOST.as_str().to_owned());
    names.sort_unstable();
    names
}

/// The canonical request. S3 encodes paths once and takes them as they are, all others normalise them and encode twice.
pub(super) fn request(
    parts: &Parts,
    host: &HeaderValue,
    names: &[String],
    is_s3: bool,
    payload: &str,
) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(1024));
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b'\n');
    out.extend_from_slice(path(parts.uri.path(), is_s3).as_bytes());
    out.push(b'\n');
    query(parts.uri.query().unwrap_or(""), &mut out);
    out.push(b'\n');
    for name in names {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        if name == HOST.as_str() {
            value(host.as_bytes(), &mut out);
        } else {
            for (index, each) in parts.headers.get_all(name).iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                value(each.as_bytes(), &mut out);
            }
        }
        out.push(b'\n');
    }
    out.push(b'\n');
    out.extend_from_slice(names.join(";").as_bytes());
    out.push(b'\n');
    out.extend_from_slice(payload.as_bytes());
    out
}

/// Adds parameters at the end of the query, encoded.
pub(super) fn add_to_query(parts: &mut Parts, added: &[(&str, &str)]) -> Result<(), SignError> {
    let mut query = Zeroizing::new(parts.uri.query().unwrap_or("").to_owned());
    for (name, value) in added {
        if !query.is_empty() {
            query.push('&');
        }
        percent_encode(name, b"", &mut query);
        query.push('=');
        percent_encode(value, b"", &mut query);
    }
    set_query(parts, &query)
}

/// Replaces the query; none where it is empty.
pub(super) fn set_query(parts: &mut Parts, query: &str) -> Result<(), SignError> {
    let path = parts.uri.path();
    let separator = if query.is_empty() { "" } else { "?" };
    let target = Zeroizing::new([path, separator, query].concat());
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(target.as_str()).map_err(|_| SignError::Form)?);
    parts.uri = Uri::from_parts(uri).map_err(|_| SignError::Form)?;
    Ok(())
}

fn path(raw: &str, is_s3: bool) -> String {
    let mut out = String::with_capacity(raw.len() + 16);
    if is_s3 {
        percent_encode(decoded(raw.as_bytes(), false), b"/", &mut out);
        return out;
    }
    let mut kept: Vec<&str> = Vec::new();
    for segment in raw.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    let is_directory = ["/", "/.", "/.."].iter().any(|end| raw.ends_with(end));
    let end = if is_directory && !kept.is_empty() { "/" } else { "" };
    percent_encode(["/", &kept.join("/"), end].concat(), b"/", &mut out);
    out
}

fn query(raw: &str, out: &mut Vec<u8>) {
    let encoded = |text: &str| {
        let mut out = String::with_capacity(text.len());
        percent_encode(decoded(text.as_bytes(), true), b"", &mut out);
        out
    };
    let mut pairs: Vec<_> = raw
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (encoded(name), encoded(value))
        })
        .collect();
    pairs.sort_unstable();
    let pairs = Zeroizing::new(pairs);
    for (index, (name, value)) in pairs.iter().enumerate() {
        if index > 0 {
            out.push(b'&');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.as_bytes());
    }
}

/// A header's value without spaces at its ends, and one where there are several.
fn value(raw: &[u8], out: &mut Vec<u8>) {
    let mut words = raw
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty());
    if let Some(first) = words.next() {
        out.extend_from_slice(first);
    }
    for word in words {
        out.push(b' ');
        out.extend_from_slice(word);
    }
}
