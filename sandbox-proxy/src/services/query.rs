//! Parameters in a request's query, as form parsers of many kinds read them.

use http::Uri;
use http::request::Parts;
use http::uri::PathAndQuery;
use sandbox_core::credential::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::encoding::{percent_encode, unescape};

/// The query cannot be written: what goes in makes no URI.
#[derive(Debug)]
pub(super) struct Unwritable;

/// What stands between parameters. Some servers take a semicolon for a separator, as HTML 4 asked for.
const SEPARATORS: [char; 2] = ['&', ';'];

/// The parameters of a query: each as it stands with the separator after it, its name, its value.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    query.split_inclusive(SEPARATORS).map(|pair| {
        let text = pair.strip_suffix(SEPARATORS).unwrap_or(pair);
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (pair, name, value)
    })
}

/// Whether a parameter is one of this name, as the most lenient server would read it: however it is encoded, in
/// whatever case, and as PHP does with dots, blanks and brackets, and C with what comes after a zero.
pub(super) fn is_named(sent: &str, name: &str) -> bool {
    // Few parameters have it in them at all.
    if !sent
        .bytes()
        .any(|b| matches!(b, b'%' | b'+' | b'.' | b'[' | b' '))
    {
        return sent.eq_ignore_ascii_case(name);
    }
    let decoded = decode(sent);
    let sent = decoded.split('\0').next().unwrap_or("").trim();
    let plain = |b: u8| match b {
        b' ' | b'.' | b'[' => b'_',
        other => other.to_ascii_lowercase(),
    };
    let array = sent.split_once('[').map_or(sent, |(start, _)| start);
    [sent, array]
        .into_iter()
        .any(|sent| sent.len() == name.len() && sent.bytes().map(plain).eq(name.bytes().map(plain)))
}

/// Removes every parameter that is one of `names`, and adds one if there is a value.
pub(super) fn set(
    parts: &mut Parts,
    names: &[String],
    add: Option<(&str, &SecretString)>,
) -> Result<(), Unwritable> {
    let query = parts.uri.query().unwrap_or("");
    let goes = |sent: &str| {
        names.iter().any(|name| is_named(sent, name)) || add.is_some_and(|(name, _)| is_named(sent, name))
    };
    if add.is_none() && !parameters(query).any(|(_, sent, _)| goes(sent)) {
        return Ok(());
    }
    let mut target = Zeroizing::new(String::with_capacity(parts.uri.path().len() + query.len() + 256));
    target.push_str(parts.uri.path());
    let mut separator = '?';
    for (pair, sent, _) in
        parameters(query).filter(|(pair, ..)| !pair.trim_end_matches(SEPARATORS).is_empty())
    {
        if !goes(sent) {
            let (text, end) = match pair.strip_suffix(SEPARATORS) {
                Some(text) => (text, pair.chars().next_back().unwrap_or('&')),
                None => (pair, '&'),
            };
            target.push(separator);
            target.push_str(text);
            separator = end;
        }
    }
    if separator == ';' {
        separator = '&';
    }
    if let Some((name, value)) = add {
        target.push(separator);
        percent_encode(name, b"", &mut target);
        target.push('=');
        percent_encode(value.expose_secret(), b"", &mut target);
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(target.as_str()).map_err(|_| Unwritable)?);
    parts.uri = Uri::from_parts(uri).map_err(|_| Unwritable)?;
    Ok(())
}

/// Undoes percent-encoding as a form parser would; what is no valid escape stays as it is.
pub(super) fn decode(form: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(&decoded(form.as_ref(), true)).into_owned()
}

/// Undoes percent-encoding; what is no valid escape stays as it is. In a form, a plus is a blank.
pub(super) fn decoded(raw: &[u8], is_form: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = match first {
            b'%' => unescape(tail).unwrap_or((first, tail)),
            b'+' if is_form => (b' ', tail),
            _ => (first, tail),
        };
        bytes.push(byte);
        rest = after;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_the_most_lenient_server_does() {
        for sent in [
            "api_key",
            "API_KEY",
            "api%5Fkey",
            "api.key",
            "api+key",
            "api%20key",
            "api[key",
            "+api_key",
            "api_key[]",
            "api_key%5B0%5D",
            "api_key%00x",
            "%61pi_key",
        ] {
            assert!(is_named(sent, "api_key"), "{sent}");
        }
        for sent in [
            "api_keys",
            "apikey",
            "my_api_key",
            "api_key_id",
            "",
            "%zz",
            "[api_key]",
        ] {
            assert!(!is_named(sent, "api_key"), "{sent}");
        }
        assert!(is_named("%24httpheaders", "$httpHeaders"));
    }
}
