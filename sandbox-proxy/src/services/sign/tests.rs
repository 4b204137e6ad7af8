//! The signer against published vectors: AWS's test suite for Signature Version 4, and the examples of S3's
//! documentation ("Signature Calculations for the Authorization Header", "… Using Query Parameters", "… Multiple
//! Chunks").

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body_util::Full;

use super::chunks::{ChunkError, Chunks};
use super::*;

const SUITE_ID: &str = "AKIDEXAMPLE";
const SUITE_SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// 2015-08-30T12:36:00Z.
const SUITE_TIME: u64 = 1_440_938_160;
const S3_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const S3_SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// 2013-05-24T00:00:00Z.
const S3_TIME: u64 = 1_369_353_600;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut builder = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn claimed(service: &str, signed: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=AKIASANDBOXPLACEHOLD/20990101/us-east-1/{service}/aws4_request, \
         SignedHeaders={signed}, Signature={}",
        "0".repeat(64)
    )
}

fn signing(claim: Claim, id: &str, secret: &str, token: Option<&str>) -> Signing {
    let keys = Credential::Aws {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned().into(),
        session_token: token.map(|token| token.to_owned().into()),
    };
    Signing::new(claim, keys, payload::room()).unwrap()
}

/// The signature of a request as AWS's suite has them.
fn suite(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
    let mut parts = request(method, target, headers);
    let signed: Vec<_> = headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    let signed = [signed.join(";"), "host;x-amz-date".to_owned()].join(";");
    parts
        .headers
        .insert("authorization", claimed("service", &signed).parse().unwrap());
    let host = "example.amazonaws.com".parse().unwrap();
    let claim = claim(&mut parts, &Service::custom("aws"), &host, false).unwrap();
    let signing = signing(claim, SUITE_ID, SUITE_SECRET, None);
    let scope = Scope::new(at(SUITE_TIME), "us-east-1", "service");
    let key = scope.key(&signing.secret);
    let host = HeaderValue::from_static("example.amazonaws.com");
    let signature = signing
        .sign_headers(&mut parts, &host, &scope, &key, &key::sha256(body))
        .unwrap();
    let sent = parts.headers["authorization"].to_str().unwrap();
    assert!(sent.starts_with(&format!(
        "AWS4-HMAC-SHA256 Credential={SUITE_ID}/20150830/us-east-1/service/aws4_request, SignedHeaders=host;"
    )) || sent.contains("SignedHeaders="));
    assert!(sent.ends_with(&format!("Signature={signature}")), "{sent}");
    assert!(parts.headers["authorization"].is_sensitive());
    assert_eq!(parts.headers["x-amz-date"], "20150830T123600Z");
    signature
}

#[test]
fn signatures_are_those_of_the_published_suite() {
    for (name, method, target, headers, body, signature) in [
        (
            "get-vanilla",
            "GET",
            "/",
            &[][..],
            "",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "get-vanilla-query-order-key-case",
            "GET",
            "/?Param2=value2&Param1=value1",
            &[],
            "",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            "get-unreserved",
            "GET",
            "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
            &[],
            "",
            "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
        ),
        (
            "get-header-value-trim",
            "GET",
            "/",
            &[("My-Header1", " value1"), ("My-Header2", " \"a   b   c\"")],
            "",
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        (
            "get-slashes, normalised",
            "GET",
            "//example//",
            &[],
            "",
            "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
        ),
        (
            "get-relative-relative, normalised",
            "GET",
            "/example1/example2/../..",
            &[],
            "",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "post-vanilla",
            "POST",
            "/",
            &[],
            "",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "post-x-www-form-urlencoded",
            "POST",
            "/",
            &[("Content-Type", "application/x-www-form-urlencoded")],
            "Param1=value1",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ] {
        assert_eq!(
            suite(method, target, headers, body.as_bytes()),
            signature,
            "{name}"
        );
    }
}

/// Signs as for S3's examples, in whichever form the client has signed.
fn s3(mut parts: Parts, payload: &str) -> (Parts, String, Scope, key::Key) {
    let host = HeaderValue::from_static("examplebucket.s3.amazonaws.com");
    let at_host = "examplebucket.s3.amazonaws.com".parse().unwrap();
    let claim = claim(&mut parts, &Service::aws(), &at_host, true).unwrap();
    let signing = signing(claim, S3_ID, S3_SECRET, None);
    let scope = Scope::new(at(S3_TIME), "us-east-1", "s3");
    let key = scope.key(&signing.secret);
    let signature = signing
        .sign_headers(&mut parts, &host, &scope, &key, payload)
        .unwrap();
    (parts, signature, scope, key)
}

#[test]
fn signatures_are_those_of_the_examples_for_s3() {
    let auth = claimed("s3", "host;range;x-amz-content-sha256;x-amz-date");
    let get = request(
        "GET",
        "/test.txt",
        &[
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", EMPTY),
            ("authorization", &auth),
        ],
    );
    assert_eq!(
        s3(get, EMPTY).1,
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
    let list = request(
        "GET",
        "/?max-keys=2&prefix=J",
        &[
            ("x-amz-content-sha256", EMPTY),
            ("authorization", &claimed("s3", "host")),
        ],
    );
    assert_eq!(
        s3(list, EMPTY).1,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    );
    let digest = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    let put = request(
        "PUT",
        "/test%24file.text",
        &[
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", digest),
            ("authorization", &claimed("s3", "host")),
        ],
    );
    let (parts, ..) = s3(put, digest);
    assert!(
        !parts.headers.contains_key("date"),
        "the client's time is the client's"
    );
}

#[test]
fn chunks_are_signed_as_in_the_example() {
    let mut put = request(
        "PUT",
        "/examplebucket/chunkObject.txt",
        &[
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("content-length", "66824"),
        ],
    );
    let signed = "content-encoding;content-length;host;x-amz-date";
    let auth = claimed("s3", signed).parse().unwrap();
    put.headers.insert("authorization", auth);
    let host = HeaderValue::from_static("s3.amazonaws.com");
    let service = Service::aws();
    let claim = claim(&mut put, &service, &"s3.amazonaws.com".parse().unwrap(), true).unwrap();
    let signing = signing(claim, S3_ID, S3_SECRET, None);
    let scope = Scope::new(at(S3_TIME), "us-east-1", "s3");
    let key = scope.key(&signing.secret);
    let payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
    let seed = signing
        .sign_headers(&mut put, &host, &scope, &key, payload)
        .unwrap();
    assert_eq!(
        seed,
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    );
    let old = "f".repeat(64);
    let line = |size: &str, signature: &str| format!("{size};chunk-signature={signature}\r\n");
    let body = |first: &str, second: &str, last: &str| {
        [
            line("10000", first),
            "a".repeat(65536),
            "\r\n".into(),
            line("400", second),
            "a".repeat(1024),
            "\r\n".into(),
            line("0", last),
            "\r\n".into(),
        ]
        .concat()
    };
    let wanted = body(
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    );
    let sent = body(&old, &old, &old);
    assert_eq!(sent.len(), 66824);
    for pieces in [1, 7, 100, 66824] {
        let scope = Scope::new(at(S3_TIME), "us-east-1", "s3");
        let key = scope.key(&signing.secret);
        let mut chunks = resigner(key, scope, seed.clone(), false);
        let mut out = Vec::new();
        for piece in sent.as_bytes().chunks(pieces) {
            chunks.push(Bytes::copy_from_slice(piece)).unwrap();
            while let Some(ready) = chunks.next() {
                out.extend_from_slice(&ready);
            }
        }
        chunks.finish().unwrap();
        assert!(out == wanted.as_bytes(), "in pieces of {pieces}");
    }
}

fn resigner(key: key::Key, scope: Scope, seed: String, has_trailer: bool) -> Chunks {
    let place = payload::room().try_acquire_owned().unwrap();
    Chunks::new(key, scope, seed, has_trailer, place)
}

fn push(text: &str, has_trailer: bool) -> Result<String, ChunkError> {
    let scope = Scope::new(at(S3_TIME), "us-east-1", "s3");
    let key = scope.key(&S3_SECRET.to_owned().into());
    let mut chunks = resigner(key, scope, "seed".into(), has_trailer);
    chunks.push(Bytes::copy_from_slice(text.as_bytes()))?;
    chunks.finish()?;
    let mut out = Vec::new();
    while let Some(ready) = chunks.next() {
        out.extend_from_slice(&ready);
    }
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn trailers_of_chunks_keep_their_form_and_get_a_signature() {
    let old = "f".repeat(64);
    for line_end in ["\n\r\n", "\r\n"] {
        let sent = format!(
            "3;chunk-signature={old}\r\nabc\r\n0;chunk-signature={old}\r\nx-amz-checksum-crc32c:sOO8/Q=={line_end}\
             x-amz-trailer-signature:{old}\r\n\r\n"
        );
        let out = push(&sent, true).unwrap();
        assert_eq!(out.len(), sent.len());
        assert!(
            !out.contains(&old) && out.contains(&format!("sOO8/Q=={line_end}x-amz-trailer-")),
            "{out}"
        );
    }
}

#[test]
fn broken_chunks_are_not_signed() {
    let old = "f".repeat(64);
    for (sent, trailer, error) in [
        ("zz;chunk-signature=x\r\n".to_owned(), false, ChunkError::Head),
        (format!("3\r\nabc\r\n{old}"), false, ChunkError::Head),
        (
            format!("3;chunk-signature={old}\nabc\r\n"),
            false,
            ChunkError::Head,
        ),
        ("1".repeat(5000), false, ChunkError::Head),
        (
            format!("fffffff;chunk-signature={old}\r\n"),
            false,
            ChunkError::TooLong,
        ),
        (
            format!("ffffffffffffffff;chunk-signature={old}\r\n"),
            false,
            ChunkError::TooLong,
        ),
        (
            format!("3;chunk-signature={old}\r\nabcde"),
            false,
            ChunkError::Border,
        ),
        (
            format!("3;chunk-signature={old}\r\nabc\r\n"),
            false,
            ChunkError::Truncated,
        ),
        (
            format!("0;chunk-signature={old}\r\n\r\nmore"),
            false,
            ChunkError::GoesOn,
        ),
        (
            format!("0;chunk-signature={old}\r\nx-a:b\r\n\r\n"),
            true,
            ChunkError::Trailers,
        ),
        (
            format!("0;chunk-signature={old}\r\n{}", "x".repeat(5000)),
            true,
            ChunkError::Trailers,
        ),
    ] {
        assert_eq!(push(&sent, trailer), Err(error), "{sent:.80}");
    }
}

#[test]
fn presigned_requests_stay_presigned_for_a_short_time() {
    let target = format!(
        "/test.txt?x-id=GetObject&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIASANDBOXPLACEHOLD%2F20130524%2F\
         us-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&\
         X-Amz-Security-Token=mine&X-Amz-Signature={}",
        "f".repeat(64)
    );
    let mut parts = request("GET", &target, &[]);
    let host = "examplebucket.s3.amazonaws.com";
    let claim = claim(&mut parts, &Service::aws(), &host.parse().unwrap(), true).unwrap();
    assert_eq!(parts.uri, "/test.txt?x-id=GetObject");
    assert_eq!(claim.payload(&parts), Ok(Payload::unsigned()));
    let signing = signing(claim, S3_ID, S3_SECRET, Some("the/token"));
    let scope = Scope::new(at(S3_TIME), "us-east-1", "s3");
    let key = scope.key(&signing.secret);
    let host = HeaderValue::from_static("examplebucket.s3.amazonaws.com");
    signing
        .sign_query(&mut parts, &host, &scope, &key, "UNSIGNED-PAYLOAD", 86400)
        .unwrap();
    let query = parts.uri.query().unwrap();
    assert!(query.starts_with("x-id=GetObject&X-Amz-Algorithm="), "{query}");
    assert!(query.contains("X-Amz-Expires=300&"), "{query}");
    assert!(
        query.contains("X-Amz-Security-Token=the%2Ftoken&X-Amz-Signature="),
        "{query}"
    );
    assert!(!query.contains("mine") && !query.contains("PLACEHOLD"), "{query}");
}

#[test]
fn presigned_signature_is_that_of_the_example() {
    // The example is good for a day; ours are for minutes, so this goes below that limit.
    let mut parts = request("GET", "/test.txt", &[]);
    let scope = Scope::new(at(S3_TIME), "us-east-1", "s3");
    let credential = format!("{S3_ID}/{}", scope.text());
    let added = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", scope.time()),
        ("X-Amz-Expires", "86400"),
        ("X-Amz-SignedHeaders", "host"),
    ];
    canonical::add_to_query(&mut parts, &added).unwrap();
    let host = HeaderValue::from_static("examplebucket.s3.amazonaws.com");
    let text = canonical::request(&parts, &host, &["host".into()], true, "UNSIGNED-PAYLOAD");
    let key = scope.key(&S3_SECRET.to_owned().into());
    assert_eq!(
        key.sign(&scope.text_to_sign(&text)),
        "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    );
}

#[test]
fn what_cannot_be_signed_is_refused() {
    let good = claimed("s3", "host");
    let read = |target: &str, lines: &[&str]| {
        let headers: Vec<_> = lines.iter().map(|line| ("authorization", *line)).collect();
        Claim::read(&request("GET", target, &headers)).map(|claim| claim.service)
    };
    assert_eq!(read("/", &[&good]), Ok("s3".into()));
    let ecdsa = good.replace("HMAC-SHA256", "ECDSA-P256-SHA256");
    let presigned =
        "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A/20130524/us-east-1/s3/aws4_request";
    for (target, lines, error) in [
        ("/", &[][..], SignError::Unsigned),
        ("/", &[&*good, &*good], SignError::Ambiguous),
        (presigned, &[&*good], SignError::Ambiguous),
        (
            &format!("{presigned}&x-amz-%61lgorithm=x"),
            &[],
            SignError::Ambiguous,
        ),
        ("/", &[&*ecdsa], SignError::Algorithm),
        ("/", &["AWS AKIA:sig"], SignError::Algorithm),
        ("/", &["Bearer mine"], SignError::Algorithm),
        ("/", &["Bearer"], SignError::Algorithm),
        ("/?AWSAccessKeyId=AKIA&Signature=x", &[], SignError::Algorithm),
        (
            "/?X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256",
            &[],
            SignError::Algorithm,
        ),
        ("/?X-Amz-Signature=abc", &[], SignError::Algorithm),
        (
            "/",
            &["AWS4-HMAC-SHA256 Credential=AKIA/20130524/us-east-1/s3"],
            SignError::Scope,
        ),
        (
            "/",
            &["AWS4-HMAC-SHA256 Credential=AKIA/20130524/us-east-1/s3/other"],
            SignError::Scope,
        ),
        (
            "/",
            &["AWS4-HMAC-SHA256 Credential=AKIA/20130524/us%20east/s3/aws4_request"],
            SignError::Scope,
        ),
        ("/", &["AWS4-HMAC-SHA256 Signature=abc"], SignError::Scope),
    ] {
        assert_eq!(read(target, lines), Err(error), "{target} {lines:?}");
    }
    for bad in [
        "",
        "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD",
        "STREAMING-AWS4-HMAC-SHA256-EVENTS",
        "abc",
    ] {
        assert_eq!(Payload::parse(bad), Err(SignError::Payload), "{bad}");
    }
}

#[test]
fn scope_must_fit_the_host() {
    let fits = |line: &str| {
        let [host, region, service] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let auth = claimed(service, "host").replace("us-east-1", region);
        let mut parts = request("GET", "/", &[("authorization", &auth)]);
        claim(&mut parts, &Service::aws(), &host.parse().unwrap(), true).is_ok()
    };
    // Host, region, service.
    for line in [
        "sts.amazonaws.com us-east-1 sts",
        "sts.eu-west-1.amazonaws.com eu-west-1 sts",
        "bucket.s3.amazonaws.com eu-west-1 s3",
        "my-us-west-2.s3.eu-west-1.amazonaws.com eu-west-1 s3",
        "us-west-2.s3.eu-west-1.amazonaws.com eu-west-1 s3",
        "s3-us-west-2.amazonaws.com us-west-2 s3",
        "bucket.s3.dualstack.us-gov-west-1.amazonaws.com us-gov-west-1 s3",
        "dynamodb.cn-north-1.amazonaws.com.cn cn-north-1 dynamodb",
        "bedrock-runtime.us-east-1.amazonaws.com us-east-1 bedrock",
        "api.ecr.us-east-1.amazonaws.com us-east-1 ecr",
        "email.us-east-1.amazonaws.com us-east-1 ses",
        "runtime-v2-lex.us-east-1.amazonaws.com us-east-1 lex",
        "catalog.marketplace.us-east-1.amazonaws.com us-east-1 aws-marketplace",
        "us-west-2.queue.amazonaws.com us-west-2 sqs",
        "abc123.execute-api.us-east-1.amazonaws.com us-east-1 execute-api",
        "lambda.us-east-1.api.aws us-east-1 lambda",
    ] {
        assert!(fits(line), "{line}");
    }
    for line in [
        "sts.eu-west-1.amazonaws.com us-east-1 sts",
        "s3.us-east-1.amazonaws.com us-east-1 iam",
        "us-west-2.queue.amazonaws.com us-east-1 sqs",
        "ec2-192-0-2-1.us-west-2.compute.amazonaws.com us-west-2 ec2",
        "lambda-1.us-east-1.elb.amazonaws.com us-east-1 lambda",
        "s3.evil.test us-east-1 s3",
        "s3.amazonaws.com.evil.test us-east-1 s3",
        "192.0.2.1 us-east-1 s3",
    ] {
        assert!(!fits(line), "{line}");
    }
}

#[test]
fn keys_are_not_asked_for() {
    let check = |keys: Keys, target: &str, headers: &[(&str, &str)], body: Option<&str>| {
        keys.check(&request("POST", target, headers), body.map(str::as_bytes))
            .is_ok()
    };
    assert!(check(
        Keys::Sts,
        "/",
        &[],
        Some("Action=GetCallerIdentity&Version=2011-06-15")
    ));
    assert!(check(Keys::Sts, "/?Action=GetCallerIdentity", &[], Some("")));
    assert!(check(Keys::Iam, "/", &[], Some("Action=ListUsers")));
    let form = "application/x-www-form-urlencoded; charset=utf-8";
    assert!(check(
        Keys::Iam,
        "/",
        &[("content-type", form)],
        Some("Action=ListUsers")
    ));
    let upper = claimed("STS", "host");
    let claim = Claim::read(&request("POST", "/", &[("authorization", &upper)])).unwrap();
    assert_eq!(Keys::of(&claim), Some(Keys::Sts));
    for (keys, target, headers, body) in [
        (Keys::Sts, "/", &[][..], Some("Action=AssumeRole")),
        (
            Keys::Sts,
            "/",
            &[],
            Some("Action=GetCallerIdentity&Action=AssumeRole"),
        ),
        (
            Keys::Sts,
            "/?Action=AssumeRole",
            &[],
            Some("Action=GetCallerIdentity"),
        ),
        (Keys::Sts, "/", &[], Some("%41ction=AssumeRole&x=Action")),
        (Keys::Sts, "/", &[], Some("")),
        (Keys::Sts, "/", &[], None),
        (
            Keys::Sts,
            "/service/x/operation/AssumeRole",
            &[],
            Some("Action=GetCallerIdentity"),
        ),
        (
            Keys::Sts,
            "/",
            &[("x-amz-target", "x.AssumeRole")],
            Some("Action=GetCallerIdentity"),
        ),
        // In other characters, or compressed, the body can name another.
        (
            Keys::Sts,
            "/?Action=GetCallerIdentity",
            &[(
                "content-type",
                "application/x-www-form-urlencoded; charset=ibm037",
            )],
            Some("%C1%83%A3%89%96%95=%C1%A2%A2%A4%94%85%D9%96%93%85"),
        ),
        (
            Keys::Sts,
            "/?Action=GetCallerIdentity",
            &[("content-encoding", "gzip")],
            Some("compressed"),
        ),
        (Keys::Iam, "/", &[], Some("Action=createaccesskey")),
        (Keys::Iam, "/", &[], Some("Action=CreateAccessKey")),
        (Keys::S3Express, "/?session", &[], Some("")),
    ] {
        assert!(!check(keys, target, headers, body), "{keys:?} {target} {body:?}");
    }
}

#[tokio::test]
async fn bodies_are_collected_within_bounds() {
    let room = payload::room();
    let (mut whole, digest) = payload::collect(&mut Full::new(Bytes::from_static(b"abc")), &room)
        .await
        .unwrap();
    assert_eq!(hex(digest.as_ref()), key::sha256(b"abc"));
    assert_eq!((whole.len(), whole.first()), (3, Some(&b"abc"[..])));
    assert_eq!(whole.next().unwrap().into_data().unwrap(), "abc");
    assert!(whole.is_done() && whole.next().is_none());
    let long = Bytes::from(vec![0; payload::MAX_BODY_BYTES + 1]);
    let error = payload::collect(&mut Full::new(long.clone()), &room)
        .await
        .unwrap_err();
    assert_eq!(error, SignError::TooLarge);
    let most = long.slice(1..);
    let first = payload::collect(&mut Full::new(most.clone()), &room)
        .await
        .unwrap();
    let second = payload::collect(&mut Full::new(most.clone()), &room)
        .await
        .unwrap();
    let error = payload::collect(&mut Full::new(most.slice(..1)), &room)
        .await
        .unwrap_err();
    assert_eq!(error, SignError::Busy);
    drop((first, second));
    assert!(payload::collect(&mut Full::new(most), &room).await.is_ok());
}
