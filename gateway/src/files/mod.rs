//! The file service: a bucket as a filesystem, for mounts.
//!
//! ```text
//! call ─ gate (who) ─ names, messages ─> facts: queries, operations
//!                   └ data: small pieces packed into one blob, large ones stored before ─> durable, then named
//! read ─ facts: extents of one version ─> windows of 2 MiB, verified, unsealed ─> stream
//! ```
//!
//! | file      | holds                                                            |
//! |-----------|------------------------------------------------------------------|
//! | `service` | the calls, as `makai.file.v1.Files` states them                  |
//! | `apply`   | operations: their data first, then one command                   |
//! | `content` | ranges read, bytes stored                                        |
//! | `versions` | what a bucket that keeps versions was                          |
//! | `watch`   | what others changed, as it comes                                 |
//! | `names`   | file names and pieces of keys                                    |
//! | `tokens`  | blobs that are stored and not yet named                          |
//! | `convert` | facts as messages, and back                                      |
//! | `errors`  | refusals as errno names                                          |
//!
//! Always: a caller reaches buckets of its own tenant alone, as far as policies let it look at or change all keys of them; an answer of `Apply` means durable on a majority, data
//! included; memory per call is bounded by one message and a few windows.

mod apply;
mod content;
mod convert;
mod errors;
mod names;
mod service;
mod tokens;
mod versions;
mod watch;

use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::files::{BucketRef, FileAnswer, FileCommand, FileQuery, FileReply, Name};

use self::errors::Failure;
use self::names::{Meant, meant, shown};
use crate::grpc::{Gate, GrpcDoor};
use crate::identity::Caller;
use crate::objects::{Objects, ObjectsError};
use crate::rights::{Reach, Rights};

/// Bytes of one request.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Entries of a directory looked at to find a name too long to show.
const LONG_NAMES_LOOKED_AT_MAX: usize = 100_000;

/// The service, to be added to the gRPC door. Cheap to clone.
#[derive(Clone)]
pub struct Files {
    objects: Objects,
    gate: Gate,
    rights: Rights,
}

/// What a call does with a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Look,
    Change,
}

impl Files {
    #[must_use]
    pub fn new(objects: Objects, gate: Gate) -> Self {
        let rights = Rights::new(gate.identity().clone(), objects.clone());
        Self { objects, gate, rights }
    }

    /// Adds the service to a door.
    pub fn join(self, door: &mut GrpcDoor) {
        use crate::grpc::proto::file::v1::files_server::FilesServer;
        door.add(FilesServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX));
    }

    /// The caller's bucket, if it may do so to every key of it.
    async fn bucket(&self, caller: &Caller, name: &str, does: Does) -> Result<Bucket, Failure> {
        let bucket = self.objects.mounted(caller, name).await?;
        let all = Reach::Below("");
        let (looks, changes) = (
            [("s3:ListBucket", Reach::Bucket), ("s3:GetObject", all)],
            [("s3:PutObject", all), ("s3:DeleteObject", all)],
        );
        let needed: &[_] = if does == Does::Look { &looks } else { &changes };
        self.rights.check(caller, name, needed).await?;
        Ok(bucket)
    }

    async fn ask(&self, query: FileQuery) -> Result<FileAnswer, Failure> {
        Ok(self.objects.ask_files(query).await?)
    }

    async fn tell(&self, bucket: &str, command: FileCommand) -> Result<FileReply, Failure> {
        let told = self.objects.tell_files(command).await;
        if let Err(ObjectsError::Refused(Refusal::NoSuchBucket)) = &told {
            self.objects.forget(bucket);
        }
        Ok(told?)
    }

    /// What a name in a directory stands for.
    async fn name(&self, bucket: &Bucket, directory: u64, name: &[u8]) -> Result<Name, Failure> {
        match meant(name)? {
            Meant::Name(name) => Ok(name),
            Meant::Long { beginning } => self.long_name(bucket, directory, name, beginning).await,
        }
    }

    async fn long_name(
        &self,
        bucket: &Bucket,
        inode: u64,
        name: &[u8],
        beginning: String,
    ) -> Result<Name, Failure> {
        let mut cursor = bytes::Bytes::from(beginning.clone());
        let mut looked_at = 0;
        loop {
            let query = FileQuery::Directory {
                bucket: named(bucket),
                inode,
                cursor: cursor.clone(),
                entries_max: u32::MAX,
            };
            let FileAnswer::Directory { entries, is_end, .. } = self.ask(query).await? else {
                return Err(mismatch());
            };
            for entry in &entries {
                if shown(&entry.name) == name {
                    return Ok(entry.name.clone());
                }
            }
            looked_at += entries.len();
            let is_past = |entry: &Name| !entry.text().starts_with(&beginning);
            match entries.last() {
                Some(last) if !is_end && !is_past(&last.name) && looked_at < LONG_NAMES_LOOKED_AT_MAX => {
                    cursor = last.cursor.clone();
                }
                _ => return Err(makai_raft::facts::files::FileRefusal::NotFound.into()),
            }
        }
    }
}

fn named(bucket: &Bucket) -> BucketRef {
    BucketRef { name: bucket.name.clone(), id: bucket.id }
}

/// An answer to another question than was asked.
fn mismatch() -> Failure {
    ObjectsError::Internal(
        "the facts answered with something else; do the nodes run different releases?".into(),
    )
    .into()
}
