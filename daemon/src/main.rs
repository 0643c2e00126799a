//! `makai`: one node of a cluster, and the commands that steer it.

use std::process::ExitCode;

fn main() -> ExitCode {
    makai::cli::main()
}
