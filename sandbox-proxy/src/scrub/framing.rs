//! Where a stream is settled: borders at which nothing that is looked for can go on.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// Bytes before a message of gRPC and Connect: a flag and the length.
const ENVELOPE_BYTES: usize = 5;
/// The least length of an AWS event: two lengths and two checksums.
const MIN_EVENT_BYTES: u32 = 16;

/// How the content of a stream is divided, as far as its events must go out at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Framing {
    /// In no way that is known.
    Unknown,
    /// Lines: server-sent events (each of their lines ends in CR, LF or both), JSON lines.
    Lines,
    /// Messages that say their length.
    Messages(Messages),
}

/// Reads lengths, and counts bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Messages {
    kind: Kind,
    /// Of the next message, what came of the part that says its length.
    head: [u8; ENVELOPE_BYTES],
    head_filled: usize,
    /// How much of the message is still to come.
    left: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// gRPC, gRPC-Web and Connect: a flag, and the length of what follows.
    Envelope,
    /// AWS: the length of the whole event in its first four bytes.
    Event,
    /// Kubernetes' watches: a length of four bytes.
    Length,
}

impl Framing {
    /// What a response's `Content-Type` says.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("");
        let essence = content_type
            .split(';')
            .next()
            .unwrap_or("")
            .trim()
            .to_ascii_lowercase();
        match essence.as_str() {
            "text/event-stream"
            | "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/jsonlines"
            | "application/json-seq"
            | "application/stream+json" => Self::Lines,
            "application/vnd.amazon.eventstream" => Self::messages(Kind::Event),
            // Each of its pieces is base64 for itself.
            text if text.starts_with("application/grpc-web-text") => Self::Unknown,
            text if text.starts_with("application/grpc") || text.starts_with("application/connect+") => {
                Self::messages(Kind::Envelope)
            }
            "application/vnd.kubernetes.protobuf" if content_type.contains("stream=watch") => {
                Self::messages(Kind::Length)
            }
            _ => Self::Unknown,
        }
    }

    fn messages(kind: Kind) -> Self {
        Self::Messages(Messages {
            kind,
            head: [0; ENVELOPE_BYTES],
            head_filled: 0,
            left: 0,
        })
    }

    /// How many bytes of this next chunk are settled.
    pub(super) fn settled(&mut self, chunk: &[u8]) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Lines => memchr::memrchr2(b'\n', b'\r', chunk).map_or(0, |at| at + 1),
            Self::Messages(messages) => match messages.push(chunk) {
                Some(settled) => settled,
                None => {
                    // Not what it was said to be.
                    *self = Self::Unknown;
                    0
                }
            },
        }
    }
}

impl Messages {
    /// How many bytes of this chunk belong to messages that are whole. `None` where a length cannot be true.
    fn push(&mut self, chunk: &[u8]) -> Option<usize> {
        let head_bytes = match self.kind {
            Kind::Envelope => ENVELOPE_BYTES,
            Kind::Event | Kind::Length => 4,
        };
        let (mut at, mut settled) = (0, 0);
        while at < chunk.len() {
            if self.left > 0 {
                let taken = self.left.min(chunk.len() - at);
                at += taken;
                self.left -= taken;
            } else {
                *self.head.get_mut(self.head_filled)? = *chunk.get(at)?;
                at += 1;
                self.head_filled += 1;
                if self.head_filled < head_bytes {
                    continue;
                }
                self.head_filled = 0;
                let [a, b, c, d, e] = self.head;
                let length = match self.kind {
                    // Compressed or not, end of a Connect stream, trailers of gRPC-Web.
                    Kind::Envelope if !matches!(a, 0..=2 | 0x80) => return None,
                    Kind::Envelope => u32::from_be_bytes([b, c, d, e]),
                    Kind::Length => u32::from_be_bytes([a, b, c, d]),
                    Kind::Event => u32::from_be_bytes([a, b, c, d])
                        .checked_sub(4)
                        .filter(|rest| *rest >= MIN_EVENT_BYTES - 4)?,
                };
                self.left = usize::try_from(length).ok()?;
            }
            if self.left == 0 {
                settled = at;
            }
        }
        Some(settled)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(content_type: &'static str) -> Framing {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Framing::of(&headers)
    }

    #[test]
    fn content_types_are_read_as_they_are_written() {
        assert_eq!(of("Text/Event-Stream; charset=utf-8"), Framing::Lines);
        assert!(matches!(of("application/grpc+proto"), Framing::Messages(_)));
        assert!(matches!(of("application/connect+json"), Framing::Messages(_)));
        assert_eq!(of("application/grpc-web-text+proto"), Framing::Unknown);
        assert!(matches!(
            of("application/vnd.kubernetes.protobuf;stream=watch"),
            Framing::Messages(_)
        ));
        assert_eq!(of("application/vnd.kubernetes.protobuf"), Framing::Unknown);
        assert_eq!(of("application/json"), Framing::Unknown);
        assert_eq!(Framing::of(&HeaderMap::new()), Framing::Unknown);
    }

    #[test]
    fn impossible_beginnings_end_the_belief_in_messages() {
        let mut framing = of("application/grpc");
        assert_eq!(framing.settled(b"host: api.test"), 0);
        assert_eq!(framing, Framing::Unknown);
        let mut framing = of("application/vnd.amazon.eventstream");
        assert_eq!(framing.settled(&[0, 0, 0, 3, 1, 1, 1, 1]), 0);
        assert_eq!(framing, Framing::Unknown);
    }

    proptest! {
        #[test]
        fn messages_are_settled_where_they_end_however_they_are_cut(
            lengths in proptest::collection::vec(0..40usize, 1..8),
            cuts in proptest::collection::vec(0..400usize, 0..12),
            grpc: bool,
        ) {
            let mut framing = of(if grpc { "application/grpc" } else { "application/vnd.amazon.eventstream" });
            let (mut stream, mut ends) = (Vec::new(), vec![0]);
            for length in lengths {
                let said = u32::try_from(if grpc { length } else { length + 16 }).unwrap();
                if grpc {
                    stream.push(0);
                }
                stream.extend_from_slice(&said.to_be_bytes());
                stream.resize(stream.len() + length + if grpc { 0 } else { 12 }, b'x');
                ends.push(stream.len());
            }
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                let settled = framing.settled(&stream[pair[0]..pair[1]]);
                let end = *ends.iter().rfind(|end| **end <= pair[1]).unwrap();
                prop_assert_eq!(settled, end.saturating_sub(pair[0]));
            }
        }
    }
}
