//! The hash chain: every change of the ledger is a link that names the one before.

use bytes::Bytes;

use super::{Standing, keys};
use crate::facts::Timestamp;
use crate::facts::accounts::{Hash, LedgerEntry, LedgerEvent, LedgerHead};
use crate::machine::draft::{Draft, Outcome};
use crate::machine::kv::KvError;

const CONTEXT: &str = "makai ledger entry 1";

/// The hash of a link, over height, time, the link before and the body.
#[must_use]
pub fn entry_hash(height: u64, at: Timestamp, prev: &Hash, body: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&height.to_be_bytes()).update(&at.0.to_be_bytes()).update(&prev.0).update(body);
    Hash(*hasher.finalize().as_bytes())
}

/// Adds a link; the caller writes `standing`.
pub fn append(draft: &mut Draft<'_>, standing: &mut Standing, event: &LedgerEvent) -> Outcome<Hash> {
    let body = rmp_serde::to_vec(event).map_err(|error| KvError(format!("write a ledger entry: {error}")))?;
    let (height, at, prev) = (standing.head.height + 1, draft.now, standing.head.hash);
    let hash = entry_hash(height, at, &prev, &body);
    draft.write(keys::entry(height), &LedgerEntry { height, at, prev, body: Bytes::from(body), hash })?;
    standing.head = LedgerHead { height, hash };
    Ok(hash)
}
