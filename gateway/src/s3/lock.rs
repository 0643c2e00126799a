//! Object lock: of buckets, and of versions.

use makai_raft::facts::Timestamp as Millis;
use makai_raft::facts::version::{
    BucketLock, DefaultRetention as Default_, LockMode, ObjectLock, Retention, RetentionPeriod,
    VersionRefusal,
};
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::access::granted;
use super::errors::{custom, refused, unreadable};
use super::headers::{timestamp, unix_seconds};
use super::operations::Operations;
use super::versions::version_id;
use crate::identity::Caller;

fn mode(text: &str) -> Option<LockMode> {
    match text {
        ObjectLockMode::GOVERNANCE => Some(LockMode::Governance),
        ObjectLockMode::COMPLIANCE => Some(LockMode::Compliance),
        _ => None,
    }
}

fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => ObjectLockMode::GOVERNANCE,
        LockMode::Compliance => ObjectLockMode::COMPLIANCE,
    }
}

fn hold_name(is_held: bool) -> &'static str {
    if is_held { ObjectLockLegalHoldStatus::ON } else { ObjectLockLegalHoldStatus::OFF }
}

/// The lock that the headers of a new object ask for. That its date lies ahead is checked where it is kept.
pub(super) fn lock_of_headers(
    mode_given: Option<&ObjectLockMode>,
    until: Option<&Timestamp>,
    hold: Option<&ObjectLockLegalHoldStatus>,
) -> S3Result<ObjectLock> {
    let retention = match (mode_given, until) {
        (None, None) => None,
        (Some(given), Some(until)) => {
            let mode = mode(given.as_str())
                .ok_or_else(|| s3_error!(InvalidArgument, "Unknown wormMode directive."))?;
            Some(Retention { mode, until: millis(until) })
        }
        _ => {
            return Err(s3_error!(
                InvalidArgument,
                "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied."
            ));
        }
    };
    let legal_hold = match hold.map(ObjectLockLegalHoldStatus::as_str) {
        None => None,
        Some(ObjectLockLegalHoldStatus::ON) => Some(true),
        Some(ObjectLockLegalHoldStatus::OFF) => Some(false),
        Some(_) => return Err(s3_error!(InvalidArgument, "Legal Hold must be either of 'ON' or 'OFF'.")),
    };
    Ok(ObjectLock { retention, legal_hold })
}

fn millis(at: &Timestamp) -> Millis {
    Millis(unix_seconds(at).saturating_mul(1000))
}

/// What an answer to GET or HEAD says of a lock.
pub(super) struct Shown {
    pub(super) mode: Option<ObjectLockMode>,
    pub(super) until: Option<Timestamp>,
    pub(super) hold: Option<ObjectLockLegalHoldStatus>,
}

pub(super) fn shown(lock: &ObjectLock) -> Shown {
    Shown {
        mode: lock.retention.map(|retention| ObjectLockMode::from_static(mode_name(retention.mode))),
        until: lock.retention.map(|retention| timestamp(retention.until)),
        hold: lock.legal_hold.map(|is_held| ObjectLockLegalHoldStatus::from_static(hold_name(is_held))),
    }
}

/// A lock as the headers that ask for it.
pub(super) fn as_headers(lock: &ObjectLock) -> Vec<(&'static str, String)> {
    let mut headers = Vec::new();
    if let Some(retention) = lock.retention {
        headers.push(("x-amz-object-lock-mode", mode_name(retention.mode).to_owned()));
        headers.push(("x-amz-object-lock-retain-until-date", retention.until.rfc3339()));
    }
    if lock.legal_hold == Some(true) {
        headers.push(("x-amz-object-lock-legal-hold", hold_name(true).to_owned()));
    }
    headers
}

fn malformed(why: &str) -> S3Error {
    s3_error!(MalformedXML, "{why}")
}

/// The lock that a configuration describes.
fn bucket_lock(asked: &ObjectLockConfiguration) -> S3Result<BucketLock> {
    let enabled = asked.object_lock_enabled.as_ref().map(ObjectLockEnabled::as_str);
    if enabled != Some(ObjectLockEnabled::ENABLED) {
        return Err(malformed("ObjectLockEnabled must be Enabled."));
    }
    let Some(rule) = &asked.rule else { return Ok(BucketLock::default()) };
    let default =
        rule.default_retention.as_ref().ok_or_else(|| malformed("A Rule has a DefaultRetention."))?;
    let given = default.mode.as_ref().map(ObjectLockRetentionMode::as_str);
    let mode = given.and_then(mode).ok_or_else(|| malformed("A Mode is GOVERNANCE or COMPLIANCE."))?;
    let period = match (default.days, default.years) {
        (Some(days), None) => u32::try_from(days).ok().map(RetentionPeriod::Days),
        (None, Some(years)) => u32::try_from(years).ok().map(RetentionPeriod::Years),
        _ => return Err(malformed("A DefaultRetention has either Days or Years.")),
    };
    let period = period.filter(|period| period.is_valid()).ok_or_else(|| {
        custom("InvalidRetentionPeriod", 400, "A default retention is 1 to 36500 days, or 1 to 100 years.")
    })?;
    Ok(BucketLock { default: Some(Default_ { mode, period }) })
}

fn configuration(lock: &BucketLock) -> ObjectLockConfiguration {
    let rule = lock.default.map(|default| {
        let (days, years) = match default.period {
            RetentionPeriod::Days(days) => (Some(days.cast_signed()), None),
            RetentionPeriod::Years(years) => (None, Some(years.cast_signed())),
        };
        let mode = Some(ObjectLockRetentionMode::from_static(mode_name(default.mode)));
        ObjectLockRule { default_retention: Some(DefaultRetention { days, mode, years }) }
    });
    let object_lock_enabled = Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED));
    ObjectLockConfiguration { object_lock_enabled, rule }
}

fn no_retention() -> S3Error {
    custom(
        "NoSuchObjectLockConfiguration",
        404,
        "The specified object does not have an ObjectLock configuration.",
    )
}

impl Operations {
    pub(super) async fn get_object_lock_configuration(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
        let bucket = self.objects.bucket(caller, &request.input.bucket).await.map_err(refused)?;
        let lock = bucket.lock.ok_or_else(|| {
            s3_error!(
                ObjectLockConfigurationNotFoundError,
                "Object Lock configuration does not exist for this bucket."
            )
        })?;
        let object_lock_configuration = Some(configuration(&lock));
        Ok(S3Response::new(GetObjectLockConfigurationOutput { object_lock_configuration }))
    }

    pub(super) async fn put_object_lock_configuration(
        &self,
        caller: &Caller,
        request: S3Request<PutObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<PutObjectLockConfigurationOutput>> {
        let input = request.input;
        let asked = input.object_lock_configuration;
        let asked = asked.ok_or_else(|| malformed("The body is an ObjectLockConfiguration."))?;
        let lock = bucket_lock(&asked)?;
        self.objects.set_bucket_lock(caller, &input.bucket, lock).await.map_err(refused)?;
        Ok(S3Response::new(PutObjectLockConfigurationOutput::default()))
    }

    /// Refuses what only objects of a bucket with a lock have.
    async fn require_lock(&self, caller: &Caller, bucket: &str) -> S3Result<()> {
        let bucket = self.objects.bucket(caller, bucket).await.map_err(refused)?;
        match bucket.lock {
            Some(_) => Ok(()),
            None => {
                Err(refused(makai_raft::facts::command::Refusal::from(VersionRefusal::NoBucketLock).into()))
            }
        }
    }

    pub(super) async fn get_object_retention(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectRetentionInput>,
    ) -> S3Result<S3Response<GetObjectRetentionOutput>> {
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        self.require_lock(caller, &input.bucket).await?;
        let found = self.objects.find(caller, &input.bucket, &input.key, version).await;
        let found = found.map_err(|error| unreadable(error, version))?;
        let retention = found.head.headers.lock.retention.ok_or_else(no_retention)?;
        let retention = Some(ObjectLockRetention {
            mode: Some(ObjectLockRetentionMode::from_static(mode_name(retention.mode))),
            retain_until_date: Some(timestamp(retention.until)),
        });
        Ok(S3Response::new(GetObjectRetentionOutput { retention }))
    }

    pub(super) async fn put_object_retention(
        &self,
        caller: &Caller,
        request: S3Request<PutObjectRetentionInput>,
    ) -> S3Result<S3Response<PutObjectRetentionOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        self.require_lock(caller, &input.bucket).await?;
        let asked = input.retention.unwrap_or_default();
        let retention = match (&asked.mode, &asked.retain_until_date) {
            // Empty: the retention ends, where it may.
            (None, None) => None,
            (Some(given), Some(until)) => {
                let mode = mode(given.as_str());
                let mode = mode.ok_or_else(|| malformed("A Mode is GOVERNANCE or COMPLIANCE."))?;
                Some(Retention { mode, until: millis(until) })
            }
            _ => return Err(malformed("A Retention has a Mode and a RetainUntilDate.")),
        };
        let bypass = input.bypass_governance_retention == Some(true) && granted.allows_bypass(&input.key);
        let changed =
            self.objects.set_retention(caller, &input.bucket, &input.key, version, retention, bypass).await;
        changed.map_err(|error| unreadable(error, version))?;
        Ok(S3Response::new(PutObjectRetentionOutput::default()))
    }

    pub(super) async fn get_object_legal_hold(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectLegalHoldInput>,
    ) -> S3Result<S3Response<GetObjectLegalHoldOutput>> {
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        self.require_lock(caller, &input.bucket).await?;
        let found = self.objects.find(caller, &input.bucket, &input.key, version).await;
        let found = found.map_err(|error| unreadable(error, version))?;
        let is_held = found.head.headers.lock.legal_hold.ok_or_else(no_retention)?;
        let status = Some(ObjectLockLegalHoldStatus::from_static(hold_name(is_held)));
        Ok(S3Response::new(GetObjectLegalHoldOutput { legal_hold: Some(ObjectLockLegalHold { status }) }))
    }

    pub(super) async fn put_object_legal_hold(
        &self,
        caller: &Caller,
        request: S3Request<PutObjectLegalHoldInput>,
    ) -> S3Result<S3Response<PutObjectLegalHoldOutput>> {
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        self.require_lock(caller, &input.bucket).await?;
        let status = input.legal_hold.and_then(|hold| hold.status);
        let is_held = match status.as_ref().map(ObjectLockLegalHoldStatus::as_str) {
            Some(ObjectLockLegalHoldStatus::ON) => true,
            Some(ObjectLockLegalHoldStatus::OFF) => false,
            _ => return Err(malformed("The Status of a legal hold is ON or OFF.")),
        };
        let changed = self.objects.set_legal_hold(caller, &input.bucket, &input.key, version, is_held).await;
        changed.map_err(|error| unreadable(error, version))?;
        Ok(S3Response::new(PutObjectLegalHoldOutput::default()))
    }
}
