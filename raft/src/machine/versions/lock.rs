//! Retention and legal holds.

use super::edit;
use crate::facts::Timestamp;
use crate::facts::bucket::Bucket;
use crate::facts::command::{Refusal, Reply};
use crate::facts::version::{
    BucketLock, LockMode, ObjectLock, Retention, VersionId, VersionRefusal, Versioning,
};
use crate::machine::draft::{Draft, Outcome};
use crate::machine::{buckets, keys};

/// Whether a new version may be locked so.
pub fn check(bucket: &Bucket, lock: &ObjectLock) -> Result<(), Refusal> {
    if bucket.lock.is_none() && !lock.is_empty() {
        return Err(VersionRefusal::NoBucketLock.into());
    }
    Ok(())
}

/// As [`check`], and that what is asked for now ends later.
pub fn check_new(bucket: &Bucket, lock: &ObjectLock, now: Timestamp) -> Result<(), Refusal> {
    if lock.retention.is_some_and(|retention| retention.until <= now) {
        return Err(Refusal::Invalid("the retain until date must be in the future".to_owned()));
    }
    check(bucket, lock)
}

/// The lock of a new version: the bucket's default where nobody said.
pub fn complete(bucket: &Bucket, lock: ObjectLock, now: Timestamp) -> ObjectLock {
    let default = bucket.lock.and_then(|lock| lock.default);
    let by_default = || {
        default.map(|default| Retention {
            mode: default.mode,
            until: Timestamp(now.0.saturating_add(default.period.millis())),
        })
    };
    ObjectLock { retention: lock.retention.or_else(by_default), ..lock }
}

pub fn set_bucket(draft: &mut Draft<'_>, name: &str, lock: BucketLock) -> Outcome<Reply> {
    let bucket = buckets::get(draft, name)?;
    if bucket.versioning != Versioning::Enabled {
        let why = "object lock needs versioning to be enabled".to_owned();
        return Err(Refusal::from(VersionRefusal::BucketState(why)).into());
    }
    if lock.default.is_some_and(|default| !default.period.is_valid()) {
        return Err(Refusal::Invalid("a retention period is 1 day to 100 years".to_owned()).into());
    }
    draft.write(keys::bucket(name), &Bucket { lock: Some(lock), ..bucket })?;
    Ok(Reply::Done)
}

pub fn set_retention(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    version: Option<VersionId>,
    retention: Option<Retention>,
    bypass_governance: bool,
) -> Outcome<Reply> {
    let now = draft.now;
    edit(draft, bucket, key, version, |bucket, meta| {
        if bucket.lock.is_none() {
            return Err(Refusal::from(VersionRefusal::NoBucketLock).into());
        }
        if retention.is_some_and(|retention| retention.until <= now) {
            return Err(Refusal::Invalid("the retain until date must be in the future".to_owned()).into());
        }
        let lock = &mut meta.headers.lock;
        if let Some(old) = lock.retention
            && !may_follow(old, retention, now, bypass_governance)
        {
            return Err(Refusal::from(VersionRefusal::Locked).into());
        }
        lock.retention = retention;
        Ok(())
    })
}

/// Whether what `old` promises still holds under `new`, or may be broken.
fn may_follow(old: Retention, new: Option<Retention>, now: Timestamp, bypass_governance: bool) -> bool {
    let is_over = old.until <= now;
    let is_kept = new.is_some_and(|new| new.mode == old.mode && new.until >= old.until);
    let is_bypassed = old.mode == LockMode::Governance && bypass_governance;
    is_over || is_kept || is_bypassed
}

pub fn set_legal_hold(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    version: Option<VersionId>,
    is_held: bool,
) -> Outcome<Reply> {
    edit(draft, bucket, key, version, |bucket, meta| {
        if bucket.lock.is_none() {
            return Err(Refusal::from(VersionRefusal::NoBucketLock).into());
        }
        meta.headers.lock.legal_hold = Some(is_held);
        Ok(())
    })
}
