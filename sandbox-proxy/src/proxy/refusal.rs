//! Answers that the proxy gives itself: what was refused or failed, told in a way that clients and people can
//! tell apart (RFC 9209 `Proxy-Status`, RFC 9457 problem documents).
//!
//! What cannot change by itself is told as final: `x-should-retry: false`, which the OpenAI and Anthropic SDKs (and
//! others made by the same generator) obey before they look at the status, and never a `Retry-After`. What may pass
//! (too much open, upstream or a credential's source down or slow) is left to the client.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;

use super::body::ResponseBody;
use super::gate::AUDIT_FAILS;
use crate::defence::holds;

/// The header of RFC 9209.
const PROXY_STATUS: &str = "proxy-status";
/// Of RFC 9209 §2.3: the one that fits best where the ALPN of TLS failed.
const NO_COMMON_PROTOCOL: &str = "http_upgrade_failed";
/// Read by SDKs before the status.
const SHOULD_RETRY: &str = "x-should-retry";

/// Why an attempt ends here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// The error type of RFC 9209 §2.3.
    error: &'static str,
    /// One sentence for a person; holds nothing secret.
    pub(crate) detail: String,
    /// The rule that decided, where one did.
    pub(crate) rule: Option<String>,
    /// Policy or protection said no; otherwise something failed after a yes.
    pub(crate) is_denial: bool,
    /// Asking again gives the same answer, until a person changes something.
    is_final: bool,
    /// When asking again may help, where that is known.
    retry_after: Option<Duration>,
}

/// RFC 9457.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    target: &'a str,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, detail: impl Into<String>, is_denial: bool) -> Self {
        Self {
            status,
            error,
            detail: detail.into(),
            rule: None,
            is_denial,
            is_final: is_denial,
            retry_after: None,
        }
    }

    /// The policy says no.
    pub(crate) fn denied(rule: &str, detail: &str) -> Self {
        Self {
            rule: Some(rule.to_owned()),
            ..Self::new(StatusCode::FORBIDDEN, "http_request_denied", detail, true)
        }
    }

    /// The address must not be reached.
    pub(crate) fn address(detail: String, rule: Option<String>) -> Self {
        Self {
            rule,
            ..Self::new(StatusCode::FORBIDDEN, "destination_ip_prohibited", detail, true)
        }
    }

    /// Nothing may happen that cannot be recorded.
    pub(crate) fn unrecorded() -> Self {
        let detail =
            "attempts cannot be recorded now, so nothing is allowed: the audit log fails on the host";
        Self {
            rule: Some(AUDIT_FAILS.to_owned()),
            is_final: false,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "proxy_internal_error",
                detail,
                true,
            )
        }
    }

    /// The request is one that this proxy does not carry.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "http_request_error", detail, true)
    }

    /// The method is one that this proxy does not carry.
    pub(crate) fn method(detail: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "http_request_denied",
            detail,
            true,
        )
    }

    /// The request's head takes too much memory.
    pub(crate) fn too_many_fields() -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "http_request_error",
            "the request has too many header fields",
            true,
        )
    }

    /// The request is for another host than the stream.
    pub(crate) fn misdirected(detail: &str) -> Self {
        Self::new(
            StatusCode::MISDIRECTED_REQUEST,
            "http_request_denied",
            detail,
            true,
        )
    }

    /// The client's credential is not wanted, or there is none to put in.
    pub(crate) fn credential(detail: String, is_denial: bool) -> Self {
        let status = if is_denial {
            StatusCode::FORBIDDEN
        } else {
            StatusCode::BAD_GATEWAY
        };
        let error = if is_denial {
            "http_request_denied"
        } else {
            "proxy_internal_error"
        };
        Self {
            is_final: true,
            ..Self::new(status, error, detail, is_denial)
        }
    }

    /// The credential's source failed, which may pass: a token server that is down comes back.
    pub(crate) fn source_failed(detail: String) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "proxy_internal_error", detail, false)
    }

    /// The sandbox has too much open.
    pub(crate) fn busy(detail: &str) -> Self {
        let error = "connection_limit_reached";
        Self {
            is_final: false,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error, detail, true)
        }
    }

    /// The sandbox sends too many requests; from then on it may send more.
    pub(crate) fn later(detail: &str, retry_after: Duration) -> Self {
        Self {
            rule: Some("limit: requests to a host".to_owned()),
            is_final: false,
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "http_request_denied", detail, true)
        }
    }

    /// Upstream's answer is one that must not pass: it cannot be searched for secrets.
    pub(crate) fn unsearchable(detail: &str) -> Self {
        let error = "http_response_content_coding";
        Self {
            is_final: true,
            ..Self::new(StatusCode::BAD_GATEWAY, error, detail, false)
        }
    }

    /// Upstream failed in the way that `error` (of RFC 9209 §2.3) says.
    pub(crate) fn upstream(error: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, error, detail, false)
    }

    /// Upstream speaks none of the protocols that it was offered.
    pub(crate) fn no_common_protocol() -> Self {
        Self::upstream(
            NO_COMMON_PROTOCOL,
            "upstream speaks none of the protocols it was offered",
        )
    }

    /// Whether it is [`no_common_protocol`](Self::no_common_protocol).
    pub(crate) fn is_no_common_protocol(&self) -> bool {
        self.error == NO_COMMON_PROTOCOL
    }

    /// Upstream took too long.
    pub(crate) fn timeout(error: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, error, detail, false)
    }

    /// A fault of ours.
    pub(crate) fn internal(detail: &str) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "proxy_internal_error",
            detail,
            false,
        )
    }

    /// The whole answer.
    pub(crate) fn response(&self, target: &str) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::whole(self.document(target)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.is_final && holds("final-denial") {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_seconds() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Ok(value) = HeaderValue::try_from(self.proxy_status()) {
            headers.insert(PROXY_STATUS, value);
        }
        response
    }

    /// The whole answer as bytes of HTTP/1.1, for a stream that is not read as HTTP.
    pub(crate) fn raw_response(&self, target: &str) -> Vec<u8> {
        let document = self.document(target);
        let mut retry = String::new();
        if self.is_final && holds("final-denial-raw") {
            retry.push_str("x-should-retry: false\r\n");
        }
        if let Some(seconds) = self.retry_seconds() {
            retry = format!("retry-after: {seconds}\r\n");
        }
        let mut raw = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\nproxy-status: {}\r\n{retry}cache-control: no-store\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            self.status,
            self.proxy_status(),
            document.len()
        )
        .into_bytes();
        raw.extend_from_slice(&document);
        raw
    }

    /// Whole seconds, never too few.
    fn retry_seconds(&self) -> Option<u64> {
        self.retry_after.map(|time| time.as_secs().saturating_add(1))
    }

    fn proxy_status(&self) -> String {
        let mut text = format!("sandbox; error={}; details=\"", self.error);
        // A string of RFC 8941 §3.3.3: printable ASCII with two characters escaped.
        for c in self.detail.chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                ' '..='~' => text.push(c),
                _ => text.push('?'),
            }
        }
        text.push('"');
        text
    }

    fn document(&self, target: &str) -> Bytes {
        let problem = Problem {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Refused"),
            status: self.status.as_u16(),
            detail: &self.detail,
            rule: self.rule.as_deref(),
            target,
        };
        serde_json::to_vec_pretty(&problem)
            .map(|mut document| {
                document.push(b'\n');
                document.into()
            })
            .unwrap_or_default()
    }
}
