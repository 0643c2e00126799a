//! Conditions and programs with deadlines.

use std::fmt::Display;
use std::future::Future;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use makai::clock;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A look that takes longer than this, and than what is left, is given up.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Looks until `look` gives a value; what it said last is the error when `within` is over.
///
/// # Errors
/// The deadline passed.
pub async fn until<T, E, F>(what: &str, within: Duration, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let begun = clock::instant();
    loop {
        let left = within.saturating_sub(begun.elapsed()).max(LOOK_MAX);
        let why = match tokio::time::timeout(left, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(why)) => why,
            Err(_) => bail!("{what}: a look at it did not end within {} s", left.as_secs()),
        };
        if begun.elapsed() > within {
            bail!("{what}: not within {} s; last: {why:#}", within.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Runs a program to its end, which comes within `within`; what it says is captured, and it hears nothing.
///
/// # Errors
/// It does not start, or was killed after that time.
pub fn output(command: Command, within: Duration) -> anyhow::Result<Output> {
    let name = format!("{command:?}");
    let run = move || -> anyhow::Result<Output> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ended = runtime.block_on(async {
            let mut command = tokio::process::Command::from(command);
            let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
            tokio::time::timeout(within, ended).await
        });
        // What it left behind may hold its output open: nobody waits for that.
        runtime.shutdown_background();
        ended.map_err(|_| anyhow::anyhow!("not ended within {} s", within.as_secs()))?.context("start it")
    };
    // A runtime of its own, on a thread of its own: callers may be within one.
    let ended = std::thread::spawn(run).join().map_err(|_| anyhow::anyhow!("the thread that runs it"));
    ended.and_then(|ended| ended).with_context(|| name)
}
