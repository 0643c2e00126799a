//! The past of a bucket that keeps versions, as directories: versions beside one another under names that hold their ids.
//!
//! ```text
//! names ─ pieces ─> prefix of keys ─ versions from there to the next `/` ─> pieces and ids ─ names ─> entries
//! ```
//!
//! Always: who looks has the rights that S3 asks for (`s3:ListBucketVersions`, `s3:GetObjectVersion`); delete markers have no
//! name; a page costs what it shows.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::files::{FileRefusal, FileTime, Name};
use makai_raft::facts::object::{KEY_BYTES_MAX, ObjectHead};
use makai_raft::facts::version::{ListVersions, ListedVersion, VersionId, Versioning};

use super::content::MESSAGE_DATA_BYTES;
use super::errors::Failure;
use super::names::{Meant, meant, meant_version, shown, shown_version};
use super::{Files, LONG_NAMES_LOOKED_AT_MAX, convert};
use crate::grpc::Admitted;
use crate::grpc::proto::file::v1 as proto;
use crate::identity::Caller;
use crate::objects::{ByteRange, ObjectsError};
use crate::rights::Reach;

/// Entries in one answer.
const ENTRIES_MAX: u32 = 1000;
/// Steps from a prefix to a directory: as many as a key can hold.
const STEPS_MAX: usize = KEY_BYTES_MAX;
const SLASH: &str = "/";

pub type VersionStream = stream::BoxStream<'static, Result<proto::ReadVersionReply, tonic::Status>>;

/// Where a page begins: the last key shown, and which of its versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cursor {
    key: String,
    version: Option<VersionId>,
}

impl Cursor {
    /// The id's length in one byte, the id, the key.
    fn encode(&self) -> Bytes {
        let id = self.version.map(|id| id.to_string()).unwrap_or_default();
        let mut bytes = vec![u8::try_from(id.len()).unwrap_or(0)];
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(self.key.as_bytes());
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Failure> {
        let unknown = || Failure::invalid("the cursor is none that was given");
        let Some((&length, rest)) = bytes.split_first() else { return Ok(Self::default()) };
        let (id, key) = rest.split_at_checked(length.into()).ok_or_else(unknown)?;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| unknown());
        let version = match text(id)? {
            "" => None,
            id => Some(VersionId::parse(id).ok_or_else(unknown)?),
        };
        Ok(Self { key: text(key)?.to_owned(), version })
    }

    fn of(entry: &ListedVersion) -> Self {
        match entry {
            ListedVersion::Version { head, .. } => {
                Self { key: head.key.clone(), version: Some(head.version_id()) }
            }
            ListedVersion::Marker { key, version, .. } => Self { key: key.clone(), version: Some(*version) },
            ListedVersion::CommonPrefix(key) => Self { key: key.clone(), version: None },
        }
    }
}

impl Files {
    async fn past_bucket(&self, caller: &Caller, name: &str) -> Result<Bucket, Failure> {
        let bucket = self.objects.mounted(caller, name).await?;
        if bucket.versioning == Versioning::Unversioned {
            return Err(FileRefusal::NotFound.into());
        }
        Ok(bucket)
    }

    pub(super) async fn past(
        &self,
        caller: &Caller,
        request: proto::ListVersionsRequest,
    ) -> Result<proto::ListVersionsReply, Failure> {
        self.past_bucket(caller, &request.bucket).await?;
        let needed = [("s3:ListBucketVersions", Reach::Bucket)];
        self.rights.check(caller, &request.bucket, &needed).await?;
        if request.directories.len() > STEPS_MAX {
            return Err(FileRefusal::NotFound.into());
        }
        let mut prefix = request.prefix;
        if !prefix.is_empty() && !prefix.ends_with('/') {
            return Err(Failure::invalid("a prefix ends with '/'"));
        }
        for name in &request.directories {
            let piece = self.past_piece(caller, &request.bucket, &prefix, name).await?;
            prefix = format!("{prefix}{piece}/");
        }
        if !request.name.is_empty() {
            let entry = self.past_entry(caller, &request.bucket, &prefix, &request.name).await?;
            return Ok(proto::ListVersionsReply { entries: vec![entry], is_end: true, cursor: Bytes::new() });
        }
        let after = Cursor::decode(&request.cursor)?;
        let entries_max = match request.entries_max {
            0 => ENTRIES_MAX,
            asked => asked.min(ENTRIES_MAX),
        };
        let (listed, is_truncated) =
            self.listed(caller, &request.bucket, &prefix, after, entries_max).await?;
        let cursor = listed.last().map(|last| Cursor::of(last).encode()).unwrap_or_default();
        let entries = listed.into_iter().filter_map(|entry| entry_of(&prefix, entry)).collect();
        Ok(proto::ListVersionsReply { entries, cursor, is_end: !is_truncated })
    }

    async fn listed(
        &self,
        caller: &Caller,
        bucket: &str,
        prefix: &str,
        after: Cursor,
        entries_max: u32,
    ) -> Result<(Vec<ListedVersion>, bool), Failure> {
        let list = ListVersions {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            delimiter: SLASH.to_owned(),
            after: after.key,
            after_version: after.version,
            entries_max,
        };
        Ok(self.objects.list_versions(caller, list).await?)
    }

    /// The piece of keys that a directory's name shows.
    async fn past_piece(
        &self,
        caller: &Caller,
        bucket: &str,
        prefix: &str,
        name: &[u8],
    ) -> Result<String, Failure> {
        match meant(name)? {
            Meant::Name(Name::Any(piece)) => Ok(piece),
            Meant::Name(Name::Object(_)) => Err(FileRefusal::NotFound.into()),
            Meant::Long { beginning } => {
                let found = self.past_search(caller, bucket, prefix, &beginning, name).await?;
                match found {
                    ListedVersion::CommonPrefix(key) => Ok(piece_of(prefix, &key).to_owned()),
                    _ => Err(FileRefusal::NotDirectory.into()),
                }
            }
        }
    }

    async fn past_entry(
        &self,
        caller: &Caller,
        bucket: &str,
        prefix: &str,
        name: &[u8],
    ) -> Result<proto::PastEntry, Failure> {
        let missing = || Failure::from(FileRefusal::NotFound);
        match meant_version(name) {
            Some((Meant::Name(piece), version)) if shown_version(piece.text(), version) == name => {
                let key = format!("{prefix}{}", piece.text());
                let found = self.objects.find(caller, bucket, &key, Some(version)).await;
                match found.map_err(Failure::from) {
                    Ok(found) => return Ok(version_entry(prefix, &found.head)),
                    Err(failure) if failure.errno == super::errors::Errno::Enoent => {}
                    Err(failure) => return Err(failure),
                }
            }
            Some((Meant::Long { beginning }, _)) => {
                let found = self.past_search(caller, bucket, prefix, &beginning, name).await?;
                return entry_of(prefix, found).ok_or_else(missing);
            }
            _ => {}
        }
        // What has no id behind it is a directory.
        let piece = self.past_piece(caller, bucket, prefix, name).await?;
        let below = format!("{prefix}{piece}/");
        let (first, _) = self.listed(caller, bucket, &below, Cursor::default(), 1).await?;
        match first.is_empty() {
            true => Err(missing()),
            false => Ok(directory_entry(name.to_vec())),
        }
    }

    /// The entry of this name, which is too long to say what it means.
    async fn past_search(
        &self,
        caller: &Caller,
        bucket: &str,
        prefix: &str,
        beginning: &str,
        name: &[u8],
    ) -> Result<ListedVersion, Failure> {
        let (mut after, mut looked_at) = (Cursor::default(), 0);
        let list_prefix = format!("{prefix}{beginning}");
        loop {
            let list = ListVersions {
                bucket: bucket.to_owned(),
                prefix: list_prefix.clone(),
                delimiter: SLASH.to_owned(),
                after: after.key,
                after_version: after.version,
                entries_max: ENTRIES_MAX,
            };
            let (entries, is_truncated) = self.objects.list_versions(caller, list).await?;
            looked_at += entries.len();
            let next = entries.last().map(Cursor::of);
            for entry in entries {
                if name_of(prefix, &entry).is_some_and(|shown| shown == name) {
                    return Ok(entry);
                }
            }
            match next.filter(|_| is_truncated && looked_at < LONG_NAMES_LOOKED_AT_MAX) {
                Some(next) => after = next,
                None => return Err(FileRefusal::NotFound.into()),
            }
        }
    }

    pub(super) async fn read_past(
        &self,
        admitted: Admitted,
        request: proto::ReadVersionRequest,
    ) -> Result<VersionStream, Failure> {
        let caller = &admitted.caller;
        self.past_bucket(caller, &request.bucket).await?;
        let needed = [("s3:GetObjectVersion", Reach::Key(&request.key))];
        self.rights.check(caller, &request.bucket, &needed).await?;
        let version = VersionId::parse(&request.version_id)
            .ok_or_else(|| Failure::invalid("no version has such an id"))?;
        let Some(last) = request.offset.checked_add(request.length).and_then(|end| end.checked_sub(1)) else {
            return Ok(stream::empty().boxed());
        };
        if request.length == 0 {
            return Ok(stream::empty().boxed());
        }
        let range = ByteRange::From { first: request.offset, last: Some(last) };
        let read =
            self.objects.get_version(caller, &request.bucket, &request.key, Some(version), range).await;
        let download = match read {
            Err(ObjectsError::RangeNotSatisfiable { .. }) => return Ok(stream::empty().boxed()),
            read => read?,
        };
        let cut = |bytes: Bytes| {
            let cuts = (0..bytes.len()).step_by(MESSAGE_DATA_BYTES);
            let cuts: Vec<Bytes> =
                cuts.map(|at| bytes.slice(at..bytes.len().min(at + MESSAGE_DATA_BYTES))).collect();
            stream::iter(cuts.into_iter().map(Ok::<_, ObjectsError>))
        };
        let messages = download.body.map_ok(cut).try_flatten().map(move |data| {
            // The place among the calls under way is kept until the last byte is sent.
            let _admitted = &admitted;
            match data {
                Ok(data) => Ok(proto::ReadVersionReply { data }),
                Err(error) => Err(tonic::Status::from(Failure::from(error))),
            }
        });
        Ok(messages.boxed())
    }
}

fn piece_of<'k>(prefix: &str, key: &'k str) -> &'k str {
    let rest = key.strip_prefix(prefix).unwrap_or(key);
    rest.strip_suffix('/').unwrap_or(rest)
}

fn name_of(prefix: &str, entry: &ListedVersion) -> Option<Vec<u8>> {
    match entry {
        ListedVersion::Version { head, .. } => {
            Some(shown_version(head.key.strip_prefix(prefix)?, head.version_id()))
        }
        ListedVersion::CommonPrefix(key) => Some(shown(&Name::Any(piece_of(prefix, key).to_owned()))),
        ListedVersion::Marker { .. } => None,
    }
}

fn entry_of(prefix: &str, entry: ListedVersion) -> Option<proto::PastEntry> {
    let name = name_of(prefix, &entry)?;
    match entry {
        ListedVersion::Version { head, .. } => Some(version_entry(prefix, &head)),
        ListedVersion::CommonPrefix(_) => Some(directory_entry(name)),
        ListedVersion::Marker { .. } => None,
    }
}

fn directory_entry(name: Vec<u8>) -> proto::PastEntry {
    proto::PastEntry { name: name.into(), is_directory: true, ..Default::default() }
}

fn version_entry(prefix: &str, head: &ObjectHead) -> proto::PastEntry {
    let piece = head.key.strip_prefix(prefix).unwrap_or(&head.key);
    let modified_at = FileTime::from_millis(head.modified_at.0);
    proto::PastEntry {
        name: shown_version(piece, head.version_id()).into(),
        is_directory: false,
        key: head.key.clone(),
        version_id: head.version_id().to_string(),
        size: head.size,
        modified_at: Some(convert::time(modified_at)),
        etag: head.etag.clone(),
        data_version: head.version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_and_another_is_refused() {
        for version in [None, Some(VersionId::Null), Some(VersionId::Number(7))] {
            for key in ["", "a/b", "a\0b"] {
                let cursor = Cursor { key: key.into(), version };
                assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
            }
        }
        assert_eq!(Cursor::decode(b"").unwrap(), Cursor::default());
        for bad in [&b"\x05null"[..], b"\x04nulx", b"\x00\xFF", b"\xFF"] {
            assert!(Cursor::decode(bad).is_err(), "{bad:?}");
        }
    }
}
