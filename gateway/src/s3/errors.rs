//! What went wrong, in S3's words.
//!
//! Every refusal has the code that S3 documents for it, and a message that says what and how to mend it.

use http::{HeaderMap, HeaderValue, StatusCode};
use makai_raft::facts::accounts::AccountsRefusal;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::files::FileRefusal;
use makai_raft::facts::version::{VersionId, VersionRefusal};
use s3s::{S3Error, S3ErrorCode, s3_error};

use super::headers::{http_date, timestamp};
use crate::identity::IdentityError;
use crate::objects::ObjectsError;
use crate::objects::sealing::SealingFault;

/// An error whose code `s3s` does not list.
pub(super) fn custom(code: &'static str, status: u16, message: impl Into<String>) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message.into());
    error.set_status_code(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST));
    error
}

/// A refused operation, as the client hears it.
pub(super) fn refused(error: ObjectsError) -> S3Error {
    match error {
        ObjectsError::Refused(refusal) => from_refusal(&refusal),
        ObjectsError::AccessDenied => {
            s3_error!(AccessDenied, "The bucket belongs to another tenant: use an access key of its owner.")
        }
        ObjectsError::Body(source) => match source.downcast::<S3Error>() {
            Ok(error) => *error,
            Err(source) => {
                s3_error!(IncompleteBody, "The request's body could not be read to its end: {source}")
            }
        },
        ObjectsError::RangeNotSatisfiable { size } => range_not_satisfiable(size),
        ObjectsError::SlowDown(why) => {
            s3_error!(SlowDown, "Please reduce your request rate and try again: {why}")
        }
        ObjectsError::Unavailable(why) => s3_error!(ServiceUnavailable, "Please try again: {why}"),
        // Which disk of whose machine is for the operator to know.
        ObjectsError::Full(why) => {
            tracing::warn!(why, "the pool takes no more");
            custom(
                "InsufficientStorage",
                507,
                "The pool is full. Delete objects, or ask the operator to add disks.".to_owned(),
            )
        }
        ObjectsError::Sealing(fault) => unopened(fault),
        ObjectsError::Internal(why) => {
            tracing::error!(why, "an S3 request failed inside");
            s3_error!(
                InternalError,
                "We encountered an internal error. Please try again, and report the request id."
            )
        }
    }
}

fn unopened(fault: SealingFault) -> S3Error {
    match fault {
        SealingFault::KeyMissing => s3_error!(
            InvalidRequest,
            "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to \
             retrieve the object."
        ),
        SealingFault::KeyDiffers => s3_error!(
            InvalidRequest,
            "The provided encryption parameters did not match the ones used originally to encrypt the object."
        ),
        SealingFault::KeyNotUsed => {
            s3_error!(InvalidRequest, "The encryption parameters are not applicable to this object.")
        }
        SealingFault::NamedKeyMissing => custom(
            "KMS.NotFoundException",
            400,
            "The key that was named does not exist: check its name, or make it with `makai kms create`.",
        ),
        SealingFault::NamedKeyDisabled => {
            custom("KMS.DisabledException", 400, "The key that was named is disabled.")
        }
        SealingFault::NamedKeyPending => custom(
            "KMS.KMSInvalidStateException",
            400,
            "The key that was named is pending deletion: have it kept with `makai kms keep` first.",
        ),
    }
}

/// As [`refused`], of a read that named `version`: a delete marker that hides the key is a key that is not there.
pub(super) fn unreadable(error: ObjectsError, version: Option<VersionId>) -> S3Error {
    match error {
        ObjectsError::Refused(Refusal::Version(VersionRefusal::IsMarker { version: marker, .. }))
            if version.is_none() =>
        {
            let mut error = s3_error!(NoSuchKey, "The specified key does not exist.");
            error.set_headers(marker_headers(marker));
            error
        }
        error => refused(error),
    }
}

/// As [`refused`], of a copy: a delete marker named as its source is no object.
pub(super) fn unreadable_source(error: ObjectsError, version: Option<VersionId>) -> S3Error {
    match error {
        ObjectsError::Refused(Refusal::Version(VersionRefusal::IsMarker { .. })) if version.is_some() => {
            s3_error!(
                InvalidRequest,
                "The source of a copy request may not specifically refer to a delete marker by version id."
            )
        }
        error => unreadable(error, version),
    }
}

fn marker_headers(marker: VersionId) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
    if let Ok(id) = HeaderValue::try_from(marker.to_string()) {
        headers.insert("x-amz-version-id", id);
    }
    headers
}

fn from_version_refusal(refusal: &VersionRefusal) -> S3Error {
    match refusal {
        VersionRefusal::NoSuchVersion => {
            s3_error!(NoSuchVersion, "The specified version does not exist.")
        }
        VersionRefusal::IsMarker { version, modified_at } => {
            let mut error = s3_error!(
                MethodNotAllowed,
                "The specified method is not allowed against this resource: the version is a delete marker."
            );
            let mut headers = marker_headers(*version);
            headers.insert(http::header::ALLOW, HeaderValue::from_static("DELETE"));
            if let Some(date) = http_date(&timestamp(*modified_at)).and_then(|date| date.parse().ok()) {
                headers.insert(http::header::LAST_MODIFIED, date);
            }
            error.set_headers(headers);
            error
        }
        VersionRefusal::Locked => s3_error!(
            AccessDenied,
            "Access Denied because object protected by object lock: wait until its retention ends, or lift its legal \
             hold."
        ),
        VersionRefusal::NoBucketLock => {
            s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration")
        }
        VersionRefusal::BucketState(why) => {
            s3_error!(
                InvalidBucketState,
                "The request is not valid with the current state of the bucket: {why}."
            )
        }
    }
}

fn from_refusal(refusal: &Refusal) -> S3Error {
    let code = match refusal {
        Refusal::NotFound(_) => S3ErrorCode::NoSuchResource,
        Refusal::AlreadyExists(_) => S3ErrorCode::OperationAborted,
        // In S3's own words: some clients compare them.
        Refusal::NoSuchBucket => {
            return s3_error!(NoSuchBucket, "The specified bucket does not exist");
        }
        Refusal::BucketTaken => {
            return s3_error!(
                BucketAlreadyExists,
                "The requested bucket name is not available: another tenant has it. Select a different name."
            );
        }
        Refusal::BucketOwned => S3ErrorCode::BucketAlreadyOwnedByYou,
        Refusal::BucketNotEmpty => {
            return s3_error!(
                BucketNotEmpty,
                "The bucket you tried to delete is not empty: delete its objects and abort its uploads first."
            );
        }
        Refusal::NoSuchKey => return s3_error!(NoSuchKey, "The specified key does not exist."),
        Refusal::NoSuchUpload => {
            return s3_error!(
                NoSuchUpload,
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have been \
                 aborted or completed."
            );
        }
        Refusal::InvalidPart(_) => S3ErrorCode::InvalidPart,
        Refusal::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        Refusal::PartTooSmall { .. } => S3ErrorCode::EntityTooSmall,
        Refusal::TooLarge(_) => S3ErrorCode::EntityTooLarge,
        Refusal::PreconditionFailed => {
            return s3_error!(
                PreconditionFailed,
                "At least one of the pre-conditions you specified did not hold"
            );
        }
        Refusal::QuotaExceeded { .. } | Refusal::QuotaReached(_) => {
            let message = format!("{refusal}: delete objects, or ask the operator for a larger quota.");
            return custom("QuotaExceeded", 403, message);
        }
        Refusal::Accounts(AccountsRefusal::BalanceSpent { .. }) => {
            return custom("AccountProblem", 403, refusal.to_string());
        }
        // The client did nothing wrong: its own retry sends the same again.
        Refusal::SourceChanged => S3ErrorCode::ServiceUnavailable,
        // A mount has the directory alone and does not give it back.
        Refusal::File(FileRefusal::Leased { .. }) | Refusal::FollowersBehind => S3ErrorCode::SlowDown,
        Refusal::BlobTooOld => S3ErrorCode::RequestTimeout,
        Refusal::Version(refusal) => return from_version_refusal(refusal),
        Refusal::StaleAttempt(_) | Refusal::Invalid(_) | Refusal::File(_) => S3ErrorCode::InvalidArgument,
        Refusal::StaleMap(_) | Refusal::BadToken | Refusal::RoleDenied(_) | Refusal::Accounts(_) => {
            tracing::error!(%refusal, "a data request was refused for a reason that only nodes should meet");
            return s3_error!(InternalError, "We encountered an internal error. Please try again.");
        }
    };
    let mut message = refusal.to_string();
    if let Some(first) = message.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    S3Error::with_message(code, message + ".")
}

pub(super) fn range_not_satisfiable(size: u64) -> S3Error {
    let mut error =
        s3_error!(InvalidRange, "The requested range is not satisfiable: the object has {size} bytes.");
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
        headers.insert(http::header::CONTENT_RANGE, value);
    }
    error.set_headers(headers);
    error
}

pub(super) fn unidentified(error: &IdentityError) -> S3Error {
    match error {
        IdentityError::UnknownAccessKey(_) => s3_error!(
            InvalidAccessKeyId,
            "The access key id you provided does not exist in our records, or is disabled."
        ),
        IdentityError::Unavailable(why) => s3_error!(ServiceUnavailable, "Please try again: {why}"),
        IdentityError::UnknownTenant(_) | IdentityError::Sealed { .. } => {
            tracing::error!(%error, "a caller could not be identified");
            s3_error!(InternalError, "We encountered an internal error. Please report the request id.")
        }
    }
}

/// The message of a code that came without one.
pub(super) fn default_message(code: &str) -> &'static str {
    match code {
        "SignatureDoesNotMatch" => {
            "The request signature we calculated does not match the signature you provided. Check your secret key, the \
             signing method, and that nothing between you and the server rewrites the request."
        }
        "MalformedXML" => {
            "The XML you provided was not well-formed or did not validate against our published schema."
        }
        "KeyTooLongError" => "Your key is too long: at most 1024 bytes of UTF-8.",
        "InvalidBucketName" => {
            "The specified bucket is not valid: 3 to 63 of lower-case letters, digits, dots and hyphens, beginning and \
             ending with a letter or digit, and no IP address."
        }
        "InvalidURI" => "Couldn't parse the specified URI: paths and queries are percent-encoded UTF-8.",
        "MissingContentLength" => "You must provide the Content-Length HTTP header.",
        "MissingRequestBodyError" => "Request body is empty.",
        "MaxMessageLengthExceeded" => "Your request was too big.",
        "IncompleteBody" => {
            "You did not provide the number of bytes specified by the Content-Length HTTP header."
        }
        "MethodNotAllowed" => "The specified method is not allowed against this resource.",
        "NotImplemented" => {
            "A header or operation you provided implies functionality that is not implemented."
        }
        "AccessDenied" => "Access Denied",
        _ => "The request was refused.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_raft::facts::accounts::Amount;

    /// Codes and statuses as the S3 API reference lists them.
    #[test]
    fn every_refusal_has_the_code_and_status_that_s3_documents() {
        let cases = [
            (ObjectsError::Refused(Refusal::NoSuchBucket), "NoSuchBucket", 404),
            (ObjectsError::Refused(Refusal::BucketTaken), "BucketAlreadyExists", 409),
            (ObjectsError::Refused(Refusal::BucketOwned), "BucketAlreadyOwnedByYou", 409),
            (ObjectsError::Refused(Refusal::BucketNotEmpty), "BucketNotEmpty", 409),
            (ObjectsError::Refused(Refusal::NoSuchKey), "NoSuchKey", 404),
            (ObjectsError::Refused(Refusal::NoSuchUpload), "NoSuchUpload", 404),
            (ObjectsError::Refused(Refusal::InvalidPart(3)), "InvalidPart", 400),
            (ObjectsError::Refused(Refusal::InvalidPartOrder), "InvalidPartOrder", 400),
            (ObjectsError::Refused(Refusal::PartTooSmall { number: 1, size: 2 }), "EntityTooSmall", 400),
            (ObjectsError::Refused(Refusal::TooLarge(9)), "EntityTooLarge", 400),
            (ObjectsError::Refused(Refusal::PreconditionFailed), "PreconditionFailed", 412),
            (ObjectsError::Refused(Refusal::QuotaExceeded { quota_bytes: 5 }), "QuotaExceeded", 403),
            (
                ObjectsError::Refused(Refusal::Accounts(AccountsRefusal::BalanceSpent {
                    needed: Amount(1),
                    free: Amount(0),
                })),
                "AccountProblem",
                403,
            ),
            (ObjectsError::Refused(Refusal::SourceChanged), "ServiceUnavailable", 503),
            (ObjectsError::Refused(Refusal::BlobTooOld), "RequestTimeout", 400),
            (ObjectsError::Refused(Refusal::Invalid("x".into())), "InvalidArgument", 400),
            (ObjectsError::Refused(VersionRefusal::NoSuchVersion.into()), "NoSuchVersion", 404),
            (ObjectsError::Refused(VersionRefusal::Locked.into()), "AccessDenied", 403),
            (ObjectsError::Refused(VersionRefusal::NoBucketLock.into()), "InvalidRequest", 400),
            (
                ObjectsError::Refused(VersionRefusal::BucketState("x".into()).into()),
                "InvalidBucketState",
                409,
            ),
            (ObjectsError::Refused(Refusal::StaleMap(1)), "InternalError", 500),
            (ObjectsError::AccessDenied, "AccessDenied", 403),
            (ObjectsError::RangeNotSatisfiable { size: 3 }, "InvalidRange", 416),
            (ObjectsError::SlowDown("busy".into()), "SlowDown", 503),
            (ObjectsError::Unavailable("no leader".into()), "ServiceUnavailable", 503),
            (ObjectsError::Full("0 bytes free".into()), "InsufficientStorage", 507),
            (ObjectsError::Internal("disk 3 on fire".into()), "InternalError", 500),
            (ObjectsError::Body("reset".into()), "IncompleteBody", 400),
            (ObjectsError::Body(Box::new(s3_error!(BadDigest))), "BadDigest", 400),
        ];
        for (error, code, status) in cases {
            let shown = error.to_string();
            let error = refused(error);
            assert_eq!(error.code().as_str(), code, "{shown}");
            assert_eq!(error.status_code().map(|status| status.as_u16()), Some(status), "{shown}");
        }
    }

    #[test]
    fn internal_causes_stay_inside() {
        let error = refused(ObjectsError::Internal("disk 3 on fire".into()));
        assert!(!error.message().unwrap_or_default().contains("fire"));
    }

    #[test]
    fn an_unsatisfiable_range_names_the_size() {
        let error = refused(ObjectsError::RangeNotSatisfiable { size: 3 });
        assert_eq!(error.headers().unwrap()["content-range"], "bytes */3");
    }
}
