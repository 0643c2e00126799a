//! Where nodes are paid, and how a person changes it.
//!
//! ```text
//! person ─ address, its signature ─> console of the node ─ the node's signature ─> a voter ─> cool-down ─> in force
//! ```
//!
//! Only the node itself can add its signature, so that the change is asked of its own console. The first address counts at
//! once; a change counts after `accounts.payout_cooldown_secs`, and is seen by everybody meanwhile.

use std::time::Duration;

use anyhow::{Context as _, bail};
use makai_erasure::NodeId;
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{
    AccountsCommand, Address, PURPOSE_PAYOUT, Payout, PayoutBinding, RecoverableSignature,
};
use makai_raft::facts::command::Command;
use makai_raft::machine::accounts::{is_payout_signed, payout_message};
use serde::{Deserialize, Serialize};

use super::reading;
use crate::clock;
use crate::members::{BIND_PAYOUT, encode};
use crate::reconcile::Shell;

const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a node's first address, which its own `payout.key` is behind.
pub const FIRST_SERIAL: u64 = 1;

/// Where a node is paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutRow {
    pub node: NodeId,
    pub name: String,
    /// In force now.
    pub payout: Option<Address>,
    /// In force from then on.
    pub next: Option<(Address, Timestamp)>,
    /// Of the last binding; the next one needs a larger one.
    pub serial: u64,
}

/// A person's wish, with the signature of the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutRequest {
    pub node: NodeId,
    pub payout: Address,
    pub serial: u64,
    pub signature: RecoverableSignature,
}

/// Every node's address, by node.
///
/// # Errors
/// The facts do not answer.
pub async fn rows(shell: &Shell) -> anyhow::Result<Vec<PayoutRow>> {
    let known = reading::payouts(&*shell.facts).await?;
    let (map, now) = (shell.map.get(), clock::now());
    let row = |node: &makai_raft::facts::cluster::Node| {
        let payout = known.iter().find(|payout| payout.node == node.id);
        PayoutRow {
            node: node.id,
            name: node.name.clone(),
            payout: payout.and_then(|payout| payout.in_force(now)),
            next: payout.and_then(|payout| payout.next).filter(|(_, from)| *from > now),
            serial: payout.map_or(0, |payout| payout.serial),
        }
    };
    Ok(map.map.nodes.iter().map(row).collect())
}

/// Signs a person's wish as this node, and binds it.
///
/// # Errors
/// The request is for another node, its signature does not hold, or the facts refuse.
pub async fn set(shell: &Shell, request: PayoutRequest) -> anyhow::Result<PayoutRow> {
    let PayoutRequest { node, payout, serial, signature } = request;
    if node != shell.id {
        bail!(
            "this is the console of node {}; a node signs for itself alone: ask that of {node}, with --config of its \
             configuration on its machine",
            shell.id
        );
    }
    let node_signature =
        shell.identity.sign(PURPOSE_PAYOUT, &payout_message(&payout, serial)).to_vec().into();
    let binding = PayoutBinding { node, payout, serial, node_signature, signature };
    if !is_payout_signed(&binding) {
        bail!(
            "the signature is not of {payout} for node {node} and serial {serial}; sign what `makai payout text` prints"
        );
    }
    bind(shell, binding).await?;
    rows(shell).await?.into_iter().find(|row| row.node == node).context("this node is not in the map")
}

/// Brings a binding of this node into the facts, through a voter where this node may not itself.
///
/// # Errors
/// No voter answers, or the facts refuse.
pub async fn bind(shell: &Shell, binding: PayoutBinding) -> anyhow::Result<()> {
    if shell.is_trusted() {
        shell.facts.propose(Command::Accounts(AccountsCommand::BindPayout(binding))).await?;
        return Ok(());
    }
    let body = encode(&binding).map_err(anyhow::Error::msg)?;
    let mut last = anyhow::anyhow!("no voter is known");
    for voter in shell.members.voters() {
        match shell.transport.request(voter, BIND_PAYOUT, body.clone(), ASK_TIMEOUT).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Whether a node has an address, whoever chose it.
#[must_use]
pub fn has_address(payouts: &[Payout], node: NodeId) -> bool {
    payouts.iter().any(|payout| payout.node == node)
}
