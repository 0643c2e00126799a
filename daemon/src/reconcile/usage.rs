//! Reports, once an epoch, what nodes served through this gateway: one command, however much was served.

use std::time::Duration;

use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{AccountsCommand, AccountsState, Epoch, ROWS_MAX};
use makai_raft::facts::command::Command;

use super::Shell;
use super::epochs::look_every;
use crate::accounts::reading;
use crate::clock;

/// The report leaves when so much of the epoch is over, in hundredths: early enough to arrive before it is sealed.
const REPORT_AT_PCT: u64 = 75;

pub async fn run(shell: Shell) {
    let every = look_every(&shell.config.accounts);
    let mut reported = 0;
    let mut pause = every;
    while shell.pause(pause).await {
        pause = match step(&shell, &mut reported).await {
            Ok(wait) => wait.max(every),
            Err(error) => {
                tracing::debug!(%error, "what was served is reported later");
                every
            }
        };
    }
}

/// Reports where it is time; returns how long nothing is to be done.
async fn step(shell: &Shell, reported: &mut u64) -> anyhow::Result<Duration> {
    let Some(state) = reading::state(&*shell.facts).await? else { return Ok(Duration::ZERO) };
    let epoch = reading::epoch(&*shell.facts, state.open).await?;
    let now = clock::now();
    let wait = until_report(&state, &epoch, now);
    if wait > Duration::ZERO || *reported == epoch.number {
        return Ok(wait);
    }
    let rows = shell.served.take();
    for (at, served) in (0u32..).zip(rows.chunks(ROWS_MAX)) {
        // A process that starts again within the epoch reports what it served since, not what it did before.
        let seconds = now.millis_since(epoch.opened_at) / 1000;
        let part = u32::try_from(seconds).unwrap_or(u32::MAX).wrapping_mul(1 << 10).wrapping_add(at);
        let (epoch, reporter, served) = (epoch.number, shell.id, served.to_vec());
        let command = AccountsCommand::Meter { epoch, reporter, part, served, tenants: Vec::new() };
        if let Err(error) = shell.facts.propose(Command::Accounts(command)).await {
            let unsent = rows.len().min(at as usize * ROWS_MAX);
            shell.served.put_back(&rows[unsent..]);
            return Err(error.into());
        }
    }
    *reported = epoch.number;
    Ok(Duration::ZERO)
}

fn until_report(state: &AccountsState, epoch: &Epoch, now: Timestamp) -> Duration {
    let due_ms = state.genesis.epoch_ms / 100 * REPORT_AT_PCT;
    Duration::from_millis(due_ms.saturating_sub(now.millis_since(epoch.opened_at)))
}
