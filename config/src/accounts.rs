//! `[accounts]` and `[ledger]`: what the keys mean, their defaults and reasons.

use serde::{Deserialize, Serialize};

const DAY_SECS: u64 = 24 * 60 * 60;

/// `[accounts]`: how work is measured and paid. The first four are taken when the accounts open, and hold ever after:
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
            audit_leaves_per_day: 96,
            audit_deadline_ms: 15_000,
        }
    }
}

/// Where claims are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LedgerKind {
    /// In the cluster's own facts, hash-chained: needs nothing else.
    #[default]
    Embedded,
}

/// `[ledger]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    pub kind: LedgerKind,
}
