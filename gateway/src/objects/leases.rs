//! Waiting for a directory that a mount has alone: it is asked to give it back, and does once it has told what it did there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::Command;
use makai_raft::facts::files::{BucketRef, DIRECTORY_LEASE_MS, FileAnswer, FileCommand, FileQuery, LookedAt};

use super::{Objects, ObjectsError};

/// Pauses between two looks, doubling from the first to the last.
const LOOK_AFTER_MIN: Duration = Duration::from_millis(4);
const LOOK_AFTER_MAX: Duration = Duration::from_millis(64);
/// A mount that was asked and did not hear of it is asked again.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A mount that is dead has lost its directories after [`DIRECTORY_LEASE_MS`].
const WAIT_MAX: Duration = Duration::from_millis(2 * DIRECTORY_LEASE_MS);

/// How long one command has waited.
#[derive(Debug, Default)]
pub(crate) struct LeaseWait {
    waited: Duration,
    pause: Option<Duration>,
    /// When, as time waited, its holder is to be asked again.
    ask_at: Duration,
}

impl Objects {
    /// Returns once those mounts have told what they decided that have alone what `reader` (0: S3) looks at, or were asked for long
    /// enough: what is read then is not older than this call. Where nobody can tell, nothing is waited for.
    pub(crate) async fn settle(
        &self,
        bucket: &Bucket,
        reader: u64,
        at: LookedAt,
    ) -> Result<(), ObjectsError> {
        if bucket.mounts <= u32::from(reader != 0) {
            return Ok(());
        }
        let named = BucketRef { name: bucket.name.clone(), id: bucket.id };
        let query = FileQuery::Leased { bucket: named.clone(), reader, at };
        let mut waiting: HashMap<u64, LeaseWait> = HashMap::new();
        while let Ok(FileAnswer::Leased(held)) = self.ask_files(query.clone()).await {
            let Some(first) = held.first() else { break };
            // All are asked at once, and the first is waited for.
            for directory in &held[1..] {
                if let Entry::Vacant(entry) = waiting.entry(*directory) {
                    let wait = entry.insert(LeaseWait::default());
                    self.recall(wait, &named, *directory).await?;
                }
            }
            if !self.await_lease(waiting.entry(*first).or_default(), &named, *first).await? {
                break;
            }
        }
        Ok(())
    }

    async fn recall(
        &self,
        wait: &mut LeaseWait,
        bucket: &BucketRef,
        directory: u64,
    ) -> Result<(), ObjectsError> {
        wait.ask_at = wait.waited + ASK_EVERY;
        let recall = FileCommand::Recall { bucket: bucket.clone(), directory };
        self.inner.metadata.propose(Command::File(recall)).await?;
        Ok(())
    }

    /// Has a directory recalled and waits for a moment; `false`: it was waited for long enough.
    pub(crate) async fn await_lease(
        &self,
        wait: &mut LeaseWait,
        bucket: &BucketRef,
        directory: u64,
    ) -> Result<bool, ObjectsError> {
        if wait.waited >= WAIT_MAX {
            return Ok(false);
        }
        if wait.waited >= wait.ask_at {
            self.recall(wait, bucket, directory).await?;
        }
        let pause = wait.pause.map_or(LOOK_AFTER_MIN, |pause| (pause * 2).min(LOOK_AFTER_MAX));
        wait.pause = Some(pause);
        wait.waited += pause;
        tokio::time::sleep(pause).await;
        Ok(true)
    }
}
