//! `makai audit-log`: who administered what.

use std::process::ExitCode;

use makai_raft::facts::audit::Entry;

use super::print_json;
use super::remote::Target;

/// Who administered what, newest first: buckets, users, keys, quotas, nodes, by operators and customers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many entries at most
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Entries older than the one with this number
    #[arg(long)]
    before: Option<u64>,
    /// Entries with this text in any of their fields
    #[arg(long, value_name = "TEXT")]
    matching: Option<String>,
    #[command(flatten)]
    target: Target,
}

fn print(entry: &Entry) {
    let at = entry.at.rfc3339();
    let deed = &entry.deed;
    let from = if deed.from.is_empty() { "-" } else { deed.from.as_str() };
    println!("{:>8}  {at}  {:<44} {from:<16} {:<32} {}", entry.sequence, deed.by, deed.action, deed.target);
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { limit, before, matching, target } = args;
    let mut before = before.unwrap_or(0);
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let page: Vec<Entry> = target.get(&format!("/api/v1/audit?before={before}&limit=1000")).await?;
        let Some(last) = page.last() else { break };
        before = last.sequence;
        found.extend(page.into_iter().filter(|entry| {
            let deed = &entry.deed;
            let fields = [&deed.by, &deed.from, &deed.action, &deed.target];
            matching.as_ref().is_none_or(|text| fields.iter().any(|field| field.contains(text.as_str())))
        }));
        if found.len() >= limit as usize || before <= 1 {
            break;
        }
    }
    found.truncate(limit as usize);
    if target.json {
        print_json(&found)?
    } else {
        found.iter().for_each(print)
    }
    Ok(ExitCode::SUCCESS)
}
