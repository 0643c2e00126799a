//! Encryption of what leaves a gateway: pages of blobs, and the keys they are sealed with.
//!
//! ```text
//! page    AES-256-GCM(blob's data key, nonce = page index, aad = blob id | page index) -> page + 16-byte tag
//! key     AES-256-GCM(tenant's key, random nonce, aad = "makai data key" | blob id) -> nonce | key | tag: 60 bytes
//! ```
//!
//! Always: a data key seals one blob only, so that a page index is a nonce that never repeats; a page opens only at
//! its place in its blob. AES-256-GCM: NIST SP 800-38D.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};

use crate::ids::BlobId;
use crate::layout::TAG_BYTES;

/// Bytes in a key.
pub const KEY_BYTES: usize = 32;
/// Bytes in a wrapped data key.
pub const WRAPPED_KEY_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_BYTES as usize;
/// Random bytes that wrapping a key takes.
pub const WRAP_NONCE_BYTES: usize = NONCE_LEN;

const WRAP_PURPOSE: &[u8] = b"makai data key";

/// The bytes are not what was sealed under this key, at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("does not open: damaged, or sealed elsewhere or under another key")]
pub struct OpenError;

/// The secret that one blob is sealed with.
#[derive(Clone)]
pub struct DataKey(pub [u8; KEY_BYTES]);

/// Seals and opens the pages of one blob.
pub struct PageSealer {
    key: LessSafeKey,
    blob: BlobId,
}

fn aes_key(bytes: &[u8; KEY_BYTES]) -> LessSafeKey {
    let unbound = UnboundKey::new(&AES_256_GCM, bytes).expect("a key of AES-256-GCM has 32 bytes");
    LessSafeKey::new(unbound)
}

fn page_nonce(page: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&page.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl PageSealer {
    #[must_use]
    pub fn new(key: &DataKey, blob: BlobId) -> Self {
        Self { key: aes_key(&key.0), blob }
    }

    fn aad(&self, page: u64) -> Aad<[u8; 24]> {
        let mut aad = [0; 24];
        aad[..16].copy_from_slice(&self.blob.0);
        aad[16..].copy_from_slice(&page.to_be_bytes());
        Aad::from(aad)
    }

    /// Seals a page in place: `sealed` holds its plaintext, then [`TAG_BYTES`] of room for the tag.
    ///
    /// # Panics
    /// `sealed` is shorter than a tag.
    pub fn seal(&self, page: u64, sealed: &mut [u8]) {
        let (plain, tag_room) = sealed.split_at_mut(sealed.len() - TAG_BYTES as usize);
        let tag = self
            .key
            .seal_in_place_separate_tag(page_nonce(page), self.aad(page), plain)
            .expect("a page is far shorter than the cipher's limit");
        tag_room.copy_from_slice(tag.as_ref());
    }

    /// Opens a page in place and returns its plaintext.
    ///
    /// # Errors
    /// [`OpenError`]: `sealed` then holds nothing of use.
    pub fn open<'s>(&self, page: u64, sealed: &'s mut [u8]) -> Result<&'s mut [u8], OpenError> {
        let plain_len = sealed.len().checked_sub(TAG_BYTES as usize).ok_or(OpenError)?;
        let (plain, tag) = sealed.split_at_mut(plain_len);
        let tag = Tag::try_from(&*tag).map_err(|_| OpenError)?;
        self.key
            .open_in_place_separate_tag(page_nonce(page), self.aad(page), tag, plain, 0..)
            .map_err(|_| OpenError)
    }
}

fn wrap_aad(blob: BlobId) -> Aad<Vec<u8>> {
    Aad::from([WRAP_PURPOSE, &blob.0].concat())
}

/// Wraps a blob's data key with its tenant's key. `nonce` is random and used once.
#[must_use]
pub fn wrap_key(
    tenant_key: &[u8; KEY_BYTES],
    blob: BlobId,
    data_key: &DataKey,
    nonce: [u8; WRAP_NONCE_BYTES],
) -> [u8; WRAPPED_KEY_BYTES] {
    let mut wrapped = [0; WRAPPED_KEY_BYTES];
    let (head, rest) = wrapped.split_at_mut(NONCE_LEN);
    let (key, tag_room) = rest.split_at_mut(KEY_BYTES);
    head.copy_from_slice(&nonce);
    key.copy_from_slice(&data_key.0);
    let tag = aes_key(tenant_key)
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), wrap_aad(blob), key)
        .expect("a key is far shorter than the cipher's limit");
    tag_room.copy_from_slice(tag.as_ref());
    wrapped
}

/// Unwraps what [`wrap_key`] made.
///
/// # Errors
/// [`OpenError`]: wrapped for another blob or tenant, or damaged.
pub fn unwrap_key(tenant_key: &[u8; KEY_BYTES], blob: BlobId, wrapped: &[u8]) -> Result<DataKey, OpenError> {
    let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN).ok_or(OpenError)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError)?;
    let mut sealed = sealed.to_vec();
    let plain =
        aes_key(tenant_key).open_in_place(nonce, wrap_aad(blob), &mut sealed).map_err(|_| OpenError)?;
    let key = <[u8; KEY_BYTES]>::try_from(&*plain).map_err(|_| OpenError)?;
    Ok(DataKey(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A page opens at its own place under its own key, and any flipped bit closes it.
        #[test]
        fn a_page_opens_only_unchanged_and_in_its_place(
            plain in prop::collection::vec(any::<u8>(), 0..2000),
            key: [u8; 32], blob: [u8; 16], page in 0u64..1024, flip: prop::sample::Index,
        ) {
            let sealer = PageSealer::new(&DataKey(key), BlobId(blob));
            let mut sealed = plain.clone();
            sealed.extend([0; 16]);
            sealer.seal(page, &mut sealed);
            let mut copy = sealed.clone();
            prop_assert_eq!(&*sealer.open(page, &mut copy).unwrap(), &plain[..]);
            prop_assert!(sealer.open(page + 1, &mut sealed.clone()).is_err());
            let other = PageSealer::new(&DataKey(key), BlobId([blob[0] ^ 1; 16]));
            prop_assert!(blob == [blob[0] ^ 1; 16] || other.open(page, &mut sealed.clone()).is_err());
            let bit = flip.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(sealer.open(page, &mut sealed).is_err());
        }

        /// A data key unwraps for its blob under its tenant's key only; junk never panics.
        #[test]
        fn a_key_unwraps_for_its_blob(key: [u8; 32], tenant: [u8; 32], blob: [u8; 16], nonce: [u8; 12], junk: Vec<u8>) {
            let wrapped = wrap_key(&tenant, BlobId(blob), &DataKey(key), nonce);
            prop_assert_eq!(unwrap_key(&tenant, BlobId(blob), &wrapped).unwrap().0, key);
            let mut stranger = tenant;
            stranger[0] ^= 1;
            prop_assert!(unwrap_key(&stranger, BlobId(blob), &wrapped).is_err());
            prop_assert!(unwrap_key(&tenant, BlobId(blob), &junk).is_err());
        }
    }
}
