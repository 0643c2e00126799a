//! Promise: whatever happens between a node and its chain, a call is carried out once: a crash at any step, a block that is
//! taken back, a dear hour, an endpoint that lies or drops.
//!
//! The outbox itself against a real EVM. Needs Node and `ops/contracts/node_modules` (`npm ci`); else it says that it was
//! skipped.

use std::ops::Deref;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use makai::accounts::chain::Chain;
use makai_config::{LedgerConfig, LedgerKind};
use makai_integration::chain::{self, CHAIN_ID, Endpoint, Manners};
use makai_ops::claims::evm::{self, Post};
use makai_ops::claims::statement::{ClaimKey, Statement};
use makai_ops::claims::tree::ClaimTree;
use makai_raft::facts::accounts::{Address, Amount, Hash, Leaf};
use serde_json::json;

const POOL: u128 = 1_000_000;
const HALVING: u64 = 100;
const GAS: u64 = 400_000;
const SUBMITTER: [u8; 32] = [0x51; 32];
const SIGNER: [u8; 32] = [0x52; 32];

fn address(key: [u8; 32]) -> anyhow::Result<Address> {
    Ok(ClaimKey::from_bytes(&key).context("a key")?.address())
}

/// A chain that makes blocks when it is told to, with a distributor.
struct Anvil {
    chain: chain::Anvil,
    distributor: String,
}

impl Deref for Anvil {
    type Target = chain::Anvil;

    fn deref(&self) -> &Self::Target {
        &self.chain
    }
}

impl Anvil {
    async fn start() -> anyhow::Result<Self> {
        let chain = chain::Anvil::start(&[]).await?;
        let (pool, halving) = (POOL.to_string(), HALVING.to_string());
        let (signer, funded) = (address(SIGNER)?.to_string(), address(SUBMITTER)?.to_string());
        let (_, distributor) = chain.deploy(&[&pool, &halving, "0", "1", &signer, &funded])?;
        chain.ask("evm_setAutomine", json!([false])).await?;
        Ok(Self { chain, distributor })
    }

    /// Transactions of the submitter that are in blocks.
    async fn sent(&self) -> anyhow::Result<u64> {
        self.transactions(&address(SUBMITTER)?, "latest").await
    }

    fn config(&self, rpc: Vec<String>) -> LedgerConfig {
        LedgerConfig {
            kind: LedgerKind::Evm,
            rpc,
            chain_id: CHAIN_ID,
            distributor: self.distributor.clone(),
            finality_depth: 3,
            fee_cap_gwei: 1000,
            ..LedgerConfig::default()
        }
    }

    /// The outbox of a node as it is after a start; what was in it before is what lies in `dir`.
    fn open(&self, dir: &Path, rpc: Vec<String>) -> anyhow::Result<Chain> {
        std::fs::write(dir.join("submitter.key"), SUBMITTER.map(|byte| format!("{byte:02x}")).concat())?;
        Chain::open(dir, &self.config(rpc))
    }

    /// A root of one leaf, signed.
    fn post(&self, epoch: u64, total: u128, prev: Hash) -> anyhow::Result<(Vec<u8>, Hash)> {
        let leaf = Leaf { payout: Address([0xA1; 20]), cumulative: Amount(total) };
        let root = ClaimTree::new(&[leaf]).root();
        let statement = Statement {
            chain_id: CHAIN_ID,
            ledger: self.distributor.parse()?,
            epoch,
            root,
            total: Amount(total),
            data_hash: Hash([3; 32]),
            prev_root: prev,
        };
        let signature = ClaimKey::from_bytes(&SIGNER).context("a key")?.sign(&statement.digest());
        let post = Post {
            epoch,
            root,
            total: Amount(total),
            data_hash: Hash([3; 32]),
            prev_root: prev,
            signatures: vec![signature],
        };
        Ok((evm::propose(&post), root))
    }
}

/// Looks, with a block each time, until nothing is under way.
async fn settle(anvil: &Anvil, chain: &Chain) -> anyhow::Result<()> {
    for _ in 0..60 {
        anvil.mine(1).await?;
        if chain.tend().await? == 0 {
            return Ok(());
        }
    }
    bail!("it never became final")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_sends_one_transaction() -> anyhow::Result<()> {
    if !chain::can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let endpoint = Endpoint::start(&anvil).await?;
    let dir = tempfile::tempdir()?;
    let open = || anvil.open(dir.path(), vec![endpoint.url.clone()]);
    let mut prev = Hash::default();
    for (at, step) in
        ["after the write", "after the send", "when it is in a block", "when it is final"].iter().enumerate()
    {
        let (data, root) = anvil.post(at as u64 + 1, 100 * (at as u128 + 1), prev)?;
        prev = root;
        let before = anvil.sent().await?;
        endpoint.manners().drops = at == 0;
        let chain = open()?;
        ensure!(chain.submit("root", &data, GAS).await?, "{step}: it is new");
        if at >= 2 {
            anvil.mine(1).await?;
            ensure!(chain.tend().await? == 1, "{step}: seen, and not final");
        }
        if at == 3 {
            settle(&anvil, &chain).await?;
        }
        // The process dies here and starts again: what it knows is what it wrote.
        drop(chain);
        endpoint.manners().drops = false;
        let chain = open()?;
        if at < 3 {
            ensure!(!chain.submit("root", &data, GAS).await?, "{step}: it is under way already");
        }
        settle(&anvil, &chain).await?;
        ensure!(anvil.sent().await? == before + 1, "{step}: one transaction");
        let roots = chain.roots().await?;
        ensure!(roots.last().map(|(_, last)| last.root) == Some(root), "{step}: the root is there");
        ensure!(roots.len() == at + 1, "{step}: once");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_are_taken_back_lose_nothing() -> anyhow::Result<()> {
    if !chain::can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let dir = tempfile::tempdir()?;
    let mut prev = Hash::default();
    for (at, depth) in [1u64, 3, 10].into_iter().enumerate() {
        // Two in one block, so that the second's nonce depends on the first's.
        let mut config = anvil.config(vec![anvil.url.clone()]);
        config.finality_depth = 15;
        std::fs::write(
            dir.path().join("submitter.key"),
            SUBMITTER.map(|byte| format!("{byte:02x}")).concat(),
        )?;
        let chain = Chain::open(dir.path(), &config)?;
        let epoch = 2 * at as u64 + 1;
        let mut roots = Vec::new();
        for epoch in [epoch, epoch + 1] {
            let (data, root) = anvil.post(epoch, 100 * u128::from(epoch), prev)?;
            prev = root;
            roots.push(root);
            chain.submit(&format!("root {epoch}"), &data, GAS).await?;
        }
        let before = anvil.sent().await?;
        anvil.mine(depth).await?;
        ensure!(chain.tend().await? == 2, "neither is final");
        ensure!(anvil.sent().await? == before + 2);
        anvil.ask("anvil_reorg", json!([depth, []])).await?;
        settle(&anvil, &chain).await?;
        ensure!(anvil.sent().await? == before + 2, "{depth} blocks back: each once, in the order of nonces");
        let posted: Vec<Hash> =
            chain.roots().await?.iter().rev().take(2).rev().map(|(_, root)| root.root).collect();
        ensure!(posted == roots, "{depth} blocks back: both are there");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dear_hour_costs_time_and_nothing_else() -> anyhow::Result<()> {
    if !chain::can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let endpoint = Endpoint::start(&anvil).await?;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("submitter.key"), SUBMITTER.map(|byte| format!("{byte:02x}")).concat())?;
    let config = LedgerConfig { fee_cap_gwei: 20, ..anvil.config(vec![endpoint.url.clone()]) };
    let chain = Chain::open(dir.path(), &config)?;
    let (mut prev, mut last) = (Hash::default(), Vec::new());
    endpoint.manners().dearer = 100;
    for epoch in 1..=3u64 {
        let (data, root) = anvil.post(epoch, 100 * u128::from(epoch), prev)?;
        (prev, last) = (root, data.clone());
        let refused = chain.submit("root", &data, GAS).await;
        ensure!(
            refused.is_err_and(|why| why.to_string().contains("fee_cap_gwei")),
            "nothing is sent above the cap"
        );
        ensure!(chain.cost(&data).await?.is_above_cap);
        anvil.mine(1).await?;
    }
    ensure!(anvil.sent().await? == 0 && chain.tend().await? == 0);
    // One root for three epochs.
    endpoint.manners().dearer = 1;
    chain.submit("root", &last, GAS).await?;
    settle(&anvil, &chain).await?;
    let roots = chain.roots().await?;
    ensure!(roots.len() == 1 && roots[0].1.epoch == 3 && roots[0].1.total == Amount(300));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_lies_or_drops_loses_nothing() -> anyhow::Result<()> {
    if !chain::can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let (endpoint, good) = (Endpoint::start(&anvil).await?, Endpoint::start(&anvil).await?);
    let dir = tempfile::tempdir()?;
    let chain = anvil.open(dir.path(), vec![endpoint.url.clone(), good.url])?;
    let mut prev = Hash::default();
    let mut post = |epoch: u64| {
        let made = anvil.post(epoch, 100 * u128::from(epoch), prev);
        made.map(|(data, root)| {
            prev = root;
            data
        })
    };
    // It takes transactions and throws them away: the other one has them too.
    endpoint.manners().drops = true;
    chain.submit("root 1", &post(1)?, GAS).await?;
    settle(&anvil, &chain).await?;
    ensure!(!endpoint.manners().seen.is_empty() && chain.roots().await?.len() == 1);

    // It knows of a thousand blocks more, of other hashes: nothing is final while they disagree.
    *endpoint.manners() = Manners { lies_about_blocks: true, ..Manners::default() };
    chain.submit("root 2", &post(2)?, GAS).await?;
    for _ in 0..8 {
        anvil.mine(1).await?;
        ensure!(chain.tend().await? == 1, "it counted as final on the word of one");
    }
    // It hides what is in a block: the same.
    *endpoint.manners() = Manners { hides_receipts: true, ..Manners::default() };
    for _ in 0..4 {
        anvil.mine(1).await?;
        ensure!(chain.tend().await? == 1, "one knows nothing of it");
    }
    // It is down: one alone does not decide. It is well again: both do.
    endpoint.manners().is_down = true;
    anvil.mine(1).await?;
    ensure!(chain.tend().await? == 1, "one of two answers");
    *endpoint.manners() = Manners::default();
    settle(&anvil, &chain).await?;
    ensure!(chain.roots().await?.len() == 2 && anvil.sent().await? == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_transaction_is_made_dearer_and_a_stolen_key_is_told() -> anyhow::Result<()> {
    if !chain::can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let endpoint = Endpoint::start(&anvil).await?;
    let dir = tempfile::tempdir()?;
    let chain = anvil.open(dir.path(), vec![endpoint.url.clone()])?;
    let (data, root) = anvil.post(1, 100, Hash::default())?;
    chain.submit("root 1", &data, GAS).await?;
    // No block comes: it is sent again, and after a while dearer. Those are thrown away, so that the first one is mined.
    endpoint.manners().drops = true;
    for _ in 0..70 {
        ensure!(chain.tend().await? == 1);
    }
    let raws: std::collections::BTreeSet<String> = endpoint.manners().seen.iter().cloned().collect();
    ensure!(raws.len() == 2, "{} different transactions", raws.len());
    endpoint.manners().drops = false;
    settle(&anvil, &chain).await?;
    ensure!(chain.roots().await?.last().map(|(_, last)| last.root) == Some(root) && anvil.sent().await? == 1);

    // Somebody else has the key and sends with it.
    let other = tempfile::tempdir()?;
    let thief = anvil.open(other.path(), vec![anvil.url.clone()])?;
    let (data, root) = anvil.post(2, 200, root)?;
    thief.submit("root 2", &data, GAS).await?;
    settle(&anvil, &thief).await?;
    let (data, _) = anvil.post(3, 300, root)?;
    let refused = chain.submit("root 3", &data, GAS).await;
    ensure!(refused.is_err_and(|why| why.to_string().contains("somebody else sends")), "nothing is sent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_contract_or_chain_is_refused() -> anyhow::Result<()> {
    if !chain::can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let dir = tempfile::tempdir()?;
    anvil.open(dir.path(), vec![anvil.url.clone()])?.check().await?;
    let folder = dir.path();
    let refused = |config: LedgerConfig| async move {
        let refused = Chain::open(folder, &config)?.check().await;
        Ok::<String, anyhow::Error>(refused.err().map_or_else(String::new, |error| format!("{error:#}")))
    };
    let base = anvil.config(vec![anvil.url.clone()]);
    let why = refused(LedgerConfig { chain_id: 1, ..base.clone() }).await?;
    ensure!(why.contains("answers for chain 31337"), "{why}");
    let nothing = Address([0x77; 20]).to_string();
    let why = refused(LedgerConfig { distributor: nothing.clone(), ..base.clone() }).await?;
    ensure!(why.contains("no contract"), "{why}");
    anvil.ask("anvil_setCode", json!([nothing, "0x6001600255"])).await?;
    let why = refused(LedgerConfig { distributor: nothing, ..base.clone() }).await?;
    ensure!(why.contains("is not that of this release's Distributor"), "{why}");
    // A key that everybody has, on a chain where money is worth something.
    let known = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    std::fs::write(dir.path().join("submitter.key"), known)?;
    let why = refused(LedgerConfig { chain_id: 1, ..base }).await?;
    ensure!(why.contains("everybody can spend its money"), "{why}");
    Ok(())
}
