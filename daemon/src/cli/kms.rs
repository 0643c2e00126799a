//! `makai kms`: keys of tenants that objects are sealed with (SSE-KMS).

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;
use makai_gateway::identity::kms::{KmsChange, KmsKeyShown};

use super::print_json;
use super::remote::Target;
use crate::console::customers::{KmsListed, KmsRequest, KmsRule};

const PATH: &str = "/api/v1/kms";

/// Keys of tenants that objects are sealed with (SSE-KMS): make, turn over, disable, delete
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Args)]
struct Named {
    tenant: String,
    /// The key's name: clients give it as x-amz-server-side-encryption-aws-kms-key-id
    key: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key
    Create(Named),
    /// Add a version to a key: new objects are sealed with it, old ones stay readable. A copy of an object onto itself seals
    /// it anew
    Rotate(Named),
    /// Use a key again
    Enable(Named),
    /// Seal and open nothing with a key until it is enabled
    Disable(Named),
    /// Delete a key after some days; then nobody can read what it sealed
    Delete {
        #[command(flatten)]
        named: Named,
        /// Until when it can be kept after all: 7 to 30
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(7..=30))]
        after_days: u32,
    },
    /// Take a deletion back; the key is disabled then
    Keep(Named),
    /// A tenant's keys
    Ls {
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Whether a key that is named for the first time is made, or refused as KMS.NotFoundException
    CreateOnUse {
        tenant: String,
        #[arg(value_parser = clap::value_parser!(bool), action = clap::ArgAction::Set)]
        may: bool,
        #[command(flatten)]
        target: Target,
    },
}

fn print(key: &KmsKeyShown) {
    let state = match (key.deleted_ms, key.is_enabled) {
        (Some(_), _) => "pending deletion",
        (None, true) => "enabled",
        (None, false) => "disabled",
    };
    println!("{:<40} version {:<4} {state}", key.name, key.version);
}

async fn change(named: Named, change: KmsChange) -> anyhow::Result<ExitCode> {
    let Named { tenant, key, target } = named;
    let request = KmsRequest { tenant, key, change };
    let changed: KmsKeyShown = target.call(Method::POST, PATH, Some(&request)).await?;
    if target.json {
        print_json(&changed)?
    } else {
        print(&changed)
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Create(named) => change(named, KmsChange::Create).await,
        What::Rotate(named) => change(named, KmsChange::Rotate).await,
        What::Enable(named) => change(named, KmsChange::Enable).await,
        What::Disable(named) => change(named, KmsChange::Disable).await,
        What::Delete { named, after_days } => change(named, KmsChange::Delete { after_days }).await,
        What::Keep(named) => change(named, KmsChange::Keep).await,
        What::Ls { tenant, target } => {
            let listed: KmsListed = target.get(&format!("{PATH}?tenant={tenant}")).await?;
            if target.json {
                print_json(&listed)?;
            } else {
                listed.keys.iter().for_each(print);
                if listed.is_strict {
                    println!("a key must be made before it is used");
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        What::CreateOnUse { tenant, may, target } => {
            let rule = KmsRule { tenant, is_strict: !may };
            let () = target.call(Method::PUT, PATH, Some(&rule)).await?;
            if target.json {
                print_json(&rule)?;
            } else {
                let said =
                    if may { "are made by their first use" } else { "must be made before they are used" };
                println!("keys of {} {said}", rule.tenant);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
