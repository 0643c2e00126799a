//! What the console answers about the accounts, as JSON.
//!
//! | request                             | answers                                                       |
//! |-------------------------------------|---------------------------------------------------------------|
//! | `GET /api/v1/accounts`              | [`Overview`]                                                  |
//! | `GET /api/v1/accounts/claims`       | [`Claims`] of the newest signed epoch                         |
//! | `GET /api/v1/accounts/proof?node=`  | [`ClaimProof`] of what a node may claim                       |
//! | `POST /api/v1/accounts/claim`       | [`ClaimRequest`] -> [`Paid`]                                  |
//! | `POST /api/v1/accounts/dispute`     | [`DisputeRequest`] -> the epoch, which is computed again       |
//! | `GET /api/v1/accounts/claim-cost?node=` | [`ClaimCost`](super::fees::ClaimCost) now                  |
//! | `GET /api/v1/accounts/usage`        | [`Usage`] of the newest sealed epoch                          |
//! | `POST /api/v1/accounts/credit`      | [`CreditRequest`] -> the tenant's balance                     |
//! | `GET /api/v1/accounts/earnings`     | [`Earnings`] of the newest signed epoch                       |
//! | `POST /api/v1/accounts/estimate`    | [`Machine`] -> [`Estimate`]                                   |
//! | `GET /api/v1/accounts/payouts`      | [`PayoutRow`](super::payouts::PayoutRow) of every node        |
//! | `PUT /api/v1/accounts/payout`       | [`PayoutRequest`](super::payouts::PayoutRequest), of this node |
//! | `GET /api/v1/accounts/stakes`       | [`Stakes`](super::stakes::Stakes) on the embedded ledger      |
//! | `PUT /api/v1/accounts/stake`        | a stake, signed by its address                                |
//! | `GET /api/v1/accounts/tenant?name=` | the number that a [`Spending`](super::stakes::Spending) is signed for |
//! | `POST /api/v1/accounts/pledge`      | a [`Spending`](super::stakes::Spending) of what a stake was given |
//! | `GET /api/v1/accounts/trainings`    | [`TrainingRow`](super::trainings::TrainingRow) of every training |
//! | `PUT /api/v1/accounts/training`, `checkpoint` | a training of this node, and its next checkpoint    |
//! | `POST /api/v1/accounts/verdict`     | what this voter found of one                                  |
//! | `GET /api/v1/accounts/opening`      | [`Opening`]: with what a contract is deployed                 |
//! | `GET /api/v1/accounts/ledger`       | the ledger as a file: see `makai_ops::claims::file`           |

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use makai_erasure::NodeId;
use makai_ops::claims::evm;
use makai_ops::claims::file::{EpochFile, LedgerFile};
use makai_ops::claims::statement::Statement;
use makai_ops::claims::tree::{ClaimTree, embedded_ledger};
use makai_ops::rewards::settle::{Inputs, settle};
use makai_ops::rewards::tokenomics::{Tokenomics, UNITS_PER_TOKEN};
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{
    AccountsCommand, AccountsReply, AccountsState, Address, Amount, Balance, ClaimSignature, Component,
    Epoch, EpochState, Hash, Leaf, NodeAccount, NodeUsage, Prices, Reason, SliceTime, Status, TenantRow,
};
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::Metadata;
use makai_raft::machine::accounts::dispute_digest;
use serde::{Deserialize, Serialize};

use super::chain::Chain;
use super::foresight::foresee;
use super::{keys, reading};
use crate::clock;
use crate::reconcile::Shell;

/// Where the accounts stand.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overview {
    pub state: AccountsState,
    pub open_epoch: Epoch,
    /// The epoch that is to be signed next, once it is sealed: what was computed of it, and who has signed so far.
    #[serde(default)]
    pub settling: Option<Epoch>,
}

/// What each node may claim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    /// The newest signed epoch; 0: none yet.
    pub epoch: u64,
    pub root: Hash,
    pub total: Amount,
    /// When claims against this root begin.
    pub active_at: Timestamp,
    pub claims: Vec<ClaimRow>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimRow {
    pub node: NodeId,
    pub name: String,
    pub payout: Address,
    /// All that may ever be claimed for the address, what was claimed included. Nodes with one address share it.
    pub cumulative: Amount,
    /// Of that, what may be claimed by now, what was claimed included: by the newest root whose time of dispute is over.
    /// `None`, and so below: the chain does not answer now.
    pub payable: Option<Amount>,
    pub claimed: Option<Amount>,
}

/// Everything that proves a claim, for whoever has the operators' signer addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimProof {
    pub epoch: u64,
    pub payout: Address,
    pub cumulative: Amount,
    pub proof: Vec<Hash>,
    pub root: Hash,
    pub total: Amount,
    pub data_hash: Hash,
    pub prev_root: Hash,
    pub chain_id: u64,
    pub ledger: Address,
    pub threshold: u32,
    pub signers: Vec<Address>,
    pub signatures: Vec<ClaimSignature>,
}

impl ClaimProof {
    /// Checks proof and signatures with nothing but this; returns whose signatures hold.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verify(&self) -> anyhow::Result<Vec<Address>> {
        use makai_raft::signatures::{claim_leaf, proves, recover};
        if !proves(&self.root, claim_leaf(&self.payout, self.cumulative.0), &self.proof) {
            bail!("{} for {} does not lead to the root {}", self.cumulative, self.payout, self.root);
        }
        let statement = Statement {
            chain_id: self.chain_id,
            ledger: self.ledger,
            epoch: self.epoch,
            root: self.root,
            total: self.total,
            data_hash: self.data_hash,
            prev_root: self.prev_root,
        };
        let digest = statement.digest();
        let mut good = std::collections::BTreeSet::new();
        for one in &self.signatures {
            if recover(&digest, &one.signature) != Some(one.signer) || !self.signers.contains(&one.signer) {
                bail!("the signature of {} does not hold", one.signer);
            }
            good.insert(one.signer);
        }
        if good.len() < self.threshold as usize || self.threshold as usize <= self.signers.len() / 2 {
            bail!("{} signatures of {} signers are no majority", good.len(), self.signers.len());
        }
        Ok(good.into_iter().collect())
    }
}

/// What the constructor of the contract takes: `ops/contracts/deploy.mjs` reads it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// 0: claims are on the embedded ledger.
    pub chain_id: u64,
    pub pool: Amount,
    pub halving_epochs: u64,
    /// All units of the token that will ever exist, and whose they are.
    pub cap: Amount,
    pub allocation_bp: std::collections::BTreeMap<String, u32>,
    pub window_secs: u64,
    pub signers: Vec<Address>,
    pub threshold: u32,
    /// The newest epoch against which may be claimed; 0: none, and no root.
    pub epoch: u64,
    pub root: Hash,
    pub total: Amount,
}

/// Epochs looked at, newest first, for one against which may be claimed.
const OPENING_LOOKS: usize = 1000;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// The node whose address is paid.
    pub node: NodeId,
}

/// A voter takes the newest root back, before claims against it begin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DisputeRequest {
    pub epoch: u64,
    pub reason: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Paid {
    pub payout: Address,
    pub amount: Amount,
}

/// Gas of a claim: twenty steps of proof and a first transfer.
const CLAIM_GAS: u64 = 250_000;
/// How long a claim on a chain is waited for.
const CLAIM_WITHIN: Duration = Duration::from_secs(60);
const CLAIM_LOOK_EVERY: Duration = Duration::from_millis(200);

/// What nodes and tenants used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Usage {
    /// The newest sealed epoch; 0: none yet.
    pub epoch: u64,
    pub epoch_ms: u64,
    pub nodes: Vec<NodeUsage>,
    pub tenants: Vec<TenantUsage>,
    /// In millionths of a credit.
    pub prices: Prices,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantUsage {
    pub name: String,
    pub stored_bytes: u64,
    pub objects: u64,
    /// What it moved and held in the epoch, and what that cost; `None`: nothing.
    pub used: Option<TenantRow>,
    /// `None`: it does not pay in advance, and is not charged.
    pub balance: Option<Balance>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreditRequest {
    /// Its name.
    pub tenant: String,
    /// Billionths of a credit.
    pub amount: Amount,
    /// A payment counts once for each: an invoice's number.
    pub reference: String,
}

/// What nodes earned, and why not more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Earnings {
    pub epoch: u64,
    pub epoch_ms: u64,
    /// What all could earn in the epoch.
    pub emission: Amount,
    pub nodes: Vec<NodeEarnings>,
}

/// A machine that somebody thinks of offering, used in full.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub stored_bytes: u64,
    pub egress_bytes_a_day: u64,
    pub cores: u64,
    pub gpus: u64,
}

/// What it would have earned.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Estimate {
    pub epoch: u64,
    pub epoch_ms: u64,
    pub components: Vec<(Component, Amount)>,
    pub earned: Amount,
    /// As long as supply and demand stay as they were.
    pub a_day: Amount,
    /// Of that, held back in a node's first month.
    pub held_back_pct: u8,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeEarnings {
    pub node: NodeId,
    pub name: String,
    pub status: Status,
    pub status_since: u64,
    pub status_why: String,
    pub components: Vec<ComponentEarnings>,
    /// In this epoch, and ever.
    pub earned: Amount,
    pub earned_total: Amount,
    /// What the epoch would have brought had every audit passed and every answer been right: the estimate beside the actual.
    #[serde(default)]
    pub expected: Amount,
    /// What has come together since, in epochs that are not signed yet, if audits pass: by stored bytes and computing power
    /// alone, since traffic is reported late.
    #[serde(default)]
    pub accruing: Amount,
    /// Not yet to be claimed: held back while the node is new, or for want of a payout address.
    pub held: Amount,
    pub unassigned: Amount,
    pub account: NodeAccount,
    pub usage: Option<NodeUsage>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComponentEarnings {
    pub component: Component,
    pub amount: Amount,
    pub reasons: Vec<Reason>,
}

async fn need_state(facts: &dyn Metadata) -> anyhow::Result<AccountsState> {
    reading::state(facts).await?.context("the accounts are not open yet; a voter opens them when it leads")
}

/// # Errors
/// The facts do not answer; so for all below.
pub async fn overview(shell: &Shell) -> anyhow::Result<Overview> {
    let state = need_state(&*shell.facts).await?;
    let open_epoch = reading::epoch(&*shell.facts, state.open).await?;
    let settling = match state.signed + 1 {
        next if next < state.open => Some(reading::epoch(&*shell.facts, next).await?),
        _ => None,
    };
    Ok(Overview { state, open_epoch, settling })
}

/// The newest epoch whose claims count, with its record.
async fn newest_signed(facts: &dyn Metadata, state: &AccountsState) -> anyhow::Result<Option<Epoch>> {
    if state.signed == 0 {
        return Ok(None);
    }
    Ok(Some(reading::epoch(facts, state.signed).await?).filter(|epoch| epoch.state == EpochState::Signed))
}

/// The newest epoch against which may be claimed now. Its leaves are there.
async fn newest_payable(facts: &dyn Metadata, state: &AccountsState) -> anyhow::Result<Option<Epoch>> {
    for number in (state.leaves_from.max(1)..=state.signed).rev() {
        let epoch = reading::epoch(facts, number).await?;
        if epoch.state == EpochState::Signed && epoch.active_at.is_some_and(|at| at <= clock::now()) {
            return Ok(Some(epoch));
        }
    }
    Ok(None)
}

/// Where a node is paid now.
async fn payout_of(facts: &dyn Metadata, node: NodeId) -> anyhow::Result<Address> {
    let payout = reading::payouts(facts).await?.into_iter().find(|payout| payout.node == node);
    payout.and_then(|payout| payout.in_force(clock::now())).context("the node has no payout address")
}

fn leaf_of(leaves: &[Leaf], payout: Address, node: NodeId) -> anyhow::Result<Leaf> {
    let leaf = leaves.iter().find(|leaf| leaf.payout == payout).copied();
    leaf.with_context(|| format!("nothing may be claimed for {payout} yet: see `makai why {node}`"))
}

/// What pays now, and what was paid to each address asked for.
struct Paying {
    payable: Vec<Leaf>,
    claimed: Vec<Amount>,
}

/// Addresses whose payments a chain is asked for, one by one.
const CHAIN_ADDRESSES_MAX: usize = 500;

async fn paying_on_chain(
    facts: &dyn Metadata,
    state: &AccountsState,
    chain: &Chain,
    payouts: &[Address],
) -> anyhow::Result<Paying> {
    if payouts.len() > CHAIN_ADDRESSES_MAX {
        bail!("{} addresses are more than a chain is asked for one by one", payouts.len());
    }
    chain.check().await?;
    let mut claimed = Vec::new();
    for payout in payouts {
        let answer = evm::read_number(&chain.simulate(&evm::claimed(payout)).await?, 0);
        claimed.push(Amount(answer.context("the contract's answer")?));
    }
    let payable = match payable_roots(state, chain).await?.first() {
        Some((_, root)) => reading::leaves(facts, root.epoch).await?,
        None => Vec::new(),
    };
    Ok(Paying { payable, claimed })
}

/// Roots by which the contract pays now and whose leaves the facts still have, newest first.
pub(super) async fn payable_roots(
    state: &AccountsState,
    chain: &Chain,
) -> anyhow::Result<Vec<(u64, evm::PostedRoot)>> {
    let now_secs = clock::now().0 / 1000;
    let mut roots = chain.roots().await?;
    roots.retain(|(_, root)| root.active_at <= now_secs && root.epoch >= state.leaves_from);
    roots.reverse();
    Ok(roots)
}

/// # Errors
/// As [`overview`].
pub async fn claims(shell: &Shell) -> anyhow::Result<Claims> {
    let facts = &*shell.facts;
    let none = Claims {
        epoch: 0,
        root: Hash::default(),
        total: Amount(0),
        active_at: Timestamp(0),
        claims: Vec::new(),
    };
    let Some(state) = reading::state(facts).await? else { return Ok(none) };
    let Some(epoch) = newest_signed(facts, &state).await? else { return Ok(none) };
    let (accounts, leaves) =
        (reading::accounts(facts, epoch.number).await?, reading::leaves(facts, epoch.number).await?);
    let payouts: Vec<Address> = leaves.iter().map(|leaf| leaf.payout).collect();
    let paid = match &shell.chain {
        None => Some(Paying {
            claimed: reading::claimed(facts, &payouts).await?,
            payable: match newest_payable(facts, &state).await? {
                Some(payable) if payable.number == epoch.number => leaves.clone(),
                Some(payable) => reading::leaves(facts, payable.number).await?,
                None => Vec::new(),
            },
        }),
        Some(chain) => match paying_on_chain(facts, &state, chain, &payouts).await {
            Ok(paying) => Some(paying),
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "the chain does not say what was claimed");
                None
            }
        },
    };
    let map = shell.map.get();
    let row = |account: NodeAccount| {
        let payout = account.payout?;
        let place = leaves.binary_search_by_key(&payout, |leaf| leaf.payout).ok();
        Some(ClaimRow {
            node: account.node,
            name: map.node(account.node).map(|node| node.name.clone()).unwrap_or_default(),
            payout,
            cumulative: place.map_or(Amount(0), |place| leaves[place].cumulative),
            payable: paid.as_ref().map(|paid| {
                let place = paid.payable.binary_search_by_key(&payout, |leaf| leaf.payout);
                place.map_or(Amount(0), |place| paid.payable[place].cumulative)
            }),
            claimed: paid
                .as_ref()
                .map(|paid| place.and_then(|place| paid.claimed.get(place)).copied().unwrap_or_default()),
        })
    };
    Ok(Claims {
        epoch: epoch.number,
        root: epoch.result.as_ref().map(|result| result.claim_root).unwrap_or_default(),
        total: epoch.result.as_ref().map(|result| result.total).unwrap_or_default(),
        active_at: epoch.active_at.unwrap_or_default(),
        claims: accounts.into_iter().filter_map(row).collect(),
    })
}

/// # Errors
/// As [`overview`]; or the node has nothing to claim yet.
pub async fn proof(shell: &Shell, node: NodeId) -> anyhow::Result<ClaimProof> {
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let epoch = newest_signed(facts, &state).await?.context("no epoch is signed yet")?;
    let result = epoch.result.clone().context("no epoch is signed yet")?;
    let accounts = reading::accounts(facts, epoch.number).await?;
    let account = accounts.iter().find(|account| account.node == node);
    let payout = account.and_then(|account| account.payout).context("the node has no payout address")?;
    let leaves = reading::leaves(facts, epoch.number).await?;
    let leaf = leaf_of(&leaves, payout, node)?;
    let proof = ClaimTree::new(&leaves).proof(&leaf).ok_or_else(|| anyhow!("the leaf is not in its tree"))?;
    let prev_root = match epoch.number {
        1 => Hash::default(),
        number => {
            let before = reading::epoch(facts, number - 1).await?.result;
            before.map(|result| result.claim_root).unwrap_or_default()
        }
    };
    let (chain_id, ledger) = match state.moved_after {
        Some(after) if epoch.number <= after => (0, embedded_ledger(&shell.map.get().map.cluster_id)),
        _ => (state.genesis.chain_id, state.genesis.ledger),
    };
    Ok(ClaimProof {
        epoch: epoch.number,
        payout,
        cumulative: leaf.cumulative,
        proof,
        root: result.claim_root,
        total: result.total,
        data_hash: result.data_hash,
        prev_root,
        chain_id,
        ledger,
        threshold: epoch.threshold,
        signers: state.signers.iter().map(|signer| signer.address).collect(),
        signatures: epoch.signatures,
    })
}

/// Takes the newest signed root back in the name of this voter: the epoch is computed again.
///
/// # Errors
/// This node is no voter, claims against the root have begun, or this voter has taken one of the epoch back before.
pub async fn dispute(shell: &Shell, request: DisputeRequest) -> anyhow::Result<Epoch> {
    let DisputeRequest { epoch, reason } = request;
    let facts = &*shell.facts;
    let result = reading::epoch(facts, epoch).await?.result;
    let digest = result.with_context(|| format!("epoch {epoch} has no root yet"))?.digest;
    let key = keys::load_or_create(&shell.config.node.dir, "claim.key")?;
    let signature =
        ClaimSignature { signer: key.address(), signature: key.sign(&dispute_digest(&digest, &reason)) };
    let command = AccountsCommand::Dispute { epoch, reason, signature };
    match facts.propose(Command::Accounts(command)).await? {
        Reply::Accounts(AccountsReply::Epoch(epoch)) => Ok(epoch),
        other => bail!("the facts answered {other:?}"),
    }
}

/// # Errors
/// As [`proof`]; or the ledger refuses.
pub async fn claim(shell: &Shell, node: NodeId) -> anyhow::Result<Paid> {
    if let Some(chain) = &shell.chain {
        return claim_on_chain(shell, chain, node).await;
    }
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let payout = payout_of(facts, node).await?;
    let Some(epoch) = newest_payable(facts, &state).await? else {
        let next = reading::epoch(facts, state.leaves_from.max(1)).await?.active_at;
        let when = next.map_or_else(String::new, |at| format!("; the first one does from {at} on"));
        bail!("no root pays yet: each waits for its time of dispute{when}");
    };
    let leaves = reading::leaves(facts, epoch.number).await?;
    let leaf = leaf_of(&leaves, payout, node)?;
    let proof = ClaimTree::new(&leaves).proof(&leaf).ok_or_else(|| anyhow!("the leaf is not in its tree"))?;
    let command = AccountsCommand::Claim { epoch: epoch.number, leaf, proof };
    match shell.facts.propose(Command::Accounts(command)).await? {
        Reply::Accounts(AccountsReply::Paid(amount)) => Ok(Paid { payout: leaf.payout, amount }),
        other => bail!("the facts answered {other:?}"),
    }
}

/// Against the newest root that the contract pays by and whose leaves the facts still have.
async fn claim_on_chain(shell: &Shell, chain: &Chain, node: NodeId) -> anyhow::Result<Paid> {
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let payout = payout_of(facts, node).await?;
    chain.check().await?;
    for (index, root) in payable_roots(&state, chain).await? {
        let leaves = reading::leaves(facts, root.epoch).await?;
        let tree = ClaimTree::new(&leaves);
        let Some(leaf) =
            leaves.iter().find(|leaf| leaf.payout == payout).filter(|_| tree.root() == root.root)
        else {
            continue;
        };
        let proof = tree.proof(leaf).context("the leaf is not in its tree")?;
        let data = evm::claim(index, &payout, leaf.cumulative, &proof);
        let amount = evm::read_number(&chain.simulate(&data).await?, 0).context("the contract's answer")?;
        chain.submit(&format!("claim {payout}"), &data, CLAIM_GAS).await?;
        let begun = clock::instant();
        while begun.elapsed() < CLAIM_WITHIN {
            chain.tend().await?;
            let claimed = chain.simulate(&evm::claimed(&payout)).await?;
            if evm::read_number(&claimed, 0).is_some_and(|claimed| claimed >= leaf.cumulative.0) {
                return Ok(Paid { payout, amount: Amount(amount) });
            }
            tokio::time::sleep(CLAIM_LOOK_EVERY).await;
        }
        bail!("the claim is sent and not in a block after {} s; it goes on", CLAIM_WITHIN.as_secs());
    }
    bail!(
        "the chain has no root yet that pays {payout}; roots follow every {} epochs",
        shell.config.ledger.post_every_epochs
    )
}

/// # Errors
/// As [`overview`].
pub async fn usage(shell: &Shell) -> anyhow::Result<Usage> {
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let epoch = state.open.saturating_sub(1);
    let nodes = if epoch == 0 { Vec::new() } else { reading::usage(facts, epoch).await? };
    let tenants = match facts.query(Query::Tenants).await? {
        Answer::Tenants(tenants) => tenants,
        other => bail!("the facts answered {other:?}"),
    };
    let rows = if epoch == 0 { Vec::new() } else { reading::tenant_usage(facts, epoch).await? };
    let (prices, balances, _) = reading::billing(facts).await?;
    let of_tenant = |tenant: makai_raft::facts::tenant::Tenant| TenantUsage {
        used: rows.iter().find(|row| row.tenant == tenant.id).cloned(),
        balance: balances.iter().find(|balance| balance.tenant == tenant.id).cloned(),
        name: tenant.name,
        stored_bytes: tenant.used_bytes,
        objects: tenant.used_objects,
    };
    let tenants = tenants.into_iter().map(of_tenant).collect();
    Ok(Usage { epoch, epoch_ms: state.genesis.epoch_ms, nodes, tenants, prices })
}

/// Takes a payment of a tenant in; it pays in advance from then on.
///
/// # Errors
/// As [`overview`]; there is no such tenant, or the reference was used for another amount.
pub async fn credit(shell: &Shell, request: CreditRequest) -> anyhow::Result<Balance> {
    let facts = &*shell.facts;
    let tenant = super::stakes::tenant(shell, &request.tenant).await?;
    let CreditRequest { amount, reference, .. } = request;
    let command = AccountsCommand::Credit { tenant, amount, reference };
    match facts.propose(Command::Accounts(command)).await? {
        Reply::Accounts(AccountsReply::Balance(balance)) => Ok(balance),
        other => bail!("the facts answered {other:?}"),
    }
}

/// # Errors
/// As [`overview`].
pub async fn earnings(shell: &Shell) -> anyhow::Result<Earnings> {
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let epoch_ms = state.genesis.epoch_ms;
    let Some(epoch) = newest_signed(facts, &state).await? else {
        return Ok(Earnings { epoch: 0, epoch_ms, emission: Amount(0), nodes: Vec::new() });
    };
    let usage = reading::usage(facts, epoch.number).await?;
    let map = shell.map.get();
    let foreseen = foresee(shell, &state, &epoch, &usage).await?;
    let of_node = |account: NodeAccount| {
        let component = |component: Component| ComponentEarnings {
            component,
            amount: account
                .earned
                .iter()
                .find(|(of, _)| *of == component)
                .map_or(Amount(0), |(_, amount)| *amount),
            reasons: account
                .reasons
                .iter()
                .filter(|(of, _)| *of == component)
                .map(|(_, reason)| *reason)
                .collect(),
        };
        let components: Vec<ComponentEarnings> = Component::ALL.into_iter().map(component).collect();
        NodeEarnings {
            node: account.node,
            name: map.node(account.node).map(|node| node.name.clone()).unwrap_or_default(),
            status: account.status,
            status_since: account.status_since,
            status_why: account.status_why.clone(),
            earned: components.iter().fold(Amount(0), |sum, one| sum.plus(one.amount)),
            components,
            earned_total: account.earned_total,
            expected: foreseen.expected(account.node),
            accruing: foreseen.accruing(account.node),
            held: account.held,
            unassigned: account.unassigned,
            usage: usage.iter().find(|usage| usage.node == account.node).cloned(),
            account,
        }
    };
    let nodes = reading::accounts(facts, epoch.number).await?.into_iter().map(of_node).collect();
    let emission = state.genesis.emission.of_epoch(epoch.number);
    Ok(Earnings { epoch: epoch.number, epoch_ms, emission, nodes })
}

/// What a node like this would have earned in the newest signed epoch beside those that were there: by the code that
/// settles epochs.
///
/// # Errors
/// As [`overview`]; or no epoch is signed yet.
pub async fn estimate(shell: &Shell, machine: &Machine) -> anyhow::Result<Estimate> {
    /// No key has this id.
    const NEW_NODE: NodeId = NodeId([0xFF; 32]);
    const DAY_MS: u128 = 24 * 60 * 60 * 1000;
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let epoch = newest_signed(facts, &state).await?.context("no epoch is signed yet")?;
    let (number, epoch_ms) = (epoch.number, state.genesis.epoch_ms);
    let mut usage = reading::usage(facts, number).await?;
    let (accounts, before) = match number {
        1 => (Vec::new(), None),
        _ => {
            let before = reading::epoch(facts, number - 1).await?.result;
            (reading::accounts(facts, number - 1).await?, before)
        }
    };
    let a_day =
        |bytes: u64| u64::try_from(u128::from(bytes) * u128::from(epoch_ms) / DAY_MS).unwrap_or(u64::MAX);
    let time = |count: u64| count.saturating_mul(epoch_ms);
    usage.push(NodeUsage {
        stored_bytes: machine.stored_bytes,
        storage_byte_ms: u128::from(machine.stored_bytes) * u128::from(epoch_ms),
        egress_bytes: a_day(machine.egress_bytes_a_day),
        audits_pass: 1,
        lease: SliceTime {
            cpu_core_ms: time(machine.cores),
            memory_mib_ms: 0,
            gpu_card_ms: time(machine.gpus),
        },
        ..NodeUsage::of(NEW_NODE)
    });
    let table = Tokenomics::parse(&state.genesis.tokenomics)?;
    let outcome = settle(&Inputs {
        rules: state.genesis.rules,
        table: &table,
        epoch: number,
        epoch_ms,
        beacon: epoch.beacon,
        usage: &usage,
        accounts: &accounts,
        leaves: &[],
        difficulty: before.as_ref().map_or(&[], |result| &result.difficulty),
    });
    let account = outcome.accounts.into_iter().find(|account| account.node == NEW_NODE);
    let account = account.context("the settlement knows no new node")?;
    let earned = account.earned.iter().fold(Amount(0), |sum, (_, amount)| sum.plus(*amount));
    Ok(Estimate {
        epoch: number,
        epoch_ms,
        a_day: Amount(earned.0.saturating_mul(DAY_MS) / u128::from(epoch_ms.max(1))),
        components: account.earned,
        earned,
        held_back_pct: table.holdback_pct(0),
    })
}

/// With what a contract for this cluster is deployed, so that its first root is the newest that may be claimed here.
///
/// # Errors
/// As [`overview`].
pub async fn opening(shell: &Shell) -> anyhow::Result<Opening> {
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let table = Tokenomics::parse(&state.genesis.tokenomics)?;
    let mut newest = None;
    for number in (1..=state.signed).rev().take(OPENING_LOOKS) {
        let epoch = reading::epoch(facts, number).await?;
        if epoch.active_at.is_some_and(|active_at| active_at <= clock::now()) {
            newest = epoch.result;
            break;
        }
    }
    let threshold = u32::try_from(state.signers.len() / 2 + 1).unwrap_or(u32::MAX);
    Ok(Opening {
        chain_id: state.genesis.chain_id,
        pool: state.genesis.emission.pool,
        halving_epochs: state.genesis.emission.halving_epochs,
        cap: Amount(u128::from(table.cap_tokens) * UNITS_PER_TOKEN),
        allocation_bp: table.allocation_bp,
        window_secs: state.genesis.challenge_ms / 1000,
        signers: state.signers.iter().map(|signer| signer.address).collect(),
        threshold,
        epoch: newest.as_ref().map_or(0, |result| result.epoch),
        root: newest.as_ref().map(|result| result.claim_root).unwrap_or_default(),
        total: newest.map(|result| result.total).unwrap_or_default(),
    })
}

/// The ledger as a file: its whole chain, and the facts of every epoch that is kept.
///
/// # Errors
/// As [`overview`].
pub async fn ledger(shell: &Shell) -> anyhow::Result<Bytes> {
    let facts = &*shell.facts;
    let state = need_state(facts).await?;
    let mut epochs = Vec::new();
    // The oldest may be forgotten while it is read.
    let oldest = if state.kept_from > 1 { state.kept_from + 1 } else { 1 };
    for number in oldest..=state.signed {
        epochs.push(EpochFile {
            epoch: reading::epoch(facts, number).await?,
            usage: reading::usage(facts, number).await?,
            accounts: reading::accounts(facts, number).await?,
            leaves: reading::leaves(facts, number).await?,
        });
    }
    // Read last, so that it holds every epoch above.
    let file = LedgerFile { entries: reading::ledger(facts).await?, epochs };
    Ok(Bytes::from(file.to_bytes()?))
}
