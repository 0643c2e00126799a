//! Who has this machine's cards: its owner takes them back and gives them again; a program of the machine's own does so by being
//! there, where the owner wants that; a task that takes more memory than its slice is ended.
//!
//! ```text
//! console, or a look at the driver's processes ─> the host closes the card ─> attempts on it are ended, the cheapest first
//!                                                └─> the offer changes: the leader gives them elsewhere, and nothing more here
//! ```

use std::sync::Arc;
use std::time::Duration;

use makai_gpu_runtime::agent::Agent;
use makai_gpu_runtime::card::guard::{CardProcess, Finding, Guard, Owner, whose};
use makai_gpu_runtime::card::host::Host;
use makai_gpu_runtime::container::ContainerRunner;
use makai_raft::facts::jobs::End;

use super::Shell;
use crate::clock;

/// How often the driver is asked who uses its cards.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a machine with cards works with.
#[derive(Clone)]
pub struct CardRoom {
    pub host: Arc<Host>,
    pub agent: Arc<Agent>,
}

impl CardRoom {
    /// Takes cards back from jobs, or gives them to jobs again. Answers the cards and how many attempts had to go, once they have.
    ///
    /// # Errors
    /// There is no such card, or it cannot be kept beyond a restart.
    pub async fn pause(
        &self,
        shell: &Shell,
        uuid: Option<&str>,
        is_paused: bool,
    ) -> std::io::Result<(Vec<String>, usize)> {
        let cards = self.host.pause(uuid, is_paused)?;
        shell.jobs.look_again();
        let uuids: Vec<String> = cards.into_iter().map(|gpu| gpu.uuid).collect();
        let ended = match is_paused {
            true => {
                self.agent
                    .take_back(|held| uuids.iter().any(|uuid| uuid == held), "the card's owner took it back")
                    .await
            }
            false => 0,
        };
        Ok((uuids, ended))
    }
}

/// Watches the cards' users until the node stops.
pub async fn run(shell: Shell, room: CardRoom, runner: ContainerRunner) {
    let mut guard = Guard::default();
    let (yields, ignored) = (shell.config.compute.gpu_yield, shell.config.compute.gpu_yield_ignored.clone());
    let begun = clock::instant();
    while shell.pause(LOOK_EVERY).await {
        if room.host.cards().is_none() {
            return;
        }
        let (host, runner) = (Arc::clone(&room.host), runner.clone());
        let look = move || {
            let (workers, slices) = runner.card_users().ok()?;
            let listed = host.cards().map(|cards| cards.processes()).unwrap_or_default();
            let seen: Vec<(CardProcess, Owner)> =
                listed.into_iter().map(|process| (process.clone(), whose(process.pid, &workers))).collect();
            Some((seen, slices))
        };
        // The driver may take its time.
        let Ok(Some((mut seen, slices))) = tokio::task::spawn_blocking(look).await else { continue };
        if !yields {
            seen.retain(|(_, owner)| !matches!(owner, Owner::Other(_)));
        }
        let now_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        for finding in guard.observe(&seen, &ignored, &slices, now_ms) {
            carry_out(&shell, &room, finding).await;
        }
    }
}

async fn carry_out(shell: &Shell, room: &CardRoom, finding: Finding) {
    match finding {
        Finding::Wanted { uuid, program } => {
            tracing::info!(uuid, program, "a card is given back to this machine's own program");
            let why = format!("this machine's own program {program} uses it");
            room.host.lend(&uuid, Some(why));
            shell.jobs.look_again();
            let is_its =
                |held: &str| held == uuid || room.host.parent_of(held).is_some_and(|parent| parent == uuid);
            let ended = room.agent.take_back(is_its, "the card's owner uses it").await;
            tracing::info!(uuid, ended, "the card is free");
        }
        Finding::Free { uuid } => {
            tracing::info!(uuid, "a card takes tasks again");
            room.host.lend(&uuid, None);
            shell.jobs.look_again();
        }
        Finding::TooMuch { attempt, used_mib, slice_mib } => {
            tracing::warn!(
                attempt,
                used_mib,
                slice_mib,
                "an attempt takes more of its card than it was given, and is ended"
            );
            let why =
                format!("its processes take {used_mib} MiB of the card, of which it was given {slice_mib}");
            room.agent.end_for(&attempt, &End::Faulted { why }).await;
        }
    }
}
