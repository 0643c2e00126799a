//! What nodes served, what they are owed for it, and the ledger that says so.
//!
//! ```text
//! gateways, auditors ─ Meter, Audit ─> open epoch ─ Seal ─> usage of each node ─ every voter computes ─> Stage, Result
//!                    ─ Sign, k of n ─> signed: claims against its root ─ Claim ─> paid
//! ```
//!
//! The machine keeps inputs, checks the rules that need no formula (order, emission, signatures, proofs), and chains all
//! of it by hash. What a node earns is computed by `makai_ops` on every voter, which signs only what it computed itself.

mod billing;
mod computing;
mod pledges;
mod training;
mod values;

use bytes::Bytes;
use makai_erasure::{BlobId, NodeId, PgId};
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::tenant::TenantId;

pub use billing::{
    Balance, CHARGE_EVERY_MS, CORES_PER_CARD, HOLD_MS, PRICE_MAX, Prices, REFERENCE_BYTES_MAX, SliceTime,
    UNITS_PER_CREDIT,
};
pub use computing::{
    AccountExtra, Computed, LOT_KEY_WAITS, LOT_PROOF_BYTES, Lot, LotBinding, LotKey, PURPOSE_LOTS,
    RULES_LOTS, RULES_PLEDGES, Stake, StakeOrder, UsageExtra,
};
pub use pledges::{Pledge, PledgeOrder, PledgeTerms};
pub use training::{CHECKPOINTS_MAX, TRAINING_WHY_BYTES_MAX, Training, TrainingVerdict};
pub use values::{Address, Amount, Hash, RecoverableSignature, TextError};

/// Rows in one command.
pub const ROWS_MAX: usize = 2_000;
/// Entries of a proof: a tree of 2^40 leaves.
pub const PROOF_MAX: usize = 40;
/// Failures kept as evidence, of one node and epoch.
pub const EVIDENCE_MAX: usize = 16;
/// Bytes of the tokenomics table.
pub const TOKENOMICS_BYTES_MAX: usize = 64 * 1024;

/// Purposes of nodes' signatures.
pub const PURPOSE_SIGNER: &str = "claim-signer/1";
pub const PURPOSE_PAYOUT: &str = "payout/1";

/// How much may be paid out, epoch by epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emission {
    /// All that is ever paid for work.
    pub pool: Amount,
    /// Of the first epoch; halves every `halving_epochs`.
    pub first: Amount,
    pub halving_epochs: u64,
}

impl Emission {
    /// The largest first emission with which all halvings together stay within `pool`.
    #[must_use]
    pub fn of_pool(pool: Amount, halving_epochs: u64) -> Self {
        let halving_epochs = halving_epochs.max(1);
        Self { pool, first: Amount(pool.0 / (2 * u128::from(halving_epochs))), halving_epochs }
    }

    /// Of epoch `number`, which counts from 1.
    #[must_use]
    pub fn of_epoch(&self, number: u64) -> Amount {
        let halvings = number.saturating_sub(1) / self.halving_epochs.max(1);
        let shift = u32::try_from(halvings).unwrap_or(u32::MAX);
        Amount(self.first.0.checked_shr(shift).unwrap_or(0))
    }

    /// Of the first `number` epochs together. O(halvings).
    #[must_use]
    pub fn until(&self, number: u64) -> Amount {
        let halving = self.halving_epochs.max(1);
        let (mut left, mut each, mut sum) = (number, self.first.0, 0u128);
        while left > 0 && each > 0 {
            let epochs = left.min(halving);
            sum = sum.saturating_add(each.saturating_mul(u128::from(epochs)));
            left -= epochs;
            each >>= 1;
        }
        Amount(sum.min(self.pool.0))
    }
}

/// What the accounts of a cluster begin with. Its encoding ends behind the last field that holds anything from `forfeits_all`
/// on: so that what releases before began with keeps its hash.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Genesis {
    /// Version of the rules by which rewards are computed.
    pub rules: u32,
    /// The table of supply, allocation, split and scores, as canonical JSON.
    pub tokenomics: String,
    /// BLAKE3 of `tokenomics`.
    pub tokenomics_hash: Hash,
    pub emission: Emission,
    pub epoch_ms: u64,
    /// From a root's signatures to its first claim: time to dispute.
    pub challenge_ms: u64,
    /// From a new payout address to its first earnings.
    pub payout_cooldown_ms: u64,
    /// Domain of signatures: 0 on the embedded ledger. Domain and contract are the only fields that ever change, once:
    /// see [`AccountsCommand::Move`].
    pub chain_id: u64,
    /// The contract that is signed for; on the embedded ledger derived from the cluster's id.
    pub ledger: Address,
    /// Where nodes asked for one result differ, none of them earns anything for it: the literal rule.
    #[serde(default)]
    pub forfeits_all: bool,
    /// What stakes are given of the income, as the table says; `None`: nothing.
    #[serde(default)]
    pub pledge: Option<PledgeTerms>,
}

impl Serialize for Genesis {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        const ALWAYS: usize = 9;
        let has_pledge = self.pledge.is_some();
        let has_forfeits = has_pledge || self.forfeits_all;
        let mut genesis =
            to.serialize_struct("Genesis", ALWAYS + usize::from(has_forfeits) + usize::from(has_pledge))?;
        genesis.serialize_field("rules", &self.rules)?;
        genesis.serialize_field("tokenomics", &self.tokenomics)?;
        genesis.serialize_field("tokenomics_hash", &self.tokenomics_hash)?;
        genesis.serialize_field("emission", &self.emission)?;
        genesis.serialize_field("epoch_ms", &self.epoch_ms)?;
        genesis.serialize_field("challenge_ms", &self.challenge_ms)?;
        genesis.serialize_field("payout_cooldown_ms", &self.payout_cooldown_ms)?;
        genesis.serialize_field("chain_id", &self.chain_id)?;
        genesis.serialize_field("ledger", &self.ledger)?;
        if has_forfeits {
            genesis.serialize_field("forfeits_all", &self.forfeits_all)?;
        }
        if has_pledge {
            genesis.serialize_field("pledge", &self.pledge)?;
        }
        genesis.end()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EpochState {
    /// Takes what is metered.
    Open,
    /// Its inputs are fixed.
    Sealed,
    /// A result is proposed; voters compute it anew and sign.
    Computed,
    /// Enough voters signed.
    Signed,
}

/// One accounting period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub number: u64,
    pub state: EpochState,
    pub opened_at: Timestamp,
    /// The ledger's head when it opened: what audits within it are drawn by.
    pub beacon: Hash,
    pub sealed_at: Option<Timestamp>,
    /// The ledger's head after its sealing: binds its inputs.
    pub sealed_head: Option<Hash>,
    /// Nodes with usage, and BLAKE3 of their records in order.
    pub node_count: u64,
    pub usage_hash: Option<Hash>,
    pub result: Option<EpochResult>,
    /// Of which signers so many are enough.
    pub threshold: u32,
    pub signatures: Vec<ClaimSignature>,
    /// Claims against its root count from then on.
    pub active_at: Option<Timestamp>,
    /// Signers who took a root of this epoch back; each may once.
    pub disputed_by: Vec<Address>,
}

/// What was computed of an epoch's inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochResult {
    pub epoch: u64,
    /// Tries to compute this epoch, this one included.
    pub attempt: u32,
    /// Of the tree over all leaves.
    pub claim_root: Hash,
    /// Sum of all leaves: all that was ever earned and released.
    pub total: Amount,
    /// Binds usage, accounts and the ledger's head: see `makai_ops::claims`.
    pub data_hash: Hash,
    /// What voters sign (EIP-712).
    pub digest: Hash,
    pub account_count: u64,
    pub leaf_count: u64,
    /// What is expected to be served in the next epoch, by component: shares are of the larger of this and what is.
    pub difficulty: Vec<(Component, Amount)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimSignature {
    pub signer: Address,
    pub signature: RecoverableSignature,
}

/// A voter's key for claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    pub node: NodeId,
    pub address: Address,
    /// The node, over the address.
    pub node_signature: Bytes,
    /// The address, over [`signer_digest`](crate::machine::accounts::signer_digest).
    pub signature: RecoverableSignature,
}

/// Where a node wants to be paid, by both keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutBinding {
    pub node: NodeId,
    pub payout: Address,
    /// Grows with each change.
    pub serial: u64,
    /// The node, over address and serial.
    pub node_signature: Bytes,
    /// The address, over [`payout_digest`](crate::machine::accounts::payout_digest) or, as wallets sign, over
    /// [`payout_typed_digest`](crate::machine::accounts::payout_typed_digest).
    pub signature: RecoverableSignature,
}

/// A node's payout address as agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payout {
    pub node: NodeId,
    pub serial: u64,
    /// In force now.
    pub address: Option<Address>,
    /// In force from then on.
    pub next: Option<(Address, Timestamp)>,
}

/// What one gateway saw a node do, and a tenant use, in an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedRow {
    pub node: NodeId,
    /// Shard bytes that customers' reads took from it and that verified.
    pub egress_bytes: u64,
    /// Shard bytes that repairs took from it.
    pub repair_bytes: u64,
    /// Verified computing, in thousandths of a ut.
    pub work_mut: u64,
    pub jobs_ok: u32,
    pub jobs_disputed: u32,
    /// What verification of its computing found.
    #[serde(default)]
    pub computed: Computed,
}

impl ServedRow {
    /// Nothing yet.
    #[must_use]
    pub fn of(node: NodeId) -> Self {
        Self {
            node,
            egress_bytes: 0,
            repair_bytes: 0,
            work_mut: 0,
            jobs_ok: 0,
            jobs_disputed: 0,
            computed: Computed::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRow {
    pub tenant: TenantId,
    /// Object bytes taken from it and sent to it.
    pub ingress_bytes: u64,
    pub egress_bytes: u64,
    pub requests: u64,
    /// From here on what the facts know by themselves: gateways report zeros. Integral of the bytes kept.
    #[serde(default)]
    pub stored_byte_ms: u128,
    #[serde(default)]
    pub slices: SliceTime,
    /// What was charged, given back for attempts that were lost, and could not be paid.
    #[serde(default)]
    pub charged: Amount,
    #[serde(default)]
    pub refunded: Amount,
    #[serde(default)]
    pub owed: Amount,
}

impl TenantRow {
    /// Nothing yet.
    #[must_use]
    pub fn of(tenant: TenantId) -> Self {
        Self {
            tenant,
            ingress_bytes: 0,
            egress_bytes: 0,
            requests: 0,
            stored_byte_ms: 0,
            slices: SliceTime::default(),
            charged: Amount(0),
            refunded: Amount(0),
            owed: Amount(0),
        }
    }
}

/// What audits of a node found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    pub node: NodeId,
    pub pass: u32,
    pub fail: u32,
    /// It answered that it could not, for a reason that is no loss.
    pub unknown: u32,
    /// It did not answer in time.
    pub offline: u32,
    pub bytes: u64,
    pub evidence: Vec<Evidence>,
}

impl AuditRow {
    /// Nothing yet.
    #[must_use]
    pub fn of(node: NodeId) -> Self {
        Self { node, pass: 0, fail: 0, unknown: 0, offline: 0, bytes: 0, evidence: Vec::new() }
    }
}

/// One audit that did not pass: enough to repeat it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub blob: BlobId,
    pub shard: u8,
    pub leaf: u64,
    pub at: Timestamp,
    pub why: String,
}

/// What a node served in one epoch: fixed when the epoch is sealed. Its encoding ends behind the last field that holds
/// anything from `lease` on: so that records of releases before keep their hash.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeUsage {
    pub node: NodeId,
    /// Where it wants to be paid, as of the sealing.
    pub payout: Option<Address>,
    pub owner: String,
    pub joined_at: Timestamp,
    /// Bytes that the facts have on its disks at the end.
    pub stored_bytes: u64,
    /// Integral of those over the epoch.
    pub storage_byte_ms: u128,
    pub egress_bytes: u64,
    pub repair_bytes: u64,
    pub audit_bytes: u64,
    pub audits_pass: u32,
    pub audits_fail: u32,
    pub audits_unknown: u32,
    pub audits_offline: u32,
    pub work_mut: u64,
    pub jobs_ok: u32,
    pub jobs_disputed: u32,
    pub evidence: Vec<Evidence>,
    /// Slices that it held for attempts which ended by their own doing.
    #[serde(default)]
    pub lease: SliceTime,
    /// What verification of its computing found.
    #[serde(default)]
    pub computed: Computed,
    /// What later rules count.
    #[serde(default)]
    pub extra: UsageExtra,
}

impl Serialize for NodeUsage {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        const ALWAYS: usize = 17;
        let has_extra = !self.extra.is_none();
        let has_computed = has_extra || self.computed != Computed::default();
        let has_lease = has_computed || !self.lease.is_none();
        let fields = ALWAYS + usize::from(has_lease) + usize::from(has_computed) + usize::from(has_extra);
        let mut record = to.serialize_struct("NodeUsage", fields)?;
        record.serialize_field("node", &self.node)?;
        record.serialize_field("payout", &self.payout)?;
        record.serialize_field("owner", &self.owner)?;
        record.serialize_field("joined_at", &self.joined_at)?;
        record.serialize_field("stored_bytes", &self.stored_bytes)?;
        record.serialize_field("storage_byte_ms", &self.storage_byte_ms)?;
        record.serialize_field("egress_bytes", &self.egress_bytes)?;
        record.serialize_field("repair_bytes", &self.repair_bytes)?;
        record.serialize_field("audit_bytes", &self.audit_bytes)?;
        record.serialize_field("audits_pass", &self.audits_pass)?;
        record.serialize_field("audits_fail", &self.audits_fail)?;
        record.serialize_field("audits_unknown", &self.audits_unknown)?;
        record.serialize_field("audits_offline", &self.audits_offline)?;
        record.serialize_field("work_mut", &self.work_mut)?;
        record.serialize_field("jobs_ok", &self.jobs_ok)?;
        record.serialize_field("jobs_disputed", &self.jobs_disputed)?;
        record.serialize_field("evidence", &self.evidence)?;
        if has_lease {
            record.serialize_field("lease", &self.lease)?;
        }
        if has_computed {
            record.serialize_field("computed", &self.computed)?;
        }
        if has_extra {
            record.serialize_field("extra", &self.extra)?;
        }
        record.end()
    }
}

impl NodeUsage {
    /// Nothing yet.
    #[must_use]
    pub fn of(node: NodeId) -> Self {
        Self {
            node,
            payout: None,
            owner: String::new(),
            joined_at: Timestamp(0),
            stored_bytes: 0,
            storage_byte_ms: 0,
            egress_bytes: 0,
            repair_bytes: 0,
            audit_bytes: 0,
            audits_pass: 0,
            audits_fail: 0,
            audits_unknown: 0,
            audits_offline: 0,
            work_mut: 0,
            jobs_ok: 0,
            jobs_disputed: 0,
            evidence: Vec::new(),
            lease: SliceTime::default(),
            computed: Computed::default(),
            extra: UsageExtra::default(),
        }
    }
}

/// Of what rewards are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    Storage,
    Egress,
    Compute,
    Lease,
    Verify,
    Lottery,
}

impl Component {
    pub const ALL: [Self; 6] =
        [Self::Storage, Self::Egress, Self::Compute, Self::Lease, Self::Verify, Self::Lottery];
}

/// Why a component is zero or less than the work alone would give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No split of the budget goes to it.
    NotFunded,
    NothingServed,
    /// No audit has passed since the bytes were last credited; they wait.
    AwaitingAudit,
    /// An audit failed: what was not credited yet is void.
    AuditFailed,
    /// Audits went unanswered: what was not credited yet is void.
    AuditUnanswered,
    /// Suspended: earns nothing until its audits pass again.
    Suspended,
    /// Its reputation lowers the share.
    Reputation,
    /// Held back while it is new.
    HeldBack,
    /// It has no payout address: what it earns waits.
    NoPayout,
    /// Less was served than the difficulty expects: the rest of the budget stays in the pool.
    BelowDifficulty,
    /// What it computed was found wrong: its computing of that epoch earns nothing.
    ComputedWrong,
    /// Suspended for days with failures on several shards: what was held back went back to the pool.
    Forfeited,
    /// It has computing power, and has not drawn a prize this time.
    NotDrawn,
    /// Nodes asked for one result differed, and by this cluster's rule none of them earns it.
    AllForfeit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Vetting,
    Active,
    Suspended,
}

/// A node's account after an epoch: what the next one is computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAccount {
    pub node: NodeId,
    pub payout: Option<Address>,
    pub first_epoch: u64,
    pub status: Status,
    /// Since which epoch, and why in words.
    pub status_since: u64,
    pub status_why: String,
    /// Beta scores of audits, in millionths: (passes, failures), and the same for answers that say nothing.
    pub alpha_ppm: u64,
    pub beta_ppm: u64,
    pub unknown_alpha_ppm: u64,
    pub unknown_beta_ppm: u64,
    pub audits: u64,
    pub consecutive_fails: u32,
    /// Epochs with a failure since the last epoch without one.
    pub failed_epochs: u32,
    /// Byte-milliseconds not yet covered by an audit that passed.
    pub pending_byte_ms: u128,
    /// Effective computing power, in billionths of a ut a day: fine enough that rounding does not add up.
    pub power_nut: u64,
    /// Earned in this epoch, by component, before anything is held back.
    pub earned: Vec<(Component, Amount)>,
    pub reasons: Vec<(Component, Reason)>,
    /// All that it ever earned; all that waits for its maturity; all that waits for a payout address.
    pub earned_total: Amount,
    pub held: Amount,
    pub unassigned: Amount,
    /// What later rules keep; absent from the encoding under earlier ones, so that their records keep their hash.
    #[serde(default, skip_serializing_if = "AccountExtra::is_none")]
    pub extra: AccountExtra,
}

/// What an address may claim: all that was ever released to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Leaf {
    pub payout: Address,
    pub cumulative: Amount,
}

/// One link of the chain. `hash` = BLAKE3 (key derived from `makai ledger entry 1`) of height, time, `prev`, `body`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// From 1.
    pub height: u64,
    pub at: Timestamp,
    pub prev: Hash,
    /// A [`LedgerEvent`] in MessagePack.
    pub body: Bytes,
    pub hash: Hash,
}

/// What changed on the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerEvent {
    Opened {
        cluster_id: String,
        genesis: Genesis,
    },
    SignerAdded(Signer),
    SignerRemoved {
        address: Address,
    },
    PayoutBound {
        binding: PayoutBinding,
        effective_at: Timestamp,
    },
    EpochSealed {
        epoch: u64,
        usage_hash: Hash,
        node_count: u64,
    },
    EpochSigned {
        result: EpochResult,
        threshold: u32,
        signatures: Vec<ClaimSignature>,
        active_at: Timestamp,
    },
    EpochDisputed {
        epoch: u64,
        attempt: u32,
        by: Address,
        reason: String,
    },
    Claimed {
        epoch: u64,
        payout: Address,
        amount: Amount,
        cumulative: Amount,
    },
    /// A tenant paid in.
    Credited {
        tenant: TenantId,
        amount: Amount,
        reference: String,
    },
    /// Epochs after `after_epoch` are signed for a contract, which pays from then on.
    Moved {
        chain_id: u64,
        ledger: Address,
        after_epoch: u64,
        threshold: u32,
        signatures: Vec<ClaimSignature>,
    },
    /// A node draws lots with this key from [`LOT_KEY_WAITS`] epochs later on.
    LotsBound {
        binding: LotBinding,
        epoch: u64,
    },
    Staked {
        order: StakeOrder,
        effective_at: Timestamp,
    },
    /// What tenants paid in an epoch, net of what was given back, and what of it went to so many stakes. `hash`: BLAKE3 (key
    /// derived from `makai income 1`) of each address and its share, ascending.
    IncomeShared {
        epoch: u64,
        income: Amount,
        shared: Amount,
        pledges: u64,
        hash: Hash,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerHead {
    pub height: u64,
    pub hash: Hash,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountsCommand {
    /// First of all; refused ever after.
    Open {
        genesis: Genesis,
    },
    AddSigner(Signer),
    /// For a voter that is gone.
    RemoveSigner {
        address: Address,
    },
    BindPayout(PayoutBinding),
    /// What one gateway saw; once per gateway, epoch and part.
    Meter {
        epoch: u64,
        reporter: NodeId,
        part: u32,
        served: Vec<ServedRow>,
        tenants: Vec<TenantRow>,
    },
    /// What one auditor found; once per auditor, epoch and part.
    Audit {
        epoch: u64,
        auditor: NodeId,
        part: u32,
        rows: Vec<AuditRow>,
    },
    /// Fixes the inputs of the open epoch and opens the next, once its time is over.
    Seal {
        epoch: u64,
    },
    /// Accounts and leaves that an attempt to compute an epoch made; taken with [`Self::Result`].
    Stage {
        epoch: u64,
        attempt: u32,
        accounts: Vec<NodeAccount>,
        leaves: Vec<Leaf>,
    },
    Result(EpochResult),
    Sign {
        epoch: u64,
        attempt: u32,
        signature: ClaimSignature,
    },
    /// A signer takes a root back before it is active: the epoch is computed again.
    Dispute {
        epoch: u64,
        reason: String,
        signature: ClaimSignature,
    },
    Claim {
        epoch: u64,
        leaf: Leaf,
        proof: Vec<Hash>,
    },
    /// Forgets inputs and accounts of an epoch that two later signed ones follow, a bounded piece at a time.
    Prune {
        epoch: u64,
    },
    /// A signer's word that claims go from the embedded ledger to this contract: done when more than half have given it.
    Move {
        chain_id: u64,
        ledger: Address,
        signature: ClaimSignature,
    },
    /// Forgets who might claim against a root once a later one pays, a bounded piece at a time; after [`Self::Prune`].
    PruneLeaves {
        epoch: u64,
    },
    /// What tenants pay from now on.
    SetPrices(Prices),
    /// A tenant pays in; from the first time on it pays in advance. Once for each reference.
    Credit {
        tenant: TenantId,
        amount: Amount,
        reference: String,
    },
    /// Charges what jobs used until now; ends those whose next minutes cannot be paid.
    Charge,
    /// The key that a node draws lots with.
    BindLots(LotBinding),
    /// A node says that it has won in the open epoch; its last word counts.
    Draw {
        epoch: u64,
        node: NodeId,
        proof: Bytes,
    },
    /// What an address stakes, where claims are on the embedded ledger.
    Stake(StakeOrder),
    /// What a signer reads of stakes on the chain that claims are on; counts as far as more than half of the signers read
    /// no less.
    Stakes {
        epoch: u64,
        reporter: NodeId,
        rows: Vec<(Address, Amount)>,
    },
    /// A node is going to train what a spec says.
    AnnounceTraining {
        node: NodeId,
        spec: Hash,
        checkpoints: u32,
    },
    /// Its next checkpoint hashes to this.
    CommitCheckpoint {
        node: NodeId,
        spec: Hash,
        at: u32,
        hash: Hash,
    },
    /// A voter has trained a part of it again.
    JudgeTraining {
        node: NodeId,
        spec: Hash,
        verdict: TrainingVerdict,
    },
    /// An address pays for a tenant with what its stake was given of the income.
    SpendPledge(PledgeOrder),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountsReply {
    Done,
    Epoch(Epoch),
    Paid(Amount),
    /// Whether more is left to forget.
    Pruned {
        is_more: bool,
    },
    Balance(Balance),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountsQuery {
    /// -> `State`
    State,
    /// -> `Epochs`, ascending.
    Epochs { from: u64, entries_max: u32 },
    /// -> `Usage`, by node.
    Usage { epoch: u64, after: Option<NodeId>, entries_max: u32 },
    /// -> `TenantUsage`: what tenants used in a sealed epoch.
    TenantUsage { epoch: u64 },
    /// -> `Accounts`, by node.
    Accounts { epoch: u64, after: Option<NodeId>, entries_max: u32 },
    /// -> `Leaves`, by address.
    Leaves { epoch: u64, after: Option<Address>, entries_max: u32 },
    /// -> `Payouts`, by node.
    Payouts { after: Option<NodeId>, entries_max: u32 },
    /// -> `Ledger`, ascending.
    Ledger { from: u64, entries_max: u32 },
    /// -> `Claimed`: what was paid to each so far.
    Claimed { payouts: Vec<Address> },
    /// -> `GroupBytes`: what each slot of every group holds now.
    GroupBytes,
    /// -> `Billing`: prices, and the balance of every tenant that pays in advance.
    Billing,
    /// -> `LotKey`: what a node draws lots with.
    LotKey { node: NodeId },
    /// -> `Account`: of one node after an epoch.
    Account { epoch: u64, node: NodeId },
    /// -> `Stake`: of an address, on the embedded ledger.
    Stake { payout: Address },
    /// -> `Trainings`: by node and spec.
    Trainings { after: Option<(NodeId, Hash)>, entries_max: u32 },
    /// -> `Pledge`: what an address's stake was given of the income.
    Pledge { payout: Address },
}

/// Where the accounts stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountsState {
    pub genesis: Genesis,
    /// The epoch that is open.
    pub open: u64,
    /// The newest epoch that is signed; 0: none.
    pub signed: u64,
    pub signed_total: Amount,
    pub claimed_total: Amount,
    pub head: LedgerHead,
    pub signers: Vec<Signer>,
    /// The oldest epoch whose accounts are kept; 0: none.
    pub kept_from: u64,
    /// The last epoch that was signed for the embedded ledger before claims moved to a contract; `None`: they did not.
    #[serde(default)]
    pub moved_after: Option<u64>,
    /// The oldest epoch whose leaves are kept; 0: none.
    #[serde(default)]
    pub leaves_from: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountsAnswer {
    /// `None`: accounts are not open.
    State(Option<Box<AccountsState>>),
    Epochs(Vec<Epoch>),
    Usage(Vec<NodeUsage>),
    TenantUsage(Vec<TenantRow>),
    Accounts(Vec<NodeAccount>),
    Leaves(Vec<Leaf>),
    Payouts(Vec<Payout>),
    Ledger(Vec<LedgerEntry>),
    Claimed(Vec<Amount>),
    GroupBytes(Vec<GroupBytes>),
    Billing {
        prices: Prices,
        balances: Vec<Balance>,
        /// Whether anything runs that is charged.
        has_open_bills: bool,
    },
    LotKey(Option<LotKey>),
    Account(Option<Box<NodeAccount>>),
    Stake(Option<Stake>),
    Trainings(Vec<Training>),
    Pledge(Option<Pledge>),
}

/// A group's shards, each of the same length on every disk of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupBytes {
    pub pg: PgId,
    /// In one slot.
    pub slot_bytes: u64,
    /// The last sequence given to a blob.
    pub last_sequence: u64,
}

/// Why the accounts did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum AccountsRefusal {
    #[error("accounts are not open in this cluster yet; a voter opens them when it leads")]
    NotOpen,
    #[error("epoch {0} takes no more; report into the open one")]
    EpochClosed(u64),
    #[error("epoch {epoch} ends at {ends_at}")]
    NotDue { epoch: u64, ends_at: Timestamp },
    #[error("epoch {epoch} is {state:?}, which does not allow this")]
    WrongState { epoch: u64, state: EpochState },
    #[error("the total {total} exceeds what may be paid until epoch {epoch}, {allowed}")]
    OverEmission { epoch: u64, total: Amount, allowed: Amount },
    #[error("the total {total} is below the {before} of the epoch before")]
    Decreases { total: Amount, before: Amount },
    #[error("a signature does not hold: {0}")]
    BadSignature(String),
    #[error("{0} may not sign claims of this cluster")]
    NotASigner(Address),
    #[error("the proof does not lead to the root of epoch {0}; fetch the proof again")]
    BadProof(u64),
    #[error("nothing is left to claim for {0}")]
    NothingToClaim(Address),
    #[error("claims of epoch {epoch} begin at {active_at}")]
    NotActive { epoch: u64, active_at: Timestamp },
    #[error(
        "the tenant's prepaid balance is used up: {needed} billionths of a credit are needed and {free} are free; ask the operator for `makai tenant credit`"
    )]
    BalanceSpent { needed: Amount, free: Amount },
    #[error(
        "claims are paid by the contract {ledger} on chain {chain_id}; set `[ledger] kind = \"evm\"` on this node"
    )]
    PaidByContract { chain_id: u64, ledger: Address },
}
