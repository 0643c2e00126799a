//! What nodes should have earned, and what is coming together now: by the code that settles epochs.

use std::collections::BTreeMap;

use makai_erasure::NodeId;
use makai_ops::rewards::settle::{Inputs, settle};
use makai_ops::rewards::tokenomics::Tokenomics;
use makai_raft::facts::accounts::{AccountsState, Amount, Epoch, Hash, NodeAccount, NodeUsage};

use super::reading;
use crate::clock;
use crate::reconcile::Shell;

/// Of each node.
#[derive(Debug, Default)]
pub struct Foreseen {
    expected: BTreeMap<NodeId, Amount>,
    accruing: BTreeMap<NodeId, Amount>,
}

impl Foreseen {
    /// Of the newest signed epoch, with all audits passed and all answers right.
    #[must_use]
    pub fn expected(&self, node: NodeId) -> Amount {
        self.expected.get(&node).copied().unwrap_or_default()
    }

    /// Since that epoch ended.
    #[must_use]
    pub fn accruing(&self, node: NodeId) -> Amount {
        self.accruing.get(&node).copied().unwrap_or_default()
    }
}

/// Without a fault: bytes that wait are covered, nothing is void.
fn faultless(usage: &NodeUsage) -> NodeUsage {
    let mut usage = usage.clone();
    (usage.audits_fail, usage.audits_offline, usage.audits_unknown) = (0, 0, 0);
    usage.audits_pass = usage.audits_pass.max(1);
    usage.computed.fail = 0;
    usage
}

/// # Errors
/// The facts do not answer.
pub async fn foresee(
    shell: &Shell,
    state: &AccountsState,
    epoch: &Epoch,
    usage: &[NodeUsage],
) -> anyhow::Result<Foreseen> {
    let facts = &*shell.facts;
    let table = Tokenomics::parse(&state.genesis.tokenomics)?;
    let (genesis, number) = (&state.genesis, epoch.number);
    let earned =
        |usage: &[NodeUsage], accounts: &[NodeAccount], epoch: u64, before: Option<&Epoch>, beacon| {
            let result = before.and_then(|before| before.result.as_ref());
            let outcome = settle(&Inputs {
                rules: genesis.rules,
                table: &table,
                epoch,
                epoch_ms: genesis.epoch_ms,
                beacon,
                usage,
                accounts,
                leaves: &[],
                difficulty: result.map_or(&[], |result| &result.difficulty),
            });
            let sum = |account: NodeAccount| {
                let earned = account.earned.iter().fold(Amount(0), |sum, (_, amount)| sum.plus(*amount));
                (account.node, earned)
            };
            outcome.accounts.into_iter().map(sum).collect::<BTreeMap<_, _>>()
        };
    let (accounts_before, before) = match number {
        1 => (Vec::new(), None),
        _ => (reading::accounts(facts, number - 1).await?, Some(reading::epoch(facts, number - 1).await?)),
    };
    let ideal: Vec<NodeUsage> = usage.iter().map(faultless).collect();
    let expected = earned(&ideal, &accounts_before, number, before.as_ref(), epoch.beacon);

    // What lies on each node now, as if it had since the epoch was sealed.
    let since_ms = epoch.sealed_at.map_or(0, |sealed_at| clock::now().millis_since(sealed_at));
    let map = shell.map.get();
    let mut stored: BTreeMap<NodeId, u64> = BTreeMap::new();
    for group in reading::group_bytes(facts).await? {
        let Some(found) = map.map.groups.iter().find(|known| known.id == group.pg) else { continue };
        for node in found.disks.iter().filter_map(|disk| map.node_of(*disk)) {
            let sum = stored.entry(node).or_default();
            *sum = sum.saturating_add(group.slot_bytes);
        }
    }
    let accounts = reading::accounts(facts, number).await?;
    let standing = accounts.iter().map(|account| NodeUsage {
        storage_byte_ms: u128::from(stored.get(&account.node).copied().unwrap_or(0))
            * u128::from(genesis.epoch_ms),
        audits_pass: 1,
        payout: account.payout,
        ..NodeUsage::of(account.node)
    });
    let standing: Vec<NodeUsage> = standing.collect();
    let a_whole_epoch = earned(&standing, &accounts, number + 1, Some(epoch), Hash::default());
    let part = |amount: Amount| {
        Amount(makai_ops::rewards::fixed::mul_div(amount.0, since_ms.into(), genesis.epoch_ms.max(1).into()))
    };
    let accruing = a_whole_epoch.into_iter().map(|(node, amount)| (node, part(amount))).collect();
    Ok(Foreseen { expected, accruing })
}
