//! Binds this node's earnings to an address: by the node's key and the address's, once.

use std::time::Duration;

use makai_ops::claims::statement::ClaimKey;
use makai_raft::facts::accounts::{PURPOSE_PAYOUT, PayoutBinding};
use makai_raft::machine::accounts::{payout_digest, payout_message};

use super::Shell;
use crate::accounts::{keys, payouts, reading};

const RETRY_EVERY: Duration = Duration::from_secs(2);

pub async fn run(shell: Shell) {
    let key = match keys::load_or_create(&shell.config.node.dir, "payout.key") {
        Ok(key) => key,
        Err(error) => {
            tracing::error!(%error, "what this node earns waits until that is mended and it is started again");
            return;
        }
    };
    while shell.pause(RETRY_EVERY).await {
        match step(&shell, &key).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the payout address is bound later"),
        }
    }
}

/// Whether an address is bound, this one or one that a person chose.
async fn step(shell: &Shell, key: &ClaimKey) -> anyhow::Result<bool> {
    if reading::state(&*shell.facts).await?.is_none() {
        return Ok(false);
    }
    if payouts::has_address(&reading::payouts(&*shell.facts).await?, shell.id) {
        return Ok(true);
    }
    let (node, payout, serial) = (shell.id, key.address(), payouts::FIRST_SERIAL);
    let node_signature =
        shell.identity.sign(PURPOSE_PAYOUT, &payout_message(&payout, serial)).to_vec().into();
    let signature = key.sign(&payout_digest(node, serial));
    payouts::bind(shell, PayoutBinding { node, payout, serial, node_signature, signature }).await?;
    Ok(true)
}
