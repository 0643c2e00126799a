//! `makai user`: who acts for a tenant, as far as policies allow.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use http::Method;

use super::print_json;
use super::remote::Target;
use crate::console::{UserAnswer, UserRequest};

/// Make, list and delete users of tenants
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Make a user, or put policies in place of those it has; `makai key create TENANT --user USER` makes its keys
    Put {
        tenant: String,
        user: String,
        /// A file with a policy in AWS's JSON, without principals; may be given several times
        #[arg(long, value_name = "FILE")]
        policy: Vec<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// A tenant's users and the names of their policies
    Ls {
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a user that has no keys
    Delete {
        tenant: String,
        user: String,
        #[command(flatten)]
        target: Target,
    },
}

/// A policy by the name of its file.
fn read_policy(path: &Path) -> anyhow::Result<(String, String)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read policy {path:?}"))?;
    let name = path.file_stem().map_or_else(|| "policy".into(), |name| name.to_string_lossy().into_owned());
    Ok((name, text))
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    const PATH: &str = "/api/v1/users";
    match args.what {
        UserCommand::Put { tenant, user, policy, target } => {
            let policies = policy.iter().map(|path| read_policy(path)).collect::<anyhow::Result<_>>()?;
            let request = UserRequest { tenant, user, policies };
            let () = target.call(Method::PUT, PATH, Some(&request)).await?;
            if target.json {
                print_json(&request)?;
            } else {
                println!("{} of {} has {} policies", request.user, request.tenant, request.policies.len());
            }
        }
        UserCommand::Ls { tenant, target } => {
            let users: Vec<UserAnswer> = target.get(&format!("{PATH}?tenant={tenant}")).await?;
            if target.json {
                print_json(&users)?;
            } else {
                for user in users {
                    let policies: Vec<_> = user.policies.iter().map(|(name, _)| name.as_str()).collect();
                    println!("{:<24} {}", user.user, policies.join(", "));
                }
            }
        }
        UserCommand::Delete { tenant, user, target } => {
            let request = UserRequest { tenant, user, policies: Vec::new() };
            let () = target.call(Method::DELETE, PATH, Some(&request)).await?;
            if target.json { print_json(&request)? } else { println!("{} is deleted", request.user) }
        }
    }
    Ok(ExitCode::SUCCESS)
}
