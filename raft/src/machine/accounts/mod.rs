//! What nodes served, what they are owed, and the ledger that says so.
//!
//! | room      | holds                                                                  |
//! |-----------|------------------------------------------------------------------------|
//! | `keys`    | how keys are built                                                     |
//! | `meters`  | bytes in every group, reports of gateways and auditors, usage by node  |
//! | `epochs`  | opening, sealing, results, signatures, disputes, forgetting            |
//! | `claims`  | signers, payout addresses, claims                                      |
//! | `billing` | what tenants pay in advance, and are charged                           |
//! | `lots`    | keys that lots are drawn with, and who says that it has won            |
//! | `stakes`  | what addresses put behind their nodes' work                            |
//! | `pledges` | what stakes are given of the income                                   |
//! | `trainings` | what nodes train, and what voters find of it                         |
//! | `moving`  | from the embedded ledger to a contract                                 |
//! | `ledger`  | the hash chain                                                         |
//! | `reading` | answers                                                                |
//!
//! | first | then                                    | record                                              |
//! |-------|-----------------------------------------|-----------------------------------------------------|
//! | `80`  |                                         | genesis                                             |
//! | `81`  | epoch (8)                               | epoch                                               |
//! | `82`  | epoch (8), node (32)                    | usage, once the epoch is sealed                     |
//! | `83`  | epoch (8), kind (1), node (32), part (4)   | what was reported: 0 served, 1 audits, 2 lots, 3 stakes |
//! | `84`  | epoch (8), attempt (4), node (32)       | account after the epoch                             |
//! | `85`  | epoch (8), attempt (4), address (20)    | what the address may claim                          |
//! | `86`  | group (4)                               | bytes in each slot of it, and their integral        |
//! | `87`  | node (32)                               | payout address                                      |
//! | `88`  | address (20)                            | signer                                              |
//! | `89`  | height (8)                              | ledger entry                                        |
//! | `8A`  |                                         | where the accounts stand                            |
//! | `8B`  | address (20)                            | what was paid to it                                 |
//! | `8C`  | epoch (8)                               | what tenants used                                   |
//! | `8D`  | group (4)                               | who held its slots at the last sealing              |
//! | `8E`  |                                         | signers' words for a move to a contract             |
//! | `90`  |                                         | what tenants pay                                    |
//! | `91`  | tenant (8)                              | balance of a tenant that pays in advance            |
//! | `92`  | tenant (8), reference                   | what was paid in with it                            |
//! | `93`  | job (8), index (4)                      | what a current attempt has cost                     |
//! | `94`  | tenant (8)                              | what its jobs used in the open epoch                |
//! | `95`  | node (32)                               | what it did for jobs in the open epoch              |
//! | `96`  | job (8)                                 | what it came to so far                              |
//! | `97`  | node (32)                               | what it draws lots with                             |
//! | `98`  | address (20)                            | what it stakes                                      |
//! | `99`  | node (32), spec (32)                    | a training                                          |
//! | `9A`  | address (20)                            | what its stake was given of the income              |
//! | `9B`  |                                         | income that later sealings reckon with              |
//!
//! Always: an epoch's inputs never change once it is sealed; a result counts only with the signatures of more than half
//! of the signers; totals never fall and never exceed the emission; what is paid never exceeds the total; every change
//! of these is a link of the chain.

pub(super) mod billing;
mod claims;
mod epochs;
mod keys;
mod ledger;
mod lots;
mod meters;
mod moving;
mod pledges;
mod reading;
mod stakes;
mod trainings;

use serde::{Deserialize, Serialize};

use super::draft::{Draft, Outcome, Stop, read};
use super::kv::{KvError, View};
use crate::facts::accounts::{
    AccountsCommand, AccountsRefusal, AccountsReply, Amount, Genesis, LedgerHead, RULES_LOTS, RULES_PLEDGES,
};
use crate::facts::command::{Refusal, Reply};

pub use self::claims::{
    dispute_digest, is_payout_signed, payout_digest, payout_message, payout_typed_digest, signer_digest,
};
pub use self::epochs::KEPT_EPOCHS;
pub use self::ledger::entry_hash;
pub use self::meters::{blob_came, blob_went};
pub use self::moving::move_digest;
pub use self::pledges::pledge_digest;
pub use self::reading::answer;
pub use self::stakes::stake_digest;

/// Where the accounts stand, in one small record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    open: u64,
    signed: u64,
    signed_total: Amount,
    claimed_total: Amount,
    head: LedgerHead,
    kept_from: u64,
    #[serde(default)]
    moved_after: Option<u64>,
    #[serde(default)]
    leaves_from: u64,
}

impl Standing {
    /// A release before kept leaves no longer than accounts.
    fn leaves_from(&self) -> u64 {
        if self.leaves_from == 0 { self.kept_from } else { self.leaves_from }
    }
}

fn refused<T>(refusal: AccountsRefusal) -> Outcome<T> {
    Err(stop(refusal))
}

fn stop(refusal: AccountsRefusal) -> Stop {
    Stop::Refused(Refusal::Accounts(refusal))
}

fn invalid(why: impl Into<String>) -> Stop {
    Stop::Refused(Refusal::Invalid(why.into()))
}

fn genesis(view: &dyn View) -> Outcome<Genesis> {
    read(view, &keys::genesis())?.ok_or_else(|| stop(AccountsRefusal::NotOpen))
}

/// Refuses what rules before [`RULES_LOTS`] do not know.
fn need_late_rules(view: &dyn View) -> Outcome<Genesis> {
    let genesis = genesis(view)?;
    if genesis.rules < RULES_LOTS {
        let rules = genesis.rules;
        return Err(invalid(format!(
            "this cluster's accounts follow rules {rules}, which know no such thing"
        )));
    }
    Ok(genesis)
}

/// How results that differ are paid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuorumRules {
    /// Whoever ran a task again is counted as a verifier.
    pub has_verifiers: bool,
    /// A processor may run again what a card ran.
    pub has_reruns: bool,
    pub forfeits_all: bool,
}

/// By the rules of the genesis; before the accounts open, by the first.
pub fn quorum_rules(view: &dyn View) -> Result<QuorumRules, KvError> {
    let genesis: Option<Genesis> = read(view, &keys::genesis())?;
    Ok(genesis.map_or_else(QuorumRules::default, |genesis| QuorumRules {
        has_verifiers: genesis.rules >= RULES_LOTS,
        has_reruns: genesis.rules >= RULES_PLEDGES,
        forfeits_all: genesis.forfeits_all,
    }))
}

fn standing(view: &dyn View) -> Outcome<Standing> {
    Ok(read(view, &keys::standing())?.unwrap_or_default())
}

pub fn run(draft: &mut Draft<'_>, command: &AccountsCommand) -> Outcome<Reply> {
    use AccountsCommand as C;
    let reply = match command {
        C::Open { genesis } => epochs::open(draft, genesis)?,
        C::AddSigner(signer) => claims::add_signer(draft, signer)?,
        C::RemoveSigner { address } => claims::remove_signer(draft, address)?,
        C::BindPayout(binding) => claims::bind_payout(draft, binding)?,
        C::Meter { epoch, reporter, part, served, tenants } => {
            meters::report_served(draft, *epoch, reporter, *part, served, tenants)?
        }
        C::Audit { epoch, auditor, part, rows } => {
            meters::report_audits(draft, *epoch, auditor, *part, rows)?
        }
        C::Seal { epoch } => epochs::seal(draft, *epoch)?,
        C::Stage { epoch, attempt, accounts, leaves } => {
            epochs::stage(draft, *epoch, *attempt, accounts, leaves)?
        }
        C::Result(result) => epochs::propose(draft, result)?,
        C::Sign { epoch, attempt, signature } => epochs::sign(draft, *epoch, *attempt, signature)?,
        C::Dispute { epoch, reason, signature } => epochs::dispute(draft, *epoch, reason, signature)?,
        C::Claim { epoch, leaf, proof } => claims::claim(draft, *epoch, leaf, proof)?,
        C::Prune { epoch } => epochs::prune(draft, *epoch)?,
        C::SetPrices(prices) => billing::set_prices(draft, prices)?,
        C::Credit { tenant, amount, reference } => billing::credit(draft, *tenant, *amount, reference)?,
        C::Charge => {
            billing::charge_all(draft)?;
            DONE
        }
        C::BindLots(binding) => lots::bind(draft, binding)?,
        C::Stake(order) => stakes::order(draft, order)?,
        C::Stakes { epoch, reporter, rows } => stakes::report(draft, *epoch, reporter, rows)?,
        C::AnnounceTraining { node, spec, checkpoints } => {
            trainings::announce(draft, node, spec, *checkpoints)?
        }
        C::CommitCheckpoint { node, spec, at, hash } => trainings::commit(draft, node, spec, *at, hash)?,
        C::JudgeTraining { node, spec, verdict } => trainings::judge(draft, node, spec, verdict)?,
        C::SpendPledge(order) => pledges::spend(draft, order)?,
        C::Draw { epoch, node, proof } => lots::draw(draft, *epoch, node, proof)?,
        C::PruneLeaves { epoch } => epochs::prune_leaves(draft, *epoch)?,
        C::Move { chain_id, ledger, signature } => moving::vote(draft, *chain_id, *ledger, signature)?,
    };
    Ok(Reply::Accounts(reply))
}

const DONE: AccountsReply = AccountsReply::Done;
