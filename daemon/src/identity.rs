//! Who this node is: an Ed25519 key in one file, whose public half is the node's name.
//!
//! The file `node.key` holds the private key as PKCS#8 in PEM and is readable by its owner alone. It appears
//! whole or not at all, and an existing one is never replaced: a node that lost its key is another node. The
//! certificate that TLS wants is made anew at each start and says nothing but the key; nobody signs it and
//! nobody checks its dates, because peers compare the key itself.
//!
//! What is signed with the key outside TLS carries a purpose, so that no signature given for one thing can be
//! shown for another, nor for a TLS handshake (which starts with 64 spaces).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use makai_erasure::NodeId;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use ring::{hkdf, rand::SecureRandom, rand::SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// Name of the key's file inside a node's directory.
pub const KEY_FILE: &str = "node.key";

/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// A key file is far shorter; a longer one is something else.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// What precedes every signed message, so that signatures of other protocols never fit.
const SIGNED_PREFIX: &[u8] = b"MAKAI-SIGNED-1";

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{path:?} has mode {mode:03o}, so others than its owner may have read the node's key; if the key is \
         still secret run `chmod 600` on it, else remove it and let the node join under a new name"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "{path:?} does not hold an Ed25519 private key in PKCS#8 PEM ({reason}); restore it from a backup, or \
         remove it and let the node join under a new name"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("no certificate could be made for the node's key: {0}")]
    Certificate(String),
    #[error("the operating system gave no random bytes for a key")]
    NoRandomness,
}

/// A node's key and the certificate made for it. Cheap to clone; never printed.
#[derive(Clone)]
pub struct NodeIdentity {
    inner: Arc<Inner>,
}

struct Inner {
    id: NodeId,
    key: Ed25519KeyPair,
    pkcs8: PrivatePkcs8KeyDer<'static>,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeIdentity({:?})", self.inner.id)
    }
}

impl NodeIdentity {
    /// Reads `dir/node.key`, or makes it (and `dir`) when there is none. Blocks on the disk: for the start only.
    ///
    /// # Errors
    /// The file is readable by others, damaged, or cannot be read or written. An existing file is never changed.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(KEY_FILE);
        if let Some(pem) = read_key(&path)? {
            return Self::from_pem(&pem, &path);
        }
        fs::create_dir_all(dir).map_err(io_error("create the directory", dir))?;
        let made = Self::generate()?;
        match publish_key(dir, &path, &made)? {
            Published::Ours => Ok(made),
            // Another process was first: its key is the node's.
            Published::Theirs => match read_key(&path)? {
                Some(pem) => Self::from_pem(&pem, &path),
                None => Err(io_error("read", &path)(io::ErrorKind::NotFound.into())),
            },
        }
    }

    /// A new identity that lives in memory only.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::NoRandomness)?;
        Self::from_pkcs8(document.as_ref().to_vec()).map_err(IdentityError::Certificate)
    }

    /// The node's name: its public key.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// Signs `message` for one purpose, named by a constant of the caller's such as `"usage-receipt/1"`.
    #[must_use]
    pub fn sign(&self, purpose: &'static str, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature = self.inner.key.sign(&signed_bytes(purpose, message));
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes.copy_from_slice(signature.as_ref());
        bytes
    }

    /// The self-signed certificate shown to peers.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.inner.certificate.clone()
    }

    /// The private key, for TLS.
    pub(crate) fn private_key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.inner.pkcs8.clone_key()
    }

    /// A secret of this node that is the same after a restart, one for each label.
    pub(crate) fn derived_secret(&self, label: &'static str) -> [u8; 32] {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"makai node secret 1");
        let mut secret = [0; 32];
        salt.extract(self.inner.pkcs8.secret_pkcs8_der())
            .expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut secret))
            .expect("HKDF-SHA256 gives 32 bytes");
        secret
    }

    fn from_pem(pem: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let damaged = |reason: String| IdentityError::Damaged { path: path.to_owned(), reason };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| damaged(error.to_string()))?;
        Self::from_pkcs8(der.secret_pkcs8_der().to_vec()).map_err(damaged)
    }

    fn from_pkcs8(der: Vec<u8>) -> Result<Self, String> {
        let key = Ed25519KeyPair::from_pkcs8(&der).map_err(|error| error.to_string())?;
        let public = key.public_key().as_ref().try_into().map_err(|_| "the public key is not 32 bytes")?;
        let id = NodeId(public);
        let pkcs8 = PrivatePkcs8KeyDer::from(der);
        let certificate = self_signed(id, &pkcs8).map_err(|error| error.to_string())?;
        Ok(Self { inner: Arc::new(Inner { id, key, pkcs8, certificate }) })
    }
}

/// Whether `signature` is `signer`'s for this purpose and message. Any bytes may be given.
#[must_use]
pub fn verify(signer: NodeId, purpose: &'static str, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, signer.0).verify(&signed_bytes(purpose, message), signature).is_ok()
}

fn signed_bytes(purpose: &'static str, message: &[u8]) -> Vec<u8> {
    let purpose_len = u8::try_from(purpose.len()).expect("a purpose is a short constant");
    [SIGNED_PREFIX, &[purpose_len], purpose.as_bytes(), message].concat()
}

fn self_signed(id: NodeId, pkcs8: &PrivatePkcs8KeyDer<'_>) -> Result<CertificateDer<'static>, rcgen::Error> {
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &rcgen::PKCS_ED25519)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, id.to_string());
    Ok(params.self_signed(&key)?.der().clone())
}

/// The file's bytes, or `None` where there is none.
fn read_key(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let metadata = file.metadata().map_err(io_error("inspect", path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    if !metadata.is_file() || metadata.len() > KEY_FILE_BYTES_MAX {
        return Err(IdentityError::Damaged {
            path: path.to_owned(),
            reason: format!("{} bytes; a key file is at most {KEY_FILE_BYTES_MAX}", metadata.len()),
        });
    }
    let mut pem = Vec::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut pem).map_err(io_error("read", path))?;
    Ok(Some(pem))
}

enum Published {
    Ours,
    Theirs,
}

/// Makes the key file appear whole: written and synced under a name of its own, then linked to the real one,
/// which fails where another is already there.
fn publish_key(dir: &Path, path: &Path, made: &NodeIdentity) -> Result<Published, IdentityError> {
    let mut nonce = [0; 8];
    SystemRandom::new().fill(&mut nonce).map_err(|_| IdentityError::NoRandomness)?;
    let draft = dir.join(format!("{KEY_FILE}.{}.new", hex::encode(nonce)));
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&made.inner.pkcs8, &rcgen::PKCS_ED25519)
        .map_err(|error| IdentityError::Certificate(error.to_string()))?;
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
            file.write_all(key.serialize_pem().as_bytes()).and_then(|()| file.sync_all())
        });
    let linked =
        written.map_err(io_error("write", &draft)).and_then(|()| match fs::hard_link(&draft, path) {
            Ok(()) => Ok(Published::Ours),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Published::Theirs),
            Err(error) => Err(io_error("create", path)(error)),
        });
    // Whatever happened, the draft is of no more use; a leftover would do no harm.
    let _ = fs::remove_file(&draft);
    let published = linked?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync the directory", dir))?;
    Ok(published)
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// The name survives a restart, the file is the owner's alone, and nothing else is left in the directory.
    #[test]
    fn a_node_keeps_its_name() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("new/node");
        let first = NodeIdentity::load_or_create(&dir).unwrap();
        let second = NodeIdentity::load_or_create(&dir).unwrap();
        assert_eq!(first.id(), second.id());
        assert_eq!(first.derived_secret("a"), second.derived_secret("a"));
        assert_ne!(first.derived_secret("a"), second.derived_secret("b"));
        assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [KEY_FILE]);
        assert_ne!(NodeIdentity::load_or_create(&root.path().join("other")).unwrap().id(), first.id());
    }

    /// Processes that start at once in one directory agree on one key.
    #[test]
    fn racing_starts_agree() {
        let root = tempfile::tempdir().unwrap();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| NodeIdentity::load_or_create(root.path()).unwrap().id()))
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn an_exposed_key_is_refused_and_kept() {
        for exposed in [0o644, 0o640, 0o604, 0o660] {
            let root = tempfile::tempdir().unwrap();
            NodeIdentity::load_or_create(root.path()).unwrap();
            let path = root.path().join(KEY_FILE);
            let before = fs::read(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(exposed)).unwrap();
            let error = NodeIdentity::load_or_create(root.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Exposed { mode, .. } if mode == exposed), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), before);
        }
    }

    /// A file cut anywhere, emptied, or holding another kind of key is refused and left as it is.
    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        let root = tempfile::tempdir().unwrap();
        NodeIdentity::load_or_create(root.path()).unwrap();
        let path = root.path().join(KEY_FILE);
        let whole = fs::read(&path).unwrap();
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        let mut damaged: Vec<Vec<u8>> =
            (0..whole.len() - 3).step_by(7).map(|len| whole[..len].to_vec()).collect();
        damaged.extend([b"\0\xff\xfe".to_vec(), other.into_bytes(), vec![b'-'; 100_000]]);
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            let error = NodeIdentity::load_or_create(root.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error} for {} bytes", bytes.len());
            assert!(error.to_string().contains("node.key"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    /// A signature holds for its signer, purpose and message, and for nothing else.
    #[test]
    fn a_signature_is_bound_to_all_it_says() {
        let (ours, other) = (NodeIdentity::generate().unwrap(), NodeIdentity::generate().unwrap());
        let signature = ours.sign("receipt/1", b"10 GB");
        assert!(verify(ours.id(), "receipt/1", b"10 GB", &signature));
        assert!(!verify(other.id(), "receipt/1", b"10 GB", &signature));
        assert!(!verify(ours.id(), "receipt/2", b"10 GB", &signature));
        assert!(!verify(ours.id(), "receipt/1", b"11 GB", &signature));
        assert!(!verify(ours.id(), "receipt", b"/110 GB", &signature));
        assert!(!verify(ours.id(), "receipt/1", b"10 GB", &signature[..63]));
        assert!(!verify(NodeId([0xff; 32]), "receipt/1", b"10 GB", &signature));
        // The signature is plain Ed25519 over the documented bytes.
        let mut bytes = b"MAKAI-SIGNED-1\x09receipt/1".to_vec();
        bytes.extend(b"10 GB");
        assert!(UnparsedPublicKey::new(&ED25519, ours.id().0).verify(&bytes, &signature).is_ok());
    }
}
