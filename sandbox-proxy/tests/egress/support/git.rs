//! Git's own server over HTTP, behind the upstream's `/git/`.

use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Answers as `git http-backend` says (RFC 3875), for whoever may read and write.
pub async fn serve(parts: &Parts, body: &[u8], root: &Path) -> (StatusCode, HeaderMap, Bytes) {
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    };
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "test")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", &parts.uri.path()["/git".len()..])
        .env("QUERY_STRING", parts.uri.query().unwrap_or(""))
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let body = body.to_vec();
    let written = tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child.wait_with_output().await.unwrap().stdout;
    let _ = written.await;
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let (mut status, mut headers) = (StatusCode::OK, HeaderMap::new());
    for line in std::str::from_utf8(&output[..end]).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name.eq_ignore_ascii_case("status") {
            status = value[..3].parse().unwrap();
        } else {
            headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
    }
    (status, headers, Bytes::copy_from_slice(&output[end + 4..]))
}
