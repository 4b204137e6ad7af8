//! One certificate authority per sandbox. Its key lives in this process's memory only and dies with the sandbox.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sandbox_core::SandboxId;
use sandbox_core::host::Host;

use crate::defence::holds;

/// Certificates start this long ago: a guest whose clock is late (a restored snapshot) accepts them.
const BACKDATED: Duration = Duration::from_secs(7 * 24 * 3600);
/// The authority itself; a sandbox that lives longer needs a new one.
const CA_LIFETIME: Duration = Duration::from_secs(730 * 24 * 3600);
/// What is minted for a host.
const LEAF_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// A leaf is minted anew after this, long before it ends.
const LEAF_USE: Duration = Duration::from_secs(24 * 3600);
/// Bounds the memory that a guest can take by asking for many intercepted hosts.
const MAX_LEAVES: usize = 128;
/// Session tickets per handshake: enough for a client to resume once.
const TICKETS: usize = 1;

/// A certificate authority in memory. The guest trusts it; nobody else should.
///
/// Its keys are made when they are first asked for: a process's first ones take tens of milliseconds, in which the
/// random number generator is seeded, and a launch has other things to wait for meanwhile.
pub struct Ca {
    sandbox: SandboxId,
    provider: Arc<CryptoProvider>,
    keys: OnceLock<Keys>,
    /// Held by whoever makes the keys, so that others wait and do not make some too.
    making: Mutex<()>,
    leaves: Mutex<VecDeque<Leaf>>,
}

struct Keys {
    /// When the authority does; nothing that it signs lasts longer.
    ends: SystemTime,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// One key for all leaves: whoever could take one could take all.
    leaf: KeyPair,
    ticketer: Arc<dyn rustls::server::ProducesTickets>,
}

/// Server configurations of one host; they differ in the protocol that the server likes better.
struct Leaf {
    host: Host,
    minted: Instant,
    /// By the clock that goes on while the machine sleeps, as the certificate's own end does.
    minted_at: SystemTime,
    prefers_h1: Arc<ServerConfig>,
    prefers_h2: Arc<ServerConfig>,
}

/// Keys or certificates could not be made: a fault of ours or of the host's random numbers.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Signing or key generation failed.
    #[error("the sandbox's certificate authority could not make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused what was made.
    #[error("the TLS library refused a certificate of the sandbox's authority")]
    Tls(#[from] rustls::Error),
}

impl Ca {
    pub(crate) fn new(sandbox: SandboxId, provider: Arc<CryptoProvider>) -> Self {
        Self {
            sandbox,
            provider,
            keys: OnceLock::new(),
            making: Mutex::default(),
            leaves: Mutex::default(),
        }
    }

    /// The authority's certificate (not its key) as PEM, for the guest's trust stores.
    ///
    /// # Errors
    /// The keys could not be made; they are tried anew when asked for again.
    pub fn pem(&self) -> Result<String, CaError> {
        Ok(self.keys()?.issuer.pem())
    }

    /// The authority's certificate as DER.
    ///
    /// # Errors
    /// As [`Ca::pem`].
    pub fn der(&self) -> Result<&[u8], CaError> {
        Ok(self.keys()?.issuer.der())
    }

    fn keys(&self) -> Result<&Keys, CaError> {
        #[cfg(feature = "mutants")]
        if !holds("ca-per-sandbox") {
            static SHARED: OnceLock<Keys> = OnceLock::new();
            let made = Keys::new(&self.sandbox)?;
            return Ok(SHARED.get_or_init(|| made));
        }
        if let Some(keys) = self.keys.get() {
            return Ok(keys);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = self.keys.get() {
            return Ok(keys);
        }
        let made = Keys::new(&self.sandbox)?;
        Ok(self.keys.get_or_init(|| made))
    }

    /// What a server for `host` answers with. Minted on first use.
    pub(crate) fn server(&self, host: &Host, prefers_h2: bool) -> Result<Arc<ServerConfig>, CaError> {
        self.server_at(host, prefers_h2, SystemTime::now())
    }

    fn server_at(
        &self,
        host: &Host,
        prefers_h2: bool,
        now: SystemTime,
    ) -> Result<Arc<ServerConfig>, CaError> {
        let pick = |leaf: &Leaf| {
            Arc::clone(if prefers_h2 {
                &leaf.prefers_h2
            } else {
                &leaf.prefers_h1
            })
        };
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.retain(|leaf| leaf.is_fresh(now));
        if let Some(leaf) = leaves.iter().find(|leaf| leaf.host == *host) {
            return Ok(pick(leaf));
        }
        let leaf = self.mint(host, now)?;
        let config = pick(&leaf);
        if leaves.len() >= MAX_LEAVES && holds("leaf-bound") {
            leaves.pop_front();
        }
        leaves.push_back(leaf);
        Ok(config)
    }

    /// For how many hosts certificates are held.
    #[cfg(test)]
    pub(crate) fn leaves(&self) -> usize {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn mint(&self, host: &Host, now: SystemTime) -> Result<Leaf, CaError> {
        let keys = self.keys()?;
        let chain = vec![Self::leaf(host, now, keys)?, keys.issuer.der().clone()];
        Ok(Leaf {
            host: host.clone(),
            minted: Instant::now(),
            minted_at: now,
            prefers_h1: self.configure(keys, chain.clone(), [b"http/1.1", b"h2"])?,
            prefers_h2: self.configure(keys, chain, [b"h2", b"http/1.1"])?,
        })
    }

    fn leaf(host: &Host, now: SystemTime, keys: &Keys) -> Result<CertificateDer<'static>, CaError> {
        let mut params = CertificateParams::default();
        // Names can be longer than a common name may be; clients read the alternative name.
        params.distinguished_name = named("intercepted by sandbox".to_owned());
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let lifetime = LEAF_LIFETIME * if holds("leaf-lifetime") { 1 } else { 100 };
        let ends = match now + lifetime {
            ends if holds("leaf-ends-with-authority") => ends.min(keys.ends),
            ends => ends,
        };
        (params.not_before, params.not_after) = ((now - BACKDATED).into(), ends.into());
        let certificate = params.signed_by(&keys.leaf, &keys.issuer)?;
        Ok(certificate.der().clone())
    }

    fn configure(
        &self,
        keys: &Keys,
        chain: Vec<CertificateDer<'static>>,
        protocols: [&[u8]; 2],
    ) -> Result<Arc<ServerConfig>, CaError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(keys.leaf.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = protocols.map(<[u8]>::to_vec).into();
        config.send_tls13_tickets = TICKETS;
        if holds("no-early-data") {
            config.ticketer = Arc::clone(&keys.ticketer);
            // Early data can be replayed.
            config.max_early_data_size = 0;
        } else {
            // The TLS library takes it only in sessions that it keeps itself.
            config.max_early_data_size = 16 << 10;
        }
        Ok(Arc::new(config))
    }
}

impl Keys {
    fn new(sandbox: &SandboxId) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(format!("sandbox {sandbox} (in-memory authority)"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        let ends = now + CA_LIFETIME * if holds("ca-lifetime") { 1 } else { 10 };
        (params.not_before, params.not_after) = ((now - BACKDATED).into(), ends.into());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // The defence is that nothing stands here: keys are in memory alone.
        #[cfg(feature = "mutants")]
        if !holds("authority-in-memory") {
            let _ = std::fs::write(std::env::temp_dir().join("authority.key"), key.serialize_der());
        }
        Ok(Self {
            ends,
            issuer: CertifiedIssuer::self_signed(params, key)?,
            leaf: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            ticketer: Ticketer::new()?,
        })
    }
}

impl Leaf {
    /// Whether it is good for long enough. One from what is now the future is minted anew: the clock was set back, and
    /// nobody knows by how much.
    fn is_fresh(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.minted_at);
        self.minted.elapsed() < LEAF_USE && age.is_ok_and(|age| age < LEAF_USE)
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ca")
    }
}

fn named(common_name: String) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{Proxy, Rules};

    fn ca() -> Ca {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ca::new("one".parse().unwrap(), provider)
    }

    #[test]
    fn certificate_that_slept_too_long_is_made_anew() {
        let (ca, host, now) = (ca(), "a.test".parse().unwrap(), SystemTime::now());
        let at = |now| ca.server_at(&host, true, now).unwrap();
        let first = at(now);
        assert!(Arc::ptr_eq(&first, &at(now + LEAF_USE / 2)));
        // No time passes for this process while the machine sleeps.
        let second = at(now + Duration::from_secs(8 * 24 * 3600));
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&second, &at(now)), "a clock that was set back");
        assert_eq!(ca.leaves(), 1);
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// The first and the last day of a certificate, as `YYMMDD`: times are of no other kind until 2050 (RFC 5280 §4.1.2.5).
    fn days(der: &[u8]) -> (String, String) {
        let mut times = der
            .windows(15)
            .filter(|bytes| bytes.starts_with(&[23, 13]) && bytes.ends_with(b"Z"))
            .map(|bytes| String::from_utf8_lossy(bytes.get(2..8).unwrap()).into_owned());
        (times.next().unwrap(), times.next().unwrap())
    }

    fn day(at: SystemTime) -> String {
        let at = time::OffsetDateTime::from(at);
        format!("{:02}{:02}{:02}", at.year() % 100, u8::from(at.month()), at.day())
    }

    #[test]
    fn authority_lasts_two_years_and_what_it_signs_a_week() {
        let (ca, before) = (ca(), SystemTime::now());
        let of_ca = days(ca.der().unwrap());
        let after = SystemTime::now();
        // It may be midnight.
        assert!(
            [before, after].map(|now| day(now + 730 * DAY)).contains(&of_ca.1),
            "{of_ca:?}"
        );
        assert!(
            [before, after].map(|now| day(now - 7 * DAY)).contains(&of_ca.0),
            "{of_ca:?}"
        );
        let host = "a.test".parse().unwrap();
        let leaf = |now| days(&Ca::leaf(&host, now, ca.keys().unwrap()).unwrap());
        let now = SystemTime::now();
        assert_eq!(leaf(now), (day(now - 7 * DAY), day(now + 7 * DAY)));
        let late = now + 729 * DAY;
        assert_eq!(
            leaf(late),
            (day(late - 7 * DAY), of_ca.1),
            "no longer than the authority"
        );
    }

    #[test]
    fn certificates_are_held_for_some_hosts_only() {
        let ca = ca();
        let host = |number: usize| format!("h{number}.test").parse().unwrap();
        let first = ca.server(&host(0), true).unwrap();
        for number in 1..=MAX_LEAVES {
            ca.server(&host(number), true).unwrap();
        }
        assert_eq!(ca.leaves(), MAX_LEAVES);
        assert!(
            !Arc::ptr_eq(&first, &ca.server(&host(0), true).unwrap()),
            "the oldest went"
        );
    }

    #[tokio::test]
    async fn nothing_is_minted_for_what_the_policy_refuses() {
        let rules = Rules::new().allow("GET allowed.test/x").deny("denied.test");
        let proxy = Proxy::builder("one".parse().unwrap())
            .policy(Arc::new(rules))
            .build()
            .unwrap();
        let named = |name: &str| {
            let mut hello = Vec::new();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            let name = name.to_owned().try_into().unwrap();
            let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
            client.write_tls(&mut hello).unwrap();
            hello
        };
        for (target, name, minted) in [
            ("denied.test", "denied.test", 0),
            ("denied.test", "allowed.test", 0),
            ("allowed.test", "denied.test", 0),
            ("allowed.test", "allowed.test", 1),
        ] {
            let (mut near, far) = tokio::io::duplex(1 << 16);
            let serving = tokio::spawn(proxy.serve(Box::new(far)));
            let head = format!("CONNECT {target}:443 HTTP/1.1\r\nHost: {target}:443\r\n\r\n");
            near.write_all(head.as_bytes()).await.unwrap();
            near.write_all(&named(name)).await.unwrap();
            let mut seen = Vec::new();
            // A tunnel that is served goes on: its client has answered nothing yet.
            while !seen.windows(3).any(|bytes| bytes == b"\x16\x03\x03") {
                if near.read_buf(&mut seen).await.unwrap() == 0 {
                    break;
                }
            }
            drop(near);
            serving.await.unwrap();
            assert_eq!(proxy.ca().leaves(), minted, "{target} {name}");
        }
    }
}
