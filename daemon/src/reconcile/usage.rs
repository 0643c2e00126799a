//! Reports, once an epoch, what nodes served and tenants moved through this gateway: one command, however much was served.

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
    let Some(state) = reading::state(&*shell.here).await? else { return Ok(Duration::ZERO) };
    let epoch = reading::epoch(&*shell.here, state.open).await?;
    let now = clock::now();
    let wait = until_report(&state, &epoch, now);
    if wait > Duration::ZERO || *reported == epoch.number {
        return Ok(wait);
    }
    let (rows, traffic) = (shell.served.take(), shell.served.take_traffic());
    let parts = rows.len().max(traffic.len()).div_ceil(ROWS_MAX);
    for at in 0..u32::try_from(parts).unwrap_or(u32::MAX) {
        let (served, tenants) = (part_of(&rows, at), part_of(&traffic, at));
        // A process that starts again within the epoch reports what it served since, not what it did before.
        let seconds = now.millis_since(epoch.opened_at) / 1000;
        let part = u32::try_from(seconds).unwrap_or(u32::MAX).wrapping_mul(1 << 10).wrapping_add(at);
        let (epoch, reporter) = (epoch.number, shell.id);
        let command = AccountsCommand::Meter {
            epoch,
            reporter,
            part,
            served: served.to_vec(),
            tenants: tenants.to_vec(),
        };
        if let Err(error) = shell.facts.propose(Command::Accounts(command)).await {
            let unsent = at as usize * ROWS_MAX;
            shell.served.put_back(&rows[unsent.min(rows.len())..]);
            shell.served.put_back_traffic(&traffic[unsent.min(traffic.len())..]);
            return Err(error.into());
        }
    }
    *reported = epoch.number;
    Ok(Duration::ZERO)
}

fn part_of<T>(rows: &[T], at: u32) -> &[T] {
    rows.chunks(ROWS_MAX).nth(at as usize).unwrap_or_default()
}

fn until_report(state: &AccountsState, epoch: &Epoch, now: Timestamp) -> Duration {
    let due_ms = state.genesis.epoch_ms / 100 * REPORT_AT_PCT;
    Duration::from_millis(due_ms.saturating_sub(now.millis_since(epoch.opened_at)))
}
