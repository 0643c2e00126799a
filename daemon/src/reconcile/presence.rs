//! Looks whether this node's disks are still there: a folder that was deleted, unmounted or swapped under the running daemon
//! would take writes that no restart finds again, and a disk whose sync failed can be believed no more.
//!
//! Such a disk is neither read nor written, and no heartbeat names it: the leader has what it held made again elsewhere. A
//! folder that comes back as it was serves again at once. Of a single segment file that was removed, the shards are lost.

use std::time::Duration;

use super::Shell;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks between two at every file.
const LOOKS_PER_FILES: u32 = 15;

pub async fn run(shell: Shell) {
    let mut looks = 0;
    while shell.pause(LOOK_EVERY).await {
        looks += 1;
        for (disk, store) in shell.disks.all() {
            let is_here = shell.disks.is_here(*disk);
            match store.check_home().await {
                Ok(()) if !is_here => {
                    tracing::info!(%disk, "the disk is back");
                    shell.disks.set_here(*disk, true);
                }
                Ok(()) if looks % LOOKS_PER_FILES == 0 => match store.look_over().await {
                    Ok(0) => {}
                    Ok(lost) => shell.disks.note_lost(lost),
                    Err(error) => {
                        tracing::warn!(%disk, %error, "the disk's files were not looked at; trying again")
                    }
                },
                Err(error) if is_here => {
                    tracing::error!(%disk, %error, "the disk is out of use; put its folder back, or restart the daemon to begin an empty one");
                    shell.disks.set_here(*disk, false);
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}
