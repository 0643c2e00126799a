//! Who may be on the other end: mutual TLS 1.3 in which the only credential is an Ed25519 key.
//!
//! Both sides show a self-signed certificate; its key is the peer's name, its other fields say nothing. A dial
//! names the one key it expects and accepts no other. The accepting side takes any key that proves itself (the
//! handshake's signature is verified) and leaves to the caller what that key may do. There is no session
//! resumption and no early data: nothing is ever accepted that could be replayed.
//!
//! The application protocol (ALPN) tells the two kinds of connection apart and carries the version:
//! `makai-control/1`, `makai-bulk/1`. Every version also offers the bare names, last: two nodes that share no
//! version meet there, and the accepting one closes with the versions it speaks, so that both can say why.

use std::sync::{Arc, Mutex};

use makai_erasure::NodeId;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::ConnectionKind;
use crate::identity::NodeIdentity;

/// The TLS server name of every dial. Nobody compares it: the key is the name.
pub(super) const SERVER_NAME: &str = "makai";

/// What precedes the 32 key bytes in an Ed25519 `SubjectPublicKeyInfo` (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Everything a handshake needs, made once.
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    credential: Arc<SingleCertAndKey>,
    versions: Vec<u16>,
}

impl Tls {
    pub(super) fn new(identity: &NodeIdentity, versions: &[u16]) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(identity.private_key()))?;
        let credential = CertifiedKey::new(vec![identity.certificate()], key);
        Ok(Self { provider, credential: Arc::new(credential.into()), versions: versions.to_vec() })
    }

    /// For dialling `peer`, with the verifier that remembers which key was shown instead.
    pub(super) fn client(
        &self,
        peer: NodeId,
        kind: ConnectionKind,
    ) -> Result<(ClientConfig, Arc<ExpectedServer>), Error> {
        let verifier = Arc::new(ExpectedServer {
            peer,
            algorithms: self.provider.signature_verification_algorithms,
            shown: Mutex::new(None),
        });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(self.credential.clone());
        config.alpn_protocols = alpn_names(kind, &self.versions);
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok((config, verifier))
    }

    /// For accepting connections of both kinds.
    pub(super) fn server(&self) -> Result<ServerConfig, Error> {
        let verifier = AnyNode { algorithms: self.provider.signature_verification_algorithms };
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(self.credential.clone());
        // Versions of both kinds first: the bare names are for peers that share none.
        let mut names: Vec<Vec<u8>> =
            ConnectionKind::ALL.iter().flat_map(|kind| alpn_names(*kind, &self.versions)).collect();
        names.sort_by_key(|name| !name.contains(&b'/'));
        config.alpn_protocols = names;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// The protocols of `kind` that this node speaks, for messages.
    pub(super) fn spoken(&self, kind: ConnectionKind) -> String {
        let names: Vec<String> =
            self.versions.iter().map(|version| format!("{}/{version}", kind.protocol())).collect();
        names.join(", ")
    }
}

fn alpn_names(kind: ConnectionKind, versions: &[u16]) -> Vec<Vec<u8>> {
    let versioned = versions.iter().map(|version| format!("{}/{version}", kind.protocol()).into_bytes());
    versioned.chain([kind.protocol().as_bytes().to_vec()]).collect()
}

/// What a handshake agreed on: the kind, and the version where there is a common one.
pub(super) fn agreed(alpn: &[u8]) -> Option<(ConnectionKind, Option<u16>)> {
    let name = std::str::from_utf8(alpn).ok()?;
    let (protocol, version) = match name.split_once('/') {
        Some((protocol, version)) => (protocol, Some(version.parse().ok()?)),
        None => (name, None),
    };
    let kind = ConnectionKind::ALL.into_iter().find(|kind| kind.protocol() == protocol)?;
    Some((kind, version))
}

/// The node that a certificate speaks for.
pub(super) fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeId, Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let info = parsed.subject_public_key_info();
    match info.strip_prefix(ED25519_SPKI_PREFIX.as_slice()).map(<[u8; 32]>::try_from) {
        Some(Ok(key)) => Ok(NodeId(key)),
        _ => Err(PeerIncompatible::NoSignatureSchemesInCommon.into()),
    }
}

/// The one certificate of a peer; a chain is nothing that a node ever sends.
fn lone_node(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<NodeId, Error> {
    if intermediates.is_empty() { node_of(certificate) } else { Err(CertificateError::BadEncoding.into()) }
}

fn no_tls12() -> Error {
    PeerIncompatible::Tls12NotOfferedOrEnabled.into()
}

fn verify_ed25519(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
    }
    verify_tls13_signature(message, certificate, signed, algorithms)
}

/// Accepts the one server whose key is `peer`'s.
#[derive(Debug)]
pub(super) struct ExpectedServer {
    peer: NodeId,
    algorithms: WebPkiSupportedAlgorithms,
    shown: Mutex<Option<NodeId>>,
}

impl ExpectedServer {
    /// The key that was shown instead of the expected one, if that is what ended the handshake.
    pub(super) fn shown_instead(&self) -> Option<NodeId> {
        *self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = lone_node(end_entity, intermediates)?;
        if shown == self.peer {
            return Ok(ServerCertVerified::assertion());
        }
        *self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(shown);
        Err(CertificateError::NotValidForName.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_ed25519(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Accepts any client that proves an Ed25519 key.
#[derive(Debug)]
struct AnyNode {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyNode {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        lone_node(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_ed25519(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The certificate of a node names that node, and bytes that are no certificate name none.
    #[test]
    fn a_certificate_names_its_node() {
        let identity = NodeIdentity::generate().unwrap();
        let certificate = identity.certificate();
        assert_eq!(node_of(&certificate).unwrap(), identity.id());
        for len in 0..certificate.len() {
            assert!(node_of(&CertificateDer::from(certificate[..len].to_vec())).is_err(), "cut at {len}");
        }
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let foreign = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        assert!(node_of(foreign.der()).is_err(), "an ECDSA key is no node");
    }

    #[test]
    fn protocol_names_read_back() {
        for kind in ConnectionKind::ALL {
            let names = alpn_names(kind, &[2, 1]);
            let read: Vec<_> = names.iter().map(|name| agreed(name).unwrap()).collect();
            assert_eq!(read, [(kind, Some(2)), (kind, Some(1)), (kind, None)]);
        }
        for foreign in ["h3", "makai-control/", "makai-control/x", "makai-control/70000", "makai/1", ""] {
            assert_eq!(agreed(foreign.as_bytes()), None, "{foreign}");
        }
        assert_eq!(agreed(b"\xff/1"), None);
    }
}
