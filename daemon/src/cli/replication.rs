//! `makai replication-target`: other S3 servers that buckets are replicated to.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use makai_gateway::identity::targets::TargetListed;

use super::print_json;
use super::remote::Target;
use crate::console::customers::TargetRequest;

const PATH: &str = "/api/v1/replication-targets";

/// Other S3 servers that buckets are replicated to; a replication rule names one as arn:makai:replication:::NAME/BUCKET
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a target of a tenant, or change one; its secret key is read from standard input, or from
    /// MAKAI_TARGET_SECRET_KEY
    Set {
        tenant: String,
        /// What rules call it; `default` is where arn:aws:s3:::BUCKET goes
        name: String,
        /// https://HOST, with a port where it needs one
        #[arg(long)]
        endpoint: String,
        #[arg(long, default_value = "us-east-1")]
        region: String,
        /// The tenant's key there
        #[arg(long)]
        access_key_id: String,
        #[command(flatten)]
        target: Target,
    },
    /// A tenant's targets
    Ls {
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a target; rules that name it wait
    Delete {
        tenant: String,
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

fn secret() -> anyhow::Result<String> {
    let text = match std::env::var("MAKAI_TARGET_SECRET_KEY") {
        Ok(text) => text,
        Err(_) => {
            let mut text = String::new();
            std::io::stdin().take(4096).read_to_string(&mut text).context("read the secret key")?;
            text
        }
    };
    match text.trim() {
        "" => bail!("give the secret key on standard input, or in MAKAI_TARGET_SECRET_KEY"),
        text => Ok(text.to_owned()),
    }
}

fn print(target: &TargetListed) {
    println!("{:<24} {:<40} {:<16} {}", target.name, target.endpoint, target.region, target.access_key_id);
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Set { tenant, name, endpoint, region, access_key_id, target } => {
            let secret_access_key = secret()?;
            let request = TargetRequest { tenant, name, endpoint, region, access_key_id, secret_access_key };
            let () = target.call(Method::PUT, PATH, Some(&request)).await?;
            let TargetRequest { name, endpoint, region, access_key_id, .. } = request;
            let listed = TargetListed { name, endpoint, region, access_key_id };
            if target.json { print_json(&listed)? } else { print(&listed) }
        }
        What::Ls { tenant, target } => {
            let targets: Vec<TargetListed> = target.get(&format!("{PATH}?tenant={tenant}")).await?;
            if target.json { print_json(&targets)? } else { targets.iter().for_each(print) }
        }
        What::Delete { tenant, name, target } => {
            let request = TargetRequest {
                tenant,
                name,
                endpoint: String::new(),
                region: String::new(),
                access_key_id: String::new(),
                secret_access_key: String::new(),
            };
            let () = target.call(Method::DELETE, PATH, Some(&request)).await?;
            if target.json { print_json(&request.name)? } else { println!("{} is deleted", request.name) }
        }
    }
    Ok(ExitCode::SUCCESS)
}
