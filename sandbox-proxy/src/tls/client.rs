//! The client side of TLS: what upstream must show, and which protocols it is offered.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use sandbox_core::host::Host;
use tokio::sync::OnceCell;

use crate::defence::holds;

/// Verifies upstream against the platform's roots and those given. Loaded on first use: most sandboxes start
/// faster than the roots load.
#[derive(Debug)]
pub(crate) struct Clients {
    provider: Arc<CryptoProvider>,
    extra_roots: Vec<CertificateDer<'static>>,
    configs: OnceCell<Configs>,
}

#[derive(Debug)]
pub(crate) struct Configs {
    /// Offers HTTP/2 and HTTP/1.1.
    pub(crate) any: Arc<ClientConfig>,
    /// Offers HTTP/1.1 alone, for upgrades.
    pub(crate) h1: Arc<ClientConfig>,
}

impl Clients {
    pub(crate) fn new(provider: Arc<CryptoProvider>, extra_roots: Vec<CertificateDer<'static>>) -> Self {
        Self {
            provider,
            extra_roots,
            configs: OnceCell::new(),
        }
    }

    pub(crate) async fn configs(&self) -> Result<&Configs, rustls::Error> {
        let load = || async {
            let platform = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let mut roots = RootCertStore::empty();
            match platform {
                Ok(found) => {
                    let certificates = found.certs.into_iter().filter(|_| holds("platform-roots"));
                    let (taken, _) = roots.add_parsable_certificates(certificates);
                    if taken == 0 {
                        tracing::warn!("the platform has no root certificates; only extra roots are trusted");
                    }
                }
                Err(error) => tracing::warn!(%error, "the platform's root certificates could not be read"),
            }
            roots.add_parsable_certificates(self.extra_roots.iter().cloned());
            let config = |protocols: &[&[u8]]| {
                let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots.clone())
                    .with_no_client_auth();
                #[cfg(feature = "mutants")]
                if !holds("upstream-certificate") {
                    config
                        .dangerous()
                        .set_certificate_verifier(Arc::new(mutant::Any(Arc::clone(&self.provider))));
                }
                config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
                Ok::<_, rustls::Error>(Arc::new(config))
            };
            Ok(Configs {
                any: config(&[b"h2", b"http/1.1"])?,
                h1: config(&[b"http/1.1"])?,
            })
        };
        self.configs.get_or_try_init(load).await
    }
}

/// The name that upstream's certificate must be for.
pub(crate) fn server_name(host: &Host) -> Result<ServerName<'static>, rustls::Error> {
    match host {
        Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
            .map_err(|_| rustls::Error::General("the name cannot be in a certificate".to_owned())),
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
    }
}

/// Certificates in PEM or DER.
pub(crate) fn parse_roots(bytes: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let roots: Vec<_> = if bytes.starts_with(b"\x30") {
        vec![CertificateDer::from(bytes.to_vec())]
    } else {
        CertificateDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .ok()?
    };
    let (taken, ignored) = RootCertStore::empty().add_parsable_certificates(roots.iter().cloned());
    (taken > 0 && ignored == 0).then_some(roots)
}

/// What upstream's certificate is worth without the defence.
#[cfg(feature = "mutants")]
mod mutant {
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::CryptoProvider;
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    /// Takes any certificate.
    #[derive(Debug)]
    pub(super) struct Any(pub(super) Arc<CryptoProvider>);

    impl ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
