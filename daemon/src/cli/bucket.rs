//! `makai bucket`: buckets of all tenants, as their operator sees them. Customers use S3.

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;

use makai_raft::facts::tenant::Quota;

use super::remote::Target;
use super::tenants::quota_text;
use super::{human_bytes, print_json};
use crate::console::buckets::{BucketListed, BucketRequest};
use crate::console::customers::QuotaRequest;

/// Make, list and delete buckets of any tenant
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a bucket for a tenant
    Create {
        name: String,
        /// Whose it will be
        #[arg(long, default_value = "main")]
        tenant: String,
        /// How its data is coded: any k of k+m shards rebuild it. Without: the best that the cluster carries
        #[arg(long, value_name = "K+M")]
        scheme: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// All buckets and what they hold
    Ls {
        /// Of this tenant only
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Bound what a bucket may hold, beside its tenant's quota; a bound that is not given is none
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
    /// Delete an empty bucket
    Delete {
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

fn print(bucket: &BucketListed) {
    let scheme = bucket.scheme.as_deref().unwrap_or("default");
    print!(
        "{:<32} {:<16} {scheme:<8} {:>10} objects {:>12}",
        bucket.name,
        bucket.tenant,
        bucket.objects,
        human_bytes(bucket.bytes)
    );
    if bucket.noncurrent_objects > 0 {
        print!(", older versions: {} of {}", bucket.noncurrent_objects, human_bytes(bucket.noncurrent_bytes));
    }
    if bucket.quota != Quota::default() {
        print!(", {}", quota_text(bucket.quota));
    }
    if bucket.mounts > 0 {
        print!(", {} mounts", bucket.mounts);
    }
    println!();
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Create { name, tenant, scheme, target } => {
            let request = BucketRequest { tenant, name, scheme };
            let made: BucketListed = target.call(Method::POST, "/api/v1/buckets", Some(&request)).await?;
            if target.json { print_json(&made)? } else { print(&made) }
        }
        What::Ls { tenant, target } => {
            let mut buckets: Vec<BucketListed> = target.get("/api/v1/buckets").await?;
            buckets.retain(|bucket| tenant.as_ref().is_none_or(|tenant| *tenant == bucket.tenant));
            if target.json { print_json(&buckets)? } else { buckets.iter().for_each(print) }
        }
        What::Quota { name, bytes, objects, target } => {
            let quota = Quota { bytes_max: bytes, objects_max: objects };
            let request = QuotaRequest { tenant: None, bucket: Some(name.clone()), quota };
            let () = target.call(Method::PUT, "/api/v1/quotas", Some(&request)).await?;
            if target.json { print_json(&request)? } else { println!("{name}: {}", quota_text(quota)) }
        }
        What::Delete { name, target } => {
            let path = format!("/api/v1/buckets?name={name}");
            let () = target.call::<(), ()>(Method::DELETE, &path, None).await?;
            if target.json { print_json(&name)? } else { println!("{name} is deleted") }
        }
    }
    Ok(ExitCode::SUCCESS)
}
