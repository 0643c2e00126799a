//! Promise: the embedded ledger and the contract follow the same rules: one file of calls, run against both.
//!
//! The contract runs on a real EVM, where Node and `ops/contracts/node_modules` are there (`npm ci`); else that half says
//! that it was skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use makai::identity::NodeIdentity;
use makai_erasure::NodeId;
use makai_integration::{ports, wait};
use makai_ops::claims::statement::{ClaimKey, Statement};
use makai_ops::claims::tree::ClaimTree;
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{
    AccountsCommand, AccountsRefusal, AccountsReply, Address, Amount, ClaimSignature, Emission, EpochResult,
    Genesis, Hash, Leaf, PURPOSE_SIGNER, Signer,
};
use makai_raft::facts::cluster::{JoinToken, Node, Role, Standing};
use makai_raft::facts::command::{Batch, Command, Envelope, Refusal, Reply};
use makai_raft::machine::accounts::signer_digest;
use makai_raft::machine::kv::MemKv;
use serde::Deserialize;

const ENDS_WITHIN: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
struct Vectors {
    pool: Amount,
    halving_epochs: u64,
    window_ms: u64,
    epoch_ms: u64,
    accounts: BTreeMap<String, Address>,
    signer_seeds: Vec<u8>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Step {
    Advance {
        ms: u64,
    },
    Propose {
        epoch: u64,
        total: Option<Amount>,
        leaves: Vec<(String, Amount)>,
        signed_by: Vec<u8>,
        expect: String,
    },
    Claim {
        epoch: u64,
        who: String,
        cumulative: Option<Amount>,
        expect: String,
    },
}

/// The machine alone, with a clock.
struct Embedded {
    kv: MemKv,
    now: Timestamp,
    index: u64,
    sealed: u64,
    attempts: BTreeMap<u64, u32>,
    posted: BTreeMap<u64, Vec<Leaf>>,
    prev_root: Hash,
    epoch_ms: u64,
}

impl Embedded {
    fn run(&mut self, command: Command) -> Result<Reply, Refusal> {
        self.index += 1;
        let serial = self.index;
        let envelope = Envelope { session: 1, serial, answered_below: serial, command };
        let batch = Batch { at: self.now, envelopes: vec![envelope] };
        makai_raft::machine::apply(&mut self.kv, self.index, &batch).expect("a sound store").remove(0)
    }

    fn act(&mut self, command: AccountsCommand) -> Result<AccountsReply, Refusal> {
        match self.run(Command::Accounts(command))? {
            Reply::Accounts(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn join(&mut self, id: NodeId) {
        let token = JoinToken {
            id: id.to_string(),
            secret_hash: [0; 32],
            roles: vec![Role::Voter],
            expires_at: Timestamp(u64::MAX),
            uses_left: 1,
        };
        let proof = (token.id.clone(), token.secret_hash);
        self.run(Command::CreateJoinToken { token }).expect("a token");
        let node = Node {
            id,
            number: 0,
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: vec![Role::Voter],
            addresses: vec!["a:1".into()],
            standing: Standing::Active,
            joined_at: Timestamp(0),
            is_up: true,
            changed_at: Timestamp(0),
            version: String::new(),
            down_ppm: 0,
        };
        self.run(Command::JoinNode { node, disks: vec![], token: Some(proof) }).expect("a member");
    }

    /// Seals epochs until `epoch` may be computed, proposes, lets signers sign. What comes of it, in the vectors' words.
    fn propose(
        &mut self,
        epoch: u64,
        leaves: Vec<Leaf>,
        total: Option<Amount>,
        signers: &[ClaimKey],
    ) -> String {
        while self.sealed < epoch {
            self.now.0 += self.epoch_ms;
            self.sealed += 1;
            self.act(AccountsCommand::Seal { epoch: self.sealed }).expect("an epoch that is over is sealed");
        }
        let attempt = self.attempts.get(&epoch).copied().unwrap_or(0) + 1;
        let sum = leaves.iter().fold(Amount(0), |sum, leaf| sum.plus(leaf.cumulative));
        let (root, total, data_hash) = (ClaimTree::new(&leaves).root(), total.unwrap_or(sum), Hash([7; 32]));
        let prev_root = self.prev_root;
        let statement =
            Statement { chain_id: 0, ledger: Address([9; 20]), epoch, root, total, data_hash, prev_root };
        let digest = statement.digest();
        let result = EpochResult {
            epoch,
            attempt,
            claim_root: root,
            total,
            data_hash,
            digest,
            account_count: 0,
            leaf_count: leaves.len() as u64,
            difficulty: vec![],
        };
        if let Err(refusal) = self.act(AccountsCommand::Result(result)) {
            return word(&refusal);
        }
        self.attempts.insert(epoch, attempt);
        let mut is_signed = false;
        for key in signers {
            let signature = ClaimSignature { signer: key.address(), signature: key.sign(&digest) };
            match self.act(AccountsCommand::Sign { epoch, attempt, signature }) {
                Ok(AccountsReply::Epoch(epoch)) => is_signed |= epoch.active_at.is_some(),
                Ok(other) => return format!("{other:?}"),
                // The epoch was signed before this one came: one signature more than needed.
                Err(_) if is_signed => {}
                Err(refusal) => return word(&refusal),
            }
        }
        if !is_signed {
            return "NotEnoughSignatures".into();
        }
        self.prev_root = root;
        self.posted.insert(epoch, leaves);
        "ok".into()
    }

    fn claim(&mut self, epoch: u64, payout: Address, cumulative: Option<Amount>) -> anyhow::Result<String> {
        let leaves = self.posted.get(&epoch).context("an epoch that was posted")?;
        let leaf = *leaves.iter().find(|leaf| leaf.payout == payout).context("a leaf")?;
        let proof = ClaimTree::new(leaves).proof(&leaf).context("a proof")?;
        let leaf = Leaf { cumulative: cumulative.unwrap_or(leaf.cumulative), ..leaf };
        Ok(match self.act(AccountsCommand::Claim { epoch, leaf, proof }) {
            Ok(AccountsReply::Paid(amount)) => amount.to_string(),
            Ok(other) => bail!("{other:?}"),
            Err(refusal) => word(&refusal),
        })
    }
}

fn word(refusal: &Refusal) -> String {
    use AccountsRefusal as R;
    let Refusal::Accounts(refusal) = refusal else { return refusal.to_string() };
    match refusal {
        R::OverEmission { .. } => "OverEmission",
        R::Decreases { .. } => "TotalFalls",
        R::WrongState { .. } => "AlreadyProposed",
        R::NotActive { .. } => "NotActive",
        R::BadProof(_) => "BadProof",
        R::NothingToClaim(_) => "NothingToClaim",
        other => return other.to_string(),
    }
    .into()
}

fn contracts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/contracts")
}

#[test]
fn the_embedded_ledger_does_what_the_vectors_say() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(contracts().join("test/claims.vectors.json"))?;
    let vectors: Vectors = serde_json::from_str(&text)?;
    let key = |seed: u8| ClaimKey::from_bytes(&[seed; 32]).context("a key");
    let mut ledger = Embedded {
        kv: MemKv::default(),
        now: Timestamp(1_000_000),
        index: 0,
        sealed: 0,
        attempts: BTreeMap::new(),
        posted: BTreeMap::new(),
        prev_root: Hash::default(),
        epoch_ms: vectors.epoch_ms,
    };
    ledger.run(Command::InitCluster { cluster_id: "c".into() })?;
    let tokenomics = "{}".to_owned();
    let genesis = Genesis {
        rules: 1,
        tokenomics_hash: Hash(*blake3::hash(tokenomics.as_bytes()).as_bytes()),
        tokenomics,
        emission: Emission::of_pool(vectors.pool, vectors.halving_epochs),
        epoch_ms: vectors.epoch_ms,
        challenge_ms: vectors.window_ms,
        payout_cooldown_ms: 0,
        chain_id: 0,
        ledger: Address([9; 20]),
        forfeits_all: false,
        pledge: None,
    };
    ledger.act(AccountsCommand::Open { genesis })?;
    for seed in &vectors.signer_seeds {
        let (identity, key) = (NodeIdentity::generate()?, key(*seed)?);
        ledger.join(identity.id());
        let address = key.address();
        ledger.act(AccountsCommand::AddSigner(Signer {
            node: identity.id(),
            address,
            node_signature: identity.sign(PURPOSE_SIGNER, &address.0).to_vec().into(),
            signature: key.sign(&signer_digest(identity.id())),
        }))?;
    }
    for (at, step) in vectors.steps.into_iter().enumerate() {
        let (got, expect) = match step {
            Step::Advance { ms } => {
                ledger.now.0 += ms;
                continue;
            }
            Step::Propose { epoch, total, leaves, signed_by, expect } => {
                let leaf =
                    |(who, cumulative): (String, Amount)| Leaf { payout: vectors.accounts[&who], cumulative };
                let leaves = leaves.into_iter().map(leaf).collect();
                let keys: Vec<ClaimKey> = signed_by.into_iter().map(key).collect::<anyhow::Result<_>>()?;
                (ledger.propose(epoch, leaves, total, &keys), expect)
            }
            Step::Claim { epoch, who, cumulative, expect } => {
                (ledger.claim(epoch, vectors.accounts[&who], cumulative)?, expect)
            }
        };
        ensure!(got == expect, "step {at}: {got}, expected {expect}");
    }
    Ok(())
}

#[test]
fn the_contract_does_what_the_vectors_say() -> anyhow::Result<()> {
    if !contracts().join("node_modules").exists() {
        eprintln!("skipped: the contract's half; run `npm ci` in ops/contracts");
        return Ok(());
    }
    let port = ports::take()?;
    if Program::new("node").arg("--version").output().is_err() {
        eprintln!("skipped: the contract's half; there is no node");
        return Ok(());
    }
    let mut run = Program::new("node");
    run.arg(contracts().join("test/run.mjs")).arg(port.number.to_string());
    let out = wait::output(run, ENDS_WITHIN)?;
    let text = String::from_utf8_lossy(&out.stdout);
    match out.status.code() {
        Some(77) => eprintln!("{text}"),
        Some(0) => {}
        code => bail!("{code:?}\n{text}\n{}", String::from_utf8_lossy(&out.stderr)),
    }
    Ok(())
}

/// What is committed is what the sources compile to, byte for byte, without a network.
#[test]
fn artefacts_are_what_the_sources_compile_to() -> anyhow::Result<()> {
    if !contracts().join("node_modules/solc").exists() {
        eprintln!("skipped: no compiler; run `npm ci` in ops/contracts");
        return Ok(());
    }
    let mut build = Program::new("node");
    build.arg("build.mjs").arg("--check").current_dir(contracts());
    let out = wait::output(build, ENDS_WITHIN)?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
