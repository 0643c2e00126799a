//! Posts signed roots to the contract, where the ledger is a chain, and looks after what is on its way there.
//!
//! The leader posts, as soon as enough voters have signed: the contract has a window of its own, in which a root can be
//! disputed and revoked. Epochs in between are left out: a later root holds all that the earlier ones held, so that a dear hour
//! costs nothing but time. Two nodes that both believe they lead post the same root; the contract takes one of them.

use makai_ops::claims::evm::{self, Post};
use makai_raft::facts::accounts::{Amount, EpochState, Hash};

use super::Shell;
use super::epochs::look_every;
use crate::accounts::chain::Chain;
use crate::accounts::reading;

/// Gas of a proposal: without signatures, and for each.
const PROPOSE_GAS: u64 = 250_000;
const SIGNATURE_GAS: u64 = 20_000;

pub async fn run(shell: Shell) {
    let Some(chain) = shell.chain.clone() else { return };
    let every = look_every(&shell.config.accounts);
    tracing::info!(submitter = %chain.submitter(), "roots go to the chain; this address pays their gas, keep it funded");
    while shell.pause(every).await {
        let tended = chain.tend().await;
        let done = match tended {
            Ok(_) if shell.is_leader() => post(&shell, &chain).await,
            other => other.map(|_| ()),
        };
        if let Err(error) = done {
            tracing::debug!(error = %format!("{error:#}"), "the chain waits");
        }
    }
}

/// Posts the newest root that is signed and worth it.
async fn post(shell: &Shell, chain: &Chain) -> anyhow::Result<()> {
    let Some(state) = reading::state(&*shell.facts).await?.filter(|state| state.signed > 0) else {
        return Ok(());
    };
    let epoch = reading::epoch(&*shell.facts, state.signed).await?;
    let is_for_contract =
        state.genesis.chain_id != 0 && state.moved_after.is_none_or(|after| epoch.number > after);
    let Some(result) = epoch.result.as_ref().filter(|_| is_for_contract && epoch.state == EpochState::Signed)
    else {
        return Ok(());
    };
    chain.check().await?;
    let posted = chain.roots().await?.last().map(|(_, root)| *root);
    let (epoch_before, total_before) = posted.map_or((0, Amount(0)), |root| (root.epoch, root.total));
    let is_due = epoch.number >= epoch_before.saturating_add(shell.config.ledger.post_every_epochs);
    if result.total <= total_before || !is_due {
        return Ok(());
    }
    let prev_root = match epoch.number {
        1 => Hash::default(),
        number => {
            let before = reading::epoch(&*shell.facts, number - 1).await?.result;
            before.map(|result| result.claim_root).unwrap_or_default()
        }
    };
    let mut signatures = epoch.signatures.clone();
    signatures.sort_by_key(|one| one.signer);
    let post = Post {
        epoch: epoch.number,
        root: result.claim_root,
        total: result.total,
        data_hash: result.data_hash,
        prev_root,
        signatures: signatures.into_iter().map(|one| one.signature).collect(),
    };
    let gas = PROPOSE_GAS + SIGNATURE_GAS * post.signatures.len() as u64;
    let data = evm::propose(&post);
    // A root that the contract would refuse costs nothing but this question.
    chain.simulate(&data).await?;
    if chain.submit("root", &data, gas).await? {
        tracing::info!(epoch = post.epoch, root = %post.root, total = %post.total, "a root is posted to the chain");
    }
    Ok(())
}
