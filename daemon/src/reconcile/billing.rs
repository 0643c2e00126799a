//! What tenants that pay in advance are charged while their jobs run; the leader does so, a proposal a minute at most, and
//! none while nothing runs. It also tells the facts the prices of its configuration.

use std::time::Duration;

use makai_config::PricesConfig;
use makai_raft::facts::accounts::{AccountsCommand, CHARGE_EVERY_MS, Prices};
use makai_raft::facts::command::Command;

use super::Shell;
use crate::accounts::reading;
use crate::clock;

const LOOK_EVERY: Duration = Duration::from_secs(2);

fn prices(config: &PricesConfig) -> Prices {
    Prices {
        storage_gib_month: config.storage_gib_month,
        ingress_gib: config.ingress_gib,
        egress_gib: config.egress_gib,
        requests_thousand: config.requests_thousand,
        cpu_core_hour: config.cpu_core_hour,
        memory_gib_hour: config.memory_gib_hour,
        gpu_card_hour: config.gpu_card_hour,
    }
}

pub async fn run(shell: Shell) {
    // Sealing an epoch charges, too.
    let every =
        Duration::from_millis(CHARGE_EVERY_MS).min(Duration::from_secs(shell.config.accounts.epoch_secs));
    let mut charged_at = clock::instant();
    while shell.pause(LOOK_EVERY).await {
        if !shell.is_leader() {
            continue;
        }
        if let Err(error) = step(&shell, &mut charged_at, every).await {
            tracing::debug!(%error, "tenants are charged later");
        }
    }
}

async fn step(shell: &Shell, charged_at: &mut std::time::Instant, every: Duration) -> anyhow::Result<()> {
    let (known, _, has_open_bills) = reading::billing(&*shell.here).await?;
    let wanted = prices(&shell.config.prices);
    if known != wanted {
        tracing::info!(before = ?known, now = ?wanted, "tenants pay the prices of this voter's configuration");
        shell.facts.propose(Command::Accounts(AccountsCommand::SetPrices(wanted))).await?;
    }
    if has_open_bills && charged_at.elapsed() >= every {
        shell.facts.propose(Command::Accounts(AccountsCommand::Charge)).await?;
        *charged_at = clock::instant();
    }
    Ok(())
}
