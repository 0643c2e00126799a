//! A worker and nothing else: what a daemon starts where it does not start itself anew.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    makai_gpu_runtime::container::worker::main(&arguments)
}
