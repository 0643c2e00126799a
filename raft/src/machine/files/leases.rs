//! Directories that one mount has alone, so that it may decide about names in them by itself and tell of it later.
//!
//! A lease stands while its session has changed something within [`DIRECTORY_LEASE_MS`]: a mount that dies is not waited
//! for longer. What others change of the directory's entries is refused till then; their doors have the lease recalled.

use std::ops::ControlFlow;

use super::work::Work;
use super::{keys, sessions};
use crate::facts::bucket::Bucket;
use crate::facts::files::{BucketRef, DIRECTORY_LEASE_MS, FileDone, FileEvent, FileRefusal};
use crate::machine::draft::{Draft, Outcome, read, scan_records};
use crate::machine::keys as store_keys;
use crate::machine::kv::KvError;

/// Who has the directory, other than `session`. A lease that is over is forgotten.
fn holder(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    session: u64,
    directory: u64,
) -> Result<Option<u64>, KvError> {
    // The only mount there is cannot be in its own way.
    if bucket.mounts <= u32::from(session != 0) {
        return Ok(None);
    }
    let key = keys::lease(bucket.root, directory);
    let Some(holder) = read::<u64>(draft, &key)?.filter(|holder| *holder != session) else {
        return Ok(None);
    };
    let is_held = sessions::leased_until(draft, bucket.root, holder)?.is_some_and(|until| draft.now < until);
    if is_held {
        return Ok(Some(holder));
    }
    draft.delete(key);
    Ok(None)
}

/// Refused where a session other than this one has the directory alone. Session 0: S3.
pub fn check(draft: &mut Draft<'_>, bucket: &Bucket, session: u64, directory: u64) -> Outcome<()> {
    match holder(draft, bucket, session, directory)? {
        Some(_) => {
            let bucket = BucketRef { name: bucket.name.clone(), id: bucket.id };
            Err(FileRefusal::Leased { bucket, directory }.into())
        }
        None => Ok(()),
    }
}

/// Asks who has the directory to give it back.
pub fn recall(draft: &mut Draft<'_>, bucket: &Bucket, directory: u64) -> Result<(), KvError> {
    if let Some(session) = holder(draft, bucket, 0, directory)? {
        sessions::note(draft, bucket, 0, FileEvent::Recalled { directory, session })?;
    }
    Ok(())
}

/// Until when a lease stands that is used now.
pub fn until(draft: &Draft<'_>) -> crate::facts::Timestamp {
    crate::facts::Timestamp(draft.now.0.saturating_add(DIRECTORY_LEASE_MS))
}

/// Ends all leases of a session.
pub fn release_session(draft: &mut Draft<'_>, root: u64, session: u64) -> Result<(), KvError> {
    let from = keys::leases(root);
    let mut held = Vec::new();
    scan_records(draft, &from, &store_keys::end_of(&from), &mut |key, holder: u64| {
        if holder == session {
            held.push(key.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    held.into_iter().for_each(|key| draft.delete(key));
    Ok(())
}

impl Work<'_, '_> {
    pub fn set_lease(&mut self, directory: u64, is_wanted: bool) -> Outcome<FileDone> {
        let key = keys::lease(self.bucket.root, directory);
        if !is_wanted {
            // It may be another's by now, or the directory gone: giving back what one has not is no fault.
            if read::<u64>(self.draft, &key)? == Some(self.session) {
                self.draft.delete(key);
            }
            return Ok(FileDone::default());
        }
        let stat = self.open_directory(directory)?.stat();
        if holder(self.draft, &self.bucket, self.session, directory)?.is_some() {
            return Err(FileRefusal::Locked.into());
        }
        self.lease(directory)?;
        Ok(FileDone { stat: Some(stat), ..FileDone::default() })
    }

    /// The directory is this session's alone from now on.
    pub fn lease(&mut self, directory: u64) -> Outcome<()> {
        self.draft.write(keys::lease(self.bucket.root, directory), &self.session)?;
        sessions::lease(self.draft, self.bucket.root, self.session)
    }

    pub fn check_lease(&mut self, directory: u64) -> Outcome<()> {
        check(self.draft, &self.bucket, self.session, directory)
    }
}
