//! Requests for AWS: signed by real clients with placeholder keys, signed again by the proxy, verified with the real
//! ones by an implementation that is not ours (botocore's).

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandbox_core::Credential;
use sandbox_core::audit::AuditDecision;
use sandbox_core::credential::{CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox_proxy::{ClientCredential, Rules, Service, sources};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::*;

const ID: &str = "AKIAREALREALREALREAL";
const KEY: &str = "real/Secret+Key7MDENGbPxRfiCYEXAMPLEKEY0";
const TOKEN: &str = "FwoGZXIvYXdzEXAMPLE//token+of==real/keys";
const PLACEHOLDER: &str = "AKIASANDBOXPLACEHOLD";

/// Uses AWS's SDK as a program in a guest would. What the stand-in answers is no answer of AWS; only requests matter.
const CLIENT: &str = r#"
import sys, urllib.request, botocore.session
from botocore.config import Config
endpoint = sys.argv[1]
session = botocore.session.get_session()
def make(service, **s3):
    config = Config(retries={'max_attempts': 0}, s3={'addressing_style': 'path', **s3})
    return session.create_client(service, region_name='eu-west-1', endpoint_url=endpoint, config=config)
def ask(call, **arguments):
    try:
        call(**arguments)
    except Exception as error:
        print(type(error).__name__)
s3, hashed = make('s3'), make('s3', payload_signing_enabled=True)
name = 'a b+c/\u00fc~(1)/x..y.txt'
ask(s3.put_object, Bucket='bucket', Key=name, Body=b'unsigned' * 1000, Metadata={'note': '  two   words '})
ask(hashed.put_object, Bucket='bucket', Key=name, Body=b'hashed' * 1000)
ask(s3.list_objects_v2, Bucket='bucket', Prefix='x y/+&=\u00fc', Delimiter='/')
ask(make('dynamodb').put_item, TableName='table', Item={'k': {'S': 'v' * 200000}})
ask(make('sts').get_caller_identity)
presigning = session.create_client('s3', region_name='eu-west-1', endpoint_url=endpoint,
    config=Config(signature_version='s3v4', s3={'addressing_style': 'path'}))
url = presigning.generate_presigned_url('get_object', Params={'Bucket': 'bucket', 'Key': name}, ExpiresIn=604800)
urllib.request.urlopen(url).read()
"#;

/// Signs what upstream saw once more, with botocore's own signer, and compares.
const VERIFIER: &str = r#"
import sys, json, base64
from urllib.parse import urlsplit, parse_qsl, quote
from botocore.auth import SigV4Auth, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
data = json.load(sys.stdin)
for seen in data['requests']:
    headers = dict((k, v) for k, v in seen['headers'])
    target = urlsplit(seen['url'])
    query = dict(parse_qsl(target.query, keep_blank_values=True))
    if 'authorization' in headers:
        line = headers.pop('authorization')
        assert line.startswith('AWS4-HMAC-SHA256 '), line
        fields = dict(part.strip().split('=', 1) for part in line.split(' ', 1)[1].split(','))
        credential, names, signature, when = fields['Credential'], fields['SignedHeaders'], fields['Signature'], headers['x-amz-date']
        url = seen['url']
    else:
        credential, names, signature, when = query['X-Amz-Credential'], query['X-Amz-SignedHeaders'], query['X-Amz-Signature'], query['X-Amz-Date']
        url = seen['url'].split('&X-Amz-Signature=')[0]
    key, day, region, service, end = credential.split('/')
    assert key == data['id'] and when.startswith(day), credential
    request = AWSRequest(method=seen['method'], url=url, data=base64.b64decode(seen['body']))
    for name in names.split(';'):
        request.headers[name] = headers[name]
    request.context['timestamp'] = when
    keys = Credentials(key, data['secret'], data['token'])
    kind = S3SigV4Auth if service.startswith('s3') else SigV4Auth
    if 'X-Amz-Signature' in query:
        kind = S3SigV4QueryAuth
    auth = kind(keys, service, region)
    canonical = auth.canonical_request(request)
    wanted = auth.signature(auth.string_to_sign(request, canonical), request)
    assert wanted == signature, canonical
    print('verified', service, headers.get('x-amz-content-sha256', '-'))
"#;

/// Keys that a test can change.
#[derive(Debug)]
struct Keys(Mutex<Credential>);

#[async_trait]
impl CredentialSource for Keys {
    fn describe(&self) -> String {
        "keys of the test".into()
    }

    async fn fetch(&self, _: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        Ok(Issued::new(self.0.lock().unwrap().clone()))
    }
}

fn keys(id: &str, secret: &str, token: Option<&str>) -> Credential {
    Credential::Aws {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned().into(),
        session_token: token.map(|token| token.to_owned().into()),
    }
}

async fn signing(upstream: &Upstream, change: impl FnOnce(Service) -> Service) -> (Running, Arc<Keys>) {
    let source = Arc::new(Keys(Mutex::new(keys(ID, KEY, Some(TOKEN)))));
    let service = Service::custom("store")
        .sigv4(&upstream.at("api.test"))
        .environment("AWS_ACCESS_KEY_ID", PLACEHOLDER);
    let (service, given) = (change(service), Arc::clone(&source));
    let running = Running::start(|builder| allowed(builder, upstream).credential(service, given)).await;
    (running, source)
}

/// A Python that has botocore.
async fn python() -> &'static str {
    for candidate in ["python3", "/usr/bin/python3"] {
        let found = Command::new(candidate)
            .args(["-c", "import botocore"])
            .stderr(Stdio::null())
            .status()
            .await;
        if found.is_ok_and(|status| status.success()) {
            return candidate;
        }
    }
    panic!("no Python with botocore: apt-get install python3-botocore")
}

/// Panics unless each request was signed with these keys. Gives a line for each.
async fn verify(requests: &[Seen], secret: &str, token: Option<&str>) -> Vec<String> {
    use base64::Engine;
    let requests: Vec<_> = requests
        .iter()
        .map(|seen| {
            let headers: Vec<_> = seen
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
                .collect();
            let host = match seen.headers.get("host") {
                Some(host) => format!("https://{}{}", host.to_str().unwrap(), seen.target),
                None => seen.target.clone(),
            };
            serde_json::json!({
                "method": seen.method.as_str(),
                "url": host,
                "headers": headers,
                "body": base64::prelude::BASE64_STANDARD.encode(&seen.body),
            })
        })
        .collect();
    let input = serde_json::json!({ "id": ID, "secret": secret, "token": token, "requests": requests });
    let output = judged(python().await, VERIFIER, &input).await;
    output.lines().map(str::to_owned).collect()
}

/// Panics unless a program of Python's accepts its input. Gives what it says.
async fn judged(python: &str, program: &str, input: &serde_json::Value) -> String {
    let mut child = Command::new(python)
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn claimed(signed: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={PLACEHOLDER}/20990101/eu-west-1/s3/aws4_request, SignedHeaders={signed}, Signature={}",
        "0".repeat(64)
    )
}

fn nowhere_in(seen: &[Seen], what: &str) -> bool {
    seen.iter().all(|seen| {
        !seen.target.contains(what)
            && !format!("{:?}", seen.headers).contains(what)
            && !seen.body.windows(what.len()).any(|w| w == what.as_bytes())
    })
}

#[tokio::test]
async fn sdk_with_placeholder_keys_sends_requests_that_verify_with_the_real_ones() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (running, _) = signing(&upstream, |service| service).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
    let proxy = format!("http://{}", running.address);
    let output = Command::new(python().await)
        .args(["-c", CLIENT, &format!("https://{}", upstream.at("api.test"))])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", directory.path())
        .envs(["AWS_CA_BUNDLE", "SSL_CERT_FILE"].map(|name| (name, &ca)))
        .envs(["https_proxy", "HTTPS_PROXY"].map(|name| (name, &proxy)))
        .envs(running.proxy.placeholders())
        .env("AWS_SECRET_ACCESS_KEY", "sandbox-placeholder")
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let seen = upstream.seen();
    let lines = verify(&seen, KEY, Some(TOKEN)).await;
    assert_eq!(
        lines.len(),
        6,
        "{lines:?} {}",
        String::from_utf8_lossy(&output.stdout)
    );
    for service in ["s3", "dynamodb", "sts"] {
        assert!(lines.iter().any(|line| line.contains(service)), "{lines:?}");
    }
    assert!(nowhere_in(&seen, PLACEHOLDER) && nowhere_in(&seen, KEY));
}

#[tokio::test]
async fn curl_with_placeholder_keys_is_signed_again_over_both_versions() {
    for protocol in ["http/1.1", "h2"] {
        let upstream = Upstream::tls(&[protocol]).await;
        let (running, _) = signing(&upstream, |service| service).await;
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, running.proxy.ca_pem().unwrap()).unwrap();
        let output = Command::new("curl")
            .args(["-sS", "--aws-sigv4", "aws:amz:eu-west-1:service", "--user"])
            .arg(format!("{PLACEHOLDER}:nothing"))
            .args(["-d", "Action=GetCallerIdentity&Version=2011-06-15"])
            .arg(format!("https://{}/body?b=2&a=1", upstream.at("api.test")))
            .env("https_proxy", format!("http://{}", running.address))
            .env("CURL_CA_BUNDLE", &ca)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).starts_with("Action="),
            "{output:?}"
        );
        let seen = upstream.seen();
        let lines = verify(&with_host(&seen, &upstream), KEY, Some(TOKEN)).await;
        assert_eq!(lines.len(), 1);
        assert!(nowhere_in(&seen, PLACEHOLDER));
    }
}

/// With the `Host` that HTTP/2 has in the target.
fn with_host(seen: &[Seen], upstream: &Upstream) -> Vec<Seen> {
    let mut seen = seen.to_vec();
    for seen in &mut seen {
        let at = upstream.at("api.test");
        if let Some(path) = seen.target.strip_prefix(&format!("https://{at}")) {
            seen.target = path.to_owned();
            seen.headers.insert("host", at.parse().unwrap());
        }
    }
    seen
}

fn put(
    upstream: &Upstream,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::put(path).header("host", upstream.at("api.test"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn chunks_arrive_with_signatures_of_the_real_key() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (running, _) = signing(&upstream, |service| service).await;
    let mut client = running.h1(&upstream.at("api.test")).await;
    let zeros = "0".repeat(64);
    let body = format!(
        "10000;chunk-signature={zeros}\r\n{}\r\n3;chunk-signature={zeros}\r\nend\r\n0;chunk-signature={zeros}\r\n\
         x-amz-checksum-crc32c:AAAAAA==\r\nx-amz-trailer-signature:{zeros}\r\n\r\n",
        "a".repeat(65536)
    );
    let headers = [
        ("authorization", &*claimed("content-encoding;host;x-amz-date")),
        (
            "x-amz-content-sha256",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        ),
        ("x-amz-decoded-content-length", "65539"),
        ("content-encoding", "aws-chunked"),
        ("x-amz-trailer", "x-amz-checksum-crc32c"),
    ];
    let response = send(&mut client, put(&upstream, "/b/k", &headers, body.clone())).await;
    assert_eq!(response.status(), StatusCode::OK);
    let seen = upstream.last();
    assert_eq!(seen.body.len(), body.len());
    verify(std::slice::from_ref(&seen), KEY, Some(TOKEN)).await;
    let script = r#"
import sys, json, hmac, hashlib, re
data = json.load(sys.stdin)
line, when, body = data['authorization'], data['date'], data['body']
scope = re.search('Credential=[^/]*/([^,]*)', line)[1]
previous = re.search('Signature=(.*)', line)[1]
sha = lambda text: hashlib.sha256(text.encode()).hexdigest()
key = ('AWS4' + data['secret']).encode()
for part in scope.split('/'):
    key = hmac.new(key, part.encode(), hashlib.sha256).digest()
def sign(kind, *hashes):
    text = '\n'.join(['AWS4-HMAC-SHA256-' + kind, when, scope, previous, *hashes])
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
while True:
    head, body = body.split('\r\n', 1)
    size, signature = head.split(';chunk-signature=')
    size = int(size, 16)
    wanted = sign('PAYLOAD', sha(''), sha(body[:size]))
    assert signature == wanted, head
    previous = signature
    if size == 0:
        break
    assert body[size:size + 2] == '\r\n'
    body = body[size + 2:]
trailer, signature = body.split('x-amz-trailer-signature:')
assert signature.strip() == sign('TRAILER', sha(trailer.strip() + '\n')), body
"#;
    let text = |name: &str| seen.headers[name].to_str().unwrap().to_owned();
    let input = serde_json::json!({
        "authorization": text("authorization"), "date": text("x-amz-date"), "secret": KEY,
        "body": String::from_utf8_lossy(&seen.body),
    });
    judged("python3", script, &input).await;
}

#[tokio::test]
async fn body_with_broken_chunks_is_broken_off() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (running, _) = signing(&upstream, |service| service).await;
    let mut client = running.h1(&upstream.at("api.test")).await;
    let headers = [
        ("authorization", &*claimed("host")),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
    ];
    let response = send(
        &mut client,
        put(&upstream, "/b/k", &headers, "3\r\nabc\r\n0\r\n\r\n"),
    )
    .await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn what_the_client_signs_or_sends_with_does_not_go_out() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (running, source) = signing(&upstream, |service| service).await;
    *source.0.lock().unwrap() = keys(ID, KEY, None);
    let mut client = running.h1(&upstream.at("api.test")).await;
    let mine = [
        ("authorization", &*claimed("host;cookie;x-amz-security-token")),
        ("x-amz-security-token", "mine"),
        ("X_Amz_Security_Token", "mine"),
        ("x-amz-s3session-token", "mine"),
        ("x-amz-date", "20990101T000000Z"),
        ("cookie", "session=mine"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
    ];
    let response = send(&mut client, put(&upstream, "/b/k?x-id=PutObject", &mine, "body")).await;
    assert_eq!(response.status(), StatusCode::OK, "{}", text(&response));
    let seen = upstream.last();
    assert!(
        nowhere_in(std::slice::from_ref(&seen), "mine"),
        "{:?}",
        seen.headers
    );
    assert!(!seen.headers["x-amz-date"].to_str().unwrap().starts_with("2099"));
    verify(&[seen], KEY, None).await;
    let presigned = format!(
        "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={PLACEHOLDER}/20990101/eu-west-1/s3/aws4_request&\
         X-Amz-Date=20990101T000000Z&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&x-amz-security-%74oken=mine&X-Amz-Signature=mine"
    );
    let response = send(&mut client, put(&upstream, &presigned, &[("cookie", "mine")], "")).await;
    assert_eq!(response.status(), StatusCode::OK, "{}", text(&response));
    let seen = upstream.last();
    assert!(nowhere_in(std::slice::from_ref(&seen), "mine"), "{seen:?}");
    assert!(seen.target.contains("X-Amz-Expires=300"), "{seen:?}");
    verify(&[seen], KEY, None).await;
}

#[tokio::test]
async fn requests_that_cannot_be_signed_never_go_out_and_are_refused_for_good() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (running, _) = signing(&upstream, |service| service).await;
    let mut client = running.h1(&upstream.at("api.test")).await;
    let good = claimed("host");
    let ecdsa = good.replace("HMAC-SHA256", "ECDSA-P256-SHA256");
    let events = "STREAMING-AWS4-HMAC-SHA256-EVENTS";
    let sts = good.replace("/s3/", "/sts/");
    for (path, headers, why) in [
        ("/", vec![], "not signed"),
        // Stores of other makers give keys, too.
        (
            "/?Action=AssumeRole",
            vec![("authorization", &*sts)],
            "keys of its own",
        ),
        (
            "/",
            vec![("authorization", &*good), ("authorization", &*good)],
            "two places",
        ),
        (
            "/?X-Amz-Signature=x",
            vec![("authorization", &*good)],
            "two places",
        ),
        ("/", vec![("authorization", &*ecdsa)], "algorithm"),
        ("/", vec![("authorization", "AWS AKIA:x")], "algorithm"),
        ("/?AWSAccessKeyId=x", vec![], "algorithm"),
        ("/", vec![("authorization", "Bearer mine")], "algorithm"),
        (
            "/",
            vec![("authorization", &*good), ("x-amz-content-sha256", events)],
            "unknown kind",
        ),
    ] {
        let response = send(&mut client, put(&upstream, path, &headers, "")).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path} {headers:?}");
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(text(&response).contains(why), "{why}: {}", text(&response));
    }
    assert!(upstream.seen().is_empty());
    let event = running.events.wait(|event| event.status == Some(403)).await;
    assert_eq!(event.decision, AuditDecision::Denied);
}

#[tokio::test]
async fn body_without_hash_has_a_bound_and_one_with_a_hash_has_none() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (running, _) = signing(&upstream, |service| service).await;
    let mut client = running.h1(&upstream.at("api.test")).await;
    let long = Bytes::from(vec![b'x'; (32 << 20) + 1]);
    let headers = [("authorization", &*claimed("host").replace("/s3/", "/dynamodb/"))];
    let response = send(&mut client, put(&upstream, "/", &headers, long.clone())).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(
        text(&response).contains("x-amz-content-sha256"),
        "{}",
        text(&response)
    );
    let mut client = running.h1(&upstream.at("api.test")).await;
    let headers = [headers[0], ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")];
    let response = send(&mut client, put(&upstream, "/", &headers, long)).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn new_keys_sign_the_next_request_and_tokens_do_not_come_back() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (running, source) = signing(&upstream, |service| service).await;
    let mut client = running.h1(&upstream.at("api.test")).await;
    let auth = [("authorization", &*claimed("host"))];
    let response = send(&mut client, put(&upstream, "/echo", &auth, "")).await;
    let echoed = text(&response);
    assert!(echoed.contains("x-amz-security-token: ****"), "{echoed}");
    assert!(!echoed.contains(TOKEN) && !echoed.contains(KEY));
    *source.0.lock().unwrap() = keys(ID, "another-secret", Some("another-token"));
    send(&mut client, put(&upstream, "/echo", &auth, "")).await;
    let seen = upstream.seen();
    verify(&seen[..1], KEY, Some(TOKEN)).await;
    verify(&seen[1..], "another-secret", Some("another-token")).await;
    assert_eq!(seen[1].headers["x-amz-security-token"], "another-token");
}

#[tokio::test]
async fn keys_of_a_profile_sign_and_changed_ones_act_at_once() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let directory = tempfile::tempdir().unwrap();
    let [credentials, config] = ["credentials", "config"].map(|name| directory.path().join(name));
    let write = |secret: &str, token: &str| {
        let text = format!(
            "[default]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = other\n\
             [sandbox]\naws_access_key_id = {ID}\naws_secret_access_key = {secret}\n{token}"
        );
        std::fs::write(&credentials, text).unwrap();
    };
    let source = sources::Aws::profile("sandbox").files(&credentials, &config);
    let service = Service::custom("store")
        .sigv4(&upstream.at("api.test"))
        .environment("AWS_ACCESS_KEY_ID", PLACEHOLDER);
    let running =
        Running::start(|builder| allowed(builder, &upstream).credential(service, Arc::new(source))).await;
    running.proxy.check_credentials().await.unwrap_err();
    write(KEY, &format!("aws_session_token = {TOKEN}\n"));
    running.proxy.check_credentials().await.unwrap();
    let mut client = running.h1(&upstream.at("api.test")).await;
    let auth = [("authorization", &*claimed("host"))];
    let response = send(&mut client, put(&upstream, "/echo", &auth, "")).await;
    assert!(!text(&response).contains(TOKEN), "{}", text(&response));
    write("another-secret", "");
    send(&mut client, put(&upstream, "/echo", &auth, "")).await;
    let seen = upstream.seen();
    verify(&seen[..1], KEY, Some(TOKEN)).await;
    verify(&seen[1..], "another-secret", None).await;
    for secret in [KEY, "another-secret", PLACEHOLDER] {
        assert!(nowhere_in(&seen, secret), "{secret}");
    }
}

#[tokio::test]
async fn keys_of_the_clients_own_pass_or_are_rejected_where_the_service_says_so() {
    let own = claimed("host").replace(PLACEHOLDER, "AKIAOWN");
    for (choice, status) in [
        (ClientCredential::Pass, StatusCode::OK),
        (ClientCredential::Reject, StatusCode::FORBIDDEN),
    ] {
        let upstream = Upstream::tls(&["http/1.1"]).await;
        let (running, _) = signing(&upstream, |service| service.client_credential(choice)).await;
        let mut client = running.h1(&upstream.at("api.test")).await;
        let response = send(&mut client, put(&upstream, "/", &[("authorization", &own)], "")).await;
        assert_eq!(response.status(), status);
        if status == StatusCode::OK {
            assert_eq!(upstream.last().headers["authorization"], own);
        }
        let placeholder = [("authorization", &*claimed("host"))];
        let response = send(&mut client, put(&upstream, "/", &placeholder, "")).await;
        assert_eq!(response.status(), StatusCode::OK);
        verify(&[upstream.last()], KEY, Some(TOKEN)).await;
    }
}

#[tokio::test]
async fn aws_is_signed_for_only_as_its_hosts_say_and_never_asked_for_keys() {
    let source = Arc::new(Keys(Mutex::new(keys(ID, KEY, None))));
    let host = "sts.eu-west-1.amazonaws.com";
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at(host);
    let running = Running::start(|builder| {
        let elsewhere = upstream.at("**.amazonaws.com");
        builder
            .policy(Arc::new(Rules::new().allow(&format!("{at} special-ranges"))))
            .resolve(host.parse().unwrap(), vec![LOCAL])
            .extra_root(upstream.ca_pem.clone())
            .credential(Service::aws().moved("**.amazonaws.com", &elsewhere), source)
    })
    .await;
    let mut client = running.h1(&at).await;
    let ask = |scope: &str, body: &'static str| {
        Request::post("/")
            .header("host", &at)
            .header("authorization", claimed("host").replace("eu-west-1/s3", scope))
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .unwrap()
    };
    let who = "Action=GetCallerIdentity&Version=2011-06-15";
    let response = send(&mut client, ask("eu-west-1/sts", who)).await;
    assert_eq!(response.status(), StatusCode::OK, "{}", text(&response));
    verify(&[upstream.last()], KEY, None).await;
    for (scope, body, why) in [
        ("us-east-1/sts", who, "does not serve"),
        ("eu-west-1/iam", who, "does not serve"),
        ("eu-west-1/sts", "Action=AssumeRole&RoleArn=x", "keys of its own"),
    ] {
        let response = send(&mut client, ask(scope, body)).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{scope} {body}");
        assert!(
            text(&response).contains(why),
            "{scope} {body}: {}",
            text(&response)
        );
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn service_that_is_a_document_signs_and_takes_the_clients_own_credentials_out() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let definition = format!(
        "format = 1\nname = \"store\"\n\
         [[endpoint]]\ntargets = [\"{at}/bucket/**\"]\nput = \"sigv4\"\n\
         [strip]\nheaders = [\"x-store-session\"]\nparameters = [\"ticket\"]\n\
         [placeholders]\nAWS_ACCESS_KEY_ID = \"{PLACEHOLDER}\"\n"
    );
    let service = Service::from_toml(&definition).unwrap();
    let source = Arc::new(Keys(Mutex::new(keys(ID, KEY, Some(TOKEN)))));
    let running = Running::start(|builder| allowed(builder, &upstream).credential(service, source)).await;
    let mut client = running.h1(&at).await;
    let headers = [
        ("authorization", &*claimed("host")),
        ("x-store-session", "mine"),
        ("x-amz-security-token", "mine"),
    ];
    for (target, arrives) in [
        ("/bucket/a?x=1", "/bucket/a?x=1"),
        (
            "/bucket/a?ticket=mine&x=1&Ticket=mine&y=%2Fz",
            "/bucket/a?x=1&y=%2Fz",
        ),
        ("/bucket/a?ticket=mine", "/bucket/a"),
    ] {
        let response = send(&mut client, put(&upstream, target, &headers, "body")).await;
        assert_eq!(response.status(), StatusCode::OK, "{}", text(&response));
        let seen = upstream.last();
        assert_eq!(seen.target, arrives);
        assert!(
            !format!("{:?}", seen.headers).contains("mine"),
            "{:?}",
            seen.headers
        );
        verify(&[seen], KEY, Some(TOKEN)).await;
    }
    let elsewhere = put(&upstream, "/other", &headers, "body");
    assert_eq!(send(&mut client, elsewhere).await.status(), StatusCode::OK);
    assert!(!upstream.last().headers.contains_key("authorization"));
}
