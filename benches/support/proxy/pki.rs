//! Keys and certificates of a run, and TLS as everybody in it speaks it.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{HOST, Result};

/// Upstream's certificate, and one for the same name that nobody may take.
pub const LEAF: &str = "leaf";
pub const STRANGER: &str = "stranger";

/// Writes what all processes of the run need: upstream's root and leaf, and an authority for rivals that want one given.
pub fn write(directory: &Path) -> Result<()> {
    let put = |name: &str, text: String| std::fs::write(directory.join(name), text);
    let root = authority("bench upstream root")?;
    put("upstream.pem", root.pem())?;
    for (name, root) in [(LEAF, root), (STRANGER, authority("nobody trusts this")?)] {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![HOST.to_owned()])?.signed_by(&key, &root)?;
        put(&format!("{name}.pem"), leaf.pem())?;
        put(&format!("{name}.key"), key.serialize_pem())?;
    }

    let rival = authority("bench rivals' root")?;
    let key = rival.key().serialize_pem();
    put("ca.pem", rival.pem())?;
    put("ca.key", key.clone())?;
    put("ca-and-key.pem", key + &rival.pem())?;
    Ok(())
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// The load's and upstream's TLS, and so everybody's: they take nothing else.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

/// A client that trusts one root. Every handshake is a full one.
pub fn client(root: &Path, alpn: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root)?)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![alpn.into()];
    Ok(Arc::new(config))
}

/// The upstream.
pub fn server(directory: &Path, leaf: &str, alpn: &str) -> Result<Arc<ServerConfig>> {
    let chain = vec![CertificateDer::from_pem_file(
        directory.join(format!("{leaf}.pem")),
    )?];
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{leaf}.key")))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![alpn.into()];
    // No tickets: they would be the only thing that differs between connections.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
