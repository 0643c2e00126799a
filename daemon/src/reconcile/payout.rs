//! Binds this node's earnings to an address: by the node's key and the address's, once.

use std::time::Duration;

use makai_ops::claims::statement::ClaimKey;
use makai_raft::facts::accounts::{AccountsCommand, PURPOSE_PAYOUT, PayoutBinding};
use makai_raft::facts::command::Command;
use makai_raft::machine::accounts::{payout_digest, payout_message};

use super::Shell;
use crate::accounts::{keys, reading};
use crate::members::{BIND_PAYOUT, encode};

const RETRY_EVERY: Duration = Duration::from_secs(2);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a node's first address, which its own `payout.key` is behind.
const FIRST_SERIAL: u64 = 1;

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
    if reading::payouts(&*shell.facts).await?.iter().any(|payout| payout.node == shell.id) {
        return Ok(true);
    }
    let (node, payout, serial) = (shell.id, key.address(), FIRST_SERIAL);
    let node_signature =
        shell.identity.sign(PURPOSE_PAYOUT, &payout_message(&payout, serial)).to_vec().into();
    let signature = key.sign(&payout_digest(node, serial));
    let binding = PayoutBinding { node, payout, serial, node_signature, signature };
    if shell.is_trusted() {
        shell.facts.propose(Command::Accounts(AccountsCommand::BindPayout(binding))).await?;
        return Ok(true);
    }
    let body = encode(&binding).map_err(anyhow::Error::msg)?;
    let mut last = anyhow::anyhow!("no voter is known");
    for voter in shell.members.voters() {
        match shell.transport.request(voter, BIND_PAYOUT, body.clone(), ASK_TIMEOUT).await {
            Ok(_) => return Ok(true),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
