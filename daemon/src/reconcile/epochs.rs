//! Closes epochs and signs what they come to.
//!
//! ```text
//! leader   accounts open ─> epoch over: seal ─> compute, stage, propose the result ─> prune what is old
//! voters   result proposed: compute it anew from the facts ─> the same: note on disk, sign ─> k of n: signed
//! ```
//!
//! Every step reads where the facts stand and does what is next, so that it may stop at any point and another leader may
//! go on. A voter signs only what it computed itself, and never two roots for one epoch.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use makai_config::{AccountsConfig, LedgerConfig, LedgerKind, OnDisagreement};
use makai_ops::claims::compute::{EpochFacts, compute};
use makai_ops::claims::statement::ClaimKey;
use makai_ops::claims::tree::embedded_ledger;
use makai_ops::metrics as names;
use makai_ops::rewards::settle::Outcome;
use makai_ops::rewards::tokenomics::{RULES, Tokenomics};
use makai_raft::facts::accounts::{
    AccountsCommand, AccountsState, ClaimSignature, Epoch, EpochResult, EpochState, Genesis, PURPOSE_SIGNER,
    ROWS_MAX, Signer,
};
use makai_raft::facts::cluster::Role;
use makai_raft::facts::command::Command;
use makai_raft::machine::accounts::{KEPT_EPOCHS, move_digest, signer_digest};

use super::Shell;
use crate::accounts::keys::{self, SignedRoots};
use crate::accounts::reading;
use crate::clock;

/// Looks in an epoch.
const LOOKS_PER_EPOCH: u64 = 20;
const LOOK_MS: std::ops::RangeInclusive<u64> = 250..=5_000;
/// A result that is not signed after so many looks is proposed anew.
const PATIENCE_LOOKS: u32 = 40;

/// How often a node looks at the accounts.
#[must_use]
pub fn look_every(config: &AccountsConfig) -> Duration {
    let look_ms = config.epoch_secs.saturating_mul(1000) / LOOKS_PER_EPOCH;
    Duration::from_millis(look_ms.clamp(*LOOK_MS.start(), *LOOK_MS.end()))
}

/// What a voter needs to sign, and remembers between looks.
struct Voter {
    key: ClaimKey,
    signed: SignedRoots,
    /// The result that waits for signatures, and since when.
    waiting: Option<((u64, u32), Instant)>,
    is_registered: bool,
    /// This voter has nothing more to say about where claims are paid.
    is_moved: bool,
}

pub async fn run(shell: Shell) {
    let every = look_every(&shell.config.accounts);
    let mut voter = match open_keys(&shell) {
        Ok(voter) => voter,
        Err(error) => {
            tracing::error!(%error, "this voter signs no claims until that is mended and it is started again");
            return;
        }
    };
    while shell.pause(every).await {
        if let Err(error) = step(&shell, &mut voter, every).await {
            tracing::debug!(error = %format!("{error:#}"), "the accounts did not go on; trying again");
        }
    }
}

fn open_keys(shell: &Shell) -> anyhow::Result<Voter> {
    let dir = &shell.config.node.dir;
    let (key, signed) = (keys::load_or_create(dir, "claim.key")?, SignedRoots::load(dir)?);
    Ok(Voter { key, signed, waiting: None, is_registered: false, is_moved: false })
}

async fn propose(shell: &Shell, command: AccountsCommand) -> anyhow::Result<()> {
    shell.facts.propose(Command::Accounts(command)).await?;
    Ok(())
}

async fn step(shell: &Shell, voter: &mut Voter, every: Duration) -> anyhow::Result<()> {
    let is_leader = shell.is_leader();
    let Some(state) = reading::state(&*shell.here).await? else {
        if is_leader {
            open(shell).await?;
        }
        return Ok(());
    };
    metrics::gauge!(names::OPS_OPEN_EPOCH).set(state.open as f64);
    metrics::gauge!(names::OPS_SIGNED_EPOCH).set(state.signed as f64);
    register(shell, voter, &state).await?;
    if let Err(error) = move_to_contract(shell, voter, &state).await {
        tracing::warn!(error = %format!("{error:#}"), "claims stay on the embedded ledger; trying again");
    }
    if is_leader {
        seal(shell, &state).await?;
        retire_signers(shell, &state).await?;
        if state.kept_from > 0 && state.kept_from + KEPT_EPOCHS <= state.signed {
            propose(shell, AccountsCommand::Prune { epoch: state.kept_from }).await?;
        }
        forget_leaves(shell, &state).await?;
    }
    let next = state.signed + 1;
    if next >= state.open {
        return Ok(());
    }
    let epoch = reading::epoch(&*shell.here, next).await?;
    let next_attempt = epoch.result.as_ref().map_or(0, |result| result.attempt).saturating_add(1);
    match (&epoch.result, epoch.state) {
        (_, EpochState::Sealed) if is_leader => publish(shell, &state, &epoch, next_attempt).await,
        (Some(result), EpochState::Computed) => {
            let has_signed = epoch.signatures.iter().any(|known| known.signer == voter.key.address());
            let signed = match has_signed {
                true => Ok(()),
                false => sign(shell, voter, &state, &epoch, result).await,
            };
            let waiting = (result.epoch, result.attempt);
            let since = match voter.waiting {
                Some((known, since)) if known == waiting => since,
                _ => voter.waiting.insert((waiting, clock::instant())).1,
            };
            if is_leader && since.elapsed() > every * PATIENCE_LOOKS {
                tracing::warn!(
                    epoch = next,
                    attempt = result.attempt,
                    "a result was not signed; it is computed anew"
                );
                publish(shell, &state, &epoch, next_attempt).await?;
            }
            signed
        }
        _ => Ok(()),
    }
}

/// What the accounts of this cluster begin with.
fn genesis(config: &AccountsConfig, ledger: &LedgerConfig, cluster_id: &str) -> anyhow::Result<Genesis> {
    let epoch_ms = config.epoch_secs.saturating_mul(1000);
    let table = Tokenomics::profile(&config.tokenomics, epoch_ms)?;
    table.check()?;
    let (chain_id, ledger) = match ledger.kind {
        LedgerKind::Embedded => (0, embedded_ledger(cluster_id)),
        LedgerKind::Evm => (ledger.chain_id, ledger.distributor.parse().context("ledger.distributor")?),
    };
    Ok(Genesis {
        rules: RULES,
        tokenomics: table.canonical(),
        tokenomics_hash: table.hash(),
        emission: table.emission(),
        epoch_ms,
        challenge_ms: config.challenge_secs.saturating_mul(1000),
        payout_cooldown_ms: config.payout_cooldown_secs.saturating_mul(1000),
        chain_id,
        ledger,
        forfeits_all: config.on_disagreement == OnDisagreement::ForfeitAll,
        pledge: table.pledge_terms(),
    })
}

async fn open(shell: &Shell) -> anyhow::Result<()> {
    let map = shell.map.get();
    let genesis = genesis(&shell.config.accounts, &shell.config.ledger, &map.map.cluster_id)?;
    propose(shell, AccountsCommand::Open { genesis }).await.context("open the accounts")
}

/// Makes this voter's key known.
async fn register(shell: &Shell, voter: &mut Voter, state: &AccountsState) -> anyhow::Result<()> {
    let address = voter.key.address();
    if voter.is_registered || state.signers.iter().any(|signer| signer.address == address) {
        voter.is_registered = true;
        return Ok(());
    }
    let is_voter = shell.map.get().node(shell.id).is_some_and(|node| node.roles.contains(&Role::Voter));
    if !is_voter {
        return Ok(());
    }
    let node_signature = shell.identity.sign(PURPOSE_SIGNER, &address.0).to_vec().into();
    let signature = voter.key.sign(&signer_digest(shell.id));
    let signer = Signer { node: shell.id, address, node_signature, signature };
    propose(shell, AccountsCommand::AddSigner(signer)).await.context("make this voter's claim key known")
}

/// Where the configuration names a contract and claims are still on the embedded ledger: this voter's word for the move,
/// once it has seen that the contract is one for this cluster.
async fn move_to_contract(shell: &Shell, voter: &mut Voter, state: &AccountsState) -> anyhow::Result<()> {
    let Some(chain) = &shell.chain else { return Ok(()) };
    let (chain_id, ledger) = chain.domain();
    if voter.is_moved || (state.genesis.chain_id, state.genesis.ledger) == (chain_id, ledger) {
        voter.is_moved = true;
        return Ok(());
    }
    if state.genesis.chain_id != 0 {
        voter.is_moved = true;
        bail!(
            "claims of this cluster are paid by {} on chain {} and never by another contract, which would pay them again; \
             correct [ledger]",
            state.genesis.ledger,
            state.genesis.chain_id
        );
    }
    if !voter.is_registered {
        return Ok(());
    }
    let address = voter.key.address();
    chain.check_terms(&state.genesis.emission, &address).await?;
    if let Some((_, opening)) = chain.roots().await?.first() {
        let known = reading::epoch(&*shell.here, opening.epoch).await.ok().and_then(|epoch| epoch.result);
        if known.is_none_or(|known| (known.claim_root, known.total) != (opening.root, opening.total)) {
            bail!(
                "the contract opened with a root of epoch {} that this cluster never signed",
                opening.epoch
            );
        }
    }
    let digest = move_digest(&state.genesis.ledger, chain_id, &ledger);
    let signature = ClaimSignature { signer: address, signature: voter.key.sign(&digest) };
    propose(shell, AccountsCommand::Move { chain_id, ledger, signature }).await?;
    voter.is_moved = true;
    tracing::info!(chain_id, contract = %ledger, "this voter has signed that claims move to the contract");
    Ok(())
}

/// Signers whose node is a voter no more count no longer towards a majority.
async fn retire_signers(shell: &Shell, state: &AccountsState) -> anyhow::Result<()> {
    let map = shell.map.get();
    for signer in &state.signers {
        let is_voter = map.node(signer.node).is_some_and(|node| {
            node.roles.contains(&Role::Voter) && node.standing != makai_raft::facts::cluster::Standing::Lost
        });
        if !is_voter {
            propose(shell, AccountsCommand::RemoveSigner { address: signer.address }).await?;
        }
    }
    Ok(())
}

async fn seal(shell: &Shell, state: &AccountsState) -> anyhow::Result<()> {
    let epoch = reading::epoch(&*shell.here, state.open).await?;
    if clock::now().millis_since(epoch.opened_at) >= state.genesis.epoch_ms {
        propose(shell, AccountsCommand::Seal { epoch: state.open }).await?;
        tracing::info!(epoch = state.open, "an epoch is sealed");
    }
    Ok(())
}

/// Leaves go when a root pays that is so much younger than theirs that none will be claimed against theirs.
async fn forget_leaves(shell: &Shell, state: &AccountsState) -> anyhow::Result<()> {
    let (oldest, later) = (state.leaves_from, state.leaves_from + KEPT_EPOCHS);
    if oldest == 0 || oldest >= state.kept_from || later > state.signed {
        return Ok(());
    }
    let pays_at = reading::epoch(&*shell.here, later).await?.active_at;
    if pays_at.is_some_and(|pays_at| pays_at <= clock::now()) {
        propose(shell, AccountsCommand::PruneLeaves { epoch: oldest }).await?;
    }
    Ok(())
}

/// Computes an epoch's result from the facts.
async fn result_of(
    shell: &Shell,
    state: &AccountsState,
    epoch: &Epoch,
    attempt: u32,
) -> anyhow::Result<(Outcome, EpochResult)> {
    let facts = &*shell.facts;
    let usage = reading::usage(facts, epoch.number).await?;
    let (accounts, leaves, before) = match epoch.number {
        1 => (Vec::new(), Vec::new(), None),
        number => {
            let before = reading::epoch(facts, number - 1).await?;
            (
                reading::accounts(facts, number - 1).await?,
                reading::leaves(facts, number - 1).await?,
                before.result,
            )
        }
    };
    let (genesis, epoch) = (state.genesis.clone(), epoch.clone());
    // Seconds of one core where nodes are many.
    let computed = tokio::task::spawn_blocking(move || {
        let facts = EpochFacts {
            genesis: &genesis,
            epoch: &epoch,
            usage: &usage,
            accounts_before: &accounts,
            leaves_before: &leaves,
            result_before: before.as_ref(),
        };
        compute(&facts, attempt)
    });
    Ok(computed.await??)
}

/// Computes and proposes.
async fn publish(shell: &Shell, state: &AccountsState, epoch: &Epoch, attempt: u32) -> anyhow::Result<()> {
    if state.signers.is_empty() {
        bail!("no voter has made its claim key known yet");
    }
    let (outcome, result) = result_of(shell, state, epoch, attempt).await?;
    let number = epoch.number;
    for accounts in outcome.accounts.chunks(ROWS_MAX / 4) {
        let (accounts, leaves) = (accounts.to_vec(), Vec::new());
        propose(shell, AccountsCommand::Stage { epoch: number, attempt, accounts, leaves }).await?;
    }
    for leaves in outcome.leaves.chunks(ROWS_MAX) {
        let (accounts, leaves) = (Vec::new(), leaves.to_vec());
        propose(shell, AccountsCommand::Stage { epoch: number, attempt, accounts, leaves }).await?;
    }
    tracing::info!(epoch = number, attempt, root = %result.claim_root, total = %result.total, "an epoch is computed");
    propose(shell, AccountsCommand::Result(result)).await
}

/// Computes anew, compares every record, notes the root on disk, signs.
async fn sign(
    shell: &Shell,
    voter: &mut Voter,
    state: &AccountsState,
    epoch: &Epoch,
    proposed: &EpochResult,
) -> anyhow::Result<()> {
    if !voter.is_registered {
        return Ok(());
    }
    let number = epoch.number;
    let (outcome, result) = result_of(shell, state, epoch, proposed.attempt).await?;
    let staged =
        (reading::accounts(&*shell.here, number).await?, reading::leaves(&*shell.here, number).await?);
    if result != *proposed || staged != (outcome.accounts, outcome.leaves) {
        tracing::error!(epoch = number, proposed = %proposed.claim_root, own = %result.claim_root,
            "the result proposed is not what this voter computes; it is not signed");
        bail!("the result of epoch {number} is not what this voter computes");
    }
    let disputes = u32::try_from(epoch.disputed_by.len()).unwrap_or(u32::MAX);
    voter.signed.note(number, disputes, result.claim_root)?;
    let signature = ClaimSignature { signer: voter.key.address(), signature: voter.key.sign(&result.digest) };
    propose(shell, AccountsCommand::Sign { epoch: number, attempt: result.attempt, signature }).await
}
