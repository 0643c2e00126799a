//! `makai usage`, `makai earnings`, `makai estimate`, `makai why`: what was served, what it earns, and why not more.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use http::Method;
use makai_ops::reputation::score_ppm;
use makai_raft::facts::accounts::{Amount, Component, Reason, SliceTime, Status, UNITS_PER_CREDIT};

use super::remote::Target;
use super::{human_bytes, print_json};
use crate::accounts::api::{Earnings, Estimate, Machine, NodeEarnings, Usage};

const UNITS_PER_TOKEN: u128 = makai_ops::rewards::tokenomics::UNITS_PER_TOKEN;

/// What nodes served and tenants stored, in the last full epoch
#[derive(Debug, clap::Args)]
pub struct UsageArgs {
    #[command(flatten)]
    target: Target,
}

/// What each node earned in the last signed epoch, by what
#[derive(Debug, clap::Args)]
pub struct EarningsArgs {
    /// Only this node: its name, or the beginning of its id
    node: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// What a machine could earn here, as the newest epoch was: by the code that settles epochs
#[derive(Debug, clap::Args)]
pub struct EstimateArgs {
    /// GiB that it would keep for customers
    #[arg(long, default_value_t = 0)]
    stored_gib: u64,
    /// GiB that customers would read from it in a day
    #[arg(long, default_value_t = 0)]
    egress_gib_a_day: u64,
    /// Cores, and whole GPUs, that jobs would hold all day
    #[arg(long, default_value_t = 0)]
    cores: u64,
    #[arg(long, default_value_t = 0)]
    gpus: u64,
    #[command(flatten)]
    target: Target,
}

/// Why a node has the status it has, and why it earned what it earned
#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// Its name, or the beginning of its id
    node: String,
    #[command(flatten)]
    target: Target,
}

/// Tokens with six digits behind the point, cut, never rounded up.
#[must_use]
pub fn tokens(amount: Amount) -> String {
    let (whole, rest) = (amount.0 / UNITS_PER_TOKEN, amount.0 % UNITS_PER_TOKEN);
    format!("{whole}.{:06}", rest / (UNITS_PER_TOKEN / 1_000_000))
}

/// Credits with six digits behind the point, cut.
#[must_use]
pub fn credits_text(amount: Amount) -> String {
    let (whole, rest) = (amount.0 / UNITS_PER_CREDIT, amount.0 % UNITS_PER_CREDIT);
    format!("{whole}.{:06}", rest / (UNITS_PER_CREDIT / 1_000_000))
}

/// Reads credits as people write them.
#[must_use]
pub fn parse_credits(text: &str) -> Option<Amount> {
    parse_units(text, 9)
}

/// Reads tokens as people write them.
#[must_use]
pub fn parse_tokens(text: &str) -> Option<Amount> {
    parse_units(text, 18)
}

/// A number with at most so many digits behind the point, in units of the last of them.
fn parse_units(text: &str, digits: usize) -> Option<Amount> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let is_plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain(whole) || !is_plain(rest) || rest.len() > digits {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let rest: u128 = format!("{rest:0<digits$}").parse().ok()?;
    Some(Amount(whole.checked_mul(10u128.checked_pow(u32::try_from(digits).ok()?)?)?.checked_add(rest)?))
}

/// Billionths of a ut a day as people read them.
fn power(nut: u64) -> String {
    format!("{}.{:06}", nut / 1_000_000_000, nut % 1_000_000_000 / 1000)
}

/// Time of slices as people read it.
fn slices_text(slices: &SliceTime) -> String {
    let hours = |ms: u64| format!("{}.{:03}", ms / 3_600_000, ms % 3_600_000 / 3_600);
    format!("{} core-h {} gpu-h", hours(slices.cpu_core_ms), hours(slices.gpu_card_ms))
}

pub async fn usage(args: UsageArgs) -> anyhow::Result<ExitCode> {
    let usage: Usage = args.target.get("/api/v1/accounts/usage").await?;
    if args.target.json {
        print_json(&usage)?;
        return Ok(ExitCode::SUCCESS);
    }
    if usage.epoch == 0 {
        println!("no epoch has ended yet; one takes {} s", usage.epoch_ms / 1000);
    }
    println!("epoch {} ({} s)", usage.epoch, usage.epoch_ms / 1000);
    for node in &usage.nodes {
        println!(
            "  node {}  {:>12} stored {:>12} served {:>12} for repair  audits: {} passed, {} failed, {} unclear, {} unanswered",
            &node.node.to_string()[..12],
            human_bytes(node.stored_bytes),
            human_bytes(node.egress_bytes),
            human_bytes(node.repair_bytes),
            node.audits_pass,
            node.audits_fail,
            node.audits_unknown,
            node.audits_offline
        );
        if node.work_mut > 0 || node.computed.pass + node.computed.fail > 0 {
            println!(
                "                     computed {}.{:03} ut; of what was checked {} right, {} wrong",
                node.work_mut / 1000,
                node.work_mut % 1000,
                node.computed.pass,
                node.computed.fail
            );
        }
        if node.lease != SliceTime::default() {
            println!("                     for {} jobs: {}", node.jobs_ok, slices_text(&node.lease));
        }
    }
    for tenant in &usage.tenants {
        println!(
            "  tenant {:<24} {:>12} in {} objects",
            tenant.name,
            human_bytes(tenant.stored_bytes),
            tenant.objects
        );
        if let Some(used) = &tenant.used {
            println!(
                "    {:>12} sent {:>12} received in {} requests; jobs held {}; charged {} credits",
                human_bytes(used.ingress_bytes),
                human_bytes(used.egress_bytes),
                used.requests,
                slices_text(&used.slices),
                credits_text(used.charged.minus(used.refunded))
            );
        }
        if let Some(balance) = &tenant.balance {
            println!(
                "    balance {} credits, of that {} held for jobs that run; owes {}",
                credits_text(balance.amount),
                credits_text(balance.held),
                credits_text(balance.owed)
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The nodes that a person means: one by name or beginning of its id, or all.
fn select(earnings: Earnings, wanted: Option<&str>) -> anyhow::Result<Earnings> {
    let Some(wanted) = wanted else { return Ok(earnings) };
    if earnings.epoch == 0 {
        bail!("no epoch is signed yet; one takes {} s", earnings.epoch_ms / 1000);
    }
    let is_it = |node: &NodeEarnings| node.name == wanted || node.node.to_string().starts_with(wanted);
    let nodes: Vec<NodeEarnings> = earnings.nodes.into_iter().filter(is_it).collect();
    match nodes.len() {
        0 => bail!("no node has an account under {wanted:?}; see `makai earnings`"),
        1 => Ok(Earnings { nodes, ..earnings }),
        count => bail!("{wanted:?} means {count} nodes; give more of the id"),
    }
}

pub async fn earnings(args: EarningsArgs) -> anyhow::Result<ExitCode> {
    let earnings: Earnings = args.target.get("/api/v1/accounts/earnings").await?;
    let earnings = select(earnings, args.node.as_deref())?;
    if args.target.json {
        print_json(&earnings)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "epoch {}: {} tokens could be earned by all together",
        earnings.epoch,
        tokens(earnings.emission)
    );
    for node in &earnings.nodes {
        println!(
            "{} {:<12} {:<10} {:>16} of {:>16} with all audits passed {:>16} ever {:>16} held back",
            &node.node.to_string()[..12],
            node.name,
            status(node.status),
            tokens(node.earned),
            tokens(node.expected),
            tokens(node.earned_total),
            tokens(node.held)
        );
        println!(
            "    since then {:>16} if its audits pass, by what it stores and computes",
            tokens(node.accruing)
        );
        for one in node.components.iter().filter(|one| one.amount > Amount(0)) {
            println!("    {:<10} {:>16}", component(one.component), tokens(one.amount));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn estimate(args: EstimateArgs) -> anyhow::Result<ExitCode> {
    let machine = Machine {
        stored_bytes: args.stored_gib.saturating_mul(1 << 30),
        egress_bytes_a_day: args.egress_gib_a_day.saturating_mul(1 << 30),
        cores: args.cores,
        gpus: args.gpus,
    };
    let estimate: Estimate =
        args.target.call(Method::POST, "/api/v1/accounts/estimate", Some(&machine)).await?;
    if args.target.json {
        print_json(&estimate)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (component_of, amount) in estimate.components.iter().filter(|(_, amount)| *amount > Amount(0)) {
        println!("{:<10} {:>16} in epoch {}", component(*component_of), tokens(*amount), estimate.epoch);
    }
    println!("{} tokens a day while supply and demand stay as they were", tokens(estimate.a_day));
    println!("{} % of it is held back in a node's first month", estimate.held_back_pct);
    Ok(ExitCode::SUCCESS)
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Vetting => "vetting",
        Status::Active => "active",
        Status::Suspended => "suspended",
    }
}

fn component(component: Component) -> &'static str {
    match component {
        Component::Storage => "storage",
        Component::Egress => "egress",
        Component::Compute => "compute",
        Component::Lease => "lease",
        Component::Verify => "verify",
        Component::Lottery => "lottery",
    }
}

fn reason(of: Component, reason: Reason) -> &'static str {
    match reason {
        Reason::NotFunded => "no share of the budget goes to it in this cluster",
        Reason::NothingServed => match of {
            Component::Storage | Component::Egress | Component::Compute => "nothing was served",
            Component::Lease => "no slice of it was held for a job",
            Component::Verify => "no task of another was checked here",
            Component::Lottery => "the draw fell on another",
        },
        Reason::AwaitingAudit => {
            "no audit has passed since the bytes were last paid; they wait and are not lost"
        }
        Reason::AuditFailed => "an audit failed: bytes not yet paid are void; see the evidence",
        Reason::AuditUnanswered => {
            "audits went unanswered: bytes not yet paid are void; keep the node reachable"
        }
        Reason::Suspended => "the node is suspended: it earns nothing until its audits pass again",
        Reason::Reputation => "its audit score lowers the share",
        Reason::HeldBack => "a part is held back while the node is new, and released in months 15 and 24",
        Reason::NoPayout => "it has no payout address: what it earns waits for one",
        Reason::BelowDifficulty => {
            "less was served by all than expected: the rest of the budget stays in the pool"
        }
        Reason::ComputedWrong => {
            "what it computed was found wrong, or too often was: its computing of this epoch is void"
        }
        Reason::Forfeited => {
            "suspended for days with failures on several shards: what was held back went back to the pool"
        }
        Reason::NotDrawn => {
            "its lot won no prize this time; the chance is by its computing power two epochs ago"
        }
        Reason::AllForfeit => {
            "nodes asked for one result differed, and by this cluster's rule none of them earns it"
        }
    }
}

pub async fn why(args: WhyArgs) -> anyhow::Result<ExitCode> {
    let earnings: Earnings = args.target.get("/api/v1/accounts/earnings").await?;
    let earnings = select(earnings, Some(&args.node))?;
    let node = earnings.nodes.first().context("no such node")?;
    if args.target.json {
        print_json(node)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("node {} {}", node.node, node.name);
    let why = node.status_why.strip_prefix("vetting: ").unwrap_or(&node.status_why);
    println!("{} since epoch {}: {why}", status(node.status), node.status_since);
    for one_of in &node.components {
        println!(
            "{:<10} {:>16} in epoch {}",
            component(one_of.component),
            tokens(one_of.amount),
            earnings.epoch
        );
        for one in &one_of.reasons {
            println!("    {}", reason(one_of.component, *one));
        }
    }
    let account = &node.account;
    if account.power_nut > 0 || account.extra.train_nut > 0 {
        println!(
            "computing power: {} ut a day by drills, {} by training; it halves in a week without work",
            power(account.power_nut),
            power(account.extra.train_nut)
        );
    }
    let (right, wrong) = (account.extra.computing_alpha_ppm, account.extra.computing_beta_ppm);
    if right + wrong > 0 {
        println!("computing score {} of 1000000", score_ppm(right, wrong));
    }
    if let Some(usage) = &node.usage {
        let extra = &usage.extra;
        if extra.lot.is_some() {
            println!("it said that it has won in the lottery, and showed its proof");
        }
        if extra.verified_ms > 0 {
            println!("ran others' tasks again for {} s of a core", extra.verified_ms / 1000);
        }
        if extra.forfeited_runs > 0 {
            println!("runs that all who were asked lost: {}", extra.forfeited_runs);
        }
        if extra.stake > Amount(0) {
            println!("its address stakes {}, which adds to all that it earns", tokens(extra.stake));
        }
    }
    if account.extra.forfeited > Amount(0) {
        println!("forfeited for failures over days: {}", tokens(account.extra.forfeited));
    }
    match account.payout {
        Some(payout) => println!("paid to {payout}"),
        None => println!("no payout address; {} waits for one", tokens(node.unassigned)),
    }
    for evidence in node.usage.iter().flat_map(|usage| &usage.evidence) {
        println!(
            "evidence: blob {} shard {} leaf {} at {}: {}",
            evidence.blob, evidence.shard, evidence.leaf, evidence.at, evidence.why
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_read_as_they_are_written() {
        assert_eq!(parse_credits("12"), Some(Amount(12_000_000_000)));
        assert_eq!(parse_credits("0.5"), Some(Amount(500_000_000)));
        assert_eq!(parse_credits("0.000000001"), Some(Amount(1)));
        for wrong in ["", ".", "1.", ".5", "-1", "1e3", "0.0000000001", "1,5"] {
            assert_eq!(parse_credits(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse_tokens("2.5"), Some(Amount(5 * UNITS_PER_TOKEN / 2)));
        assert_eq!(parse_tokens("0.0000000000000000001"), None);
        assert_eq!(credits_text(Amount(1_999_999_999)), "1.999999");
    }

    #[test]
    fn tokens_are_cut_and_never_rounded_up() {
        assert_eq!(tokens(Amount(0)), "0.000000");
        assert_eq!(tokens(Amount(1_999_999_999_999_999_999)), "1.999999");
        assert_eq!(tokens(Amount(12 * UNITS_PER_TOKEN)), "12.000000");
    }
}
