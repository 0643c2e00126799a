//! Promise: whatever happens between a node and its chain, a call is carried out once: a crash at any step, a block that is
//! taken back, a dear hour, an endpoint that lies or drops.
//!
//! The outbox itself against a real EVM. Needs Node and `ops/contracts/node_modules` (`npm ci`); else it says that it was
//! skipped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use makai::accounts::chain::Chain;
use makai_config::{LedgerConfig, LedgerKind};
use makai_integration::{ports, wait};
use makai_ops::claims::evm::{self, Post};
use makai_ops::claims::statement::{ClaimKey, Statement};
use makai_ops::claims::tree::ClaimTree;
use makai_raft::facts::accounts::{Address, Amount, Hash, Leaf};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const CHAIN_ID: u64 = 31_337;
const WITHIN: Duration = Duration::from_secs(60);
const POOL: u128 = 1_000_000;
const HALVING: u64 = 100;
const GAS: u64 = 400_000;
const SUBMITTER: [u8; 32] = [0x51; 32];
const SIGNER: [u8; 32] = [0x52; 32];

fn contracts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/contracts")
}

fn can_run() -> bool {
    let program = contracts().join("node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
    let has_node = Command::new("node").arg("--version").output().is_ok();
    let can_run = has_node && program.exists() && std::env::var("MAKAI_TEST_CHAIN").as_deref() != Ok("skip");
    let is_required = std::env::var("MAKAI_TEST_CHAIN").is_ok_and(|wanted| wanted == "require");
    assert!(can_run || !is_required, "no Node, or no ops/contracts/node_modules: run `npm ci` there");
    if !can_run {
        eprintln!("skipped: no Node, or no ops/contracts/node_modules; run `npm ci` there");
    }
    can_run
}

/// A chain that makes blocks when it is told to.
struct Anvil {
    child: Child,
    url: String,
    distributor: String,
    _port: ports::Port,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn rpc(url: &str, method: &str, params: Value) -> anyhow::Result<Value> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let request =
        http::Request::post(url).header("content-type", "application/json").body(Full::from(body))?;
    let body = client.request(request).await?.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&body)?;
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        bail!("{method}: {error}");
    }
    Ok(answer["result"].clone())
}

fn address(key: [u8; 32]) -> anyhow::Result<Address> {
    Ok(ClaimKey::from_bytes(&key).context("a key")?.address())
}

impl Anvil {
    async fn start() -> anyhow::Result<Self> {
        let port = ports::take()?;
        let child = Command::new(contracts().join("node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"))
            .args(["--silent", "--port", &port.number.to_string()])
            .stdin(Stdio::null())
            .spawn()?;
        let url = format!("http://127.0.0.1:{}", port.number);
        let mut anvil = Self { child, url, distributor: String::new(), _port: port };
        wait::until("the chain answers", WITHIN, || async { anvil.ask("eth_chainId", json!([])).await })
            .await?;
        let script = contracts().join("test/chain.mjs");
        let (pool, halving) = (POOL.to_string(), HALVING.to_string());
        let (signer, funded) = (address(SIGNER)?.to_string(), address(SUBMITTER)?.to_string());
        let args = ["deploy", &anvil.url, &pool, &halving, "0", "1", &signer, &funded];
        let out = Command::new("node").arg(script).args(args).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let made: Value = serde_json::from_slice(&out.stdout)?;
        anvil.distributor = made["distributor"].as_str().context("a distributor")?.to_owned();
        anvil.ask("evm_setAutomine", json!([false])).await?;
        Ok(anvil)
    }

    async fn ask(&self, method: &str, params: Value) -> anyhow::Result<Value> {
        rpc(&self.url, method, params).await
    }

    async fn mine(&self, blocks: u64) -> anyhow::Result<()> {
        for _ in 0..blocks {
            self.ask("evm_mine", json!([])).await?;
        }
        Ok(())
    }

    /// Transactions of the submitter that are in blocks.
    async fn sent(&self) -> anyhow::Result<u64> {
        let count = self.ask("eth_getTransactionCount", json!([address(SUBMITTER)?, "latest"])).await?;
        Ok(u64::from_str_radix(count.as_str().context("a number")?.trim_start_matches("0x"), 16)?)
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

/// What an endpoint between the outbox and the chain does to it.
#[derive(Default)]
struct Manners {
    /// Transactions are answered and thrown away.
    drops: bool,
    /// No receipt is known.
    hides_receipts: bool,
    /// Says that so many more blocks are there, and that blocks have other hashes.
    lies_about_blocks: bool,
    /// Gas costs so many times more.
    dearer: u64,
    /// Does not answer.
    is_down: bool,
    /// Raw transactions that came.
    seen: Vec<String>,
}

/// An endpoint that has [`Manners`]; ends with the test.
async fn endpoint(chain: &Anvil) -> anyhow::Result<(String, Arc<Mutex<Manners>>)> {
    let manners = Arc::new(Mutex::new(Manners { dearer: 1, ..Manners::default() }));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (behind, shared) = (chain.url.clone(), Arc::clone(&manners));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (behind, shared) = (behind.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                let mut request = Vec::new();
                let body = loop {
                    let mut piece = [0; 16 * 1024];
                    let Ok(read @ 1..) = stream.read(&mut piece).await else { return };
                    request.extend_from_slice(&piece[..read]);
                    if let Some(body) = whole_body(&request) {
                        break body;
                    }
                };
                let Ok(asked) = serde_json::from_slice::<Value>(&body) else { return };
                let Some(answer) = answer(&behind, &shared, &asked).await else { return };
                let text = answer.to_string();
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
                let _ = stream
                    .write_all(format!("{head}content-length: {}\r\n\r\n{text}", text.len()).as_bytes())
                    .await;
            });
        }
    });
    Ok((url, manners))
}

fn whole_body(request: &[u8]) -> Option<Vec<u8>> {
    let head = request.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
    let length: usize = text.split("content-length:").nth(1)?.split("\r\n").next()?.trim().parse().ok()?;
    (request.len() >= head + length).then(|| request[head..head + length].to_vec())
}

async fn answer(behind: &str, manners: &Mutex<Manners>, asked: &Value) -> Option<Value> {
    let (method, params) = (asked["method"].as_str()?.to_owned(), asked["params"].clone());
    let result = |result: Value| Some(json!({ "jsonrpc": "2.0", "id": asked["id"], "result": result }));
    let (dearer, lies) = {
        let mut manners = manners.lock().expect("nobody panics here");
        if manners.is_down {
            return None;
        }
        if method == "eth_sendRawTransaction" {
            manners.seen.push(params[0].as_str()?.to_owned());
            if manners.drops {
                return result(json!(Hash([0; 32])));
            }
        }
        if method == "eth_getTransactionReceipt" && manners.hides_receipts {
            return result(Value::Null);
        }
        (manners.dearer, manners.lies_about_blocks)
    };
    match rpc(behind, &method, params).await {
        Ok(mut found) => {
            if method == "eth_getBlockByNumber" && !found.is_null() {
                let number = |value: &Value| {
                    u64::from_str_radix(value.as_str().unwrap_or("0x0").trim_start_matches("0x"), 16)
                        .unwrap_or(0)
                };
                found["baseFeePerGas"] = json!(format!("0x{:x}", number(&found["baseFeePerGas"]) * dearer));
                if lies {
                    found["number"] = json!(format!("0x{:x}", number(&found["number"]) + 1000));
                    found["hash"] = json!(Hash([9; 32]));
                }
            }
            result(found)
        }
        Err(error) => Some(
            json!({ "jsonrpc": "2.0", "id": asked["id"], "error": { "code": -32000, "message": error.to_string() } }),
        ),
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
    if !can_run() {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let (url, manners) = endpoint(&anvil).await?;
    let dir = tempfile::tempdir()?;
    let open = || anvil.open(dir.path(), vec![url.clone()]);
    let mut prev = Hash::default();
    for (at, step) in
        ["after the write", "after the send", "when it is in a block", "when it is final"].iter().enumerate()
    {
        let (data, root) = anvil.post(at as u64 + 1, 100 * (at as u128 + 1), prev)?;
        prev = root;
        let before = anvil.sent().await?;
        manners.lock().expect("no panic").drops = at == 0;
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
        manners.lock().expect("no panic").drops = false;
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
    if !can_run() {
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
    if !can_run() {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let (url, manners) = endpoint(&anvil).await?;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("submitter.key"), SUBMITTER.map(|byte| format!("{byte:02x}")).concat())?;
    let config = LedgerConfig { fee_cap_gwei: 20, ..anvil.config(vec![url]) };
    let chain = Chain::open(dir.path(), &config)?;
    let (mut prev, mut last) = (Hash::default(), Vec::new());
    manners.lock().expect("no panic").dearer = 100;
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
    manners.lock().expect("no panic").dearer = 1;
    chain.submit("root", &last, GAS).await?;
    settle(&anvil, &chain).await?;
    let roots = chain.roots().await?;
    ensure!(roots.len() == 1 && roots[0].1.epoch == 3 && roots[0].1.total == Amount(300));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_lies_or_drops_loses_nothing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let ((bad, manners), (good, _)) = (endpoint(&anvil).await?, endpoint(&anvil).await?);
    let dir = tempfile::tempdir()?;
    let chain = anvil.open(dir.path(), vec![bad, good])?;
    let mut prev = Hash::default();
    let mut post = |epoch: u64| {
        let made = anvil.post(epoch, 100 * u128::from(epoch), prev);
        made.map(|(data, root)| {
            prev = root;
            data
        })
    };
    // It takes transactions and throws them away: the other one has them too.
    manners.lock().expect("no panic").drops = true;
    chain.submit("root 1", &post(1)?, GAS).await?;
    settle(&anvil, &chain).await?;
    ensure!(!manners.lock().expect("no panic").seen.is_empty() && chain.roots().await?.len() == 1);

    // It knows of a thousand blocks more, of other hashes: nothing is final while they disagree.
    *manners.lock().expect("no panic") = Manners { dearer: 1, lies_about_blocks: true, ..Manners::default() };
    chain.submit("root 2", &post(2)?, GAS).await?;
    for _ in 0..8 {
        anvil.mine(1).await?;
        ensure!(chain.tend().await? == 1, "it counted as final on the word of one");
    }
    // It hides what is in a block: the same.
    *manners.lock().expect("no panic") = Manners { dearer: 1, hides_receipts: true, ..Manners::default() };
    for _ in 0..4 {
        anvil.mine(1).await?;
        ensure!(chain.tend().await? == 1, "one knows nothing of it");
    }
    // It is down: one alone does not decide. It is well again: both do.
    manners.lock().expect("no panic").is_down = true;
    anvil.mine(1).await?;
    ensure!(chain.tend().await? == 1, "one of two answers");
    *manners.lock().expect("no panic") = Manners { dearer: 1, ..Manners::default() };
    settle(&anvil, &chain).await?;
    ensure!(chain.roots().await?.len() == 2 && anvil.sent().await? == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_transaction_is_made_dearer_and_a_stolen_key_is_told() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let anvil = Anvil::start().await?;
    let (url, manners) = endpoint(&anvil).await?;
    let dir = tempfile::tempdir()?;
    let chain = anvil.open(dir.path(), vec![url])?;
    let (data, root) = anvil.post(1, 100, Hash::default())?;
    chain.submit("root 1", &data, GAS).await?;
    // No block comes: it is sent again, and after a while dearer. Those are thrown away, so that the first one is mined.
    manners.lock().expect("no panic").drops = true;
    for _ in 0..70 {
        ensure!(chain.tend().await? == 1);
    }
    let raws: std::collections::BTreeSet<String> =
        manners.lock().expect("no panic").seen.iter().cloned().collect();
    ensure!(raws.len() == 2, "{} different transactions", raws.len());
    manners.lock().expect("no panic").drops = false;
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
    if !can_run() {
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
