//! `makai claim`, `makai ledger`: what may be claimed, proofs of it, and the ledger for anyone to check.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use makai_erasure::NodeId;
use makai_ops::claims::check::check;
use makai_ops::claims::file::LedgerFile;
use makai_raft::facts::accounts::{Address, Amount};

use super::accounts::tokens;
use super::print_json;
use super::remote::Target;
use crate::accounts::api::{ClaimProof, ClaimRequest, ClaimRow, Claims, Opening, Paid};
use crate::files;

/// A longer file is no proof.
const PROOF_BYTES_MAX: u64 = 1024 * 1024;

/// What nodes may claim, with proofs
#[derive(Debug, clap::Args)]
pub struct ClaimArgs {
    #[command(subcommand)]
    what: ClaimCommand,
}

#[derive(Debug, Subcommand)]
enum ClaimCommand {
    /// What each node may claim after the newest signed epoch
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// The proof of a node's claim, as JSON: with the signers' addresses it needs nothing else
    Proof {
        /// Its name, or the beginning of its id
        node: String,
        #[command(flatten)]
        target: Target,
    },
    /// Check proofs: a file that `claim proof` printed, or every claim of the cluster
    Verify {
        /// Checked offline; without: the cluster's claims
        file: Option<PathBuf>,
        /// A signer's address that the operators publish; repeat it. Without: the signers that the proof names
        #[arg(long = "signer", value_name = "ADDRESS")]
        signers: Vec<Address>,
        #[command(flatten)]
        target: Target,
    },
    /// Pay what a node may claim to its address
    Submit {
        /// Its name, or the beginning of its id
        node: String,
        #[command(flatten)]
        target: Target,
    },
}

/// The ledger as a file
#[derive(Debug, clap::Args)]
pub struct LedgerArgs {
    #[command(subcommand)]
    what: LedgerCommand,
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Write the whole chain, and the facts of the newest epochs, to a file
    Export {
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// With what the contract of this cluster is deployed: signers, emission, the newest root that pays
    Opening {
        #[command(flatten)]
        target: Target,
    },
    /// Check such a file offline: chain, signatures, totals, and each result from its facts
    Verify {
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// An amount that a chain was asked for.
fn told(amount: Option<Amount>) -> String {
    amount.map_or_else(|| "the chain is silent".to_owned(), tokens)
}

async fn all_claims(target: &Target) -> anyhow::Result<Claims> {
    target.get("/api/v1/accounts/claims").await
}

/// The row that a person means.
fn select<'c>(claims: &'c Claims, wanted: &str) -> anyhow::Result<&'c ClaimRow> {
    let is_it = |row: &&ClaimRow| row.name == wanted || row.node.to_string().starts_with(wanted);
    let found: Vec<&ClaimRow> = claims.claims.iter().filter(is_it).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => bail!("no node {wanted:?} has claims in epoch {}; see `makai claim ls`", claims.epoch),
        more => bail!("{wanted:?} means {} nodes; give more of the id", more.len()),
    }
}

async fn fetch_proof(target: &Target, node: NodeId) -> anyhow::Result<ClaimProof> {
    target.get(&format!("/api/v1/accounts/proof?node={node}")).await
}

pub async fn claim(args: ClaimArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        ClaimCommand::Ls { target } => {
            let claims = all_claims(&target).await?;
            if target.json {
                print_json(&claims)?;
            } else {
                println!("epoch {}  root {}  total {}", claims.epoch, claims.root, tokens(claims.total));
                for row in &claims.claims {
                    println!(
                        "{} {:<12} {}  {:>20} earned in all, {:>20} payable now, {:>20} claimed",
                        &row.node.to_string()[..12],
                        row.name,
                        row.payout,
                        tokens(row.cumulative),
                        told(row.payable.map(|payable| payable.minus(row.claimed.unwrap_or_default()))),
                        told(row.claimed)
                    );
                }
            }
        }
        ClaimCommand::Proof { node, target } => {
            let node = select(&all_claims(&target).await?, &node)?.node;
            println!("{}", serde_json::to_string_pretty(&fetch_proof(&target, node).await?)?);
        }
        ClaimCommand::Verify { file, signers, target } => verify(file, &signers, &target).await?,
        ClaimCommand::Submit { node, target } => {
            let node = select(&all_claims(&target).await?, &node)?.node;
            let request = ClaimRequest { node };
            let paid: Paid = target.call(Method::POST, "/api/v1/accounts/claim", Some(&request)).await?;
            if target.json {
                print_json(&paid)?;
            } else {
                println!("{} paid to {}", tokens(paid.amount), paid.payout);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(file: Option<PathBuf>, signers: &[Address], target: &Target) -> anyhow::Result<()> {
    let mut proofs = Vec::new();
    match file {
        Some(path) => {
            let size = std::fs::metadata(&path).with_context(|| format!("read {path:?}"))?.len();
            if size > PROOF_BYTES_MAX {
                bail!("{path:?} has {size} bytes; a proof has at most {PROOF_BYTES_MAX}");
            }
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path:?}"))?;
            proofs.push(
                serde_json::from_str(&text).with_context(|| format!("{path:?} is no proof of a claim"))?,
            );
        }
        None => {
            let claims = all_claims(target).await?;
            if claims.epoch == 0 {
                bail!("no epoch is signed yet");
            }
            for row in claims.claims.iter().filter(|row| row.cumulative.0 > 0) {
                proofs.push(fetch_proof(target, row.node).await?);
            }
        }
    }
    for proof in &proofs {
        let good = proof.verify()?;
        let known = good.iter().filter(|signer| signers.contains(signer)).count();
        if !signers.is_empty() && known <= signers.len() / 2 {
            bail!("{known} of the {} signers that you named signed; that is no majority", signers.len());
        }
    }
    if target.json {
        print_json(&serde_json::json!({ "verified": proofs.len() }))?;
    } else {
        println!("{} claims hold", proofs.len());
    }
    Ok(())
}

pub async fn ledger(args: LedgerArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        LedgerCommand::Export { out, target } => {
            let bytes = target.fetch("/api/v1/accounts/ledger").await?;
            let summary = check(&LedgerFile::parse(&bytes)?).context("the node's ledger does not hold")?;
            files::replace(&out, &bytes).with_context(|| format!("write {out:?}"))?;
            if target.json {
                print_json(&summary)?;
            } else {
                println!(
                    "{} links, {} epochs signed, in {}",
                    summary.links,
                    summary.epochs_signed,
                    out.display()
                );
            }
        }
        LedgerCommand::Opening { target } => {
            let opening: Opening = target.get("/api/v1/accounts/opening").await?;
            if target.json {
                print_json(&opening)?;
            } else {
                println!(
                    "pool          {} units, halved every {} epochs",
                    opening.pool, opening.halving_epochs
                );
                println!("window        {} s", opening.window_secs);
                println!(
                    "opening root  {} of epoch {}, total {}",
                    opening.root, opening.epoch, opening.total
                );
                println!("signers       {} of", opening.threshold);
                opening.signers.iter().for_each(|signer| println!("              {signer}"));
                println!("`makai ledger opening --json` is what ops/contracts/deploy.mjs takes");
            }
        }
        LedgerCommand::Verify { path, json } => {
            let bytes = std::fs::read(&path).with_context(|| format!("read {path:?}"))?;
            let file =
                LedgerFile::parse(&bytes).with_context(|| format!("{path:?} is not as it was exported"))?;
            let summary = check(&file).with_context(|| format!("{path:?} does not hold"))?;
            if json {
                print_json(&summary)?;
            } else {
                println!("cluster {}: the ledger holds", summary.cluster_id);
                println!("{} links, head {}", summary.links, summary.head);
                println!("{} epochs sealed, {} signed", summary.epochs_sealed, summary.epochs_signed);
                println!(
                    "{} tokens to claim in all, {} claimed",
                    tokens(summary.total),
                    tokens(summary.claimed)
                );
                println!("computed again from their facts: epochs {:?}", summary.epochs_recomputed);
                println!("believe it as far as you believe most of these signers:");
                summary.signers.iter().for_each(|signer| println!("  {signer}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
