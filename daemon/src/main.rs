//! `makai`: one node of a cluster, and the commands that steer it.

use std::process::ExitCode;

/// Requests allocate and free stripes on different threads, which glibc's allocator makes dear: a tenth of a busy node's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    makai::cli::main()
}
