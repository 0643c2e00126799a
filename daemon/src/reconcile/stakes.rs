//! What the staking contract says of nodes' addresses, told once an epoch by every voter that reads the chain. It counts as
//! far as more than half of the signers read no less.

use makai_ops::rewards::tokenomics::RULES_LOTS;
use makai_raft::facts::accounts::{AccountsCommand, Address, Amount, ROWS_MAX};
use makai_raft::facts::command::Command;

use super::Shell;
use super::epochs::look_every;
use crate::accounts::chain::Chain;
use crate::accounts::reading;
use crate::clock;

/// Stakes are read when so much of the epoch is over, in hundredths.
const READ_AT_PCT: u64 = 50;

pub async fn run(shell: Shell) {
    let Some(chain) = shell.chain.clone().filter(|_| !shell.config.ledger.staking.is_empty()) else { return };
    let every = look_every(&shell.config.accounts);
    let mut told = 0;
    while shell.pause(every).await {
        if let Err(error) = step(&shell, &chain, &mut told).await {
            tracing::debug!(error = %format!("{error:#}"), "stakes are read later");
        }
    }
}

async fn step(shell: &Shell, chain: &Chain, told: &mut u64) -> anyhow::Result<()> {
    let Some(state) = reading::state(&*shell.facts).await?.filter(|state| {
        state.genesis.rules >= RULES_LOTS && state.genesis.chain_id != 0 && state.open > *told
    }) else {
        return Ok(());
    };
    let epoch = reading::epoch(&*shell.facts, state.open).await?;
    if clock::now().millis_since(epoch.opened_at) < state.genesis.epoch_ms / 100 * READ_AT_PCT {
        return Ok(());
    }
    let now = clock::now();
    let payouts = reading::payouts(&*shell.facts).await?;
    let mut addresses: Vec<Address> = payouts.iter().filter_map(|payout| payout.in_force(now)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let mut rows = Vec::new();
    for address in addresses {
        let stake = chain.bond(&address).await?;
        if stake > Amount(0) && rows.len() < ROWS_MAX {
            rows.push((address, stake));
        }
    }
    if !rows.is_empty() {
        let command = AccountsCommand::Stakes { epoch: epoch.number, reporter: shell.id, rows };
        shell.facts.propose(Command::Accounts(command)).await?;
    }
    *told = epoch.number;
    Ok(())
}
