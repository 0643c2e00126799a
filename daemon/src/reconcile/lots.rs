//! The lottery among all who compute: each node draws its own lot of every epoch, and speaks where it has won.
//!
//! ```text
//! once         key of this node ─ signed ─> facts ─ two epochs ─> draws
//! every epoch  beacon ─ own key ─> lot, below what the power of two epochs ago allows ─> proof ─> sealed with the usage
//! ```
//!
//! Nobody but the node knows whether it has won before it speaks, and everybody can check it after. Who stays silent leaves
//! its prize to the others.

use makai_ops::computing::lottery::{input, threshold, win};
use makai_ops::computing::vrf::VrfKey;
use makai_ops::rewards::tokenomics::{RULES_LOTS, Tokenomics};
use makai_raft::facts::accounts::{AccountsState, Component, Epoch, Hash, LOT_KEY_WAITS, PURPOSE_LOTS};

use super::Shell;
use super::epochs::look_every;
use crate::accounts::words::{Word, tell};
use crate::accounts::{keys, reading};

/// From the epoch whose power counts to the one that is drawn for.
const LOOKS_BACK: u64 = 2;

pub async fn run(shell: Shell) {
    let key = match keys::load_or_create_lots(&shell.config.node.dir) {
        Ok(key) => key,
        Err(error) => {
            tracing::error!(%error, "this node draws no lots until that is mended and it is started again");
            return;
        }
    };
    let every = look_every(&shell.config.accounts);
    let mut drawn = 0;
    while shell.pause(every).await {
        if let Err(error) = step(&shell, &key, &mut drawn).await {
            tracing::debug!(error = %format!("{error:#}"), "no lot is drawn yet; trying again");
        }
    }
}

async fn step(shell: &Shell, key: &VrfKey, drawn: &mut u64) -> anyhow::Result<()> {
    let Some(state) = reading::state(&*shell.here).await?.filter(|state| state.genesis.rules >= RULES_LOTS)
    else {
        return Ok(());
    };
    if state.open <= *drawn {
        return Ok(());
    }
    let public = Hash(key.public().0);
    let known = reading::lot_key(&*shell.here, shell.id).await?.filter(|known| known.key == public);
    let Some(known) = known else {
        let node_signature = shell.identity.sign(PURPOSE_LOTS, &public.0).to_vec().into();
        return tell(shell, Word::Bind { key: public, node_signature }).await;
    };
    if known.epoch.saturating_add(LOT_KEY_WAITS) > state.open {
        return Ok(());
    }
    let epoch = reading::epoch(&*shell.here, state.open).await?;
    let Some(below) = chance(shell, &state, &epoch).await? else { return Ok(()) };
    let input = input(&epoch.beacon, epoch.number);
    if let Some(proof) = win(key, &input, below) {
        tell(shell, Word::Won { epoch: epoch.number, proof: proof.to_vec().into() }).await?;
        tracing::info!(epoch = epoch.number, "this node has won in the lottery");
    }
    *drawn = epoch.number;
    Ok(())
}

/// Below which lot this node wins; `None`: the epoch that decides it is not signed yet.
async fn chance(shell: &Shell, state: &AccountsState, epoch: &Epoch) -> anyhow::Result<Option<u128>> {
    let past = epoch.number.saturating_sub(LOOKS_BACK);
    if past == 0 || past > state.signed {
        return Ok(None);
    }
    let result = reading::epoch(&*shell.here, past).await?.result;
    let all =
        result.and_then(|result| result.difficulty.into_iter().find(|(of, _)| *of == Component::Lottery));
    let own = reading::account(&*shell.here, past, shell.id).await?;
    let weight = own.map_or(0, |account| account.extra.lot_weights[0]);
    let table = Tokenomics::parse(&state.genesis.tokenomics)?;
    let all = all.map_or(0, |(_, all)| all.0);
    Ok(Some(threshold(weight.into(), all, table.lottery_ppm.unwrap_or_default())))
}
