//! `makai stake`: what stands behind nodes' work, and adds to what they earn.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use makai_raft::facts::accounts::{Address, Amount, Pledge, StakeOrder};
use makai_raft::facts::tenant::TenantId;
use makai_raft::machine::accounts::{pledge_digest, stake_digest};

use super::accounts::{credits_text, parse_credits, parse_tokens, tokens};
use super::payout::read_key;
use super::print_json;
use super::remote::Target;
use crate::accounts::stakes::{Spending, StakeRow, Stakes};

/// What stands behind nodes' work, and adds to what they earn
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What each payout address stakes
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Pay for a tenant with what a stake was given of the platform's income
    ///
    /// A tenth of what tenants pay goes to stakes, by their amounts, and to one that has lain for a year twice as much as to a
    /// new one; each order to stake begins its age anew.
    Spend {
        /// Credits
        credits: String,
        /// Whose balance it goes to; the tenant pays in advance from then on
        #[arg(long)]
        tenant: String,
        /// A file with the address's private key, 64 hex digits; it does not leave this machine
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Stake out of what an address has claimed; 0 takes all back
    ///
    /// A stake adds up to half to what the address's nodes earn, the more it is beside their work. More counts from the next
    /// sealing on, less after as long as a change of payout address takes.
    Set {
        /// Tokens
        amount: String,
        /// A file with the address's private key, 64 hex digits; it does not leave this machine. A node's own is
        /// `payout.key` in its folder.
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
}

fn print(row: &StakeRow) {
    print!(
        "{} stakes {:>16} of {:>16} claimed, for {} nodes",
        row.payout,
        tokens(row.stake),
        tokens(row.claimed),
        row.nodes.len()
    );
    match row.next {
        Some((next, from)) => println!("; {} from {} on", tokens(next), from.rfc3339()),
        None => println!(),
    }
    if let Some(pledge) = row.pledge.filter(|pledge| pledge.earned > Amount(0)) {
        let (earned, left) = (credits_text(pledge.earned), credits_text(pledge.left()));
        println!(
            "    was given {earned} credits of the income, {left} are left; the same since {}",
            pledge.since.rfc3339()
        );
    }
}

/// The one that is paid to the address of a key.
fn row_of(stakes: &Stakes, payout: Address) -> anyhow::Result<&StakeRow> {
    let found = stakes.rows.iter().find(|row| row.payout == payout);
    found.with_context(|| format!("no node is paid to {payout}, whose key this is; see `makai payout ls`"))
}

async fn stakes(target: &Target) -> anyhow::Result<Stakes> {
    target.get("/api/v1/accounts/stakes").await
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        Command::Ls { target } => {
            let stakes = stakes(&target).await?;
            if target.json {
                print_json(&stakes)?;
            } else if stakes.chain_id != 0 {
                println!(
                    "claims are on chain {}: stakes are bonds of its Staking contract (ledger.staking)",
                    stakes.chain_id
                );
            } else {
                stakes.rows.iter().for_each(print);
            }
        }
        Command::Spend { credits, tenant, key_file, target } => {
            let amount = parse_credits(&credits)
                .with_context(|| format!("{credits:?} is no number of credits; write 12 or 0.5"))?;
            let key = read_key(&key_file)?;
            let payout = key.address();
            let stakes = stakes(&target).await?;
            let pledge = row_of(&stakes, payout)?.pledge;
            let pledge = pledge.with_context(|| format!("{payout} was given nothing of the income yet"))?;
            let number: TenantId = target.get(&format!("/api/v1/accounts/tenant?name={tenant}")).await?;
            let serial = pledge.serial + 1;
            let signature = key.sign(&pledge_digest(&stakes.ledger, &payout, serial, number, amount));
            let spending = Spending { tenant, payout, serial, amount, signature };
            let path = "/api/v1/accounts/pledge";
            let pledge: Pledge = target.call(Method::POST, path, Some(&spending)).await?;
            if target.json {
                print_json(&pledge)?;
            } else {
                println!("paid; {} credits are left", credits_text(pledge.left()));
            }
        }
        Command::Set { amount, key_file, target } => {
            let amount: Amount = parse_tokens(&amount)
                .with_context(|| format!("{amount:?} is no number of tokens, like 12.5"))?;
            let key = read_key(&key_file)?;
            let stakes = stakes(&target).await?;
            if stakes.chain_id != 0 {
                bail!("claims are on chain {}: bond tokens in its Staking contract instead", stakes.chain_id);
            }
            let payout = key.address();
            let row = row_of(&stakes, payout)?;
            if amount > row.claimed {
                bail!(
                    "{payout} has claimed {} tokens, and stakes out of them; `makai claim submit NODE` first",
                    tokens(row.claimed)
                );
            }
            let serial = row.serial + 1;
            let signature = key.sign(&stake_digest(&stakes.ledger, &payout, serial, amount));
            let order = StakeOrder { payout, serial, amount, signature };
            let row: StakeRow = target.call(Method::PUT, "/api/v1/accounts/stake", Some(&order)).await?;
            if target.json {
                print_json(&row)?;
            } else {
                print(&row);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
