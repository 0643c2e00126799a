//! What nodes served, what they are owed, and the ledger that says so.
//!
//! | room      | holds                                                                  |
//! |-----------|------------------------------------------------------------------------|
//! | `keys`    | how keys are built                                                     |
//! | `meters`  | bytes in every group, reports of gateways and auditors, usage by node  |
//! | `epochs`  | opening, sealing, results, signatures, disputes, forgetting            |
//! | `claims`  | signers, payout addresses, claims                                      |
//! | `billing` | what tenants pay in advance, and are charged                           |
//! | `moving`  | from the embedded ledger to a contract                                 |
//! | `ledger`  | the hash chain                                                         |
//! | `reading` | answers                                                                |
//!
//! | first | then                                    | record                                              |
//! |-------|-----------------------------------------|-----------------------------------------------------|
//! | `80`  |                                         | genesis                                             |
//! | `81`  | epoch (8)                               | epoch                                               |
//! | `82`  | epoch (8), node (32)                    | usage, once the epoch is sealed                     |
//! | `83`  | epoch (8), 0 served or 1 audits, node (32), part (4) | report of a gateway or auditor         |
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
//!
//! Always: an epoch's inputs never change once it is sealed; a result counts only with the signatures of more than half
//! of the signers; totals never fall and never exceed the emission; what is paid never exceeds the total; every change
//! of these is a link of the chain.

pub(super) mod billing;
mod claims;
mod epochs;
mod keys;
mod ledger;
mod meters;
mod moving;
mod reading;

use serde::{Deserialize, Serialize};

use super::draft::{Draft, Outcome, Stop, read};
use super::kv::View;
use crate::facts::accounts::{AccountsCommand, AccountsRefusal, AccountsReply, Amount, Genesis, LedgerHead};
use crate::facts::command::{Refusal, Reply};

pub use self::claims::{
    dispute_digest, is_payout_signed, payout_digest, payout_message, payout_typed_digest, signer_digest,
};
pub use self::epochs::KEPT_EPOCHS;
pub use self::ledger::entry_hash;
pub use self::meters::{blob_came, blob_went};
pub use self::moving::move_digest;
pub use self::reading::answer;

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
        C::PruneLeaves { epoch } => epochs::prune_leaves(draft, *epoch)?,
        C::Move { chain_id, ledger, signature } => moving::vote(draft, *chain_id, *ledger, signature)?,
    };
    Ok(Reply::Accounts(reply))
}

const DONE: AccountsReply = AccountsReply::Done;
