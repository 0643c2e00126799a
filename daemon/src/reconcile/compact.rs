//! Gives the room of dead shards back: segments that are mostly dead are written anew, a step at a time.

use std::time::Duration;

use super::Shell;

const IDLE: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_millis(200);

pub async fn run(shell: Shell) {
    let mut pause = IDLE;
    while shell.pause(pause).await {
        pause = IDLE;
        for (disk, store) in shell.disks.iter() {
            match store.compact_step().await {
                Ok(true) => pause = BUSY,
                Ok(false) => {}
                Err(error) => tracing::warn!(%disk, %error, "a segment was not compacted"),
            }
        }
    }
}
