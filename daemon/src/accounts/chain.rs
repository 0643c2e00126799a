//! The way to an EVM chain: JSON-RPC, and an outbox that survives a crash at any instruction.
//!
//! ```text
//! call ─> nonce, fees ─> signed bytes ─ outbox.json, synced ─> sent ─> seen in a block ─> deep enough ─> forgotten
//!                                          └ sent again until seen; dearer when it takes long; seen no more: sent again
//! ```
//!
//! Always: bytes are on disk before they are sent, so that a restart sends the same transaction and never a second one; the
//! nonce is this node's own count, never a guess of the client; every unfinished transaction is sent again in the order of
//! nonces, since a reorganisation may drop any of them. Whoever sends has no authority: the contract trusts signatures.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use makai_config::LedgerConfig;
use makai_ops::claims::evm::{self, PostedRoot, Transaction};
use makai_ops::claims::statement::ClaimKey;
use makai_raft::facts::accounts::{Address, Emission, Hash};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::keys;
use crate::files;

const OUTBOX_FILE: &str = "outbox.json";
const OUTBOX_FORMAT: u32 = 1;
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Unfinished transactions at once.
const ATTEMPTS_MAX: usize = 64;
/// Looks without a block before a transaction is made dearer, by a quarter: nodes ask for an eighth at least.
const BUMP_AFTER_LOOKS: u32 = 60;
const GWEI: u128 = 1_000_000_000;
/// What a node says of an endpoint's first error.
const REVERTED: i64 = 3;

/// One signing of a transaction; several where its fees were raised.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Try {
    raw: String,
    hash: Hash,
    tip: u64,
    fee_cap: u64,
}

/// A transaction that is not final yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Attempt {
    nonce: u64,
    /// What it is for: the same is not sent twice.
    purpose: String,
    data: String,
    gas: u64,
    tries: Vec<Try>,
    /// Number and hash of the block it was seen in.
    seen: Option<(u64, Hash)>,
    looks: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Outbox {
    format: u32,
    next_nonce: u64,
    attempts: Vec<Attempt>,
}

/// Why an endpoint did not do as asked.
#[derive(Debug, thiserror::Error)]
enum RpcError {
    #[error("{message} (code {code})")]
    Refused { code: i64, message: String, data: Vec<u8> },
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// The chain as this node reaches it.
pub struct Chain {
    config: LedgerConfig,
    distributor: Address,
    key: ClaimKey,
    path: PathBuf,
    outbox: Mutex<Outbox>,
    is_checked: AtomicBool,
}

impl Chain {
    /// # Errors
    /// The key or the outbox of this node cannot be read.
    pub fn open(dir: &Path, config: &LedgerConfig) -> anyhow::Result<Self> {
        let path = dir.join(OUTBOX_FILE);
        let outbox = match std::fs::read(&path) {
            Ok(bytes) => {
                let outbox: Outbox = serde_json::from_slice(&bytes).with_context(|| {
                    format!("{path:?} is damaged; restore it, or the chain is asked with new nonces")
                })?;
                if outbox.format > OUTBOX_FORMAT {
                    bail!("{path:?} has format {}, this release reads up to {OUTBOX_FORMAT}", outbox.format);
                }
                outbox
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Outbox { format: OUTBOX_FORMAT, ..Outbox::default() }
            }
            Err(error) => return Err(anyhow!(error).context(format!("read {path:?}"))),
        };
        Ok(Self {
            distributor: config.distributor.parse().context("ledger.distributor")?,
            config: config.clone(),
            key: keys::load_or_create(dir, "submitter.key")?,
            path,
            outbox: Mutex::new(outbox),
            is_checked: AtomicBool::new(false),
        })
    }

    /// Who pays for gas, and nothing else.
    #[must_use]
    pub fn submitter(&self) -> Address {
        self.key.address()
    }

    /// For what signatures are: chain and contract.
    #[must_use]
    pub fn domain(&self) -> (u64, Address) {
        (self.config.chain_id, self.distributor)
    }

    /// Whether the contract pays what this cluster emits and takes signatures of `signer`.
    ///
    /// # Errors
    /// It does not, or does not answer.
    pub async fn check_terms(&self, emission: &Emission, signer: &Address) -> anyhow::Result<()> {
        self.check().await?;
        let [pool, halving] = evm::terms();
        let pool = evm::read_number(&self.read(&pool).await?, 0);
        let halving = evm::read_number(&self.read(&halving).await?, 0);
        if pool != Some(emission.pool.0) || halving != Some(emission.halving_epochs.into()) {
            bail!(
                "the contract {} emits otherwise than this cluster: deploy it with what `makai ledger opening` prints",
                self.distributor
            );
        }
        if evm::read_number(&self.read(&evm::is_signer(signer)).await?, 0) != Some(1) {
            bail!("the contract {} does not take signatures of {signer}, this voter's", self.distributor);
        }
        Ok(())
    }

    async fn ask(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let mut last = anyhow!("ledger.rpc is empty");
        for url in &self.config.rpc {
            match one(url, method, &params).await {
                Err(RpcError::Other(error)) => last = error.context(format!("{method} at {url}")),
                done => return done,
            }
        }
        Err(last.into())
    }

    /// Whether this is the chain and the contract that the configuration means. Asked once.
    ///
    /// # Errors
    /// It is another, or does not answer.
    pub async fn check(&self) -> anyhow::Result<()> {
        if self.is_checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let id = quantity(&self.ask("eth_chainId", json!([])).await?)?;
        if id != u128::from(self.config.chain_id) {
            bail!(
                "ledger.rpc answers for chain {id}, ledger.chain_id is {}; correct one",
                self.config.chain_id
            );
        }
        let code = self.ask("eth_getCode", json!([self.distributor, "latest"])).await?;
        if code.as_str().is_none_or(|code| code.len() <= 2) {
            bail!("there is no contract at ledger.distributor {} on chain {id}", self.distributor);
        }
        self.is_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads the contract; an error of its own comes by name.
    async fn read(&self, data: &[u8]) -> anyhow::Result<Vec<u8>> {
        let call = json!({ "from": self.submitter(), "to": self.distributor, "data": hex0x(data) });
        match self.ask("eth_call", json!([call, "latest"])).await {
            Ok(answer) => bytes(&answer),
            Err(RpcError::Refused { code, message, data }) => match evm::error_name(&data) {
                Some(name) => bail!("the contract refuses: {name}"),
                None => bail!("{message} (code {code}{})", if code == REVERTED { ", reverted" } else { "" }),
            },
            Err(RpcError::Other(error)) => Err(error),
        }
    }

    /// The roots that count, with their places, oldest first.
    ///
    /// # Errors
    /// The chain does not answer.
    pub async fn roots(&self) -> anyhow::Result<Vec<(u64, PostedRoot)>> {
        /// As many as are of use: older ones hold less.
        const NEWEST: u64 = 16;
        let count = self.read(&evm::root_count()).await?;
        let count = evm::read_number(&count, 0).and_then(|count| u64::try_from(count).ok());
        let count = count.context("the contract's count of roots cannot be read")?;
        let mut found = Vec::new();
        for index in count.saturating_sub(NEWEST)..count {
            let root = evm::read_root(&self.read(&evm::roots(index)).await?);
            found.push((index, root.context("a root of the contract cannot be read")?));
        }
        found.retain(|(_, root)| !root.is_disabled);
        Ok(found)
    }

    /// What a call would give, without sending it.
    ///
    /// # Errors
    /// The contract refuses, by the name of its error; or the chain does not answer.
    pub async fn simulate(&self, data: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.read(data).await
    }

    fn save(&self, outbox: &Outbox) -> anyhow::Result<()> {
        files::replace(&self.path, &serde_json::to_vec(outbox)?)
            .with_context(|| format!("write {:?}", self.path))
    }

    async fn fees(&self) -> anyhow::Result<(u128, u128)> {
        let block = self.ask("eth_getBlockByNumber", json!(["latest", false])).await?;
        let base = quantity(&block["baseFeePerGas"]).unwrap_or(GWEI);
        let tip = match self.ask("eth_maxPriorityFeePerGas", json!([])).await {
            Ok(tip) => quantity(&tip).unwrap_or(GWEI),
            Err(_) => GWEI,
        };
        Ok((tip, base.saturating_mul(2).saturating_add(tip)))
    }

    fn cap_wei(&self) -> u128 {
        u128::from(self.config.fee_cap_gwei) * GWEI
    }

    /// Sends a call, unless one for the same purpose is on its way. Returns whether it is new.
    ///
    /// # Errors
    /// Gas is dearer than the configuration allows, too much is under way, or the chain does not answer.
    pub async fn submit(&self, purpose: &str, data: &[u8], gas: u64) -> anyhow::Result<bool> {
        self.check().await?;
        let mut outbox = self.outbox.lock().await;
        if outbox.attempts.iter().any(|attempt| attempt.purpose == purpose) {
            return Ok(false);
        }
        if outbox.attempts.len() >= ATTEMPTS_MAX {
            bail!("{ATTEMPTS_MAX} transactions are under way; wait for the chain");
        }
        let (tip, fee_cap) = self.fees().await?;
        if fee_cap > self.cap_wei() {
            bail!(
                "gas costs up to {} gwei, ledger.fee_cap_gwei is {}; later",
                fee_cap / GWEI,
                self.config.fee_cap_gwei
            );
        }
        let on_chain =
            quantity(&self.ask("eth_getTransactionCount", json!([self.submitter(), "latest"])).await?)?;
        let nonce = outbox.next_nonce.max(u64::try_from(on_chain)?);
        let mut attempt = Attempt {
            nonce,
            purpose: purpose.to_owned(),
            data: hex::encode(data),
            gas,
            tries: Vec::new(),
            seen: None,
            looks: 0,
        };
        self.add_try(&mut attempt, tip, fee_cap)?;
        outbox.next_nonce = nonce + 1;
        outbox.attempts.push(attempt);
        self.save(&outbox)?;
        if let Some(attempt) = outbox.attempts.last() {
            self.send(attempt).await;
        }
        Ok(true)
    }

    fn add_try(&self, attempt: &mut Attempt, tip: u128, fee_cap: u128) -> anyhow::Result<()> {
        let transaction = Transaction {
            chain_id: self.config.chain_id,
            nonce: attempt.nonce,
            tip,
            fee_cap,
            gas: attempt.gas,
            to: self.distributor,
            data: hex::decode(&attempt.data)?,
        };
        let (raw, hash) = transaction.sign(&self.key);
        let (tip, fee_cap) = (u64::try_from(tip)?, u64::try_from(fee_cap)?);
        attempt.tries.push(Try { raw: hex0x(&raw), hash, tip, fee_cap });
        attempt.looks = 0;
        Ok(())
    }

    /// What an endpoint says to bytes that it has, or that are in a block already, is no failure: the look decides.
    async fn send(&self, attempt: &Attempt) {
        let Some(newest) = attempt.tries.last() else { return };
        if let Err(error) = self.ask("eth_sendRawTransaction", json!([newest.raw])).await {
            tracing::debug!(%error, nonce = attempt.nonce, purpose = attempt.purpose, "a transaction was not taken; the next look tells");
        }
    }

    /// The block that one of an attempt's tries is in.
    async fn inclusion(&self, attempt: &Attempt) -> anyhow::Result<Option<(u64, Hash, bool)>> {
        for one in &attempt.tries {
            let receipt = self.ask("eth_getTransactionReceipt", json!([one.hash])).await?;
            if receipt.is_null() {
                continue;
            }
            let block = u64::try_from(quantity(&receipt["blockNumber"])?)?;
            let hash = receipt["blockHash"].as_str().context("a receipt without a block")?.parse()?;
            return Ok(Some((block, hash, quantity(&receipt["status"]).unwrap_or(0) == 1)));
        }
        Ok(None)
    }

    /// Looks after everything that is under way; returns how much still is.
    ///
    /// # Errors
    /// The chain does not answer: nothing has changed.
    pub async fn tend(&self) -> anyhow::Result<usize> {
        let mut outbox = self.outbox.lock().await;
        if outbox.attempts.is_empty() {
            return Ok(0);
        }
        let head = self.ask("eth_getBlockByNumber", json!(["latest", false])).await?;
        let head = u64::try_from(quantity(&head["number"])?)?;
        let mut attempts = std::mem::take(&mut outbox.attempts);
        attempts.sort_by_key(|attempt| attempt.nonce);
        let mut left = Vec::new();
        let mut done = Ok(());
        for mut attempt in attempts {
            if done.is_ok() {
                match self.look(&mut attempt, head).await {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => done = Err(error),
                }
            }
            left.push(attempt);
        }
        outbox.attempts = left;
        self.save(&outbox)?;
        done.map(|()| outbox.attempts.len())
    }

    /// Whether an attempt is over.
    async fn look(&self, attempt: &mut Attempt, head: u64) -> anyhow::Result<bool> {
        match self.inclusion(attempt).await? {
            Some((block, hash, has_succeeded)) => {
                attempt.seen = Some((block, hash));
                if head.saturating_sub(block) + 1 < self.config.finality_depth {
                    return Ok(false);
                }
                tracing::info!(purpose = attempt.purpose, block, has_succeeded, "a transaction is final");
                return Ok(true);
            }
            None if attempt.seen.is_some() => {
                tracing::warn!(
                    purpose = attempt.purpose,
                    nonce = attempt.nonce,
                    "a block was taken back; its transaction is sent again"
                );
                attempt.seen = None;
            }
            None => attempt.looks += 1,
        }
        if attempt.looks >= BUMP_AFTER_LOOKS
            && let Some(last) = attempt.tries.last().cloned()
        {
            let dearer = |fee: u64| u128::from(fee) + u128::from(fee) / 4 + 1;
            let (tip, fee_cap) = (dearer(last.tip), dearer(last.fee_cap));
            if fee_cap <= self.cap_wei() {
                self.add_try(attempt, tip, fee_cap)?;
            }
        }
        self.send(attempt).await;
        Ok(false)
    }
}

async fn one(url: &str, method: &str, params: &Value) -> Result<Value, RpcError> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let asked = async {
        let request = http::Request::post(url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))?;
        let response = client.request(request).await?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        anyhow::Ok(body.map_err(|error| anyhow!(error))?.to_bytes())
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
    let answer = answer.map_err(|_| anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))??;
    let answer: Value = serde_json::from_slice(&answer).context("the answer is no JSON")?;
    match answer.get("error") {
        Some(error) if !error.is_null() => Err(RpcError::Refused {
            code: error["code"].as_i64().unwrap_or(0),
            message: error["message"].as_str().unwrap_or("refused").chars().take(400).collect(),
            data: bytes(&error["data"]).unwrap_or_default(),
        }),
        _ => Ok(answer.get("result").cloned().unwrap_or(Value::Null)),
    }
}

fn hex0x(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

fn bytes(value: &Value) -> anyhow::Result<Vec<u8>> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x")).context("bytes were expected")?;
    Ok(hex::decode(text)?)
}

fn quantity(value: &Value) -> anyhow::Result<u128> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x")).context("a number was expected")?;
    Ok(u128::from_str_radix(text, 16)?)
}
