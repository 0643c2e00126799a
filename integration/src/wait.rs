//! Conditions with deadlines.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use anyhow::bail;
use makai::clock;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

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
        let why = match look().await {
            Ok(value) => return Ok(value),
            Err(why) => why,
        };
        if begun.elapsed() > within {
            bail!("{what}: not within {} s; last: {why:#}", within.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
