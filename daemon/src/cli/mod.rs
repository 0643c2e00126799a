//! Commands: one a file. Each is a clap `Args` struct and a `run`.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; `job wait` has more. Every command takes `--json`; what a
//! person reads goes to standard output, progress and errors to standard error.

mod accounts;
mod audit;
mod backup;
pub mod bench;
mod bucket;
mod claims;
mod cluster;
mod daemon;
mod dev;
pub mod doctor;
mod gpu;
mod init;
mod job;
mod kms;
mod mount;
mod node;
mod of_node;
mod payout;
mod profile;
mod rebalance;
mod record;
mod remote;
mod replication;
mod stake;
mod tenants;
mod training;
mod users;
mod worker;

use std::process::ExitCode;

use clap::Parser;

/// One daemon turns PCs into a cloud: an erasure-coded, Raft-managed pool behind S3.
#[derive(Debug, Parser)]
#[command(name = "makai", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Dev(dev::Args),
    Init(init::Args),
    Daemon(daemon::Args),
    Status(cluster::StatusArgs),
    Node(node::Args),
    Group(cluster::GroupArgs),
    Repair(cluster::RepairArgs),
    Rebalance(rebalance::Args),
    Backup(backup::Args),
    Tenant(tenants::TenantArgs),
    Key(tenants::KeyArgs),
    Usage(accounts::UsageArgs),
    Earnings(accounts::EarningsArgs),
    Estimate(accounts::EstimateArgs),
    Why(accounts::WhyArgs),
    Claim(claims::ClaimArgs),
    Ledger(claims::LedgerArgs),
    Payout(payout::Args),
    Stake(stake::Args),
    Training(training::Args),
    Record(record::Args),
    Bucket(bucket::Args),
    User(users::Args),
    Kms(kms::Args),
    ReplicationTarget(replication::Args),
    AuditLog(audit::Args),
    Job(job::Args),
    Gpu(gpu::Args),
    Bench(bench::Args),
    Mount(mount::Args),
    Doctor(doctor::Args),
    Worker(worker::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(mount::options::command_line());
    if let Command::Worker(args) = &cli.command {
        return worker::run(args);
    }
    if !matches!(cli.command, Command::Daemon(_)) {
        end_without_readers();
    }
    if let Command::Gpu(args) = &cli.command
        && let Some(code) = gpu::trial(args)
    {
        return code;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Command::Daemon(args) = &cli.command {
        daemon::prepare(args, &mut builder);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("makai: the runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Dev(args) => dev::run(args).await,
            Command::Init(args) => init::run(args).await,
            Command::Daemon(args) => daemon::run(args).await,
            Command::Status(args) => cluster::status(args).await,
            Command::Node(args) => node::run(args).await,
            Command::Group(args) => cluster::group(args).await,
            Command::Repair(args) => cluster::repair(args).await,
            Command::Rebalance(args) => rebalance::run(args).await,
            Command::Backup(args) => backup::run(args).await,
            Command::Tenant(args) => tenants::tenant(args).await,
            Command::Key(args) => tenants::key(args).await,
            Command::Usage(args) => accounts::usage(args).await,
            Command::Earnings(args) => accounts::earnings(args).await,
            Command::Estimate(args) => accounts::estimate(args).await,
            Command::Why(args) => accounts::why(args).await,
            Command::Claim(args) => claims::claim(args).await,
            Command::Ledger(args) => claims::ledger(args).await,
            Command::Payout(args) => payout::run(args).await,
            Command::Stake(args) => stake::run(args).await,
            Command::Training(args) => training::run(args).await,
            Command::Record(args) => record::run(args).await,
            Command::Bucket(args) => bucket::run(args).await,
            Command::User(args) => users::run(args).await,
            Command::Kms(args) => kms::run(args).await,
            Command::ReplicationTarget(args) => replication::run(args).await,
            Command::AuditLog(args) => audit::run(args).await,
            Command::Job(args) => job::run(args).await,
            Command::Gpu(args) => gpu::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Mount(args) => mount::run(args).await,
            Command::Worker(_) => unreachable!("a worker has no runtime"),
            Command::Doctor(args) => {
                let codec = || match makai_erasure::codec::self_test() {
                    Ok(()) => doctor::Finding::ok("codec", makai_erasure::codec::kernel_name()),
                    Err(error) => doctor::Finding::fail(
                        "codec",
                        error.to_string(),
                        "this CPU computes wrong results: do not store data on it",
                    ),
                };
                doctor::run(args, vec![codec]).await
            }
        }
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("makai: {error:#}");
            match error.downcast_ref::<makai_config::ConfigError>() {
                Some(_) => ExitCode::from(2),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// A reader that went away, as in `makai ledger verify FILE | head -1`, ends a command as a signal would: in silence, and not
/// with success.
fn end_without_readers() {
    /// What a shell says of programs that `SIGPIPE` ended.
    const ENDED_BY_PIPE: i32 = 141;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |why| {
        let said = why.payload_as_str().unwrap_or_default();
        if said.starts_with("failed printing to stdout") && said.contains("Broken pipe") {
            std::process::exit(ENDED_BY_PIPE);
        }
        usual(why);
    }));
}

/// Prints a value as JSON on one line.
fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Bytes as a person reads them.
fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
