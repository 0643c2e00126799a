//! A page of all versions of a bucket's keys: those in the tree and those beside it, merged.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;

use makai_erasure::BlobId;

use super::{find, newest, null_number};
use crate::facts::bucket::Bucket;
use crate::facts::query::{Answer, Listed};
use crate::facts::version::{ListVersions, ListedVersion, VersionAnswer, VersionId};
use crate::machine::draft::{self, Outcome, corrupt};
use crate::machine::files;
use crate::machine::kv::{KvError, View};
use crate::machine::listing::{ANSWER_BYTES_MAX, Window, roll_up};
use crate::machine::objects::{self, Meta};
use crate::machine::{blobs, buckets, content, keys, listing, names, page};

/// By key, then newest first.
///
/// Cost: in proportion to what is returned; a common prefix is one seek beside the tree.
pub fn list(view: &dyn View, asked: &ListVersions) -> Outcome<Answer> {
    let (entries, is_truncated) = page_of(view, asked)?;
    Ok(Answer::Version(VersionAnswer::Versions { entries, is_truncated }))
}

/// The page's entries, and whether more follow.
fn page_of(view: &dyn View, asked: &ListVersions) -> Outcome<(Vec<ListedVersion>, bool)> {
    let bucket = buckets::get(view, &asked.bucket)?;
    let entries_max = page(asked.entries_max);
    let (mut entries, mut is_truncated) = (Vec::new(), false);
    if entries_max > 0 {
        let (current, others) = sources(view, &bucket, asked, entries_max + 1)?;
        (entries, is_truncated) = merge(current, others, entries_max);
    }
    Ok((entries, is_truncated))
}

/// Those of a page that lie in one of `wanted`.
///
/// Cost: as the page, and one look at the content of each version of it.
pub fn naming(view: &dyn View, asked: &ListVersions, wanted: &[BlobId]) -> Outcome<Answer> {
    blobs::check_count(wanted)?;
    let wanted: BTreeSet<BlobId> = wanted.iter().copied().collect();
    let bucket = buckets::get(view, &asked.bucket)?;
    let (entries, is_truncated) = page_of(view, asked)?;
    let (mut versions, mut last) = (Vec::new(), None);
    for entry in entries {
        let (head, is_latest) = match entry {
            ListedVersion::Version { head, is_latest } => (head, is_latest),
            ListedVersion::Marker { key, version, .. } => {
                last = Some((key, version));
                continue;
            }
            ListedVersion::CommonPrefix(_) => continue,
        };
        let id = head.version_id();
        last = Some((head.key.clone(), id));
        if head.size == 0 {
            continue;
        }
        let found = find(view, &bucket, &head.key, (!is_latest).then_some(id))?;
        let extents = content::extents(view, found.meta.inode, &found.body)?;
        let named: BTreeSet<BlobId> =
            extents.iter().map(|extent| extent.blob).filter(|blob| wanted.contains(blob)).collect();
        if !named.is_empty() {
            versions.push((head, named.into_iter().collect()));
        }
    }
    let next = last.filter(|_| is_truncated);
    Ok(Answer::Version(VersionAnswer::Naming { versions, next }))
}

/// One side of the merge, and whether it ends before the bucket does.
struct Source {
    entries: VecDeque<ListedVersion>,
    is_truncated: bool,
}

impl Source {
    /// Nothing left of a side that goes on: what comes next is not known.
    fn is_spent(&self) -> bool {
        self.entries.is_empty() && self.is_truncated
    }

    fn name(&self) -> Option<&str> {
        self.entries.front().map(name)
    }
}

fn name(entry: &ListedVersion) -> &str {
    match entry {
        ListedVersion::Version { head, .. } => &head.key,
        ListedVersion::Marker { key, .. } | ListedVersion::CommonPrefix(key) => key,
    }
}

fn merge(mut current: Source, mut others: Source, entries_max: usize) -> (Vec<ListedVersion>, bool) {
    let mut entries: Vec<ListedVersion> = Vec::new();
    while !current.is_spent() && !others.is_spent() {
        // The version in the tree is its key's newest.
        let is_others = match (current.name(), others.name()) {
            (None, None) => return (entries, false),
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (Some(current), Some(other)) => other < current,
        };
        let side = if is_others { &mut others } else { &mut current };
        let Some(next) = side.entries.pop_front() else { break };
        let is_shown = matches!(next, ListedVersion::CommonPrefix(_)) && entries.last() == Some(&next);
        if is_shown {
            continue;
        }
        if entries.len() == entries_max {
            return (entries, true);
        }
        entries.push(next);
    }
    (entries, true)
}

fn sources(
    view: &dyn View,
    bucket: &Bucket,
    asked: &ListVersions,
    entries_max: usize,
) -> Result<(Source, Source), KvError> {
    let (prefix, delimiter) = (asked.prefix.as_bytes(), asked.delimiter.as_bytes());
    let after = asked.after.as_bytes();
    let older_than = match asked.after_version.filter(|_| !after.is_empty()) {
        None => None,
        Some(VersionId::Number(number)) => Some(number),
        // Gone, it is no place to go on from.
        Some(VersionId::Null) => Some(null_of(view, bucket, &asked.after)?.unwrap_or(u64::MAX)),
    };
    let (tree_from, others_from) = match (roll_up(after, prefix, delimiter), older_than) {
        _ if after < prefix => (prefix.to_vec(), keys::versions_below(bucket.id, prefix)),
        (Some(common), _) => {
            let beyond = keys::end_of(&keys::versions_below(bucket.id, common));
            (keys::end_of(common), beyond)
        }
        (None, _) if after.is_empty() => (Vec::new(), keys::versions_below(bucket.id, prefix)),
        (None, None) => (keys::after(after), keys::end_of(&keys::versions_of(bucket.id, after))),
        (None, Some(number)) => {
            (after.to_vec(), keys::after(&keys::version(bucket.id, &asked.after, number)))
        }
    };
    let window = Window { prefix, delimiter, entries_max };
    let (listed, is_truncated) = listing::page_from(view, bucket.root, &tree_from, &window)?;
    let is_behind = |listed: &Listed| {
        let number = older_than.unwrap_or(u64::MAX);
        !matches!(listed, Listed::Object(head) if head.key == asked.after && head.version >= number)
    };
    let entries = listed.into_iter().filter(is_behind).map(|listed| match listed {
        Listed::Object(head) => ListedVersion::Version { head, is_latest: true },
        Listed::CommonPrefix(common) => ListedVersion::CommonPrefix(common),
    });
    let current = Source { entries: entries.collect(), is_truncated };
    Ok((current, others_of(view, bucket, others_from, &window)?))
}

/// The number of a key's version that has no id, wherever it stands.
fn null_of(view: &dyn View, bucket: &Bucket, key: &str) -> Result<Option<u64>, KvError> {
    if let Some(record) = names::locate(view, bucket.root, key)?.record {
        let (meta, _) = files::load(view, key.as_bytes(), &record)?;
        if !meta.has_id {
            return Ok(Some(meta.version));
        }
    }
    null_number(view, bucket, key)
}

/// The versions and markers beside the tree, from `from` on.
fn others_of(
    view: &dyn View,
    bucket: &Bucket,
    mut from: Vec<u8>,
    window: &Window<'_>,
) -> Result<Source, KvError> {
    let end = keys::end_of(&keys::versions_below(bucket.id, window.prefix));
    let mut source = Source { entries: VecDeque::new(), is_truncated: false };
    let mut bytes = 0;
    loop {
        let mut beyond = None;
        let mut failure = None;
        view.scan(&from, &end, &mut |place, record| {
            if source.entries.len() >= window.entries_max || bytes >= ANSWER_BYTES_MAX {
                source.is_truncated = true;
                return ControlFlow::Break(());
            }
            let key = match keys::version_key(place) {
                Some(key) => key,
                None => {
                    failure = Some(corrupt("not a version's key", place));
                    return ControlFlow::Break(());
                }
            };
            if let Some(common) = roll_up(key.as_bytes(), window.prefix, window.delimiter) {
                bytes += common.len();
                let shown = String::from_utf8_lossy(common).into_owned();
                source.entries.push_back(ListedVersion::CommonPrefix(shown));
                beyond = Some(keys::end_of(&keys::versions_below(bucket.id, common)));
                return ControlFlow::Break(());
            }
            bytes += record.len();
            match listed(&key, place, record) {
                Ok(entry) => source.entries.push_back(entry),
                Err(error) => failure = Some(error),
            }
            if failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        match beyond {
            Some(beyond) => from = beyond,
            None => break,
        }
    }
    mark_latest(view, bucket, &mut source)?;
    Ok(source)
}

fn listed(key: &str, place: &[u8], record: &[u8]) -> Result<ListedVersion, KvError> {
    let meta: Meta = draft::decode(place, record)?;
    Ok(if meta.is_marker {
        let (version, number, modified_at) = (meta.id(), meta.version, meta.modified_at);
        ListedVersion::Marker { key: key.to_owned(), version, number, modified_at, is_latest: false }
    } else {
        ListedVersion::Version { head: objects::Meta::head(meta, key), is_latest: false }
    })
}

/// A marker is its key's latest version where the tree has none and no newer one stands beside it.
fn mark_latest(view: &dyn View, bucket: &Bucket, source: &mut Source) -> Result<(), KvError> {
    let mut last: Option<String> = None;
    for entry in &mut source.entries {
        let is_first = last.as_deref() != Some(name(entry));
        if is_first {
            last = Some(name(entry).to_owned());
        }
        if let ListedVersion::Marker { key, number, is_latest, .. } = entry
            && is_first
            && names::locate(view, bucket.root, key)?.record.is_none()
        {
            *is_latest = newest(view, bucket, key)? == Some(*number);
        }
    }
    Ok(())
}
