//! One node of a MAKAI cluster, and the commands that steer it.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

#[derive(clap::Parser)]
#[command(name = "makai", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Bench(cli::bench::Args),
    Doctor(cli::doctor::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench(args) => cli::bench::run(args).await,
        Command::Doctor(args) => cli::doctor::run(args, Vec::new()).await,
    }
}
