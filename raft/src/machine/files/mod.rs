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
//! | `leases`   | directories that one mount has alone                                   |
//! | `locks`    | advisory locks                                                         |
//! | `kept`     | what a bucket with versions keeps of what they change                  |
//! | `told`     | what those are told who follow the bucket's keys                       |
//! | `ask`      | queries                                                                |
//!
//! Always: an inode has a node once a mount has changed it, and keeps it until its last name and holder are gone; a
//! directory never goes because a mount took its last entry away (it becomes a key of its own, `d/`), but with the last
//! key that S3 deletes; what has no name and no holder holds no blob.

pub mod keys;

mod ask;
mod attributes;
mod edits;
mod kept;
mod leases;
mod locks;
mod names;
mod node;
mod sessions;
mod splice;
mod told;
mod tree;
mod work;

use self::told::Told;
use self::work::Work;
use super::buckets::{self, Change};
use super::draft::{Draft, Outcome, Stop, read};
use super::journal::{self, News};
use super::kv::View;
use super::names::Place;
use crate::facts::bucket::Bucket;
use crate::facts::command::{NewBlob, Refusal, Reply};
use crate::facts::files::{
    BucketRef, FileCommand, FileDone, FileEvent, FileOp, FileRefusal, FileReply, Name, OPS_MAX,
};

pub use self::ask::answer;
pub use self::kept::as_finished;
pub use self::node::{as_version, linked, load, lose_name};
pub use self::sessions::purge;
pub use self::told::forget_all_names;
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
        FileCommand::Apply { bucket, session, request, ops, blobs, is_brief } => {
            return apply(draft, bucket, (*session, *request), ops, blobs, *is_brief);
        }
        FileCommand::Recall { bucket, directory } => {
            leases::recall(draft, &bucket_of(draft, bucket)?, *directory)?;
            FileReply::Done
        }
    };
    Ok(Reply::File(reply))
}

/// Each operation leaves all of its changes or none; what it may not do is its own result. Ends early at content that is
/// inline and is not replaced, and at a directory that another session has alone.
fn apply(
    draft: &mut Draft<'_>,
    named: &BucketRef,
    (session, request): (u64, u64),
    ops: &[FileOp],
    blobs: &[NewBlob],
    is_brief: bool,
) -> Outcome<Reply> {
    if ops.len() > OPS_MAX {
        let why = format!("{} operations at once; at most {OPS_MAX}", ops.len());
        return Err(Refusal::Invalid(why).into());
    }
    let bucket = bucket_of(draft, named)?;
    let root = bucket.root;
    sessions::check(draft, root, session)?;
    if request != 0
        && let Some(results) = read(draft, &keys::request(root, session, request))?
    {
        return Ok(Reply::File(FileReply::Applied(results)));
    }
    let start = draft.mark();
    let is_followed = told::is_followed(draft, &named.name)?;
    let asked = Request { named, session, ops, blobs, is_brief, is_followed };
    // Use is counted once for all operations; only where the quota does not take them all, after each.
    let Done { mut results, change, mut told } = carry_out(draft, &asked, Counted::Together)?;
    if change != Change::default() {
        match buckets::account(draft, bucket, change) {
            Ok(()) => {}
            Err(Stop::Refused(_)) => {
                draft.undo_to(start);
                Done { results, told, .. } = carry_out(draft, &asked, Counted::Each)?;
            }
            Err(broken) => return Err(broken),
        }
    }
    let told = told::without_outdated(told);
    if !told.is_empty() {
        let news: Vec<News<'_>> = told.iter().map(Told::news).collect();
        journal::write(draft, &named.name, &news)?;
    }
    // A request of which nothing was done for a lease's sake comes again as it was.
    let is_refused_whole = matches!(&results[..], [Err(Refusal::File(FileRefusal::Leased { .. }))]);
    if request != 0 && !is_refused_whole {
        sessions::remember(draft, root, session, request, &results)?;
    }
    Ok(Reply::File(FileReply::Applied(results)))
}

/// What a session asks for.
struct Request<'r> {
    named: &'r BucketRef,
    session: u64,
    ops: &'r [FileOp],
    blobs: &'r [NewBlob],
    is_brief: bool,
    is_followed: bool,
}

/// What came of it.
struct Done {
    results: Vec<Result<FileDone, Refusal>>,
    /// How use changes that is not counted yet.
    change: Change,
    told: Vec<Told>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Each,
    Together,
}

fn carry_out(draft: &mut Draft<'_>, request: &Request<'_>, counted: Counted) -> Outcome<Done> {
    let mut told = Vec::new();
    let mut results = Vec::with_capacity(request.ops.len());
    let mut total = Change::default();
    let mut bucket = bucket_of(draft, request.named)?;
    for op in request.ops {
        let mark = draft.mark();
        if counted == Counted::Each {
            bucket = bucket_of(draft, request.named)?;
        }
        let mut work = Work::new(draft, bucket.clone(), request.session, request.blobs, request.is_followed);
        let done = work.run(op);
        let mut news = std::mem::take(&mut work.told);
        news.iter_mut().for_each(|told| told.take_marker(|key| work.marker_of(key)));
        let outcome = done.and_then(|done| match counted {
            Counted::Each => work.finish().map(|()| (done, Change::default())),
            Counted::Together => work.settle().map(|change| (done, change)),
        });
        match outcome {
            Ok((mut done, change)) => {
                if request.is_brief {
                    done.directories = Vec::new();
                }
                total.add(change);
                told.extend(news);
                results.push(Ok(done));
            }
            Err(Stop::Refused(refusal)) => {
                draft.undo_to(mark);
                // The door sees to what stands in the way and goes on from here: order is kept.
                let is_to_be_seen_to =
                    matches!(refusal, Refusal::File(FileRefusal::IsInline | FileRefusal::Leased { .. }));
                results.push(Err(refusal));
                if is_to_be_seen_to {
                    break;
                }
            }
            Err(broken) => return Err(broken),
        }
    }
    Ok(Done { results, change: total, told })
}

/// Tells mounts what S3 puts at `place`.
pub fn note_put(draft: &mut Draft<'_>, bucket: &Bucket, place: &Place) -> Outcome<()> {
    if bucket.mounts == 0 {
        return Ok(());
    }
    let (parent, name) = place.appearing();
    leases::check(draft, bucket, 0, parent)?;
    let name = entry_name(name);
    Ok(sessions::note(draft, bucket, 0, FileEvent::Entry { parent, name })?)
}

/// Tells mounts what S3 removes from `place`.
pub fn note_removal(draft: &mut Draft<'_>, bucket: &Bucket, place: &Place) -> Outcome<()> {
    if bucket.mounts == 0 {
        return Ok(());
    }
    for (parent, name) in place.vanishing() {
        leases::check(draft, bucket, 0, parent)?;
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
