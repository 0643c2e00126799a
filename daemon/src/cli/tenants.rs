//! `makai tenant`, `makai key`: who pays, and with which credentials.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use http::Method;
use makai_gateway::identity::directory::Limit;
use makai_raft::facts::accounts::{Amount, Balance};
use makai_raft::facts::tenant::Quota;

use super::accounts::{credits_text, parse_credits};
use super::remote::Target;
use super::{human_bytes, print_json};
use crate::accounts::api::CreditRequest;
use crate::console::customers::QuotaRequest;
use crate::console::{
    KeyAnswer, KeyChange, KeyListed, KeyRequest, LimitRequest, TenantAnswer, TenantRequest,
};

/// Make and list tenants
#[derive(Debug, clap::Args)]
pub struct TenantArgs {
    #[command(subcommand)]
    what: TenantCommand,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Make a tenant and its first access key
    Create {
        name: String,
        /// Bytes it may store; without: no limit
        #[arg(long)]
        quota_bytes: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Bound what a tenant may store; a bound that is not given is none
    Quota {
        name: String,
        /// Plaintext bytes, versions included
        #[arg(long)]
        bytes: Option<u64>,
        /// Objects, versions included
        #[arg(long)]
        objects: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Take a payment in; from the first one on the tenant pays in advance, and is charged what `[prices]` says
    Credit {
        name: String,
        /// How many credits it paid for; up to nine digits behind the point
        credits: String,
        /// Names the payment: the same one counts once, however often it is sent
        #[arg(long)]
        reference: String,
        #[command(flatten)]
        target: Target,
    },
    /// All tenants and what they store
    Ls {
        #[command(flatten)]
        target: Target,
    },
}

/// Make, list, limit and delete access keys
#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    what: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make an access key for a tenant; the secret is shown once
    Create {
        tenant: String,
        /// The user whose key it will be; without: the tenant's own, which no policy of users limits
        #[arg(long)]
        user: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Refuse requests with an access key until it is enabled again
    Disable {
        access_key_id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Take requests with an access key again
    Enable {
        access_key_id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Bound how many requests a key may send to each gateway; beyond, they are told to slow down
    Limit {
        access_key_id: String,
        /// Without: no limit
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_second: Option<u32>,
        /// Requests at once after a rest; without: as many as in a second
        #[arg(long, requires = "requests_per_second")]
        burst: Option<u32>,
        #[command(flatten)]
        target: Target,
    },
    /// A tenant's access keys
    Ls {
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete an access key; requests with it are refused from then on
    Delete {
        access_key_id: String,
        #[command(flatten)]
        target: Target,
    },
}

/// A quota as a person reads it.
pub(super) fn quota_text(quota: Quota) -> String {
    let bytes = quota.bytes_max.map(|max| format!("at most {}", human_bytes(max)));
    let objects = quota.objects_max.map(|max| format!("at most {max} objects"));
    let bounds: Vec<String> = bytes.into_iter().chain(objects).collect();
    if bounds.is_empty() { "no limit".to_owned() } else { bounds.join(", ") }
}

fn print_key(key: &KeyAnswer) {
    println!("tenant             {}", key.tenant);
    println!("access key id      {}", key.access_key_id);
    println!("secret access key  {}", key.secret_access_key);
}

pub async fn tenant(args: TenantArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        TenantCommand::Create { name, quota_bytes, target } => {
            let request = TenantRequest { name, quota_bytes };
            let key: KeyAnswer = target.call(Method::POST, "/api/v1/tenants", Some(&request)).await?;
            if target.json { print_json(&key)? } else { print_key(&key) }
        }
        TenantCommand::Quota { name, bytes, objects, target } => {
            let quota = Quota { bytes_max: bytes, objects_max: objects };
            let request = QuotaRequest { tenant: Some(name.clone()), bucket: None, quota };
            let () = target.call(Method::PUT, "/api/v1/quotas", Some(&request)).await?;
            if target.json { print_json(&request)? } else { println!("{name}: {}", quota_text(quota)) }
        }
        TenantCommand::Credit { name, credits, reference, target } => {
            let amount = parse_credits(&credits)
                .with_context(|| format!("{credits:?} is no number of credits; write 12 or 0.5"))?;
            let request = CreditRequest { tenant: name, amount, reference };
            let balance: Balance =
                target.call(Method::POST, "/api/v1/accounts/credit", Some(&request)).await?;
            if target.json {
                print_json(&balance)?;
            } else {
                println!("{} has {} credits", request.tenant, credits_text(balance.amount));
                if balance.owed > Amount(0) {
                    println!("and owes {} for data", credits_text(balance.owed));
                }
            }
        }
        TenantCommand::Ls { target } => {
            let tenants: Vec<TenantAnswer> = target.get("/api/v1/tenants").await?;
            if target.json {
                print_json(&tenants)?;
            } else {
                for tenant in tenants {
                    let quota = tenant.quota_bytes.map_or_else(|| "no limit".into(), human_bytes);
                    let used = human_bytes(tenant.used_bytes);
                    println!(
                        "{:<24} {:>10} objects {:>12} of {quota}{}",
                        tenant.name,
                        tenant.used_objects,
                        used,
                        tenant.quota_objects.map_or_else(String::new, |max| format!(", {max} objects"))
                    );
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn set_enabled(access_key_id: String, is_enabled: bool, target: &Target) -> anyhow::Result<()> {
    let change = KeyChange { access_key_id, is_enabled };
    let () = target.call(Method::PATCH, "/api/v1/keys", Some(&change)).await?;
    if target.json {
        print_json(&change)?;
    } else {
        println!("{} is {}", change.access_key_id, if is_enabled { "enabled" } else { "disabled" });
    }
    Ok(())
}

pub async fn key(args: KeyArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        KeyCommand::Create { tenant, user, target } => {
            let request = KeyRequest { tenant, user };
            let key: KeyAnswer = target.call(Method::POST, "/api/v1/keys", Some(&request)).await?;
            if target.json { print_json(&key)? } else { print_key(&key) }
        }
        KeyCommand::Disable { access_key_id, target } => set_enabled(access_key_id, false, &target).await?,
        KeyCommand::Enable { access_key_id, target } => set_enabled(access_key_id, true, &target).await?,
        KeyCommand::Limit { access_key_id, requests_per_second, burst, target } => {
            let limit = requests_per_second
                .map(|rate| Limit { requests_per_second: rate, burst: burst.unwrap_or(rate).max(1) });
            let request = LimitRequest { access_key_id, limit };
            let () = target.call(Method::PUT, "/api/v1/limits", Some(&request)).await?;
            if target.json {
                print_json(&request)?;
            } else {
                let said = limit.map_or_else(
                    || "has no limit".to_owned(),
                    |limit| {
                        format!(
                            "may send {} requests a second, {} at once",
                            limit.requests_per_second, limit.burst
                        )
                    },
                );
                println!("{} {said}", request.access_key_id);
            }
        }
        KeyCommand::Ls { tenant, target } => {
            let keys: Vec<KeyListed> = target.get(&format!("/api/v1/keys?tenant={tenant}")).await?;
            if target.json {
                print_json(&keys)?;
            } else {
                for key in keys {
                    println!(
                        "{}  {}",
                        key.access_key_id,
                        if key.is_enabled { "enabled" } else { "disabled" }
                    );
                }
            }
        }
        KeyCommand::Delete { access_key_id, target } => {
            let path = format!("/api/v1/keys?id={access_key_id}");
            let () = target.call::<(), ()>(Method::DELETE, &path, None).await?;
            if target.json { print_json(&access_key_id)? } else { println!("{access_key_id} is deleted") }
        }
    }
    Ok(ExitCode::SUCCESS)
}
