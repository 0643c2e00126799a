//! The state machine: what a batch of commands makes of the facts, and what a query finds in them.
//!
//! ```text
//! apply   Batch ─ sessions: seen before? ─> one command ─ checks, changes ─> draft ─ all at once ─> store
//! query   Query ─> one consistent view ─> Answer
//! ```
//!
//! It is pure: everything it knows comes from the batch and the store, time from the batch, ids from counters
//! in the store. The same log makes the same bytes on every node. A refused command changes nothing but the
//! reply that its session remembers; a store that fails fails the batch, of which nothing is written then.
//!
//! | room         | holds                                                         |
//! |--------------|---------------------------------------------------------------|
//! | [`kv`]       | the store, by port; [`kv::MemKv`]                             |
//! | `keys`       | how keys are built                                            |
//! | `draft`      | records; the changes of a batch before they are written       |
//! | `sessions`   | at most once                                                  |
//! | `names`      | the tree of a bucket's keys, and walks through it             |
//! | `listing`    | pages of keys                                                 |
//! | `objects`    | current versions                                              |
//! | `versions`   | the others, delete markers, object lock, rules of lifecycles  |
//! | `content`    | extents                                                       |
//! | `files`      | keys as files: inodes, directories, edits, sessions, locks    |
//! | `blobs`      | references, garbage                                           |
//! | `uploads`    | multipart uploads                                             |
//! | `buckets`    | buckets, documents, what tenants use                          |
//! | `tenants`    | tenants, access keys                                          |
//! | `identity`   | users; what doors ask before they serve                       |
//! | `audit`      | who administered what                                         |
//! | `journal`    | changes of keys, kept for those who follow them               |
//! | `jobs`       | jobs, their tasks, the tries at each, receipts                |
//! | `cluster`    | nodes, disks, groups, join tokens                             |
//! | [`accounts`] | what nodes served, epochs, claims, the ledger: keys `80` to `8F` are on its page |
//!
//! # The store
//!
//! A key begins with one byte that says what its record is. Numbers are big-endian, ids raw, texts UTF-8.
//! A value begins with one byte, its format (1), then MessagePack with positional fields; a later release
//! appends fields with a default.
//!
//! | first | then                               | record                                                 |
//! |-------|------------------------------------|--------------------------------------------------------|
//! | `01`  |                                    | index and time of the last batch applied               |
//! | `02`  | counter (1)                        | the last number given: 1 version, 2 inode, 3 bucket, 4 tenant, 5 node, 6 upload, 7 map epoch, 16 job, 17 receipt, 18 audited deed |
//! | `08`  | session (8)                        | when it was last seen; serials below which all are answered |
//! | `09`  | session (8), serial (8)            | the reply                                              |
//! | `10`  |                                    | the cluster's id                                       |
//! | `11`  | node id (32)                       | node                                                   |
//! | `12`  | disk id (16)                       | disk                                                   |
//! | `13`  | group (4)                          | group                                                  |
//! | `14`  | token id                           | join token                                             |
//! | `15`  |                                    | whether the evening out of shares is paused            |
//! | `20`  | tenant (8)                         | tenant                                                 |
//! | `21`  | tenant's name                      | tenant                                                 |
//! | `22`  | access key id                      | access key                                             |
//! | `23`  | tenant (8), access key id          | nothing                                                |
//! | `24`  | tenant (8), user's name            | user                                                   |
//! | `25`  | access key id                      | the name of the user to whom the key belongs           |
//! | `26`  | tenant (8)                         | directory: groups, roles, shared policies, as doors write them |
//! | `27`  | sequence (8)                       | an audited deed                                        |
//! | `30`  | bucket's name                      | bucket                                                 |
//! | `31`  | tenant (8), bucket's name          | the bucket's number                                    |
//! | `32`  | bucket (8), document's name        | document                                               |
//! | `33`  | bucket's name                      | who follows its changes, and how far each is           |
//! | `34`  | bucket (8), sequence (8)           | a change that a follower has not done with yet         |
//! | `35`  | root (8), inode (8)                | in a bucket with versions: sessions that write the file's version and have not finished it |
//! | `40`  | directory (8), name                | an object: what is said of it, then its body; or, where the name ends in `/`, a directory |
//! | `41`  | inode (8), end offset (8)          | a chunk: the offset where it begins, its extents       |
//! | `42`  | bucket (8), key with `00` as `00 FF`, `00 00`, bits of the version number flipped (8) | a version that is not current, as under `40`, or a delete marker |
//! | `43`  | bucket (8), key                    | the number of the version under `42` that has no id    |
//! | `44`  | bucket (8)                         | rules of its lifecycle                                 |
//! | `45`  | inode (8), part number (2)         | from that part on, some of the parts a version was completed from |
//! | `46`  | root (8), directory (8)            | the session that has the directory alone               |
//! | `47`  | bucket (8), inode (8), key of an entry | nothing: a name of the file, kept while the bucket is followed or has versions |
//! | `48`  | inode (8)                          | a file that mounts know: as an object's entry; its entries then hold `02` and its inode |
//! | `49`  | directory (8)                      | its bucket's root, the directory above it, its name; of a root, its attributes |
//! | `4A`  | root (8), session (8)              | a mount's session                                      |
//! | `4B`  | root (8), inode (8)                | an inode without names: sessions that may hold it      |
//! | `4C`  | root (8), inode (8)                | locks                                                  |
//! | `4D`  | root (8)                           | the last sequence of events                            |
//! | `4D`  | root (8), sequence (8)             | event                                                  |
//! | `4E`  | inode (8), name                    | extended attribute                                     |
//! | `4F`  | root (8), session (8), request (8) | results of a request                                   |
//! | `50`  | blob id (16)                       | blob                                                   |
//! | `51`  | group (4), sequence (8)            | id of a blob that is referred to                       |
//! | `52`  | group (4)                          | the last sequence given                                |
//! | `53`  | time (8), blob id (16)             | id of a blob that nothing refers to since that time    |
//! | `54`  | blob id (16)                       | nothing: a sixth or more of the blob's bytes is named by no version |
//! | `60`  | bucket (8), key with `00` as `00 FF`, `00 00`, upload number (8) | upload                  |
//! | `61`  | bucket (8), upload id              | the upload's number and key                            |
//! | `62`  | upload number (8), part number (2) | part                                                   |
//! | `63`  | bucket (8), upload id              | the version that a completed upload made               |
//! | `64`  | time (8), bucket (8), upload id    | bucket and upload id, completed at that time           |
//! | `70`-`7A` |                                | jobs: the table stands in `jobs::keys`                 |

pub mod accounts;
pub mod kv;

mod audit;
mod blobs;
mod buckets;
mod cluster;
mod content;
pub(crate) mod draft;
mod identity;
mod jobs;
mod journal;
pub(crate) mod keys;
mod listing;
mod names;
mod objects;
mod sessions;
mod tenants;
mod uploads;
mod versions;

mod files;

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use self::draft::{Draft, Outcome, read, settle};
use self::kv::{Edit, KvError, View};
use self::sessions::Sessions;
use crate::facts::Timestamp;
use crate::facts::audit::Audited;
use crate::facts::command::{Batch, Command, Refusal, Reply};
use crate::facts::query::{Answer, ENTRIES_PER_ANSWER_MAX, Query};
use crate::facts::tenant::{Quota, QuotaOf};

pub use self::blobs::{BLOB_IDS_MAX, CLOCK_AHEAD_MS_MAX, REVIVE_MS_MAX};

/// How far the log is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Applied {
    index: u64,
    /// The latest time of any batch: the machine's clock never goes back.
    at: Timestamp,
}

fn applied(view: &dyn View) -> Result<Applied, KvError> {
    Ok(read(view, &keys::applied())?.unwrap_or_default())
}

/// Applies one log entry; returns one result per envelope, in order.
///
/// # Errors
/// The store failed, or holds this entry already, or holds damaged records: nothing of the batch is written
/// unless the store failed in the writing itself, which the shell then does not commit.
pub fn apply(
    edit: &mut dyn Edit,
    log_index: u64,
    batch: &Batch,
) -> Result<Vec<Result<Reply, Refusal>>, KvError> {
    let last: Option<Applied> = read(edit, &keys::applied())?;
    if let Some(last) = last
        && log_index <= last.index
    {
        return Err(KvError(format!("entry {log_index} comes after entry {} was applied", last.index)));
    }
    let at = last.map_or(batch.at, |last| last.at.max(batch.at));
    let mut draft = Draft::new(edit, at);
    let mut sessions = Sessions::default();
    let mut results = Vec::with_capacity(batch.envelopes.len());
    for envelope in &batch.envelopes {
        let result = match sessions.recall(&draft, envelope)? {
            Some(remembered) => remembered,
            None => {
                draft.begin_command();
                let result = settle(run(&mut draft, &sessions, &envelope.command))?;
                if result.is_err() {
                    draft.undo_command();
                }
                sessions.remember(&mut draft, envelope, &result)?;
                result
            }
        };
        results.push(result);
    }
    sessions.close(&mut draft)?;
    draft.write(keys::applied(), &Applied { index: log_index, at })?;
    draft.commit()?;
    Ok(results)
}

fn run(draft: &mut Draft<'_>, sessions: &Sessions, command: &Command) -> Outcome<Reply> {
    let reply = carry_out(draft, sessions, command)?;
    journal::note(draft, command, &reply)?;
    Ok(reply)
}

fn carry_out(draft: &mut Draft<'_>, sessions: &Sessions, command: &Command) -> Outcome<Reply> {
    match command {
        Command::InitCluster { cluster_id } => cluster::init(draft, cluster_id),

        Command::CreateTenant { name, wrapped_key, quota_bytes } => {
            tenants::create(draft, name, wrapped_key, *quota_bytes)
        }
        Command::SetTenantQuota { tenant, quota_bytes } => {
            let objects_max = tenants::get(draft, *tenant)?.quota_objects;
            tenants::set_quota(draft, *tenant, Quota { bytes_max: *quota_bytes, objects_max })
        }
        Command::PutAccessKey { key } => tenants::put_key(draft, key),
        Command::DeleteAccessKey { id } => tenants::delete_key(draft, id),

        Command::CreateBucket { name, tenant, scheme } => buckets::create(draft, name, *tenant, *scheme),
        Command::DeleteBucket { name } => buckets::delete(draft, name),
        Command::SetBucketDocument { name, document, value } => {
            buckets::set_document(draft, name, document, value.as_ref())
        }

        Command::PutObject { bucket, key, headers, new, precondition, by_form: _ } => {
            objects::put(draft, bucket, key, headers, new, precondition)
        }
        Command::DeleteObject { bucket, key, precondition } => {
            objects::delete(draft, bucket, key, precondition)
        }
        Command::CopyObject { from_bucket, from_key, from_version, bucket, key, headers, precondition } => {
            let copy = objects::Copy { from_bucket, from_key, from_version: *from_version, bucket, key };
            objects::copy(draft, &copy, headers.as_ref(), precondition)
        }
        Command::SetObjectTagging { bucket, key, tagging } => {
            objects::set_tagging(draft, bucket, key, tagging.as_ref())
        }

        Command::Identity(command) => identity::run(draft, command),
        Command::Version(command) => versions::run(draft, command),

        Command::CreateUpload { bucket, upload } => uploads::create(draft, bucket, upload),
        Command::PutPart { bucket, key, upload_id, number, new } => {
            uploads::put_part(draft, bucket, key, upload_id, *number, new)
        }
        Command::CompleteUpload { bucket, key, upload_id, parts, etag, checksum, precondition } => {
            let checksum = checksum.as_ref();
            let asked = uploads::Complete { bucket, key, upload_id, parts, etag, checksum, precondition };
            uploads::complete(draft, &asked)
        }
        Command::AbortUpload { bucket, key, upload_id } => uploads::abort(draft, bucket, key, upload_id),

        Command::File(command) => files::run(draft, command),

        Command::CreateJoinToken { token } => cluster::create_token(draft, token),
        Command::JoinNode { node, disks, token } => cluster::join(draft, node, disks, token.as_ref()),
        Command::SetNodeUp { node, is_up } => cluster::set_node_up(draft, node, *is_up),
        Command::SetNodeStanding { node, standing } => cluster::set_node_standing(draft, node, *standing),
        Command::SetDiskStanding { disk, standing } => cluster::set_disk_standing(draft, disk, *standing),
        Command::PutGroups { map_epoch, groups } => cluster::put_groups(draft, *map_epoch, groups),
        Command::SetDiskCondition { disk, condition } => cluster::set_disk_condition(draft, disk, *condition),
        Command::SetRebalance { is_paused } => cluster::set_rebalance(draft, *is_paused),
        Command::FinishMove { pg, slot, to, version, sequence } => {
            cluster::finish_move(draft, *pg, (*slot, *to), *version, *sequence)
        }

        Command::ForgetBlobs { blobs } => blobs::forget(draft, blobs),
        Command::ExpireSessions { idle_ms } => {
            sessions.expire(draft, *idle_ms)?;
            Ok(Reply::Done)
        }

        Command::Accounts(command) => accounts::run(draft, command),
        Command::Jobs(command) => jobs::run(draft, command),
        Command::Journal(command) => journal::run(draft, command),

        Command::SetQuota { of: QuotaOf::Tenant(tenant), quota } => {
            tenants::set_quota(draft, *tenant, *quota)
        }
        Command::SetQuota { of: QuotaOf::Bucket(name), quota } => buckets::set_quota(draft, name, *quota),
        Command::Audited(Audited { command, .. }) if matches!(**command, Command::Audited(_)) => {
            Err(Refusal::Invalid("a deed is audited once".to_owned()).into())
        }
        Command::Audited(Audited { deed, command }) => {
            let reply = run(draft, sessions, command)?;
            audit::append(draft, deed)?;
            Ok(reply)
        }
    }
}

/// Whether a batch has something to tell mounts: `has` finds out if it changed any key of a range.
pub fn tells_mounts(has: impl FnOnce((Bound<&[u8]>, Bound<&[u8]>)) -> bool) -> bool {
    has((Bound::Included(&[files::keys::EVENT]), Bound::Excluded(&[files::keys::EVENT + 1])))
}

/// Answers from one consistent view.
///
/// # Errors
/// The store failed, or holds damaged records.
pub fn query(view: &dyn View, query: &Query) -> Result<Result<Answer, Refusal>, KvError> {
    settle(answer(view, query))
}

fn answer(view: &dyn View, query: &Query) -> Outcome<Answer> {
    match query {
        Query::Tenant { id } => Ok(Answer::Tenant(tenants::get(view, *id)?)),
        Query::TenantByName { name } => Ok(Answer::Tenant(tenants::by_name(view, name)?)),
        Query::Tenants => tenants::list(view),
        Query::AccessKey { id } => tenants::key(view, id),
        Query::AccessKeys { tenant } => tenants::keys_of(view, *tenant),

        Query::Bucket { name } => Ok(Answer::Bucket(buckets::get(view, name)?)),
        Query::Buckets { tenant } => buckets::list(view, *tenant),
        Query::BucketDocument { name, document } => buckets::document(view, name, document),

        Query::Identity(query) => identity::answer(view, query),

        Query::Object { bucket, key, from_offset, extents_max } => {
            objects::get(view, bucket, key, *from_offset, *extents_max)
        }
        Query::Objects(list) => listing::list(view, list),
        Query::Version(query) => versions::answer(view, query),
        Query::File(query) => files::answer(view, query),
        Query::Uploads { bucket, prefix, after, entries_max } => {
            uploads::list(view, bucket, prefix, after.as_ref(), *entries_max)
        }
        Query::Upload { bucket, key, upload_id } => uploads::get(view, bucket, key, upload_id),
        Query::Parts { bucket, key, upload_id, after, entries_max } => {
            uploads::list_parts(view, bucket, key, upload_id, *after, *entries_max)
        }

        Query::ClusterMap { known_epoch } => cluster::map(view, *known_epoch),
        Query::BlobsOfGroup { pg, after_sequence, entries_max } => {
            blobs::of_group(view, *pg, *after_sequence, *entries_max)
        }
        Query::BlobStates { ids } => blobs::states(view, ids),
        Query::Garbage { before_ms, entries_max } => blobs::garbage(view, *before_ms, *entries_max),

        Query::Accounts(query) => accounts::answer(view, query),
        Query::Jobs(query) => Ok(Answer::Jobs(jobs::answer(view, query)?)),
        Query::Journal(query) => journal::answer(view, query),
        Query::Audit(query) => audit::answer(view, query),
    }
}

/// Entries of one answer.
fn page(entries_max: u32) -> usize {
    entries_max.min(ENTRIES_PER_ANSWER_MAX) as usize
}
