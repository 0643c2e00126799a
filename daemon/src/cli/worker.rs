//! `makai worker`: what the daemon starts of itself to look after one task. Not for people.

use std::ffi::OsString;
use std::process::ExitCode;

/// Looks after one task; started by the daemon.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// As `makai_gpu_runtime::container::worker` has it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs a worker. Must be called before this process starts a second thread.
pub fn run(args: &Args) -> ExitCode {
    // The daemon does without huge pages, and its children inherit that: a task's programs may want them.
    let _ = rustix::thread::disable_transparent_huge_pages(false);
    makai_gpu_runtime::container::worker::main(&args.arguments)
}
