//! Promise: home PCs come and go every day, and some for good, and no object is lost; what that moves over their lines is told,
//! and is a small part of what mending at once would move.
//!
//! The daemon's own rules in virtual time, see `makai_integration::churn`. `MAKAI_CHURN_SEEDS=N` plays more histories.

use anyhow::ensure;
use makai_integration::churn::{Options, Policy, Report, play};

const HOUR_MS: u64 = 3_600_000;

fn print(what: &str, report: &Report) -> anyhow::Result<()> {
    println!("{what}: {}", serde_json::to_string(report)?);
    Ok(())
}

#[test]
fn months_of_home_pcs_lose_nothing() -> anyhow::Result<()> {
    let seeds = std::env::var("MAKAI_CHURN_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1);
    for seed in 1..=seeds {
        let options = Options { round_ms: HOUR_MS / 2, ..Options::home(120, 60, seed) };
        let lazy = play(&options)?;
        print(&format!("seed {seed}"), &lazy)?;
        let eager = play(&Options { policy: Policy::Eager { grace_ms: HOUR_MS }, ..options })?;
        print("eager, after an hour", &eager)?;
        ensure!(lazy.groups_lost == 0, "{} groups are lost", lazy.groups_lost);
        ensure!(lazy.nodes_lost > 0 && lazy.slots_remade > 0, "nothing happened: {lazy:?}");
        ensure!(
            lazy.repair_traffic_a_month * 5.0 <= eager.repair_traffic_a_month,
            "{:.2} of the data a month, against {:.2}",
            lazy.repair_traffic_a_month,
            eager.repair_traffic_a_month
        );
    }
    Ok(())
}

/// For BENCHMARKS.md: `cargo test --release -p makai-integration --test churn -- --ignored --nocapture`.
#[test]
#[ignore = "a thousand machines for a year: takes many minutes"]
fn a_year_of_a_thousand_home_pcs() -> anyhow::Result<()> {
    let lazy = play(&Options::home(1000, 365, 1))?;
    print("by the rules", &lazy)?;
    ensure!(lazy.groups_lost == 0, "{} groups are lost", lazy.groups_lost);
    for hours in [1, 24] {
        let policy = Policy::Eager { grace_ms: hours * HOUR_MS };
        let eager = play(&Options { policy, ..Options::home(1000, 90, 1) })?;
        print(&format!("eager, after {hours} h, 90 days"), &eager)?;
    }
    Ok(())
}
