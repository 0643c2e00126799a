//! An epoch's life: open, sealed, computed, signed; and forgotten.

use super::keys;
use super::{DONE, Standing, claims, genesis, invalid, ledger, meters, refused, standing, stop};
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, Amount, ClaimSignature, Epoch, EpochResult, EpochState, Genesis, Hash,
    Leaf, LedgerEvent, NodeAccount, ROWS_MAX, TOKENOMICS_BYTES_MAX,
};
use crate::machine::cluster;
use crate::machine::draft::{Draft, Outcome, keys_in, read};
use crate::machine::keys as facts;
use crate::machine::kv::View;

/// Records forgotten by one command.
const PRUNE_KEYS_MAX: usize = 10_000;
/// Signed epochs whose inputs and accounts are kept, so that they can be computed again by whoever doubts.
pub const KEPT_EPOCHS: u64 = 8;
const EPOCH_MS: std::ops::RangeInclusive<u64> = 1_000..=30 * 24 * 3600 * 1000;
const REASON_BYTES_MAX: usize = 1024;

pub fn get(view: &dyn View, number: u64) -> Outcome<Epoch> {
    read(view, &keys::epoch(number))?.ok_or_else(|| invalid(format!("there is no epoch {number}")))
}

pub fn open(draft: &mut Draft<'_>, genesis: &Genesis) -> Outcome<AccountsReply> {
    if draft.get(&keys::genesis())?.is_some() {
        return Err(invalid("the accounts of this cluster are open already"));
    }
    if !EPOCH_MS.contains(&genesis.epoch_ms) {
        return Err(invalid(format!("an epoch takes {} to {} ms", EPOCH_MS.start(), EPOCH_MS.end())));
    }
    let hash = Hash(*blake3::hash(genesis.tokenomics.as_bytes()).as_bytes());
    if genesis.tokenomics.len() > TOKENOMICS_BYTES_MAX || hash != genesis.tokenomics_hash {
        return Err(invalid("the tokenomics table is too long, or its hash is another"));
    }
    if genesis.emission.until(u64::MAX) > genesis.emission.pool || genesis.emission.halving_epochs == 0 {
        return Err(invalid("the emission exceeds the pool"));
    }
    let mut standing = Standing::default();
    let cluster_id = cluster::id(draft)?;
    ledger::append(draft, &mut standing, &LedgerEvent::Opened { cluster_id, genesis: genesis.clone() })?;
    draft.write(keys::genesis(), genesis)?;
    begin(draft, &mut standing)?;
    draft.write(keys::standing(), &standing)?;
    Ok(DONE)
}

fn begin(draft: &mut Draft<'_>, standing: &mut Standing) -> Outcome<()> {
    standing.open += 1;
    let epoch = Epoch {
        number: standing.open,
        state: EpochState::Open,
        opened_at: draft.now,
        beacon: standing.head.hash,
        sealed_at: None,
        sealed_head: None,
        node_count: 0,
        usage_hash: None,
        result: None,
        threshold: 0,
        signatures: Vec::new(),
        active_at: None,
        disputed_by: Vec::new(),
    };
    Ok(draft.write(keys::epoch(standing.open), &epoch)?)
}

pub fn seal(draft: &mut Draft<'_>, number: u64) -> Outcome<AccountsReply> {
    let genesis = genesis(draft)?;
    if number != standing(draft)?.open {
        return refused(AccountsRefusal::EpochClosed(number));
    }
    let mut epoch = get(draft, number)?;
    let ends_at = crate::facts::Timestamp(epoch.opened_at.0.saturating_add(genesis.epoch_ms));
    if draft.now < ends_at {
        return refused(AccountsRefusal::NotDue { epoch: number, ends_at });
    }
    let (node_count, usage_hash) = meters::seal(draft, number)?;
    // After that, which may have noted something on the ledger itself.
    let mut standing = standing(draft)?;
    let event = LedgerEvent::EpochSealed { epoch: number, usage_hash, node_count };
    let head = ledger::append(draft, &mut standing, &event)?;
    epoch.state = EpochState::Sealed;
    epoch.sealed_at = Some(draft.now);
    epoch.sealed_head = Some(head);
    epoch.node_count = node_count;
    epoch.usage_hash = Some(usage_hash);
    draft.write(keys::epoch(number), &epoch)?;
    begin(draft, &mut standing)?;
    draft.write(keys::standing(), &standing)?;
    Ok(AccountsReply::Epoch(epoch))
}

/// The epoch that is computed next, which must be `number`.
fn next_to_sign(view: &dyn View, number: u64) -> Outcome<(Standing, Epoch)> {
    let standing = standing(view)?;
    let epoch = get(view, number)?;
    let is_computable = matches!(epoch.state, EpochState::Sealed | EpochState::Computed);
    if number != standing.signed + 1 || !is_computable {
        return refused(AccountsRefusal::WrongState { epoch: number, state: epoch.state });
    }
    Ok((standing, epoch))
}

fn next_attempt(epoch: &Epoch) -> u32 {
    epoch.result.as_ref().map_or(0, |result| result.attempt).saturating_add(1)
}

pub fn stage(
    draft: &mut Draft<'_>,
    number: u64,
    attempt: u32,
    accounts: &[NodeAccount],
    leaves: &[Leaf],
) -> Outcome<AccountsReply> {
    let (_, epoch) = next_to_sign(draft, number)?;
    if attempt != next_attempt(&epoch) {
        return Err(invalid(format!("attempt {} of epoch {number} is next", next_attempt(&epoch))));
    }
    if accounts.len() > ROWS_MAX || leaves.len() > ROWS_MAX {
        return Err(invalid(format!("at most {ROWS_MAX} accounts and leaves at once")));
    }
    for account in accounts {
        draft.write(keys::account(number, attempt, &account.node), account)?;
    }
    for leaf in leaves {
        draft.write(keys::leaf(number, attempt, &leaf.payout), leaf)?;
    }
    Ok(DONE)
}

pub fn propose(draft: &mut Draft<'_>, result: &EpochResult) -> Outcome<AccountsReply> {
    let (standing, mut epoch) = next_to_sign(draft, result.epoch)?;
    if result.attempt != next_attempt(&epoch) {
        return Err(invalid(format!("attempt {} of epoch {} is next", next_attempt(&epoch), result.epoch)));
    }
    if result.total < standing.signed_total {
        let (total, before) = (result.total, standing.signed_total);
        return refused(AccountsRefusal::Decreases { total, before });
    }
    let allowed = genesis(draft)?.emission.until(result.epoch);
    if result.total > allowed {
        return refused(AccountsRefusal::OverEmission { epoch: result.epoch, total: result.total, allowed });
    }
    let signer_count = claims::signers(draft)?.len();
    if signer_count == 0 {
        return Err(invalid("no voter has a key for claims yet"));
    }
    epoch.state = EpochState::Computed;
    epoch.result = Some(result.clone());
    epoch.signatures.clear();
    epoch.threshold = u32::try_from(signer_count / 2 + 1).unwrap_or(u32::MAX);
    draft.write(keys::epoch(result.epoch), &epoch)?;
    Ok(AccountsReply::Epoch(epoch))
}

/// A signature that was taken already changes nothing.
pub fn sign(
    draft: &mut Draft<'_>,
    number: u64,
    attempt: u32,
    signature: &ClaimSignature,
) -> Outcome<AccountsReply> {
    let mut epoch = get(draft, number)?;
    let wrong = stop(AccountsRefusal::WrongState { epoch: number, state: epoch.state });
    let Some(result) = epoch.result.clone().filter(|result| result.attempt == attempt) else {
        return Err(wrong);
    };
    claims::check_signature(draft, &result.digest, signature)?;
    let is_known = epoch.signatures.iter().any(|known| known.signer == signature.signer);
    if is_known {
        return Ok(AccountsReply::Epoch(epoch));
    }
    if !matches!(epoch.state, EpochState::Computed) {
        return Err(wrong);
    }
    epoch.signatures.push(signature.clone());
    // A majority of those who may sign now: voters may have come or gone since the result was proposed.
    let signers = claims::signers(draft)?;
    epoch.signatures.retain(|known| signers.iter().any(|signer| signer.address == known.signer));
    epoch.threshold = u32::try_from(signers.len() / 2 + 1).unwrap_or(u32::MAX);
    if epoch.signatures.len() >= epoch.threshold as usize {
        let mut standing = standing(draft)?;
        let active_at = crate::facts::Timestamp(draft.now.0.saturating_add(genesis(draft)?.challenge_ms));
        epoch.state = EpochState::Signed;
        epoch.active_at = Some(active_at);
        standing.signed = number;
        standing.signed_total = result.total;
        standing.leaves_from = standing.leaves_from().max(1);
        standing.kept_from = standing.kept_from.max(1);
        let (threshold, signatures) = (epoch.threshold, epoch.signatures.clone());
        let event = LedgerEvent::EpochSigned { result, threshold, signatures, active_at };
        ledger::append(draft, &mut standing, &event)?;
        draft.write(keys::standing(), &standing)?;
    }
    draft.write(keys::epoch(number), &epoch)?;
    Ok(AccountsReply::Epoch(epoch))
}

/// The newest signed root goes back to be computed again, as long as nothing could be claimed against it.
pub fn dispute(
    draft: &mut Draft<'_>,
    number: u64,
    reason: &str,
    signature: &ClaimSignature,
) -> Outcome<AccountsReply> {
    let mut standing = standing(draft)?;
    let mut epoch = get(draft, number)?;
    let wrong = || stop(AccountsRefusal::WrongState { epoch: number, state: epoch.state });
    let result = epoch.result.clone().ok_or_else(wrong)?;
    let is_open = epoch.active_at.is_some_and(|active_at| draft.now < active_at);
    if epoch.state != EpochState::Signed || number != standing.signed || !is_open {
        return Err(wrong());
    }
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
        return Err(invalid(format!("a dispute has a reason of 1 to {REASON_BYTES_MAX} bytes")));
    }
    claims::check_signature(draft, &claims::dispute_digest(&result.digest, reason), signature)?;
    if epoch.disputed_by.contains(&signature.signer) {
        return Err(invalid("this signer has disputed this epoch before; each may once"));
    }
    let before = match number {
        1 => Amount(0),
        _ => get(draft, number - 1)?.result.map_or(Amount(0), |result| result.total),
    };
    standing.signed = number - 1;
    standing.signed_total = before;
    let (attempt, by, reason) = (result.attempt, signature.signer, reason.to_owned());
    ledger::append(draft, &mut standing, &LedgerEvent::EpochDisputed { epoch: number, attempt, by, reason })?;
    epoch.state = EpochState::Sealed;
    epoch.signatures.clear();
    epoch.active_at = None;
    epoch.disputed_by.push(by);
    draft.write(keys::epoch(number), &epoch)?;
    draft.write(keys::standing(), &standing)?;
    Ok(AccountsReply::Epoch(epoch))
}

pub fn prune(draft: &mut Draft<'_>, number: u64) -> Outcome<AccountsReply> {
    let mut standing = standing(draft)?;
    if number != standing.kept_from || number.saturating_add(KEPT_EPOCHS) > standing.signed {
        return Err(invalid(format!(
            "epoch {number} is kept: {KEPT_EPOCHS} signed epochs are, the oldest is {}",
            standing.kept_from
        )));
    }
    let all = [keys::usage_of(number), keys::all_accounts(number), keys::tenant_usage(number)];
    let is_more = forget(draft, &all)?;
    if !is_more {
        standing.leaves_from = standing.leaves_from();
        standing.kept_from += 1;
        draft.write(keys::standing(), &standing)?;
    }
    Ok(AccountsReply::Pruned { is_more })
}

/// As long as a claim may have to be made against this root, its leaves stay: until one that is [`KEPT_EPOCHS`] younger
/// pays. A contract that waits no longer than the embedded ledger has a younger root by then, too.
pub fn prune_leaves(draft: &mut Draft<'_>, number: u64) -> Outcome<AccountsReply> {
    let mut standing = standing(draft)?;
    let later: Option<Epoch> = read(draft, &keys::epoch(number.saturating_add(KEPT_EPOCHS)))?;
    let pays = later.and_then(|later| later.active_at).is_some_and(|active_at| active_at <= draft.now);
    if number != standing.leaves_from() || number >= standing.kept_from || !pays {
        return Err(invalid(format!("the leaves of epoch {number} are kept: no later root pays yet")));
    }
    let is_more = forget(draft, &[keys::all_leaves(number)])?;
    if !is_more {
        standing.leaves_from = number + 1;
        draft.write(keys::standing(), &standing)?;
    }
    Ok(AccountsReply::Pruned { is_more })
}

/// Deletes what lies below the prefixes, a bounded piece of it; returns whether more may be left.
fn forget(draft: &mut Draft<'_>, prefixes: &[Vec<u8>]) -> Outcome<bool> {
    let mut left = PRUNE_KEYS_MAX;
    for prefix in prefixes {
        for key in keys_in(draft, prefix, &facts::end_of(prefix), left)? {
            draft.delete(key);
            left -= 1;
        }
    }
    Ok(left == 0)
}
