//! `makai claim`, `makai ledger`: what may be claimed, proofs of it, and the ledger for anyone to check.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use makai_erasure::NodeId;
use makai_ops::claims::check::check;
use makai_ops::claims::file::LedgerFile;
use makai_ops::rewards::fixed::mul_div;
use makai_raft::facts::accounts::{Address, Amount, Epoch};

use super::accounts::tokens;
use super::print_json;
use super::remote::Target;
use crate::accounts::api::{ClaimProof, ClaimRequest, ClaimRow, Claims, DisputeRequest, Opening, Paid};
use crate::accounts::fees::ClaimCost;
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
    /// What a claim would pay and cost now, and whether waiting is better
    Cost {
        /// Its name, or the beginning of its id
        node: String,
        #[command(flatten)]
        price: Price,
        #[command(flatten)]
        target: Target,
    },
    /// Pay what a node may claim to its address
    ///
    /// Says first what the chain asks for it. With --token-price it sends nothing while the fee is more than --fee-share-max
    /// of the payment: claims are cumulative, so that one later claim pays all of it for the same fee.
    Submit {
        /// Its name, or the beginning of its id
        node: String,
        #[command(flatten)]
        price: Price,
        #[command(flatten)]
        target: Target,
    },
    /// Take the newest root back, as the voter whose console is asked, before claims against it begin
    ///
    /// The epoch is computed and signed again by all voters. Each may do so once for an epoch; who did, and why, stays on the
    /// ledger. A root that is on a chain already is disputed at its contract instead.
    Dispute {
        epoch: u64,
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        target: Target,
    },
}

/// What a token is worth, so that a fee can be weighed against a payment.
#[derive(Debug, clap::Args)]
struct Price {
    /// What one token is worth in the chain's own coin, such as 0.0004
    #[arg(long, value_name = "COINS", value_parser = parse_coins)]
    token_price: Option<Amount>,
    /// The largest share of a payment that a fee may take, in hundredths
    #[arg(long, value_name = "PERCENT", default_value_t = 25, value_parser = clap::value_parser!(u8).range(1..=100))]
    fee_share_max: u8,
}

/// Digits behind the point of a chain's coin.
const COIN_DIGITS: usize = 18;
const COIN: u128 = 1_000_000_000_000_000_000;

fn parse_coins(text: &str) -> Result<Amount, String> {
    let wrong = || format!("{text:?} is no price: write digits, and at most {COIN_DIGITS} behind the point");
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let is_plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain(whole) || !is_plain(rest) || rest.len() > COIN_DIGITS {
        return Err(wrong());
    }
    let whole: u128 = whole.parse().map_err(|_| wrong())?;
    let rest: u128 = format!("{rest:0<COIN_DIGITS$}").parse().map_err(|_| wrong())?;
    whole.checked_mul(COIN).and_then(|whole| whole.checked_add(rest)).map(Amount).ok_or_else(wrong)
}

/// Wei as coins, with nine digits behind the point.
fn coins(wei: Amount) -> String {
    format!("{}.{:09}", wei.0 / COIN, wei.0 % COIN / 1_000_000_000)
}

/// What to do, in words, and whether that is to claim now.
fn advise(cost: &ClaimCost, price: &Price) -> (bool, String) {
    let Some(fee) = &cost.fee else {
        return (true, "this ledger asks no fee: claim when you like".to_owned());
    };
    if cost.amount == Amount(0) {
        return (false, "wait: nothing is to be claimed now".to_owned());
    }
    if fee.is_above_cap {
        return (false, "wait: gas is dearer than ledger.fee_cap_gwei of this node allows".to_owned());
    }
    if fee.submitter_wei < fee.cost_wei {
        let what =
            format!("fund {}, which pays the gas: it has {} coins", fee.submitter, coins(fee.submitter_wei));
        return (false, what);
    }
    let Some(token_price) = price.token_price else {
        return (
            true,
            "give --token-price to weigh the fee against the payment; one later claim pays all for the same fee".to_owned(),
        );
    };
    let worth = mul_div(cost.amount.0, token_price.0, COIN);
    let share = mul_div(fee.cost_wei.0, 100, worth.max(1));
    let limit = u128::from(price.fee_share_max);
    if share <= limit {
        return (true, format!("claim: the fee is {share} % of the payment"));
    }
    let enough = mul_div(fee.cost_wei.0, 100 * COIN, limit * token_price.0.max(1));
    (
        false,
        format!(
            "wait: the fee is {share} % of the payment, above {limit} %; from {} tokens on it is not, at today's gas",
            tokens(Amount(enough))
        ),
    )
}

fn print_cost(cost: &ClaimCost, advice: &str) {
    eprintln!("{} tokens are to be claimed for {}", tokens(cost.amount), cost.payout);
    if let Some(fee) = &cost.fee {
        let price = fee.price_wei;
        eprintln!("it costs about {} coins: {} gas at {} wei", coins(fee.cost_wei), fee.gas, price);
    }
    eprintln!("{advice}");
}

async fn fetch_cost(target: &Target, node: NodeId) -> anyhow::Result<ClaimCost> {
    target.get(&format!("/api/v1/accounts/claim-cost?node={node}")).await
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
        ClaimCommand::Cost { node, price, target } => {
            let node = select(&all_claims(&target).await?, &node)?.node;
            let cost = fetch_cost(&target, node).await?;
            let (is_now, advice) = advise(&cost, &price);
            if target.json {
                print_json(&serde_json::json!({ "cost": cost, "claim_now": is_now, "advice": advice }))?;
            } else {
                print_cost(&cost, &advice);
            }
        }
        ClaimCommand::Dispute { epoch, reason, target } => {
            let request = DisputeRequest { epoch, reason };
            let path = "/api/v1/accounts/dispute";
            let epoch: Epoch = target.call(Method::POST, path, Some(&request)).await?;
            if target.json {
                print_json(&epoch)?;
            } else {
                println!(
                    "epoch {} is computed again; {} voters took a root of it back",
                    epoch.number,
                    epoch.disputed_by.len()
                );
            }
        }
        ClaimCommand::Submit { node, price, target } => {
            let node = select(&all_claims(&target).await?, &node)?.node;
            let cost = fetch_cost(&target, node).await?;
            let (is_now, advice) = advise(&cost, &price);
            print_cost(&cost, &advice);
            if !is_now && price.token_price.is_some() {
                bail!("nothing was sent");
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::fees::Fee;

    fn cost(tokens: u128, gwei: u128) -> ClaimCost {
        let wei = gwei * 1_000_000_000;
        ClaimCost {
            node: NodeId([1; 32]),
            payout: Address([2; 20]),
            amount: Amount(tokens * COIN),
            fee: Some(Fee {
                gas: 100_000,
                price_wei: Amount(wei),
                cost_wei: Amount(100_000 * wei),
                is_above_cap: false,
                submitter: Address([3; 20]),
                submitter_wei: Amount(COIN),
            }),
        }
    }

    /// A fee of 0.001 coins against tokens of 0.0004: up to 25 % from ten tokens on.
    #[test]
    fn advice_follows_the_fees_share_of_the_payment() {
        let price = Price { token_price: Some(parse_coins("0.0004").unwrap()), fee_share_max: 25 };
        assert!(!advise(&cost(9, 10), &price).0);
        assert!(advise(&cost(9, 10), &price).1.contains("from 10.000000 tokens on"));
        assert!(advise(&cost(10, 10), &price).0);
        assert!(!advise(&cost(10, 11), &price).0, "gas became dearer");
        assert!(!advise(&cost(0, 1), &price).0, "nothing to claim");
        let poor = |mut cost: ClaimCost| {
            cost.fee.as_mut().unwrap().submitter_wei = Amount(5);
            cost
        };
        assert!(advise(&poor(cost(1000, 10)), &price).1.starts_with("fund 0x0303"));
        assert!(advise(&ClaimCost { fee: None, ..cost(0, 1) }, &price).0, "the embedded ledger asks nothing");
    }

    #[test]
    fn prices_are_read_as_they_are_written() {
        assert_eq!(parse_coins("1"), Ok(Amount(COIN)));
        assert_eq!(parse_coins("0.000000000000000001"), Ok(Amount(1)));
        for wrong in ["", ".", "1e3", "-1", "0.0000000000000000001", "999999999999999999999999999"] {
            assert!(parse_coins(wrong).is_err(), "{wrong:?}");
        }
    }
}
