//! Tokens that a service's own token server gave to the sandbox, as container registries do: they pass to the service's
//! other hosts, and no others do.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::defence::holds;

/// The answer of a token server as longest; real ones have a few KiB. Bounds what is held of it at a time.
pub(crate) const MAX_ANSWER_BYTES: usize = 64 << 10;
/// How many tokens are known at a time. A client gets one for each repository it works on, good for minutes. With the
/// limit above, bounds memory to 4 MiB for a token server that answers with nothing but tokens.
const KNOWN: usize = 64;

/// What was given lately, oldest first.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<VecDeque<String>>);

/// The answer of a token server (Docker's token authentication; OAuth2, RFC 6749 §5.1).
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The answer without the refresh token in it, if it has one (`offline_token` of Docker's token authentication): that
/// one does not end after some minutes, and opens as much as the credential outside the sandbox, too.
pub(crate) fn without_refresh_token(answer: &[u8]) -> Option<Vec<u8>> {
    let mut answer: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(answer).ok()?;
    answer.remove("refresh_token")?;
    serde_json::to_vec(&answer).ok()
}

impl Tokens {
    /// Remembers the tokens in an answer, if it is one.
    pub(crate) fn note(&self, answer: &[u8]) {
        let Ok(Answer { token, access_token }) = serde_json::from_slice(answer) else {
            return;
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for token in [token, access_token].into_iter().flatten() {
            if !known.contains(&token) {
                if known.len() >= KNOWN {
                    known.pop_front();
                }
                known.push_back(token);
            }
        }
    }

    pub(crate) fn has(&self, token: &str) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|known| known == token) || !holds("issued-tokens")
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_answers_are_known_until_there_are_many_newer() {
        let tokens = Tokens::default();
        tokens.note(br#"{"token": "a", "access_token": "b", "expires_in": 300}"#);
        assert!(tokens.has("a") && tokens.has("b") && !tokens.has("c"));
        for bad in [&b"no json"[..], b"[]", b"{\"token\": 1}", b"", b"{}"] {
            tokens.note(bad);
        }
        assert!(!tokens.has(""));
        for number in 0..KNOWN {
            tokens.note(format!("{{\"token\": \"t{number}\"}}").as_bytes());
        }
        assert!(!tokens.has("a") && tokens.has("t0"));
        assert!(!format!("{tokens:?}").contains("t0"));
    }

    #[test]
    fn refresh_token_is_taken_out_however_often_it_stands_there() {
        let answer = br#"{"refresh_token": "r", "token": "a", "refresh\u005ftoken": "s", "expires_in": 300}"#;
        let rest = without_refresh_token(answer).unwrap();
        assert_eq!(rest, br#"{"expires_in":300,"token":"a"}"#);
        assert_eq!(without_refresh_token(br#"{"token": "a"}"#), None);
    }
}
