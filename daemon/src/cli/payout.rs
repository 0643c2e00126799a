//! `makai payout`: to which address each node's earnings go, and how to change that.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use makai_ops::claims::statement::ClaimKey;
use makai_raft::facts::accounts::{Address, RecoverableSignature};
use makai_raft::machine::accounts::payout_typed_digest;
use serde_json::json;

use super::of_node::OfNode;
use super::print_json;
use super::remote::Target;
use crate::accounts::payouts::{PayoutRequest, PayoutRow};

/// A longer file is no key.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// To which address each node's earnings go
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Addresses in force, and those that come into force later
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// What the new address has to sign, as EIP-712 typed data: any wallet can (`eth_signTypedData_v4`)
    Text {
        #[command(flatten)]
        of: OfNode,
    },
    /// Pay a node's earnings to another address from the end of the cool-down on
    ///
    /// Both the node and the address sign: run it against the node's own console. The address signs with --key-file here,
    /// or with --signature, made by a wallet from what `makai payout text` prints. What was earned for the old address
    /// until then stays its own.
    Set {
        #[command(flatten)]
        of: OfNode,
        /// The new address
        #[arg(long)]
        to: Address,
        /// A file with the address's private key, 64 hex digits; it does not leave this machine
        #[arg(
            long,
            value_name = "FILE",
            conflicts_with = "signature",
            required_unless_present = "signature"
        )]
        key_file: Option<PathBuf>,
        /// The address's signature of the text: 0x and 130 hex digits
        #[arg(long)]
        signature: Option<RecoverableSignature>,
    },
}

async fn rows(target: &Target) -> anyhow::Result<Vec<PayoutRow>> {
    target.get("/api/v1/accounts/payouts").await
}

pub(super) async fn select(target: &Target, wanted: &str) -> anyhow::Result<PayoutRow> {
    let is_it = |row: &PayoutRow| row.name == wanted || row.node.to_string().starts_with(wanted);
    let mut found: Vec<PayoutRow> = rows(target).await?.into_iter().filter(is_it).collect();
    match found.len() {
        1 => found.pop().context("one was found"),
        0 => bail!("no node is named {wanted:?}; see `makai payout ls`"),
        count => bail!("{wanted:?} means {count} nodes; give more of the id"),
    }
}

fn typed_text(row: &PayoutRow) -> serde_json::Value {
    json!({
        "types": {
            "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}],
            "Payout": [{"name": "node", "type": "bytes32"}, {"name": "serial", "type": "uint64"}],
        },
        "primaryType": "Payout",
        "domain": {"name": "MAKAI payout", "version": "1"},
        "message": {"node": format!("0x{}", row.node), "serial": row.serial + 1},
    })
}

fn print(row: &PayoutRow) {
    let none = || "no address yet: what it earns waits".to_owned();
    print!(
        "{} {:<12} {}",
        &row.node.to_string()[..12],
        row.name,
        row.payout.map_or_else(none, |a| a.to_string())
    );
    match row.next {
        Some((next, from)) => println!("  from {} on: {next}", from.rfc3339()),
        None => println!(),
    }
}

pub(super) fn read_key(path: &PathBuf) -> anyhow::Result<ClaimKey> {
    let size = std::fs::metadata(path).with_context(|| format!("read {path:?}"))?.len();
    if size > KEY_FILE_BYTES_MAX {
        bail!("{path:?} has {size} bytes; a key file has 64 hex digits");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path:?}"))?;
    let digits = text.trim();
    let bytes = hex::decode(digits.strip_prefix("0x").unwrap_or(digits)).ok();
    let key = bytes.and_then(|bytes| ClaimKey::from_bytes(&bytes));
    key.with_context(|| format!("{path:?} holds no private key: 64 hex digits"))
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        Command::Ls { target } => {
            let rows = rows(&target).await?;
            if target.json {
                print_json(&rows)?;
            } else {
                rows.iter().for_each(print);
            }
        }
        Command::Text { of } => println!("{}", typed_text(&of.row().await?)),
        Command::Set { of, to, key_file, signature } => {
            let row = of.row().await?;
            let serial = row.serial + 1;
            let signature = match (key_file, signature) {
                (Some(path), _) => {
                    let key = read_key(&path)?;
                    if key.address() != to {
                        bail!("{path:?} is the key of {}, not of {to}", key.address());
                    }
                    key.sign(&payout_typed_digest(row.node, serial))
                }
                (None, Some(signature)) => signature,
                (None, None) => bail!("give --key-file or --signature"),
            };
            let request = PayoutRequest { node: row.node, payout: to, serial, signature };
            let row: PayoutRow = of.call(&row, Method::PUT, "/api/v1/accounts/payout", &request).await?;
            if of.target.json {
                print_json(&row)?;
            } else {
                print(&row);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
