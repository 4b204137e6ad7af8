//! Reads the client hello of a stream without taking it away: the bytes are given on.

use rustls::server::Acceptor;
use sandbox_core::host::{Host, HostName};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bounds what is kept of a stream before it must have said what it wants. Hellos with post-quantum key shares
/// and many extensions stay under 4 KiB.
const MAX_HELLO_BYTES: usize = 16 << 10;
/// The content type of a TLS handshake record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// The first byte of the version in a record, in SSL 3.0 and all of TLS.
const MAJOR_VERSION: u8 = 3;

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
    seen: usize,
    /// The second byte, the major version of every record (RFC 8446 §5.1), is the one of TLS.
    is_tls: bool,
}

impl Sniffer {
    /// What the stream starts with, as soon as it can be told. An empty piece is the stream's end.
    pub(crate) fn push(&mut self, mut new: &[u8]) -> Option<Start> {
        let first = self.seen == 0;
        let room = MAX_HELLO_BYTES.saturating_sub(self.seen);
        if let Some(second) = 1_usize.checked_sub(self.seen).and_then(|at| new.get(at)) {
            self.is_tls = *second == MAJOR_VERSION;
        }
        self.seen += new.len();
        match new.first() {
            None if first => return Some(Start::Nothing),
            Some(&byte) if !first || byte == HANDSHAKE => {}
            None => return Some(self.unread()),
            Some(_) => return Some(Start::Other),
        }
        // What comes right behind a hello does not make it longer.
        new = new.get(..room).unwrap_or(new);
        while !new.is_empty() {
            if self.acceptor.read_tls(&mut new).is_err() {
                return Some(self.unread());
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
                Err(_) => return Some(self.unread()),
            }
        }
        (self.seen > MAX_HELLO_BYTES).then(|| self.unread())
    }

    /// What cannot be read, and started as a handshake.
    fn unread(&self) -> Start {
        if self.is_tls { Start::Broken } else { Start::Other }
    }
}

impl Hello {
    /// Whether it asks for this host: by name where the target is a name, by none where it is an address.
    pub(crate) fn is_for(&self, host: &Host) -> bool {
        match (host, &self.server_name) {
            (Host::Name(name), Some(asked)) => asked.parse::<HostName>().is_ok_and(|asked| asked == *name),
            (Host::Address(_), None) => true,
            _ => false,
        }
    }
}

/// A fatal alert `access_denied` (RFC 8446 §6.2): the client fails at once, and with a reason.
pub(crate) const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

#[cfg(test)]
mod tests {
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

    #[test]
    fn what_comes_right_behind_a_hello_does_not_make_it_too_long() {
        let mut bytes = hello("api.example.com", &[]);
        bytes.extend_from_slice(&[23, 3, 3, 0x40, 0x11]);
        bytes.resize(bytes.len() + 0x4011, 7);
        assert!(matches!(Sniffer::default().push(&bytes), Some(Start::Tls(_))));
    }
}
