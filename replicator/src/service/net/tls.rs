//! Mutual TLS 1.3 with raw public keys (RFC 7250): a platform is its key, and only known keys get past the handshake.

use std::sync::Arc;

use longhaul_proto::wire;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls::{CipherSuite, SupportedCipherSuite};

use crate::service::identity::{Fingerprint, Identity};
use crate::service::peers::Peers;

/// A key that is not the one expected.
#[derive(Debug, thiserror::Error)]
enum KeyError {
    #[error(
        "the platform there has the key {found}, but {expected} was given for it with `longhaul peer add`"
    )]
    Wrong { expected: Fingerprint, found: Fingerprint },
    #[error("a platform with the unknown key {0} wants to connect")]
    Unknown(Fingerprint),
}

impl From<KeyError> for rustls::Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Unknown(_) => tracing::warn!("{error}; refused"),
            // The other kinds of error are shown to people as code.
            KeyError::Wrong { .. } => return rustls::Error::General(error.to_string()),
        }
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !has_fast_aes() {
        let is_aes =
            |suite: &SupportedCipherSuite| suite.suite() != CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
        provider.cipher_suites.sort_by_key(is_aes);
    }
    Arc::new(provider)
}

/// Without instructions for it AES is many times slower than ChaCha20, which needs none.
fn has_fast_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let fast = std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(target_arch = "x86_64"))]
    let fast = true;
    fast
}

/// The accepting side: any peer in the list, nobody else.
pub(super) fn server_config(
    identity: &Identity,
    peers: Arc<Peers>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let provider = provider();
    let verifier = Arc::new(KnownPeers { peers, provider: provider.clone() });
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.key())));
    config.alpn_protocols = vec![wire::ALPN.to_vec(), wire::ALPN_BEFORE.to_vec()];
    config.ignore_client_order = !has_fast_aes();
    // A session ticket would let a removed peer back in.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The dialling side: exactly this key.
pub(super) fn client_config(
    identity: &Identity,
    expected: Fingerprint,
) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = Arc::new(ThisKey { expected, provider: provider.clone() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.key())));
    config.alpn_protocols = vec![wire::ALPN.to_vec(), wire::ALPN_BEFORE.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signature, &provider.signature_verification_algorithms)
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.3 only".to_owned())
}

#[derive(Debug)]
struct KnownPeers {
    peers: Arc<Peers>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for KnownPeers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let fingerprint = Fingerprint::of(end_entity);
        match self.peers.name_of(fingerprint) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(KeyError::Unknown(fingerprint).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.provider, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct ThisKey {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ThisKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint::of(end_entity);
        if found == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        Err(KeyError::Wrong { expected: self.expected, found }.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.provider, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
