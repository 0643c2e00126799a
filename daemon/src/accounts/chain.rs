//! The way to an EVM chain: JSON-RPC, and an outbox that survives a crash at any instruction.
//!
//! ```text
//! call ─> nonce, fees ─> signed bytes ─ outbox.json, synced ─> sent ─> seen in a block ─> deep enough ─> forgotten
//!                                          └ sent again until seen; dearer when it takes long; seen no more: sent again
//! ```
//!
//! Endpoints may lie, lag or drop: bytes go to all of them, the first that knows is asked, and nothing is final before two of
//! them, where two are configured, name the same block for it.
//!
//! Always: bytes are on disk before they are sent, so that a restart sends the same transaction and never a second one; the
//! nonce is this node's own count, never a guess of the client; every unfinished transaction is sent again in the order of
//! nonces, since a reorganisation may drop any of them. Whoever sends has no authority: the contract trusts signatures.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, anyhow, bail};
use makai_config::LedgerConfig;
use makai_ops::claims::evm::{self, PostedRoot, Transaction};
use makai_ops::claims::statement::ClaimKey;
use makai_raft::facts::accounts::{Address, Amount, Emission, Hash};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::keys;
use super::rpc::{RpcError, bytes, hex0x, one, quantity};
use crate::files;

const OUTBOX_FILE: &str = "outbox.json";
const OUTBOX_FORMAT: u32 = 1;
/// Looks at a nonce that is used up by no transaction of ours before that is told and the transaction given up.
const FOREIGN_AFTER_LOOKS: u32 = 20;
/// Chain of the accounts whose keys everybody knows.
const DEV_CHAIN: u64 = 31_337;
/// What a claim takes, where the chain does not say: twenty steps of proof, the first payment of an account.
const CLAIM_GAS_USUAL: u128 = 105_000;
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

/// Endpoints that must agree before anything is final, where so many are configured.
const ENDPOINTS_AGREEING: usize = 2;

/// Where a transaction is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inclusion {
    block: u64,
    hash: Hash,
    transaction: Hash,
    has_succeeded: bool,
}

/// What a call costs now, in wei.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    pub gas: u64,
    /// For one unit of gas.
    pub price_wei: u128,
    pub cost_wei: u128,
    /// Dearer than `ledger.fee_cap_gwei` allows: it would not be sent now.
    pub is_above_cap: bool,
    /// Who pays, and what it has.
    pub submitter: Address,
    pub submitter_wei: u128,
}

/// The chain as this node reaches it.
pub struct Chain {
    config: LedgerConfig,
    distributor: Address,
    staking: Option<Address>,
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
        let staking = &config.staking;
        let staking = (!staking.is_empty()).then(|| staking.parse().context("ledger.staking"));
        Ok(Self {
            distributor: config.distributor.parse().context("ledger.distributor")?,
            staking: staking.transpose()?,
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
        if self.config.chain_id != DEV_CHAIN && evm::is_development_account(&self.submitter()) {
            bail!(
                "submitter.key is one of the keys that every development chain publishes: everybody can spend its money. \
                 Remove the file, and a new key is made"
            );
        }
        let mut last = anyhow!("ledger.rpc is empty");
        let mut answered = 0;
        for url in &self.config.rpc {
            match one(url, "eth_chainId", &json!([])).await {
                Ok(id) => {
                    let id = quantity(&id)?;
                    if id != u128::from(self.config.chain_id) {
                        bail!(
                            "{url} answers for chain {id}, ledger.chain_id is {}; correct one",
                            self.config.chain_id
                        );
                    }
                    answered += 1;
                }
                Err(error) => last = anyhow!(error).context(format!("eth_chainId at {url}")),
            }
        }
        if answered == 0 {
            return Err(last);
        }
        let code = bytes(&self.ask("eth_getCode", json!([self.distributor, "latest"])).await?)?;
        if code.is_empty() {
            let id = self.config.chain_id;
            bail!("there is no contract at ledger.distributor {} on chain {id}", self.distributor);
        }
        if !evm::is_distributor_code(&code) {
            bail!(
                "the code at ledger.distributor {} is not that of this release's Distributor (ops/contracts/artifacts): \
                 deploy that, or correct the address",
                self.distributor
            );
        }
        self.is_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads the contract; an error of its own comes by name.
    async fn read(&self, data: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.read_at(&self.distributor, data).await
    }

    /// What an operator has bonded and is not taking back; nothing where no staking contract is configured.
    ///
    /// # Errors
    /// The chain does not answer, or there is no such contract.
    pub async fn bond(&self, operator: &Address) -> anyhow::Result<Amount> {
        let Some(staking) = self.staking else { return Ok(Amount(0)) };
        let answer = self.read_at(&staking, &evm::bonds(operator)).await?;
        evm::read_number(&answer, 0).map(Amount).with_context(|| {
            format!(
                "what is at ledger.staking {staking} answers as no Staking contract does; correct the address"
            )
        })
    }

    async fn read_at(&self, to: &Address, data: &[u8]) -> anyhow::Result<Vec<u8>> {
        let call = json!({ "from": self.submitter(), "to": to, "data": hex0x(data) });
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

    /// What a call would cost now.
    ///
    /// # Errors
    /// The chain does not answer.
    pub async fn cost(&self, data: &[u8]) -> anyhow::Result<Cost> {
        self.check().await?;
        let (tip, fee_cap) = self.fees().await?;
        let call = json!({ "from": self.submitter(), "to": self.distributor, "data": hex0x(data) });
        let gas = match self.ask("eth_estimateGas", json!([call])).await {
            Ok(gas) => quantity(&gas)?,
            Err(_) => CLAIM_GAS_USUAL,
        };
        // Twice the base fee is what may be paid; half of that and the tip is what is.
        let price = fee_cap.saturating_sub(tip) / 2 + tip;
        let balance = quantity(&self.ask("eth_getBalance", json!([self.submitter(), "latest"])).await?)?;
        Ok(Cost {
            gas: u64::try_from(gas)?,
            price_wei: price,
            cost_wei: gas.saturating_mul(price),
            is_above_cap: fee_cap > self.cap_wei(),
            submitter: self.submitter(),
            submitter_wei: balance,
        })
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
        let on_chain = self.nonce_on_chain().await?;
        if outbox.next_nonce > 0 && on_chain > outbox.next_nonce {
            bail!(
                "somebody else sends from {}: the chain counts {on_chain} transactions, this node {}. Nothing is sent until \
                 the key is this node's alone: remove submitter.key and outbox.json, and fund the new address",
                self.submitter(),
                outbox.next_nonce
            );
        }
        let nonce = outbox.next_nonce.max(on_chain);
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

    /// To every endpoint: one that says yes and drops it is not the only one. What an endpoint says to bytes that it has, or
    /// that are in a block already, is no failure: the look decides.
    async fn send(&self, attempt: &Attempt) {
        let Some(newest) = attempt.tries.last() else { return };
        for url in &self.config.rpc {
            if let Err(error) = one(url, "eth_sendRawTransaction", &json!([newest.raw])).await {
                tracing::debug!(%error, url, nonce = attempt.nonce, purpose = attempt.purpose, "a transaction was not taken; the next look tells");
            }
        }
    }

    /// Where one endpoint has one of an attempt's tries.
    async fn inclusion_at(&self, url: &str, attempt: &Attempt) -> anyhow::Result<Option<Inclusion>> {
        for try_of in &attempt.tries {
            let receipt = one(url, "eth_getTransactionReceipt", &json!([try_of.hash])).await?;
            if receipt.is_null() {
                continue;
            }
            let block = u64::try_from(quantity(&receipt["blockNumber"])?)?;
            let hash = receipt["blockHash"].as_str().context("a receipt without a block")?.parse()?;
            let has_succeeded = quantity(&receipt["status"]).unwrap_or(0) == 1;
            return Ok(Some(Inclusion { block, hash, transaction: try_of.hash, has_succeeded }));
        }
        Ok(None)
    }

    /// What each endpoint that answers says of an attempt.
    async fn inclusions(&self, attempt: &Attempt) -> anyhow::Result<Vec<(String, Option<Inclusion>)>> {
        let (mut said, mut last) = (Vec::new(), anyhow!("ledger.rpc is empty"));
        for url in &self.config.rpc {
            match self.inclusion_at(url, attempt).await {
                Ok(found) => said.push((url.clone(), found)),
                Err(error) => last = error.context(format!("a receipt at {url}")),
            }
        }
        if said.is_empty() { Err(last) } else { Ok(said) }
    }

    /// Whether a block is final for one endpoint: so many on top of it, or as the chain itself says.
    async fn is_final_at(&self, url: &str, found: &Inclusion) -> anyhow::Result<bool> {
        let depth = self.config.finality_depth;
        let tag = if depth == 0 { "finalized" } else { "latest" };
        let head = one(url, "eth_getBlockByNumber", &json!([tag, false])).await?;
        let head = u64::try_from(quantity(&head["number"])?)?;
        let is_deep = head.checked_sub(found.block).is_some_and(|above| above + 1 >= depth.max(1));
        if !is_deep {
            return Ok(false);
        }
        // The block by its number is the one that the receipt names: it was not taken back meanwhile.
        let number = format!("0x{:x}", found.block);
        let block = one(url, "eth_getBlockByNumber", &json!([number, false])).await?;
        Ok(block["hash"].as_str().and_then(|hash| hash.parse::<Hash>().ok()) == Some(found.hash))
    }

    /// Whether all endpoints that answer, two at least where two are configured, have it in the same final block.
    async fn is_final(&self, said: &[(String, Option<Inclusion>)]) -> anyhow::Result<bool> {
        let Some((_, Some(first))) = said.first() else { return Ok(false) };
        if said.len() < self.config.rpc.len().min(ENDPOINTS_AGREEING) {
            return Ok(false);
        }
        for (url, found) in said {
            if found.as_ref() != Some(first) {
                tracing::warn!(url, transaction = %first.transaction, "endpoints of the chain disagree; nothing is final until they agree");
                return Ok(false);
            }
            if !self.is_final_at(url, first).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn nonce_on_chain(&self) -> anyhow::Result<u64> {
        let count = self.ask("eth_getTransactionCount", json!([self.submitter(), "latest"])).await?;
        Ok(u64::try_from(quantity(&count)?)?)
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
        let on_chain = self.nonce_on_chain().await?;
        let mut attempts = std::mem::take(&mut outbox.attempts);
        attempts.sort_by_key(|attempt| attempt.nonce);
        let mut left = Vec::new();
        let mut done = Ok(());
        for mut attempt in attempts {
            if done.is_ok() {
                match self.look(&mut attempt, on_chain).await {
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
    async fn look(&self, attempt: &mut Attempt, on_chain: u64) -> anyhow::Result<bool> {
        let said = self.inclusions(attempt).await?;
        match said.iter().find_map(|(_, found)| found.as_ref()) {
            Some(found) => {
                attempt.seen = Some((found.block, found.hash));
                let is_final = self.is_final(&said).await?;
                if is_final {
                    let (block, has_succeeded) = (found.block, found.has_succeeded);
                    tracing::info!(purpose = attempt.purpose, block, has_succeeded, "a transaction is final");
                } else if said.iter().any(|(_, found)| found.is_none()) {
                    // An endpoint that does not know it may be the honest one.
                    self.send(attempt).await;
                }
                return Ok(is_final);
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
        if on_chain > attempt.nonce && attempt.looks >= FOREIGN_AFTER_LOOKS {
            tracing::error!(
                purpose = attempt.purpose,
                nonce = attempt.nonce,
                submitter = %self.submitter(),
                "somebody else used this node's nonce: its transaction can never be in a block and is given up; keep \
                 submitter.key to this node alone"
            );
            return Ok(true);
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
