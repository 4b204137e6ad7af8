//! Whatever a client sends: what arrives is read by a reader of its own here, which shares no code with what wrote it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::request::Parts;
use proptest::prelude::*;

use super::super::inject::Injected;
use super::super::*;
use super::{inject, request};

/// Undoes the encoding of a form, byte by byte.
fn read_form(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut read = Vec::new();
    while let Some(byte) = bytes.next() {
        read.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    read
}

/// User and password of `Authorization: Basic`, which must stand there once.
fn read_basic(parts: &Parts) -> (String, String) {
    let mut values = parts.headers.get_all("authorization").iter();
    let value = values.next().unwrap().to_str().unwrap();
    assert!(values.next().is_none());
    let bytes = BASE64_STANDARD
        .decode(value.strip_prefix("Basic ").unwrap())
        .unwrap();
    let (user, password) = std::str::from_utf8(&bytes).unwrap().split_once(':').unwrap();
    (user.to_owned(), password.to_owned())
}

/// One parameter: whether it is a spelling of `key`, and its text.
fn parameter() -> impl Strategy<Value = (bool, String)> {
    let spelling = prop_oneof![
        "key",
        "KEY",
        "k%65y",
        "%6bEy",
        "key\\[\\]",
        "key%5B0%5D",
        "\\+key",
        "key%00x"
    ];
    let value = "[a-z0-9=%.+]{0,8}".prop_map(|value| value.replace('%', "%25"));
    prop_oneof![
        (spelling, value.clone()).prop_map(|(name, value)| (true, format!("{name}={value}"))),
        ("(q|keys|mykey|k)", value).prop_map(|(name, value)| (false, format!("{name}={value}"))),
        Just((false, String::new())),
    ]
}

proptest! {
    #[test]
    fn key_in_a_query_is_the_only_one_and_all_else_stays(
        parameters in proptest::collection::vec((parameter(), "[&;]"), 0..6),
        secret in "[ -~äß漢]{1,12}",
    ) {
        let service = Service::custom("x").query("api.test", "key");
        let query: String = parameters.iter().flat_map(|((_, text), end)| [text.as_str(), end]).collect();
        let mut parts = request(&format!("/a?{query}"), &[]);
        prop_assert_eq!(inject(&mut parts, &service, &secret), Ok(Injected::Managed));
        let sent = parts.uri.query().unwrap();
        let (others, last) = sent.rsplit_once(['&', ';']).unwrap_or(("", sent));
        let (name, value) = last.split_once('=').unwrap();
        prop_assert_eq!((read_form(name), read_form(value)), (b"key".to_vec(), secret.into_bytes()));
        let kept: Vec<_> = others.split(['&', ';']).filter(|text| !text.is_empty()).collect();
        let others = parameters.iter().filter(|((is_key, text), _)| !is_key && !text.is_empty());
        let wanted: Vec<_> = others.map(|((_, text), _)| text.as_str()).collect();
        prop_assert_eq!(kept, wanted);
    }

    #[test]
    fn basic_is_the_user_and_the_secret_whatever_they_hold(user in "[ -9;-~ä漢]{0,12}", secret in "[ -~ä漢]{1,20}") {
        let service = Service::custom("x").basic("api.test", &user);
        let mut parts = request("/", &[("authorization", "Basic bWluZTptaW5l"), ("authorization", "Bearer mine")]);
        prop_assert_eq!(inject(&mut parts, &service, &secret), Ok(Injected::Managed));
        prop_assert_eq!(read_basic(&parts), (user, secret));
    }

    #[test]
    fn placeholder_in_either_half_of_basic_is_replaced_and_the_other_half_stays(
        other in "[ -9;-~ä漢]{0,12}",
        secret in "[!-9;-~]{1,20}",
        is_user: bool,
        scheme in "(basic|Basic|BASIC)",
        padded: bool,
    ) {
        const HOLDER: &str = "holder-of-a-place";
        let service = Service::custom("x").in_place("api.test").environment("X", HOLDER);
        let pair = |mine: &str| if is_user { (mine.to_owned(), other.clone()) } else { (other.clone(), mine.to_owned()) };
        let (user, password) = pair(HOLDER);
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        let encoded = if padded { &encoded } else { encoded.trim_end_matches('=') };
        let mut parts = request("/", &[("authorization", &format!("{scheme} {encoded}"))]);
        prop_assert_eq!(inject(&mut parts, &service, &secret), Ok(Injected::Managed));
        prop_assert_eq!(read_basic(&parts), pair(&secret));
    }

    #[test]
    fn basic_without_a_placeholder_gets_no_secret(value in "[ -~]{0,24}", encode: bool) {
        let service = Service::custom("x").in_place("api.test").environment("X", "holder-of-a-place");
        let value = if encode { BASE64_STANDARD.encode(&value) } else { value };
        let mut parts = request("/", &[("authorization", &format!("Basic {value}"))]);
        prop_assert_eq!(inject(&mut parts, &service, "s3cret"), Ok(Injected::NotAsked));
        prop_assert!(parts.headers.is_empty());
    }
}
