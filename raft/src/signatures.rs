//! Who signed what, as the machine must be able to tell: pure checks, the same on every voter.
//!
//! | signer                        | scheme                               | what is signed                                  |
//! |-------------------------------|--------------------------------------|-------------------------------------------------|
//! | a node, by its identity       | Ed25519                              | `MAKAI-SIGNED-1`, length and text of the purpose, message |
//! | a payout address, a claim signer | secp256k1, recoverable (r, s, v)  | a 32-byte digest                                |
//!
//! Addresses are Ethereum's: the last 20 bytes of Keccak-256 of the public key. A signature with a high `s` is refused
//! (EIP-2), so that each statement has one signature only.

use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use makai_erasure::NodeId;
use ring::signature::{ED25519, UnparsedPublicKey};
use sha3::{Digest as _, Keccak256};

use crate::facts::accounts::{Address, Hash, RecoverableSignature};

/// What precedes every message that a node signs, so that signatures of other protocols never fit.
pub const SIGNED_PREFIX: &[u8] = b"MAKAI-SIGNED-1";
/// Ethereum writes the recovery id as 27 or 28.
const RECOVERY_ID_BASE: u8 = 27;

#[must_use]
pub fn keccak256(bytes: &[u8]) -> Hash {
    Hash(Keccak256::digest(bytes).into())
}

/// The bytes that a node's signature covers. `purpose` has at most 255 bytes.
#[must_use]
pub fn node_message(purpose: &str, message: &[u8]) -> Vec<u8> {
    let purpose = &purpose.as_bytes()[..purpose.len().min(255)];
    [SIGNED_PREFIX, &[purpose.len() as u8], purpose, message].concat()
}

/// Whether `signature` is `node`'s for this purpose and message. Any bytes may be given.
#[must_use]
pub fn is_signed_by_node(node: NodeId, purpose: &str, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, node.0).verify(&node_message(purpose, message), signature).is_ok()
}

#[must_use]
pub fn address_of(key: &VerifyingKey) -> Address {
    let point = key.to_sec1_point(false);
    let hash = keccak256(&point.as_bytes()[1..]);
    let mut address = [0; 20];
    address.copy_from_slice(&hash.0[12..]);
    Address(address)
}

/// The address whose key made this signature of `digest`; `None` where none did, or not in the one valid form.
#[must_use]
pub fn recover(digest: &Hash, signature: &RecoverableSignature) -> Option<Address> {
    let (rs, v) = signature.0.split_at(64);
    let parsed = Signature::from_slice(rs).ok()?;
    if parsed.normalize_s() != parsed {
        return None;
    }
    let id = v[0].checked_sub(RECOVERY_ID_BASE).filter(|id| *id < 2).and_then(RecoveryId::from_byte)?;
    VerifyingKey::recover_from_prehash(&digest.0, &parsed, id).ok().map(|key| address_of(&key))
}

/// The parent of two nodes of a claim tree, whose order does not matter.
#[must_use]
pub fn parent_of(a: &Hash, b: &Hash) -> Hash {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let mut both = [0; 64];
    both[..32].copy_from_slice(&low.0);
    both[32..].copy_from_slice(&high.0);
    keccak256(&both)
}

/// The leaf of a claim tree: Keccak-256 twice over the ABI encoding of `(address, uint256)`.
#[must_use]
pub fn claim_leaf(payout: &Address, cumulative: u128) -> Hash {
    let mut words = [0; 64];
    words[12..32].copy_from_slice(&payout.0);
    words[48..].copy_from_slice(&cumulative.to_be_bytes());
    keccak256(&keccak256(&words).0)
}

/// Whether `proof` leads from a leaf to `root`.
#[must_use]
pub fn proves(root: &Hash, leaf: Hash, proof: &[Hash]) -> bool {
    proof.iter().fold(leaf, |node, sibling| parent_of(&node, sibling)) == *root
}

#[cfg(test)]
mod tests {
    use super::*;
    use k256::ecdsa::SigningKey;

    /// Key 1 of every Ethereum test suite, and Keccak of nothing.
    #[test]
    fn addresses_and_hashes_are_ethereums() {
        let mut one = [0; 32];
        one[31] = 1;
        let key = SigningKey::from_slice(&one).unwrap();
        let address = address_of(key.verifying_key());
        assert_eq!(address.to_string(), "0x7e5f4552091a69125d5dfcb7b8c2659029395bdf");
        let empty = "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470";
        assert_eq!(keccak256(b"").to_string(), empty);
    }

    #[test]
    fn a_signature_names_its_signer_in_one_form_only() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let digest = keccak256(b"a statement");
        let (signature, id) = key.sign_prehash_recoverable(&digest.0);
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = RECOVERY_ID_BASE + id.to_byte();
        let signer = address_of(key.verifying_key());
        assert_eq!(recover(&digest, &RecoverableSignature(bytes)), Some(signer));
        assert_ne!(recover(&keccak256(b"another"), &RecoverableSignature(bytes)), Some(signer));
        // The same statement with n - s and the other parity is valid ECDSA and must not count.
        let order = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
        let mut high = bytes;
        let mut borrow = 0i32;
        for at in (0..32).rev() {
            let digit = i32::from(order[at]) - i32::from(bytes[32 + at]) - borrow;
            borrow = i32::from(digit < 0);
            high[32 + at] = digit.rem_euclid(256) as u8;
        }
        high[64] = if bytes[64] == 27 { 28 } else { 27 };
        assert_eq!(recover(&digest, &RecoverableSignature(high)), None);
        for v in [0, 1, 26, 29, 255] {
            let mut other = bytes;
            other[64] = v;
            assert_eq!(recover(&digest, &RecoverableSignature(other)), None);
        }
        assert_eq!(recover(&digest, &RecoverableSignature([0; 65])), None);
    }
}
