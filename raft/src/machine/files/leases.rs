//! Directories that one mount has alone, so that it may decide about names in them by itself and tell of it later.
//!
//! A lease stands while its session has changed something within [`DIRECTORY_LEASE_MS`]: a mount that dies is not waited
//! for longer. What others change of the directory's entries is refused till then; their doors have the lease recalled, and so
//! have those of readers before they look.

use std::ops::ControlFlow;

use super::tree::{self, Dir};
use super::work::Work;
use super::{keys, sessions};
use crate::facts::bucket::Bucket;
use crate::facts::files::{
    BucketRef, DIRECTORY_LEASE_MS, FileDone, FileEvent, FileRefusal, LEASED_MAX, LookedAt,
};
use crate::machine::applied;
use crate::machine::draft::{Draft, Outcome, Stop, read, scan_records};
use crate::machine::keys as store_keys;
use crate::machine::kv::{KvError, View};
use crate::machine::names::{self, Directory};

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

/// Directories that a reader looks at and that others have alone, as far as is known here.
pub fn held_by_others(
    view: &dyn View,
    bucket: &Bucket,
    reader: u64,
    at: &LookedAt,
) -> Result<Vec<u64>, KvError> {
    if bucket.mounts <= u32::from(reader != 0) {
        return Ok(Vec::new());
    }
    let (now, root) = (applied(view)?.at, bucket.root);
    let mut held = Vec::new();
    let mut look = |directory: u64, holder: Option<u64>| -> Result<(), KvError> {
        if let Some(holder) = holder.filter(|holder| *holder != reader)
            && sessions::leased_until(view, root, holder)?.is_some_and(|until| now < until)
        {
            held.push(directory);
        }
        Ok(())
    };
    let holder = |directory| read::<u64>(view, &keys::lease(root, directory));
    match at {
        LookedAt::Directory { inode, names } => {
            look(*inode, holder(*inode)?)?;
            let mut at = Dir::find(view, bucket, *inode)?;
            for name in names.iter().take(LEASED_MAX) {
                let Some(directory) = &at else { break };
                let entry = directory.entry_key(name, true);
                let Some(below) = read::<Directory>(view, &entry)? else { break };
                look(below.inode, holder(below.inode)?)?;
                at = Dir::find(view, bucket, below.inode)?;
            }
        }
        LookedAt::Key(key) => {
            // What is missing of the key's path may be known to who has the last directory that is there.
            let (directory, _) = names::locate(view, root, key)?.appearing();
            look(directory, holder(directory)?)?;
        }
        LookedAt::Everything => {
            for (directory, holder) in all_leases(view, root)? {
                look(directory, Some(holder))?;
            }
        }
        LookedAt::Keys { prefix, after, until } => {
            let range = (prefix.as_bytes(), after.as_bytes(), until.as_ref().map(String::as_bytes));
            for (directory, holder) in all_leases(view, root)? {
                if tree::is_placed(view, root, directory)?
                    && may_hold(&tree::path_of(view, root, directory)?, range)
                {
                    look(directory, Some(holder))?;
                }
            }
        }
    }
    held.truncate(LEASED_MAX);
    Ok(held)
}

/// Whether a directory, whose keys begin with `path`, may have one of a range: prefix, what it lies behind, its end.
fn may_hold(path: &[u8], (prefix, after, until): (&[u8], &[u8], Option<&[u8]>)) -> bool {
    let is_within = path.starts_with(prefix) || prefix.starts_with(path);
    let is_behind = path.is_empty() || store_keys::end_of(path).as_slice() > after;
    is_within && is_behind && until.is_none_or(|until| path <= until)
}

/// All leases of a bucket: directory and holder.
fn all_leases(view: &dyn View, root: u64) -> Result<Vec<(u64, u64)>, KvError> {
    let from = keys::leases(root);
    let mut all = Vec::new();
    scan_records(view, &from, &store_keys::end_of(&from), &mut |key, holder: u64| {
        all.push((keys::last_number(key), holder));
        ControlFlow::Continue(())
    })?;
    Ok(all)
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
            if read::<u64>(self.draft, &key)? != Some(self.session) {
                return Ok(FileDone::default());
            }
            self.draft.delete(key);
            // As this session's changes left it: nobody else has changed it yet.
            let stat = match self.open_directory(directory) {
                Ok(directory) => Some(directory.stat()),
                Err(Stop::Refused(_)) => None,
                Err(broken) => return Err(broken),
            };
            return Ok(FileDone { stat, ..FileDone::default() });
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
