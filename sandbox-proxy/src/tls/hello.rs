//! Reads the client hello of a stream without taking it away: the bytes are given on.

use std::ops::RangeInclusive;

use rustls::server::Acceptor;
use sandbox_core::host::{Host, HostName};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::defence::holds;

/// Bounds what is kept of a stream before it must have said what it wants. Hellos with post-quantum key shares
/// and many extensions stay under 4 KiB.
const MAX_HELLO_BYTES: usize = 16 << 10;
/// The content type of a TLS handshake record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// The first byte of the version in a record, in SSL 3.0 and all of TLS.
const MAJOR_VERSION: u8 = 3;
/// Enough of a stream to know a [disguise](DISGUISES) by.
const START_BYTES: usize = 9;
const ANY: RangeInclusive<u8> = 0..=255;
const ZERO: RangeInclusive<u8> = 0..=0;
const ONE: RangeInclusive<u8> = 1..=1;
/// The kind of a record with a handshake, whose first message is of the kind `ONE`.
const HELLO: RangeInclusive<u8> = HANDSHAKE..=HANDSHAKE;
/// The kinds of all records that can be there before a hello has ended.
const RECORD: RangeInclusive<u8> = 20..=HANDSHAKE;
/// Major versions that servers take which do not look at them.
const MAJOR: RangeInclusive<u8> = 0..=15;
/// Starts that nobody sends and some servers take all the same: those of Go read over a warning before the hello, and
/// take other versions; others read over a change of the cipher. What is asked for after them, nobody here would have read.
///
/// They say as much as can be said, since other protocols start with the length of a message and the number of a
/// request.
const DISGUISES: [[RangeInclusive<u8>; START_BYTES]; 8] = [
    // A warning, or a change of the cipher, and another record behind it.
    [21..=21, MAJOR, ANY, ZERO, 2..=2, ONE, ANY, RECORD, ANY],
    [20..=20, MAJOR, ANY, ZERO, ONE, ONE, RECORD, ANY, ANY],
    // A hello in one record, not shorter than the shortest.
    [HELLO, MAJOR, ANY, ANY, ANY, ONE, ZERO, 1..=255, ANY],
    [HELLO, MAJOR, ANY, ANY, ANY, ONE, ZERO, ZERO, 38..=255],
    // A hello that starts with a record of one, two or three bytes.
    [HELLO, MAJOR, ANY, ZERO, ONE, ONE, RECORD, ANY, ANY],
    [HELLO, MAJOR, ANY, ZERO, 2..=2, ONE, ZERO, RECORD, ANY],
    [HELLO, MAJOR, ANY, ZERO, 3..=3, ONE, ZERO, ANY, RECORD],
    // A hello in the form of SSL 2.0 for a later version (RFC 5246 §E.2), which has no room for a name.
    [128..=255, ANY, ONE, 3..=3, 0..=4, ANY, ANY, ZERO, 0..=32],
];

/// What a stream starts with.
#[derive(Debug)]
pub(crate) enum Start {
    /// A whole client hello.
    Tls(Hello),
    /// Something else.
    Other,
    /// TLS, but no hello that can be read: one that is too long, say. Others may read it.
    Broken,
    /// It ended before saying anything.
    Nothing,
}

/// The part of a client hello that decisions need.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Server name indication (RFC 6066 §3).
    pub(crate) server_name: Option<String>,
    /// Whether HTTP/2 is offered (RFC 7301).
    pub(crate) offers_h2: bool,
}

/// Reads the start of a stream; what was read stands in `seen` whatever the result.
///
/// Waits for the peer without limit: the caller holds the clock.
pub(crate) async fn read<R: AsyncRead + Unpin>(stream: &mut R, seen: &mut Vec<u8>) -> std::io::Result<Start> {
    let mut sniffer = Sniffer::default();
    let mut chunk = [0; 2048];
    loop {
        let count = stream.read(&mut chunk).await?;
        let new = chunk.get(..count).unwrap_or(&[]);
        seen.extend_from_slice(new);
        if let Some(start) = sniffer.push(new) {
            return Ok(start);
        }
    }
}

/// Recognises the start of a stream, given piece by piece.
#[derive(Default)]
pub(crate) struct Sniffer {
    acceptor: Acceptor,
    start: [u8; START_BYTES],
    seen: usize,
}

impl Sniffer {
    /// What the stream starts with, as soon as it can be told. An empty piece is the stream's end.
    pub(crate) fn push(&mut self, new: &[u8]) -> Option<Start> {
        let room = MAX_HELLO_BYTES.saturating_sub(self.seen);
        for (kept, byte) in self.start.iter_mut().skip(self.seen).zip(new) {
            *kept = *byte;
        }
        self.seen = self.seen.saturating_add(new.len());
        match self.start.get(..self.seen).unwrap_or(&self.start) {
            [] => Some(Start::Nothing),
            [HANDSHAKE, MAJOR_VERSION, ..] if new.is_empty() => Some(Start::Broken),
            _ if new.is_empty() => Some(Start::Other),
            // What comes right behind a hello does not make it longer.
            [HANDSHAKE] | [HANDSHAKE, MAJOR_VERSION, ..] => self.hello(new.get(..room).unwrap_or(new)),
            start => unusual(start),
        }
    }

    /// Goes on reading what can be a hello.
    fn hello(&mut self, mut new: &[u8]) -> Option<Start> {
        while !new.is_empty() {
            if self.acceptor.read_tls(&mut new).is_err() {
                return Some(Start::Broken);
            }
            match self.acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Some(Start::Tls(Hello {
                        server_name: hello.server_name().map(str::to_owned),
                        offers_h2: hello
                            .alpn()
                            .is_some_and(|mut protocols| protocols.any(|protocol| protocol == b"h2")),
                    }));
                }
                Ok(None) => {}
                Err(_) => return Some(Start::Broken),
            }
        }
        (self.seen > MAX_HELLO_BYTES).then_some(Start::Broken)
    }
}

/// What a stream is that does not start as a hello should.
fn unusual(start: &[u8]) -> Option<Start> {
    let fits = |disguise: &[RangeInclusive<u8>; START_BYTES]| {
        start
            .iter()
            .zip(disguise)
            .all(|(byte, allowed)| allowed.contains(byte))
    };
    if !holds("disguised-hello") || !DISGUISES.iter().any(fits) {
        Some(Start::Other)
    } else {
        (start.len() == START_BYTES).then_some(Start::Broken)
    }
}

impl Hello {
    /// Whether it asks for this host: by name where the target is a name, by none where it is an address.
    pub(crate) fn is_for(&self, host: &Host) -> bool {
        match (host, &self.server_name) {
            (Host::Name(name), Some(asked)) => asked.parse::<HostName>().is_ok_and(|asked| asked == *name),
            (Host::Address(_), None) => true,
            (Host::Name(_), None) => !holds("hello-without-name"),
            (Host::Address(_), Some(_)) => !holds("name-at-address"),
        }
    }
}

/// A fatal alert `access_denied` (RFC 8446 §6.2): the client fails at once, and with a reason.
pub(crate) const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client hello of rustls, from memory.
    fn hello(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn hello_is_read_byte_by_byte_and_kept() {
        let bytes = hello("api.example.com", &[b"h2", b"http/1.1"]);
        let (mut near, mut far) = tokio::io::duplex(1);
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut near, &sent)
                .await
                .unwrap();
            near
        });
        let mut seen = Vec::new();
        let start = read(&mut far, &mut seen).await.unwrap();
        let Start::Tls(found) = start else {
            panic!("{start:?}")
        };
        assert_eq!(found.server_name.as_deref(), Some("api.example.com"));
        assert!(found.offers_h2);
        assert_eq!(seen, bytes);
        drop(writer.await);
    }

    #[tokio::test]
    async fn what_is_no_hello_is_told_apart_and_bounded() {
        let mut endless = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x7f, 0xff];
        endless.resize(40 << 10, 0);
        let mut cut = hello("api.example.com", &[]);
        cut.truncate(100);
        for (bytes, is_tls) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), false),
            (vec![22; 64], false),
            (vec![22], false),
            (vec![22, 3, 1, 0, 5, 1, 0, 0, 1, 0], true),
            (cut, true),
            (endless, true),
            // Of no bytes; OpenSSL reads over it.
            (vec![22, 3, 1, 0, 0], true),
        ] {
            let mut seen = Vec::new();
            let start = read(&mut bytes.as_slice(), &mut seen).await.unwrap();
            match start {
                Start::Broken => assert!(is_tls, "{bytes:?}"),
                Start::Other => assert!(!is_tls, "{bytes:?}"),
                other => panic!("{other:?}"),
            }
            assert!(seen.len() <= MAX_HELLO_BYTES + 2048);
        }
        assert!(matches!(
            read(&mut &[][..], &mut Vec::new()).await.unwrap(),
            Start::Nothing
        ));
    }

    /// What a stream is, however it is cut.
    fn kind(bytes: &[u8]) -> &'static str {
        let kinds = [1, 2, 3, 5, bytes.len()].map(|piece| {
            let mut sniffer = Sniffer::default();
            let start = bytes.chunks(piece).find_map(|piece| sniffer.push(piece));
            match start.or_else(|| sniffer.push(&[])) {
                Some(Start::Tls(_)) => "hello",
                Some(Start::Other) => "other",
                Some(Start::Broken) => "broken",
                Some(Start::Nothing) | None => "nothing",
            }
        });
        assert!(kinds.iter().all(|kind| *kind == kinds[0]), "{kinds:?} {bytes:?}");
        kinds[0]
    }

    #[test]
    fn hello_in_a_disguise_that_servers_see_through_is_known() {
        let usual = hello("api.example.com", &[]);
        assert_eq!(kind(&usual), "hello");
        let behind = |first: &[u8]| [first, &usual].concat();
        for disguised in [
            // A warning, a change of the cipher.
            behind(&[21, 3, 1, 0, 2, 1, 90]),
            behind(&[21, 0, 0, 0, 2, 1, 90]),
            behind(&[20, 3, 3, 0, 1, 1]),
            // The form of SSL 2.0.
            vec![128, 46, 1, 3, 3, 0, 21, 0, 0, 0, 16],
            vec![128, 62, 1, 3, 1, 0, 21, 0, 16, 0, 16],
        ] {
            assert_eq!(kind(&disguised), "broken");
        }
        for major in [0, 2, 4, 15] {
            let mut odd = usual.clone();
            odd[1] = major;
            assert_eq!(kind(&odd), "broken", "{major}");
            for first in 1..6 {
                let (start, rest) = usual[5..].split_at(first);
                let record = |part: &[u8]| {
                    let [high, low] = u16::try_from(part.len()).unwrap().to_be_bytes();
                    [&[22, major, 1, high, low], part].concat()
                };
                let cut = [record(start), record(rest)].concat();
                assert_eq!(kind(&cut), "broken", "{major} {first}");
            }
        }
        for other in [
            // Major versions that no server takes.
            &[21, 16, 1, 0, 2, 1, 90][..],
            &[22, 16, 1, 0, 5, 1, 0, 0, 1, 0],
            // Messages of databases, of 276 to 278 bytes: MySQL's with their number, MongoDB's with that of the request.
            &[20, 1, 0, 1, 0x8d, 0xa6, 0xff, 0x01, 0],
            &[22, 1, 0, 1, 0x8d, 0xa6, 0xff, 0x01, 0],
            &[20, 1, 0, 0, 1, 1, 0, 0, 0],
            &[21, 1, 0, 0, 2, 0, 0, 0, 0],
            &[21, 1, 0, 0, 2, 1, 0, 0, 0],
            &[22, 1, 0, 0, 1, 1, 0, 0, 0],
            &[22, 1, 0, 0, 44, 1, 0, 0, 0],
            // Typed by somebody.
            &[21],
            &[21, 21],
            b"\x14\x04",
            &[21, 3, 1, 0, 3, 1],
            // SSH, and a message of a database.
            b"SSH-2.0-OpenSSH_9.9\r\n",
            &[0, 0, 0, 8, 4, 210, 22, 47],
        ] {
            assert_eq!(kind(other), "other", "{other:?}");
        }
    }

    #[test]
    fn what_comes_right_behind_a_hello_does_not_make_it_too_long() {
        let mut bytes = hello("api.example.com", &[]);
        bytes.extend_from_slice(&[23, 3, 3, 0x40, 0x11]);
        bytes.resize(bytes.len() + 0x4011, 7);
        assert_eq!(kind(&bytes), "hello");
    }

    #[test]
    fn hello_without_a_name_is_for_addresses_alone() {
        let asks = |name: Option<&str>, host: &str| {
            let hello = Hello {
                server_name: name.map(str::to_owned),
                offers_h2: false,
            };
            hello.is_for(&host.parse().unwrap())
        };
        assert!(asks(Some("api.test"), "api.test") && asks(Some("API.test"), "api.test"));
        assert!(asks(None, "192.0.2.7") && asks(None, "[2001:db8::7]"));
        assert!(
            !asks(None, "api.test"),
            "it is for whatever host answers where none is named"
        );
        assert!(
            !asks(Some("api.test"), "192.0.2.7"),
            "a rule for an address allows no name"
        );
        assert!(!asks(Some("api.test"), "other.test"));
    }

    /// Hellos with a few bytes changed, put in or left out, and what starts like a record.
    fn near_hellos() -> impl Strategy<Value = Vec<u8>> {
        let usual = hello("api.example.com", &[b"h2", b"http/1.1"]);
        let mut split = usual.clone();
        // The same message in two records.
        let [high, low] = u16::try_from(usual.len() - 105).unwrap().to_be_bytes();
        split.splice(105..105, [HANDSHAKE, 3, 1, high, low]);
        split[3..5].copy_from_slice(&[0, 100]);
        assert_eq!(kind(&split), "hello");
        let starts = prop::sample::select(vec![usual, split]);
        // Most of what a hello says stands at its start.
        let place = prop_oneof![0..12usize, 0..200usize, any::<usize>()];
        let changes = proptest::collection::vec((place, 0..3u8, any::<u8>()), 0..4);
        let changed = (starts, changes, any::<usize>(), any::<bool>()).prop_map(
            |(mut bytes, changes, end, is_whole)| {
                for (at, change, byte) in changes {
                    let at = at % bytes.len();
                    match change {
                        0 => bytes[at] = byte,
                        1 => bytes.insert(at, byte),
                        _ => drop(bytes.remove(at)),
                    }
                }
                if !is_whole {
                    bytes.truncate(end % bytes.len());
                }
                bytes
            },
        );
        let any_byte = proptest::collection::vec(any::<u8>(), 0..40);
        let small = proptest::collection::vec(0..23u8, 0..14);
        let head = prop::sample::select(vec![
            vec![],
            vec![20],
            vec![21],
            vec![22],
            vec![22, 3, 1],
            vec![128],
        ]);
        let other = (head, small, any_byte).prop_map(|(head, small, any)| [head, small, any].concat());
        prop_oneof![changed, other]
    }

    /// What a stream starts with when it comes in pieces of these sizes, again and again; in one piece if there is none.
    fn told(bytes: &[u8], sizes: &[usize]) -> String {
        let mut sniffer = Sniffer::default();
        let (mut rest, mut sizes) = (bytes, sizes.iter().cycle());
        while !rest.is_empty() {
            let size = sizes.next().map_or(rest.len(), |size| rest.len().min(*size));
            let (piece, after) = rest.split_at(size);
            if let Some(start) = sniffer.push(piece) {
                return format!("{start:?}");
            }
            rest = after;
        }
        format!("{:?}", sniffer.push(&[]).expect("it has ended"))
    }

    proptest! {
        #[test]
        fn start_is_the_same_however_it_is_cut(
            bytes in near_hellos(),
            sizes in proptest::collection::vec(prop_oneof![1..9usize, 1..600usize], 1..20),
        ) {
            let whole = told(&bytes, &[]);
            prop_assert_eq!(told(&bytes, &[1]), whole.as_str());
            prop_assert_eq!(told(&bytes, &sizes), whole.as_str());
        }
    }
}
