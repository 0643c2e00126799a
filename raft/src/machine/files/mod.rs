//! Keys as files: the same tree that S3 walks, with inodes, attributes, edits, sessions and locks.
//!
//! ```text
//! entry (directory, name) ─ an object that carries its inode: as S3 put it
//!                         └ a link: 02, inode ─> node: attributes and content, as mounts changed it
//! ```
//!
//! | room       | holds                                                                  |
//! |------------|------------------------------------------------------------------------|
//! | `keys`     | how keys are built                                                     |
//! | `node`     | one file: found, made a node, given up                                 |
//! | `tree`     | directories: what is in them, where they stand                         |
//! | `work`     | one operation under way: its ledger, its changes of use                |
//! | `names`    | make, link, unlink, rename                                             |
//! | `attributes` | owners, modes, times, extended attributes                            |
//! | `edits`    | changes of content                                                     |
//! | `splice`   | ranges of extents replaced in place                                    |
//! | `sessions` | mounts: leases, granted inodes, events, orphans                        |
//! | `locks`    | advisory locks                                                         |
//! | `ask`      | queries                                                                |
//!
//! Always: an inode has a node once a mount has changed it, and keeps it until its last name and holder are gone; a
//! directory never goes because a mount took its last entry away (it becomes a key of its own, `d/`), but with the last
//! key that S3 deletes; what has no name and no holder holds no blob.

pub mod keys;

mod ask;
mod attributes;
mod edits;
mod locks;
mod names;
mod node;
mod sessions;
mod splice;
mod tree;
mod work;

use self::work::Work;
use super::draft::{Draft, Outcome, Stop, read};
use super::kv::KvError;
use super::names::Place;
use super::{buckets, kv::View};
use crate::facts::bucket::Bucket;
use crate::facts::command::{NewBlob, Refusal, Reply};
use crate::facts::files::{BucketRef, FileCommand, FileEvent, FileOp, FileRefusal, FileReply, Name, OPS_MAX};
use crate::facts::version::Versioning;

pub use self::ask::answer;
pub use self::node::{as_version, linked, load, lose_name};
pub use self::sessions::purge;
pub use self::tree::{forget_directory, place_directory, touch_root};

fn bucket_of(view: &dyn View, named: &BucketRef) -> Outcome<Bucket> {
    let bucket = buckets::get(view, &named.name)?;
    if bucket.id == named.id { Ok(bucket) } else { Err(Refusal::NoSuchBucket.into()) }
}

pub fn run(draft: &mut Draft<'_>, command: &FileCommand) -> Outcome<Reply> {
    let reply = match command {
        FileCommand::OpenSession { bucket, session, client, below, inodes_wanted } => {
            let bucket = bucket_of(draft, bucket)?;
            FileReply::Session(sessions::open(draft, bucket, *session, client, below, *inodes_wanted)?)
        }
        FileCommand::RenewSession { bucket, session, seen, held, inodes_wanted } => {
            let bucket = bucket_of(draft, bucket)?;
            FileReply::Session(sessions::renew(draft, bucket, *session, *seen, held, *inodes_wanted)?)
        }
        FileCommand::CloseSession { bucket, session } => {
            let bucket = bucket_of(draft, bucket)?;
            sessions::close(draft, bucket, *session)?;
            FileReply::Done
        }
        FileCommand::ExpireSessions { bucket } => {
            let bucket = bucket_of(draft, bucket)?;
            sessions::expire(draft, bucket)?;
            FileReply::Done
        }
        FileCommand::Apply { bucket, session, request, ops, blobs } => {
            return apply(draft, bucket, *session, *request, ops, blobs);
        }
    };
    Ok(Reply::File(reply))
}

/// Versions and object lock are S3's: a mount changes nothing of a bucket that has them.
fn check_mountable(bucket: &Bucket) -> Outcome<()> {
    if bucket.versioning == Versioning::Unversioned {
        return Ok(());
    }
    Err(FileRefusal::NotSupported("mounts change no bucket that is or was versioned".to_owned()).into())
}

/// Each operation leaves all of its changes or none; what it may not do is its own result. Ends early at content that is
/// inline and is not replaced.
fn apply(
    draft: &mut Draft<'_>,
    named: &BucketRef,
    session: u64,
    request: u64,
    ops: &[FileOp],
    blobs: &[NewBlob],
) -> Outcome<Reply> {
    if ops.len() > OPS_MAX {
        let why = format!("{} operations at once; at most {OPS_MAX}", ops.len());
        return Err(Refusal::Invalid(why).into());
    }
    let bucket = bucket_of(draft, named)?;
    check_mountable(&bucket)?;
    let root = bucket.root;
    sessions::check(draft, root, session)?;
    if request != 0
        && let Some(results) = read(draft, &keys::request(root, session, request))?
    {
        return Ok(Reply::File(FileReply::Applied(results)));
    }
    let mut results = Vec::with_capacity(ops.len());
    for op in ops {
        let mark = draft.mark();
        let bucket = bucket_of(draft, named)?;
        let mut work = Work::new(draft, bucket, session, blobs);
        match work.run(op).and_then(|done| work.finish().map(|()| done)) {
            Ok(done) => results.push(Ok(done)),
            Err(Stop::Refused(refusal)) => {
                draft.undo_to(mark);
                let is_inline = refusal == Refusal::File(FileRefusal::IsInline);
                results.push(Err(refusal));
                // The door writes that content as a blob and goes on from here: order is kept.
                if is_inline {
                    break;
                }
            }
            Err(broken) => return Err(broken),
        }
    }
    if request != 0 {
        sessions::remember(draft, root, session, request, &results)?;
    }
    Ok(Reply::File(FileReply::Applied(results)))
}

/// Tells mounts what S3 puts at `place`.
pub fn note_put(draft: &mut Draft<'_>, bucket: &Bucket, place: &Place) -> Result<(), KvError> {
    if bucket.mounts == 0 {
        return Ok(());
    }
    let (parent, name) = place.appearing();
    let name = entry_name(name);
    sessions::note(draft, bucket, 0, FileEvent::Entry { parent, name })
}

/// Tells mounts what S3 removes from `place`.
pub fn note_removal(draft: &mut Draft<'_>, bucket: &Bucket, place: &Place) -> Result<(), KvError> {
    if bucket.mounts == 0 {
        return Ok(());
    }
    for (parent, name) in place.vanishing() {
        let name = entry_name(name);
        sessions::note(draft, bucket, 0, FileEvent::Entry { parent, name })?;
    }
    Ok(())
}

/// What mounts call an entry.
fn entry_name(entry: &[u8]) -> Name {
    let text = String::from_utf8_lossy(entry.strip_suffix(b"/").unwrap_or(entry)).into_owned();
    if entry.is_empty() { Name::Object(text) } else { Name::Any(text) }
}
