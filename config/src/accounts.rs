//! `[accounts]`, `[prices]` and `[ledger]`: what the keys mean, their defaults and reasons.

use serde::{Deserialize, Serialize};

const DAY_SECS: u64 = 24 * 60 * 60;

/// Who is paid where nodes asked for one result differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisagreement {
    /// Those who agree with more than half.
    #[default]
    Majority,
    /// Nobody: the literal rule, under which one liar costs all others their pay.
    ForfeitAll,
}

/// `[accounts]`: how work is measured and paid. The first five are taken when the accounts open, and hold ever after:
/// alike on all voters, and nothing to change later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccountsConfig {
    /// Which table of supply and shares: `makai` (2.1 billion, half of it for work) or `mai` (100 million, all of it).
    pub tokenomics: String,
    /// What is served in one epoch is paid together. An hour: short enough to see what one earned, long enough that
    /// agreeing on it costs nothing.
    pub epoch_secs: u64,
    /// From the signing of a root to the first claim against it: time to dispute.
    pub challenge_secs: u64,
    /// From the change of a node's payout address to its first use: a stolen node redirects nothing unnoticed. A week.
    pub payout_cooldown_secs: u64,
    /// Who is paid where nodes asked for one result (`quorum`) differ: `majority` or `forfeit_all`.
    pub on_disagreement: OnDisagreement,
    /// Leaves of 16 KiB asked of each node: 96 a day find a loss of 5 % within a day, for 1.6 MB of its upload.
    pub audit_leaves_per_day: u32,
    /// A node that does not answer an audit in this time is counted offline: home lines and sleeping disks are slow.
    pub audit_deadline_ms: u64,
}

impl Default for AccountsConfig {
    fn default() -> Self {
        Self {
            tokenomics: "makai".to_owned(),
            epoch_secs: 3_600,
            challenge_secs: DAY_SECS,
            payout_cooldown_secs: 7 * DAY_SECS,
            on_disagreement: OnDisagreement::Majority,
            audit_leaves_per_day: 96,
            audit_deadline_ms: 15_000,
        }
    }
}

/// `[prices]`: what tenants that pay in advance are charged, in millionths of a credit; what a credit is worth is between
/// operator and customer. Nothing by default: who has no prices charges nobody. Alike on all voters; the one that leads
/// tells its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PricesConfig {
    /// A GiB of customers' bytes kept for thirty days, whatever the scheme adds to it.
    pub storage_gib_month: u64,
    /// A GiB sent by customers, and to them.
    pub ingress_gib: u64,
    pub egress_gib: u64,
    /// A thousand requests that read or write bytes.
    pub requests_thousand: u64,
    /// What a job holds while it runs, used or not: a core, a GiB of memory, a whole GPU, for an hour.
    pub cpu_core_hour: u64,
    pub memory_gib_hour: u64,
    pub gpu_card_hour: u64,
}

/// Where claims are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LedgerKind {
    /// In the cluster's own facts, hash-chained: needs nothing else.
    #[default]
    Embedded,
    /// On an EVM chain, in the contract `Distributor`.
    Evm,
}

/// `[ledger]`: taken, as far as signatures depend on it, when the accounts open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    pub kind: LedgerKind,
    /// JSON-RPC endpoints (`http://`), asked in this order. A node of one's own, or one behind a local TLS proxy. Where two or
    /// more are given, nothing is final before two of them name the same block.
    pub rpc: Vec<String>,
    pub chain_id: u64,
    /// Address of the contract: signatures are for it alone.
    pub distributor: String,
    /// Address of the contract `Staking`, whose bonds add to what their addresses' nodes earn. Empty: no stake counts.
    pub staking: String,
    /// Blocks on top of a transaction until it counts as final, its own included. 0: as the chain itself says, by its tag
    /// `finalized`.
    pub finality_depth: u64,
    /// Nothing is sent while gas costs more: later roots hold what earlier ones held.
    pub fee_cap_gwei: u64,
    /// A root is posted when so many epochs are over since the last one. At most as many as the facts keep: 8.
    pub post_every_epochs: u64,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            kind: LedgerKind::Embedded,
            rpc: Vec::new(),
            chain_id: 0,
            distributor: String::new(),
            staking: String::new(),
            finality_depth: 12,
            fee_cap_gwei: 100,
            post_every_epochs: 4,
        }
    }
}
