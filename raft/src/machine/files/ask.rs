//! Queries about files.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::node::{self, Found};
use super::tree::{Child, Dir};
use super::{attributes, bucket_of, leases, locks, sessions};
use crate::facts::bucket::Bucket;
use crate::facts::command::Refusal;
use crate::facts::files::{
    DirectoryEntry, FileAnswer, FileContent, FileQuery, FileRef, FileRefusal, Name, OPS_MAX, Stat,
};
use crate::facts::object::Content;
use crate::facts::query::Answer;
use crate::machine::content::{self, Body};
use crate::machine::draft::{Outcome, Stop};
use crate::machine::keys as store_keys;
use crate::machine::kv::View;
use crate::machine::{page, tenants};

pub fn answer(view: &dyn View, query: &FileQuery) -> Outcome<Answer> {
    let answer = match query {
        FileQuery::Lookup { bucket, parent, names } => {
            lookup(view, &bucket_of(view, bucket)?, *parent, names)?
        }
        FileQuery::Stats { bucket, files } => stats(view, &bucket_of(view, bucket)?, files)?,
        FileQuery::Directory { bucket, inode, cursor, entries_max } => {
            directory(view, &bucket_of(view, bucket)?, *inode, cursor, *entries_max)?
        }
        FileQuery::Content { bucket, file, from_offset, extents_max } => {
            let bucket = bucket_of(view, bucket)?;
            FileAnswer::Content(content_of(view, &bucket, file, *from_offset, *extents_max)?)
        }
        FileQuery::Xattrs { bucket, file } => {
            let bucket = bucket_of(view, bucket)?;
            let inode = node::find(view, &bucket, file)?.stat().inode;
            FileAnswer::Xattrs(attributes::xattrs(view, inode)?)
        }
        FileQuery::Lock { bucket, session, file, lock } => {
            let bucket = bucket_of(view, bucket)?;
            FileAnswer::Lock(locks::test(view, &bucket, *session, file.inode, lock)?)
        }
        FileQuery::Events { bucket, session, after, entries_max, wait_ms: _ } => {
            sessions::events(view, &bucket_of(view, bucket)?, *session, *after, *entries_max)?
        }
        FileQuery::Expired { bucket, now } => {
            FileAnswer::Expired(sessions::is_any_over(view, bucket_of(view, bucket)?.root, *now)?)
        }
        FileQuery::Leased { bucket, reader, at } => {
            FileAnswer::Leased(leases::held_by_others(view, &bucket_of(view, bucket)?, *reader, at)?)
        }
        FileQuery::Space { bucket } => {
            let bucket = bucket_of(view, bucket)?;
            let tenant = tenants::get(view, bucket.tenant)?;
            let held = bucket.object_bytes.saturating_add(bucket.noncurrent_bytes);
            let room = |max: Option<u64>, used: u64| max.map(|max| max.saturating_sub(used));
            let in_tenant = room(tenant.quota_bytes, tenant.used_bytes);
            match room(bucket.quota.bytes_max, held) {
                // The bucket is full before its tenant is.
                Some(left) if in_tenant.is_none_or(|in_tenant| left < in_tenant) => FileAnswer::Space {
                    used_bytes: held,
                    quota_bytes: bucket.quota.bytes_max,
                    files: bucket.object_count.saturating_add(bucket.noncurrent_count),
                },
                _ => FileAnswer::Space {
                    used_bytes: tenant.used_bytes,
                    quota_bytes: tenant.quota_bytes,
                    files: tenant.used_objects,
                },
            }
        }
    };
    Ok(Answer::File(answer))
}

fn lookup(view: &dyn View, bucket: &Bucket, parent: u64, names: &[Name]) -> Outcome<FileAnswer> {
    check_count(names.len())?;
    let mut at = Found::Directory(Dir::open(view, bucket, parent)?);
    let mut found = Vec::new();
    for name in names {
        let step = match &at {
            Found::Directory(directory) => down(view, bucket, directory, name),
            Found::File(_) => Err(FileRefusal::NotDirectory.into()),
        };
        match step {
            Ok(below) => {
                found.push(attributes::with_xattrs_known(view, below.stat())?);
                at = below;
            }
            Err(Stop::Refused(refusal)) => return Ok(FileAnswer::Found { found, ended: Some(refusal) }),
            Err(broken) => return Err(broken),
        }
    }
    Ok(FileAnswer::Found { found, ended: None })
}

fn down(view: &dyn View, bucket: &Bucket, directory: &Dir, name: &Name) -> Outcome<Found> {
    match directory.child(view, bucket, name)? {
        Some(Child::Directory(below)) => Ok(Found::Directory(below)),
        Some(Child::File { entry, record }) => {
            if name.text().is_empty() && node::is_plain_marker(&entry, &record)? {
                return Err(FileRefusal::NotFound.into());
            }
            Ok(Found::File(node::at_entry(view, entry, &record)?))
        }
        None => Err(FileRefusal::NotFound.into()),
    }
}

fn check_count(count: usize) -> Result<(), Refusal> {
    if count > OPS_MAX {
        return Err(Refusal::Invalid(format!("{count} questions at once; at most {OPS_MAX}")));
    }
    Ok(())
}

fn stats(view: &dyn View, bucket: &Bucket, files: &[FileRef]) -> Outcome<FileAnswer> {
    check_count(files.len())?;
    let mut stats: Vec<Result<Stat, Refusal>> = Vec::with_capacity(files.len());
    for file in files {
        match node::find(view, bucket, file) {
            Ok(found) => stats.push(Ok(attributes::with_xattrs_known(view, found.stat())?)),
            Err(Stop::Refused(refusal)) => stats.push(Err(refusal)),
            Err(broken) => return Err(broken),
        }
    }
    Ok(FileAnswer::Stats(stats))
}

/// Entries after `cursor`, which is the entry that was shown last.
fn directory(
    view: &dyn View,
    bucket: &Bucket,
    inode: u64,
    cursor: &[u8],
    entries_max: u32,
) -> Outcome<FileAnswer> {
    let directory = Dir::open(view, bucket, inode)?;
    let from = match cursor {
        [] => store_keys::entries(inode),
        cursor => store_keys::after(&store_keys::entry(inode, cursor)),
    };
    let entries_max = page(entries_max).max(1);
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut is_end = true;
    view.scan(&from, &store_keys::end_of(&store_keys::entries(inode)), &mut |key, record| {
        if found.len() == entries_max {
            is_end = false;
            return ControlFlow::Break(());
        }
        found.push((key.to_vec(), record.to_vec()));
        ControlFlow::Continue(())
    })?;
    let mut entries = Vec::with_capacity(found.len());
    for (key, record) in found {
        let name = &key[store_keys::ENTRY_NAME_AT..];
        let Ok(text) = std::str::from_utf8(name) else { continue };
        let cursor = Bytes::copy_from_slice(name);
        let (name, stat) = if let Some(text) = text.strip_suffix('/') {
            let name = Name::Any(text.to_owned());
            match directory.child(view, bucket, &name)? {
                Some(Child::Directory(below)) => (name, below.stat()),
                _ => continue,
            }
        } else if text.is_empty() && node::is_plain_marker(&key, &record)? {
            continue;
        } else {
            let is_beside = text.is_empty() || directory.has_directory(view, text)?;
            let name = if is_beside { Name::Object(text.to_owned()) } else { Name::Any(text.to_owned()) };
            let stat = node::stat(&node::at_entry(view, key.clone(), &record)?.meta);
            (name, stat)
        };
        let stat = attributes::with_xattrs_known(view, stat)?;
        entries.push(DirectoryEntry { name, stat, cursor });
    }
    let parent = directory.parent();
    Ok(FileAnswer::Directory { entries, is_end, directory: directory.stat(), parent })
}

fn content_of(
    view: &dyn View,
    bucket: &Bucket,
    file: &FileRef,
    from_offset: u64,
    extents_max: u32,
) -> Outcome<FileContent> {
    let file = node::find(view, bucket, file)?.file()?;
    let (extents, is_truncated) =
        content::resolve(view, file.meta.inode, &file.body, from_offset, extents_max)?;
    let stat = node::stat(&file.meta);
    let encryption = file.meta.headers.encryption;
    let content = match file.body {
        Body::Empty => Content::Empty,
        Body::Inline { blob, wrapped_key, sealed } => Content::Inline { blob, wrapped_key, sealed },
        Body::Extents(_) | Body::Chunked => Content::Extents(Vec::new()),
    };
    Ok(FileContent { stat, encryption, content, extents, is_truncated })
}
