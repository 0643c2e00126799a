//! Advisory locks: ranges of a file, each an owner's of a session. They end with the session.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::work::Work;
use super::{keys, sessions};
use crate::facts::bucket::Bucket;
use crate::facts::files::{FileDone, FileEvent, FileRef, FileRefusal, LOCKS_MAX, Lock, LockType};
use crate::machine::draft::{Draft, Outcome, read, scan_records};
use crate::machine::keys as store_keys;
use crate::machine::kv::{KvError, View};

/// All locks on one file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Locks {
    held: Vec<(u64, Lock)>,
}

fn overlap(one: &Lock, other: &Lock) -> bool {
    one.start <= other.end && other.start <= one.end
}

fn is_same_owner(one: (u64, &Lock), other: (u64, &Lock)) -> bool {
    one.0 == other.0 && one.1.owner == other.1.owner
}

/// The first of `held` that stands in the way of a lock.
fn conflict(held: &[(u64, Lock)], session: u64, wanted: &Lock) -> Option<(u64, Lock)> {
    let is_in_the_way = |(holder, lock): &&(u64, Lock)| {
        lock.is_flock == wanted.is_flock
            && !is_same_owner((*holder, lock), (session, wanted))
            && overlap(lock, wanted)
            && (lock.kind == LockType::Write || wanted.kind == LockType::Write)
    };
    if wanted.kind == LockType::Unlock { None } else { held.iter().find(is_in_the_way).copied() }
}

/// `held` once the owner's `wanted` is the state of its range: what it had there is cut away.
fn with(held: &[(u64, Lock)], session: u64, wanted: &Lock) -> Vec<(u64, Lock)> {
    let mut result = Vec::with_capacity(held.len() + 2);
    for (holder, lock) in held {
        let is_own = is_same_owner((*holder, lock), (session, wanted)) && lock.is_flock == wanted.is_flock;
        if !is_own || !overlap(lock, wanted) {
            result.push((*holder, *lock));
            continue;
        }
        if let Some(end) = wanted.start.checked_sub(1).filter(|end| lock.start <= *end) {
            result.push((*holder, Lock { end, ..*lock }));
        }
        if let Some(start) = wanted.end.checked_add(1).filter(|start| *start <= lock.end) {
            result.push((*holder, Lock { start, ..*lock }));
        }
    }
    if wanted.kind != LockType::Unlock {
        result.push((session, *wanted));
    }
    result
}

impl Work<'_, '_> {
    pub fn set_lock(&mut self, file: &FileRef, lock: &Lock) -> Outcome<FileDone> {
        let lock = checked(lock)?;
        let stat = self.find(file)?.stat();
        let key = keys::locks(self.bucket.root, file.inode);
        let mut locks: Locks = read(self.draft, &key)?.unwrap_or_default();
        let mut alive = Vec::with_capacity(locks.held.len());
        for (holder, held) in locks.held {
            if sessions::is_alive(self.draft, self.bucket.root, holder)? {
                alive.push((holder, held));
            }
        }
        if conflict(&alive, self.session, &lock).is_some() {
            return Err(FileRefusal::Locked.into());
        }
        locks.held = with(&alive, self.session, &lock);
        if locks.held.len() > LOCKS_MAX {
            return Err(FileRefusal::TooManyLocks.into());
        }
        if locks.held.is_empty() {
            self.draft.delete(key)
        } else {
            self.draft.write(key, &locks)?
        }
        if lock.kind != LockType::Write {
            self.note(FileEvent::Unlocked(file.inode))?;
        }
        Ok(FileDone { stat: Some(stat), ..FileDone::default() })
    }
}

fn checked(lock: &Lock) -> Result<Lock, FileRefusal> {
    if lock.start > lock.end {
        return Err(FileRefusal::Invalid("a lock ends before it begins".to_owned()));
    }
    let end = if lock.end >= i64::MAX as u64 { u64::MAX } else { lock.end };
    Ok(Lock { end, ..*lock })
}

/// The first lock that stands in the way; one whose session has ended unnoticed may be named.
pub fn test(
    view: &dyn View,
    bucket: &Bucket,
    session: u64,
    inode: u64,
    lock: &Lock,
) -> Outcome<Option<(u64, Lock)>> {
    let locks: Locks = read(view, &keys::locks(bucket.root, inode))?.unwrap_or_default();
    Ok(conflict(&locks.held, session, &checked(lock)?))
}

/// Ends the locks of a session.
pub fn release_session(draft: &mut Draft<'_>, bucket: &Bucket, session: u64) -> Result<(), KvError> {
    let from = keys::all_locks(bucket.root);
    let mut found = Vec::new();
    scan_records(draft, &from, &store_keys::end_of(&from), &mut |key, locks: Locks| {
        if locks.held.iter().any(|(holder, _)| *holder == session) {
            found.push((key.to_vec(), locks));
        }
        ControlFlow::Continue(())
    })?;
    for (key, mut locks) in found {
        locks.held.retain(|(holder, _)| *holder != session);
        let inode = keys::last_number(&key);
        if locks.held.is_empty() {
            draft.delete(key)
        } else {
            draft.write(key, &locks)?
        }
        sessions::note(draft, bucket, session, FileEvent::Unlocked(inode))?;
    }
    Ok(())
}
