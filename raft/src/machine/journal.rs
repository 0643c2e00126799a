//! Journals of buckets that are followed.
//!
//! Always: a change and its entry are written together or not at all; an entry stays until every follower has done with
//! it; a bucket without followers has none.

use std::ops::ControlFlow;

use super::buckets;
use super::draft::{Draft, Outcome, read, scan_records};
use super::files;
use super::keys;
use super::kv::View;
use super::page;
use crate::facts::bucket::Bucket;
use crate::facts::command::{Command, Refusal, Reply};
use crate::facts::identity::IdentityCommand;
use crate::facts::journal::{
    Change, FOLLOWER_BYTES_MAX, FOLLOWERS_MAX, Followed, Happening, JournalAnswer, JournalCommand,
    JournalQuery, WAITING_MAX,
};
use crate::facts::object::ObjectHead;
use crate::facts::query::Answer;
use crate::facts::version::{VersionCommand, VersionId, VersionReply, Versioning};

pub fn run(draft: &mut Draft<'_>, command: &JournalCommand) -> Outcome<Reply> {
    match command {
        JournalCommand::Follow { bucket, follower, is_on: true } => follow(draft, bucket, follower),
        JournalCommand::Follow { bucket, follower, is_on: false } => leave(draft, bucket, follower),
        JournalCommand::Advance { bucket, id, follower, upto } => {
            advance(draft, bucket, *id, follower, *upto)
        }
    }
}

fn followed(view: &dyn View, bucket: &str) -> Outcome<Option<Followed>> {
    Ok(read(view, &keys::followed(bucket))?)
}

fn follow(draft: &mut Draft<'_>, name: &str, follower: &str) -> Outcome<Reply> {
    if follower.is_empty() || follower.len() > FOLLOWER_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a follower's name has 1 to {FOLLOWER_BYTES_MAX} bytes")).into());
    }
    let bucket = buckets::get(draft, name)?;
    let new = Followed { bucket: bucket.id, name: name.to_owned(), sequence: 0, followers: Vec::new() };
    let mut record = followed(draft, name)?.unwrap_or(new);
    if record.followers.iter().any(|(known, _)| known == follower) {
        return Ok(Reply::Done);
    }
    if record.followers.len() >= FOLLOWERS_MAX {
        return Err(Refusal::Invalid(format!("a bucket has at most {FOLLOWERS_MAX} followers")).into());
    }
    record.followers.push((follower.to_owned(), record.sequence));
    draft.write(keys::followed(name), &record)?;
    Ok(Reply::Done)
}

fn leave(draft: &mut Draft<'_>, name: &str, follower: &str) -> Outcome<Reply> {
    let Some(mut record) = followed(draft, name)? else { return Ok(Reply::Done) };
    record.followers.retain(|(known, _)| known != follower);
    if record.followers.is_empty() {
        forget(draft, name)?;
    } else {
        trim(draft, &record)?;
        draft.write(keys::followed(name), &record)?;
    }
    Ok(Reply::Done)
}

/// Takes away all that is kept of a bucket.
pub fn forget(draft: &mut Draft<'_>, name: &str) -> Outcome<()> {
    if let Some(record) = followed(draft, name)? {
        draft.delete_all(&keys::changes(record.bucket))?;
        // A bucket with versions has another use for them.
        let bucket = read::<Bucket>(draft, &keys::bucket(name))?;
        if bucket.is_none_or(|bucket| bucket.versioning == Versioning::Unversioned) {
            files::forget_all_names(draft, record.bucket)?;
        }
        draft.delete(keys::followed(name));
    }
    Ok(())
}

fn advance(draft: &mut Draft<'_>, name: &str, id: u64, follower: &str, upto: u64) -> Outcome<Reply> {
    let Some(mut record) = followed(draft, name)?.filter(|record| record.bucket == id) else {
        return Ok(Reply::Done);
    };
    let upto = upto.min(record.sequence);
    for (known, done) in &mut record.followers {
        if known == follower {
            *done = upto.max(*done);
        }
    }
    trim(draft, &record)?;
    draft.write(keys::followed(name), &record)?;
    Ok(Reply::Done)
}

/// Takes away what every follower has done with.
fn trim(draft: &mut Draft<'_>, record: &Followed) -> Outcome<()> {
    let done = record.followers.iter().map(|(_, done)| *done).min().unwrap_or(record.sequence);
    draft.delete_range(&keys::changes(record.bucket), &keys::after(&keys::change(record.bucket, done)))?;
    Ok(())
}

/// One thing that happened.
pub struct News<'a> {
    pub happening: Happening,
    pub key: &'a str,
    pub version: Option<VersionId>,
    pub size: u64,
    pub etag: &'a str,
}

impl<'a> News<'a> {
    fn of(happening: Happening, head: &'a ObjectHead) -> Self {
        let version = head.has_version_id.then(|| head.version_id());
        Self { happening, key: &head.key, version, size: head.size, etag: &head.etag }
    }

    fn gone(happening: Happening, key: &'a str, version: Option<VersionId>) -> Self {
        Self { happening, key, version, size: 0, etag: "" }
    }
}

/// Writes down what a command that was carried out has done, where its bucket is followed.
pub fn note(draft: &mut Draft<'_>, command: &Command, reply: &Reply) -> Outcome<()> {
    let object = |happening| match reply {
        Reply::Object(head) => Some(News::of(happening, head)),
        _ => None,
    };
    let (bucket, news) = match command {
        Command::PutObject { bucket, by_form: true, .. } => (bucket, object(Happening::Posted)),
        Command::PutObject { bucket, .. } => (bucket, object(Happening::Put)),
        Command::CopyObject { bucket, .. } => (bucket, object(Happening::Copied)),
        Command::CompleteUpload { bucket, .. } => (bucket, object(Happening::Completed)),
        Command::DeleteObject { bucket, key, .. } => match reply {
            Reply::Deleted { existed: true } => (bucket, Some(News::gone(Happening::Deleted, key, None))),
            _ => return Ok(()),
        },
        Command::Version(
            VersionCommand::Delete { bucket, key, version, .. }
            | VersionCommand::DeleteLike { bucket, key, version, .. },
        ) => match reply {
            Reply::Version(VersionReply::Deleted(deleted)) => {
                let is_new_marker = version.is_none() && deleted.is_marker;
                let happening = if is_new_marker { Happening::Marked } else { Happening::Deleted };
                let is_news = deleted.existed || is_new_marker;
                (bucket, is_news.then(|| News::gone(happening, key, deleted.version)))
            }
            _ => return Ok(()),
        },
        Command::Version(VersionCommand::SetTagging { bucket, tagging, .. }) => match reply {
            Reply::Version(VersionReply::Changed(head)) => {
                let happening = if tagging.is_some() { Happening::Tagged } else { Happening::Untagged };
                (bucket, Some(News::of(happening, head)))
            }
            _ => return Ok(()),
        },
        Command::Identity(IdentityCommand::SetObjectAcl { bucket, key, version, .. }) => {
            (bucket, Some(News::gone(Happening::AclChanged, key, *version)))
        }
        _ => return Ok(()),
    };
    match news {
        Some(news) => write(draft, bucket, &[news]),
        None => Ok(()),
    }
}

/// As [`note`], of a version whose time was over.
pub fn note_expired(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    version: Option<VersionId>,
    is_marker: bool,
) -> Outcome<()> {
    let happening = if is_marker { Happening::ExpiredByMarker } else { Happening::Expired };
    write(draft, bucket, &[News::gone(happening, key, version)])
}

/// As [`note`], of a version that got another storage class.
pub fn note_transitioned(draft: &mut Draft<'_>, bucket: &str, head: &ObjectHead) -> Outcome<()> {
    write(draft, bucket, &[News::of(Happening::Transitioned, head)])
}

/// Writes down what happened, in order, where the bucket is followed: all of it or nothing.
pub fn write(draft: &mut Draft<'_>, bucket: &str, news: &[News<'_>]) -> Outcome<()> {
    let Some(mut record) = followed(draft, bucket)? else { return Ok(()) };
    let done = record.followers.iter().map(|(_, done)| *done).min().unwrap_or(record.sequence);
    for news in news {
        if record.sequence.saturating_sub(done) >= WAITING_MAX {
            return Err(Refusal::FollowersBehind.into());
        }
        record.sequence += 1;
        let change = Change {
            sequence: record.sequence,
            at: draft.now,
            happening: news.happening,
            key: news.key.to_owned(),
            version: news.version,
            size: news.size,
            etag: news.etag.to_owned(),
        };
        draft.write(keys::change(record.bucket, record.sequence), &change)?;
    }
    draft.write(keys::followed(bucket), &record)?;
    Ok(())
}

pub fn answer(view: &dyn View, query: &JournalQuery) -> Outcome<Answer> {
    match query {
        JournalQuery::Followed { after, entries_max } => {
            let from = keys::after(&keys::followed(after));
            let to = keys::end_of(&keys::all_followed());
            Ok(Answer::Journal(JournalAnswer::Followed(some(view, &from, &to, *entries_max)?)))
        }
        JournalQuery::Oldest { bucket, follower } => {
            let record = followed(view, bucket)?;
            let done = record.as_ref().and_then(|record| {
                record.followers.iter().find(|(known, _)| known == follower).map(|(_, done)| *done)
            });
            let (Some(record), Some(done)) = (record, done) else {
                return Ok(Answer::Journal(JournalAnswer::Changes(Vec::new())));
            };
            let from = keys::after(&keys::change(record.bucket, done));
            let to = keys::end_of(&keys::changes(record.bucket));
            Ok(Answer::Journal(JournalAnswer::Changes(some(view, &from, &to, 1)?)))
        }
        JournalQuery::Changes { bucket, after, entries_max } => {
            let from = keys::after(&keys::change(*bucket, *after));
            let to = keys::end_of(&keys::changes(*bucket));
            Ok(Answer::Journal(JournalAnswer::Changes(some(view, &from, &to, *entries_max)?)))
        }
    }
}

fn some<T: serde::de::DeserializeOwned>(
    view: &dyn View,
    from: &[u8],
    to: &[u8],
    entries_max: u32,
) -> Outcome<Vec<T>> {
    let entries_max = page(entries_max);
    let mut found = Vec::new();
    if entries_max > 0 {
        scan_records(view, from, to, &mut |_, record| {
            found.push(record);
            if found.len() == entries_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
    }
    Ok(found)
}
