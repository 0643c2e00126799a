//! Refusals and failures as errno names, in results and in status details.

use makai_raft::facts::accounts::AccountsRefusal;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::files::FileRefusal;
use makai_raft::facts::version::VersionRefusal;
use prost::Message as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::grpc::proto::file::v1::FileError;
use crate::objects::ObjectsError;

/// Trailing metadata that names the errno.
const ERRNO_KEY: &str = "makai-errno";
const FILE_ERROR_URL: &str = "type.googleapis.com/makai.file.v1.FileError";

/// Linux's numbers, x86-64 and AArch64 alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    Eperm = 1,
    Enoent = 2,
    Eio = 5,
    Eagain = 11,
    Eacces = 13,
    Ebusy = 16,
    Eexist = 17,
    Exdev = 18,
    Enotdir = 20,
    Eisdir = 21,
    Einval = 22,
    Efbig = 27,
    Enospc = 28,
    Emlink = 31,
    Enametoolong = 36,
    Enolck = 37,
    Enotempty = 39,
    Enodata = 61,
    Eopnotsupp = 95,
    Estale = 116,
    Edquot = 122,
}

impl Errno {
    fn name(self) -> String {
        format!("{self:?}").to_ascii_uppercase()
    }

    fn code(self) -> Code {
        match self {
            Self::Enoent | Self::Enodata => Code::NotFound,
            Self::Eexist => Code::AlreadyExists,
            Self::Eperm | Self::Eacces => Code::PermissionDenied,
            Self::Einval | Self::Enametoolong => Code::InvalidArgument,
            Self::Ebusy | Self::Enospc | Self::Edquot | Self::Enolck => Code::ResourceExhausted,
            Self::Eio => Code::Internal,
            Self::Eopnotsupp => Code::Unimplemented,
            Self::Eagain
            | Self::Enotdir
            | Self::Exdev
            | Self::Eisdir
            | Self::Efbig
            | Self::Emlink
            | Self::Enotempty
            | Self::Estale => Code::FailedPrecondition,
        }
    }
}

/// What a client is told.
#[derive(Debug, Clone)]
pub struct Failure {
    pub errno: Errno,
    pub message: String,
    /// Where the errno alone does not say it.
    code: Option<Code>,
}

impl Failure {
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), code: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Errno::Einval, message)
    }

    pub fn error(&self) -> FileError {
        FileError { name: self.errno.name(), number: self.errno as i32, message: self.message.clone() }
    }
}

impl From<FileRefusal> for Failure {
    fn from(refusal: FileRefusal) -> Self {
        let errno = match &refusal {
            FileRefusal::NotFound => Errno::Enoent,
            FileRefusal::Stale | FileRefusal::SessionEnded => Errno::Estale,
            FileRefusal::Exists => Errno::Eexist,
            FileRefusal::NotDirectory => Errno::Enotdir,
            FileRefusal::IsDirectory => Errno::Eisdir,
            FileRefusal::NotEmpty => Errno::Enotempty,
            FileRefusal::NameTooLong => Errno::Enametoolong,
            FileRefusal::TooLarge => Errno::Efbig,
            FileRefusal::TooManyLinks => Errno::Emlink,
            FileRefusal::Locked => Errno::Eagain,
            FileRefusal::TooManyLocks => Errno::Enolck,
            FileRefusal::NoXattr => Errno::Enodata,
            FileRefusal::XattrsTooLarge => Errno::Enospc,
            FileRefusal::NotPermitted(_) => Errno::Eperm,
            FileRefusal::NotSupported(_) => Errno::Eopnotsupp,
            FileRefusal::Invalid(_) => Errno::Einval,
            FileRefusal::IsInline => Errno::Eio,
            FileRefusal::Leased { .. } => Errno::Ebusy,
            FileRefusal::TooManyKeys => Errno::Exdev,
        };
        Self::new(errno, refusal.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let errno = match &refusal {
            Refusal::File(refusal) => return refusal.clone().into(),
            Refusal::NoSuchBucket
            | Refusal::NoSuchKey
            | Refusal::NotFound(_)
            | Refusal::Version(VersionRefusal::NoSuchVersion | VersionRefusal::IsMarker { .. }) => {
                Errno::Enoent
            }
            Refusal::AlreadyExists(_) => Errno::Eexist,
            Refusal::TooLarge(_) => Errno::Efbig,
            Refusal::QuotaExceeded { .. }
            | Refusal::QuotaReached(_)
            | Refusal::Accounts(AccountsRefusal::BalanceSpent { .. }) => Errno::Edquot,
            Refusal::BlobTooOld => Errno::Estale,
            Refusal::FollowersBehind => Errno::Ebusy,
            Refusal::Invalid(_) => Errno::Einval,
            _ => Errno::Eio,
        };
        Self::new(errno, refusal.to_string())
    }
}

impl From<ObjectsError> for Failure {
    fn from(error: ObjectsError) -> Self {
        let message = error.to_string();
        let (errno, code) = match error {
            ObjectsError::Refused(refusal) => return refusal.into(),
            ObjectsError::AccessDenied | ObjectsError::Sealing(_) => (Errno::Eacces, None),
            ObjectsError::Body(_) | ObjectsError::RangeNotSatisfiable { .. } => (Errno::Einval, None),
            ObjectsError::SlowDown(_) => (Errno::Ebusy, None),
            ObjectsError::Unavailable(_) => (Errno::Eio, Some(Code::Unavailable)),
            ObjectsError::Full(_) => (Errno::Enospc, None),
            ObjectsError::Internal(why) => {
                tracing::error!(why, "a file request failed inside");
                let message = "the pool could not do it: its operator finds why in the gateway's log";
                return Self::new(Errno::Eio, message);
            }
        };
        Self { errno, message, code }
    }
}

/// `google.rpc.Status`, as gRPC clients expect details to be wrapped.
#[derive(Clone, PartialEq, prost::Message)]
struct RichStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = failure.code.unwrap_or_else(|| failure.errno.code());
        let value = failure.error().encode_to_vec();
        let details = vec![prost_types::Any { type_url: FILE_ERROR_URL.to_owned(), value }];
        let rich = RichStatus { code: code as i32, message: failure.message.clone(), details };
        let mut status = Self::with_details(code, failure.message, rich.encode_to_vec().into());
        if let Ok(name) = MetadataValue::try_from(failure.errno.name()) {
            status.metadata_mut().insert(ERRNO_KEY, name);
        }
        status
    }
}
