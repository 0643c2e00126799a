//! Random histories, beside an oracle that keeps a flat map and recounts everything.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::oracle::{OBucket, OVersion, Oracle};
use super::*;
use crate::facts::object::{Part, Upload};
use crate::facts::query::{ListObjects, Listed, ObjectAnswer};
use crate::facts::version::{
    BucketLock, DefaultRetention, Expired, ListVersions, ListedVersion, LockMode, ObjectLock, Retention,
    RetentionPeriod, VersionAnswer, VersionCommand, VersionId, VersionQuery, VersionRefusal, VersionReply,
    Versioning,
};
use crate::machine::REVIVE_MS_MAX;
use crate::machine::kv::View;

#[derive(Debug, Clone)]
enum Op {
    Put {
        bucket: usize,
        key: Pick,
        bytes: Bytes_,
        precondition: Precondition,
        etag: usize,
        hold: Option<bool>,
    },
    Delete {
        bucket: usize,
        key: Pick,
        precondition: Precondition,
    },
    Copy {
        from: usize,
        from_key: Pick,
        is_stale: bool,
        bucket: usize,
        key: String,
        headers: Option<String>,
    },
    Tag {
        bucket: usize,
        key: Pick,
        tagging: Option<String>,
    },
    Versioning {
        bucket: usize,
        is_enabled: bool,
    },
    Lock {
        bucket: usize,
        default: Option<DefaultRetention>,
    },
    /// Of a version of the key.
    OfVersion {
        bucket: usize,
        key: Pick,
        version: Option<Which>,
        act: Act,
    },
    Begin {
        bucket: usize,
        key: String,
    },
    Part {
        bucket: usize,
        upload: Index,
        number: u16,
        bytes: Bytes_,
        etag: usize,
    },
    Complete {
        bucket: usize,
        upload: Index,
        left_out: u8,
        disorder: u8,
        precondition: Precondition,
    },
    Abort {
        bucket: usize,
        upload: Index,
    },
    CreateBucket {
        bucket: usize,
        tenant: u64,
    },
    DeleteBucket {
        bucket: usize,
    },
    Quota {
        tenant: u64,
        quota_bytes: Option<u64>,
    },
    Forget {
        picks: Vec<Index>,
    },
    Repeat(Index),
}

/// One of a key's versions, or one that does not exist.
#[derive(Debug, Clone)]
enum Which {
    Existing(Index),
    Null,
    Unknown,
}

#[derive(Debug, Clone)]
enum Act {
    Delete { bypass_governance: bool, precondition: Precondition },
    Tag(Option<String>),
    Retain { mode: LockMode, for_ms: Option<u64>, bypass_governance: bool },
    Hold(bool),
    CopyTo(String),
    Expire { is_current: bool },
}

/// A key that exists, or any.
#[derive(Debug, Clone)]
struct Pick {
    existing: Option<Index>,
    other: String,
}

#[derive(Debug, Clone)]
enum Bytes_ {
    Empty,
    Inline(u16),
    WrongSize,
    Extents { pieces: Vec<Piece>, times: usize, unnamed_blob: bool },
}

#[derive(Debug, Clone)]
struct Piece {
    /// `None`: a new blob; otherwise one seen before, and whether it is given again.
    known: Option<(Index, bool)>,
    age_ms: u64,
    offset: u64,
    length: u64,
}

const BUCKETS: [&str; 4] = ["aaa", "bbb", "ccc", "nowhere"];
const ETAGS: [&str; 3] = ["e1", "e2", "e3-2"];

pub fn key() -> impl Strategy<Value = String> {
    let piece = select(vec!["/", "//", "-", ".", "0", "é", "a/", "a", "b/", "\0", "ÿ"]);
    vec(piece, 1..=4).prop_map(|pieces| pieces.concat())
}

fn pick(existing: f64) -> impl Strategy<Value = Pick> {
    (prop::option::weighted(existing, any::<Index>()), key())
        .prop_map(|(existing, other)| Pick { existing, other })
}

fn precondition() -> impl Strategy<Value = Precondition> {
    let etag = || select(vec!["*", "e1", "\"e2\"", "e3-2"]).prop_map(str::to_owned);
    prop_oneof![
        6 => Just(Precondition::default()),
        1 => vec(etag(), 1..=2).prop_map(|if_match| Precondition { if_match, ..Precondition::default() }),
        1 => vec(etag(), 1..=2)
            .prop_map(|if_none_match| Precondition { if_none_match, ..Precondition::default() }),
    ]
}

fn piece() -> impl Strategy<Value = Piece> {
    let known = prop::option::weighted(0.4, (any::<Index>(), any::<bool>()));
    let age = prop_oneof![12 => 0..1000u64, 1 => Just(3_600_000), 1 => Just(3_600_001)];
    let offset = select(vec![0, 0, 0, 1, 3 * MIB]);
    let length = select(vec![1, 100, 5 * MIB, 5 * MIB, 5 * MIB - 1]);
    let rare = prop_oneof![20 => length, 1 => Just(BLOB_BYTES), 1 => Just(0)];
    (known, age, offset, rare).prop_map(|(known, age_ms, offset, length)| Piece {
        known,
        age_ms,
        offset,
        length,
    })
}

fn bytes() -> impl Strategy<Value = Bytes_> {
    prop_oneof![
        2 => Just(Bytes_::Empty),
        2 => (1..=4096u16).prop_map(Bytes_::Inline),
        1 => Just(Bytes_::WrongSize),
        12 => (vec(piece(), 1..=3), select(vec![1usize, 1, 1, 1, 12, 200]), prop::bool::weighted(0.05))
            .prop_map(|(pieces, times, unnamed_blob)| Bytes_::Extents { pieces, times, unnamed_blob }),
    ]
}

fn default_retention() -> impl Strategy<Value = DefaultRetention> {
    let period = select(vec![RetentionPeriod::Days(1), RetentionPeriod::Years(1)]);
    (mode(), period).prop_map(|(mode, period)| DefaultRetention { mode, period })
}

fn mode() -> impl Strategy<Value = LockMode> {
    select(vec![LockMode::Governance, LockMode::Compliance])
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![8 => any::<Index>().prop_map(Which::Existing), 2 => Just(Which::Null), 1 => Just(Which::Unknown)]
}

fn act() -> impl Strategy<Value = Act> {
    let for_ms = prop::option::weighted(0.9, select(vec![0, 1, 4000, 5_000_000]));
    prop_oneof![
        8 => (any::<bool>(), precondition())
            .prop_map(|(bypass_governance, precondition)| Act::Delete { bypass_governance, precondition }),
        1 => prop::option::of(Just("t=2".to_owned())).prop_map(Act::Tag),
        2 => (mode(), for_ms, any::<bool>())
            .prop_map(|(mode, for_ms, bypass_governance)| Act::Retain { mode, for_ms, bypass_governance }),
        1 => any::<bool>().prop_map(Act::Hold),
        2 => key().prop_map(Act::CopyTo),
        3 => any::<bool>().prop_map(|is_current| Act::Expire { is_current }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let bucket = || prop_oneof![9 => Just(0), 3 => Just(1), 3 => Just(2usize), 1 => Just(3usize)];
    let upload = any::<Index>;
    prop_oneof![
        10 => (bucket(), pick(0.3), bytes(), precondition(), 0..3usize, prop::option::weighted(0.05, any::<bool>()))
            .prop_map(|(bucket, key, bytes, precondition, etag, hold)| Op::Put {
                bucket, key, bytes, precondition, etag, hold }),
        4 => (bucket(), pick(0.8), precondition())
            .prop_map(|(bucket, key, precondition)| Op::Delete { bucket, key, precondition }),
        4 => (bucket(), pick(0.8), prop::bool::weighted(0.1), bucket(), key(), prop::option::of(Just("h".to_owned())))
            .prop_map(|(from, from_key, is_stale, bucket, key, headers)| Op::Copy {
                from, from_key, is_stale, bucket, key, headers }),
        1 => (bucket(), pick(0.8), prop::option::of(Just("t=1".to_owned())))
            .prop_map(|(bucket, key, tagging)| Op::Tag { bucket, key, tagging }),
        2 => (bucket(), prop::bool::weighted(0.6))
            .prop_map(|(bucket, is_enabled)| Op::Versioning { bucket, is_enabled }),
        1 => (1..4usize, prop::option::of(default_retention()))
            .prop_map(|(bucket, default)| Op::Lock { bucket, default }),
        8 => (bucket(), pick(0.95), prop::option::weighted(0.9, which()), act())
            .prop_map(|(bucket, key, version, act)| Op::OfVersion { bucket, key, version, act }),
        2 => (bucket(), key()).prop_map(|(bucket, key)| Op::Begin { bucket, key }),
        16 => (bucket(), upload(), 1..=4u16, bytes(), 0..3usize)
            .prop_map(|(bucket, upload, number, bytes, etag)| Op::Part { bucket, upload, number, bytes, etag }),
        4 => (bucket(), upload(), 0..6u8, 0..12u8, precondition())
            .prop_map(|(bucket, upload, left_out, disorder, precondition)| Op::Complete {
                bucket, upload, left_out, disorder, precondition }),
        1 => (bucket(), upload()).prop_map(|(bucket, upload)| Op::Abort { bucket, upload }),
        1 => bucket().prop_map(|bucket| Op::DeleteBucket { bucket }),
        1 => (0..3usize, 1..=3u64).prop_map(|(bucket, tenant)| Op::CreateBucket { bucket, tenant }),
        1 => (1..=2u64, prop::option::of(0..100 * MIB))
            .prop_map(|(tenant, quota_bytes)| Op::Quota { tenant, quota_bytes }),
        2 => vec(any::<Index>(), 0..6).prop_map(|picks| Op::Forget { picks }),
        3 => any::<Index>().prop_map(Op::Repeat),
    ]
}

/// Turns ops into commands that fit what exists.
#[derive(Default)]
struct Writer {
    /// Every blob ever proposed, admitted or not.
    blobs: Vec<NewBlob>,
    /// Every upload ever proposed: bucket, key, id.
    uploads: Vec<(usize, String, String)>,
}

impl Writer {
    fn command(&mut self, oracle: &Oracle, op: &Op) -> Option<Command> {
        let name = |bucket: &usize| BUCKETS[*bucket].to_owned();
        let existing = |bucket: &usize, pick: &Pick| {
            let objects = oracle.buckets.get(BUCKETS[*bucket]).map(|bucket| &bucket.versions);
            match (pick.existing, objects) {
                (Some(index), Some(objects)) if !objects.is_empty() => {
                    objects.keys().nth(index.index(objects.len())).cloned().unwrap_or_default()
                }
                _ => pick.other.clone(),
            }
        };
        Some(match op {
            Op::Put { bucket, key, bytes, precondition, etag, hold } => Command::PutObject {
                bucket: name(bucket),
                key: existing(bucket, key),
                headers: ObjectHeaders {
                    content_type: Some(format!("t/{etag}")),
                    lock: ObjectLock { retention: None, legal_hold: *hold },
                    ..Default::default()
                },
                new: self.content(oracle, bytes, ETAGS[*etag]),
                precondition: precondition.clone(),
                by_form: false,
            },
            Op::Delete { bucket, key, precondition } => Command::DeleteObject {
                bucket: name(bucket),
                key: existing(bucket, key),
                precondition: precondition.clone(),
            },
            Op::Copy { from, from_key, is_stale, bucket, key, headers } => {
                let from_key = existing(from, from_key);
                let source = oracle.buckets.get(BUCKETS[*from]).and_then(|bucket| bucket.current(&from_key));
                let version = source.map_or(1, |object| object.head.version);
                Command::CopyObject {
                    from_bucket: name(from),
                    from_key,
                    from_version: version - u64::from(*is_stale),
                    bucket: name(bucket),
                    key: key.clone(),
                    headers: headers.as_ref().map(|value| ObjectHeaders {
                        user: vec![("k".to_owned(), value.clone())],
                        ..Default::default()
                    }),
                    precondition: Precondition::default(),
                }
            }
            Op::Tag { bucket, key, tagging } => Command::SetObjectTagging {
                bucket: name(bucket),
                key: existing(bucket, key),
                tagging: tagging.clone(),
            },
            Op::Versioning { bucket, is_enabled } => Command::Version(VersionCommand::SetVersioning {
                bucket: name(bucket),
                versioning: if *is_enabled { Versioning::Enabled } else { Versioning::Suspended },
            }),
            Op::Lock { bucket, default } => Command::Version(VersionCommand::SetBucketLock {
                bucket: name(bucket),
                lock: BucketLock { default: *default },
            }),
            Op::OfVersion { bucket, key, version, act } => {
                let key = existing(bucket, key);
                let known = oracle.buckets.get(BUCKETS[*bucket]).and_then(|bucket| bucket.versions.get(&key));
                let version = version.as_ref().map(|which| match (which, known) {
                    (Which::Existing(pick), Some(known)) => known[pick.index(known.len())].head.version_id(),
                    (Which::Unknown, Some(known)) => VersionId::Number(known[0].head.version + 1_000_000),
                    _ => VersionId::Null,
                });
                of_version(oracle, name(bucket), key, version, act)
            }
            Op::Begin { bucket, key } => {
                let id = format!("u{}", self.uploads.len());
                self.uploads.push((*bucket, key.clone(), id.clone()));
                let upload = Upload {
                    id,
                    key: key.clone(),
                    started_at: Timestamp(3),
                    headers: ObjectHeaders { cache_control: Some("c".to_owned()), ..Default::default() },
                    checksum_algorithm: None,
                    checksum_is_composite: false,
                };
                Command::CreateUpload { bucket: name(bucket), upload }
            }
            Op::Part { bucket, upload, number, bytes, etag } => {
                let (bucket, key, upload_id) = self.upload(bucket, upload)?;
                let new = self.content(oracle, bytes, ETAGS[*etag]);
                Command::PutPart { bucket, key, upload_id, number: *number, new }
            }
            Op::Complete { bucket, upload, left_out, disorder, precondition } => {
                let (bucket, key, upload_id) = self.upload(bucket, upload)?;
                let uploads = oracle.buckets.get(&bucket).map_or(&[][..], |bucket| &bucket.uploads);
                let known = uploads.iter().find(|known| known.upload.id == upload_id);
                let mut parts: Vec<(u16, String)> = known.map_or_else(Vec::new, |known| {
                    let parts = known.parts.values().map(|(part, _)| (part.number, part.etag.clone()));
                    parts.filter(|(number, _)| *number != u16::from(*left_out)).collect()
                });
                match disorder {
                    0 => parts.reverse(),
                    1 => parts.push((9, "e1".to_owned())),
                    2 if !parts.is_empty() => parts[0].1 = "other".to_owned(),
                    _ => {}
                }
                Command::CompleteUpload {
                    bucket,
                    key,
                    upload_id,
                    parts,
                    etag: "whole-3".to_owned(),
                    checksum: None,
                    precondition: precondition.clone(),
                }
            }
            Op::Abort { bucket, upload } => {
                let (bucket, key, upload_id) = self.upload(bucket, upload)?;
                Command::AbortUpload { bucket, key, upload_id }
            }
            Op::CreateBucket { bucket, tenant } => {
                Command::CreateBucket { name: name(bucket), tenant: TenantId(*tenant), scheme: None }
            }
            Op::DeleteBucket { bucket } => Command::DeleteBucket { name: name(bucket) },
            Op::Quota { tenant, quota_bytes } => {
                Command::SetTenantQuota { tenant: TenantId(*tenant), quota_bytes: *quota_bytes }
            }
            Op::Forget { picks } if self.blobs.is_empty() => {
                Command::ForgetBlobs { blobs: picks.iter().map(|_| blob_id(u64::MAX)).collect() }
            }
            Op::Forget { picks } => Command::ForgetBlobs {
                blobs: picks.iter().map(|pick| self.blobs[pick.index(self.blobs.len())].id).collect(),
            },
            Op::Repeat(_) => return None,
        })
    }

    /// One of the bucket's uploads, so that most commands find one.
    fn upload(&self, bucket: &usize, pick: &Index) -> Option<(String, String, String)> {
        let own: Vec<_> = self.uploads.iter().filter(|(owner, ..)| owner == bucket).collect();
        let recent = &own[own.len().saturating_sub(2)..];
        if recent.is_empty() {
            return None;
        }
        let (_, key, id) = recent[pick.index(recent.len())];
        Some((BUCKETS[*bucket].to_owned(), key.clone(), id.clone()))
    }

    fn content(&mut self, oracle: &Oracle, bytes: &Bytes_, etag: &str) -> NewContent {
        let mut new = match bytes {
            Bytes_::Empty => empty(),
            Bytes_::Inline(size) => NewContent {
                size: u64::from(*size),
                content: Content::Inline {
                    blob: blob_id(u64::from(*size)),
                    wrapped_key: Bytes::from_static(b"w"),
                    sealed: Bytes::from(vec![1; usize::from(*size) + 16]),
                },
                ..empty()
            },
            Bytes_::WrongSize => NewContent { size: 1, ..empty() },
            Bytes_::Extents { pieces, times, unnamed_blob } => {
                let (mut extents, mut blobs) = (Vec::new(), Vec::new());
                for piece in pieces {
                    let opened_at = Timestamp(oracle.now.0 - piece.age_ms);
                    let (blob, is_given) = match piece.known {
                        Some((pick, is_given)) if !self.blobs.is_empty() => {
                            (self.blobs[pick.index(self.blobs.len())].clone(), is_given)
                        }
                        _ => {
                            self.blobs.push(new_blob(self.blobs.len() as u64 + 1, opened_at));
                            (self.blobs[self.blobs.len() - 1].clone(), true)
                        }
                    };
                    extents.push(Extent {
                        blob: blob.id,
                        offset: piece.offset,
                        length: piece.length,
                        part: 0,
                    });
                    if is_given && !blobs.contains(&blob) {
                        blobs.push(blob);
                    }
                }
                let repeated = std::iter::repeat_n(extents, *times).flatten().collect();
                let mut new = content(repeated, blobs);
                if *unnamed_blob {
                    new.blobs.push(new_blob(1 << 40, oracle.now));
                }
                new
            }
        };
        new.etag = etag.to_owned();
        new
    }
}

fn of_version(
    oracle: &Oracle,
    bucket: String,
    key: String,
    version: Option<VersionId>,
    act: &Act,
) -> Command {
    Command::Version(match act.clone() {
        Act::Delete { bypass_governance, precondition } => {
            VersionCommand::Delete { bucket, key, version, bypass_governance, precondition }
        }
        Act::Tag(tagging) => VersionCommand::SetTagging { bucket, key, version, tagging },
        Act::Retain { mode, for_ms, bypass_governance } => {
            let retention = for_ms.map(|for_ms| Retention { mode, until: Timestamp(oracle.now.0 + for_ms) });
            VersionCommand::SetRetention { bucket, key, version, retention, bypass_governance }
        }
        Act::Hold(is_held) => VersionCommand::SetLegalHold { bucket, key, version, is_held },
        Act::Expire { is_current } => {
            let known = oracle.buckets.get(&bucket).and_then(|bucket| bucket.versions.get(&key));
            let expired = |known: &OVersion| Expired {
                key: known.head.key.clone(),
                number: known.head.version,
                is_current,
            };
            VersionCommand::Expire { bucket, versions: known.into_iter().flatten().map(expired).collect() }
        }
        Act::CopyTo(to) => {
            let from_version = match version {
                Some(VersionId::Number(number)) => number,
                _ => 1,
            };
            return Command::CopyObject {
                from_bucket: bucket.clone(),
                from_key: key,
                from_version,
                bucket,
                key: to,
                headers: None,
                precondition: Precondition::default(),
            };
        }
    })
}

/// The oracle lets a blob be given that nothing names: that alone is decided here.
fn names_all(command: &Command) -> bool {
    let (Command::PutObject { new, .. } | Command::PutPart { new, .. }) = command else { return true };
    let named = |blob: &NewBlob| match &new.content {
        Content::Extents(extents) => extents.iter().any(|extent| extent.blob == blob.id),
        _ => false,
    };
    new.blobs.iter().all(named)
}

/// Leaves out what the oracle cannot know: inodes, and the words of messages.
fn plain(mut result: Result<Reply, Refusal>) -> Result<Reply, Refusal> {
    match &mut result {
        Ok(Reply::Object(head) | Reply::Version(VersionReply::Changed(head))) => head.inode = 0,
        Err(Refusal::Version(VersionRefusal::BucketState(why))) => why.clear(),
        Ok(Reply::Bucket(bucket)) => (bucket.id, bucket.root) = (0, 0),
        Err(Refusal::Invalid(why) | Refusal::AlreadyExists(why) | Refusal::NotFound(why)) => why.clear(),
        _ => {}
    }
    result
}

fn step_ms() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..5000u64, 1 => Just(3_590_000), 1 => Just(REVIVE_MS_MAX), 1 => Just(2 * REVIVE_MS_MAX)]
}

fn delimiter() -> impl Strategy<Value = String> {
    select(vec!["", "/", "/", "/", "a", "//", "é", "-", "/a", "0/"]).prop_map(str::to_owned)
}

pub fn list(bucket: &'static str) -> impl Strategy<Value = ListObjects> {
    let prefix = prop_oneof![2 => Just(String::new()), 3 => key()];
    let after = prop_oneof![2 => Just(String::new()), 3 => key()];
    (prefix, delimiter(), after, 0..6u32).prop_map(move |(prefix, delimiter, after, entries_max)| {
        ListObjects { bucket: bucket.to_owned(), prefix, delimiter, after, entries_max }
    })
}

type Reads = (ListObjects, (u64, u32), (String, Index, u32), (ListObjects, Index));

fn history() -> impl Strategy<Value = Vec<(u64, Vec<Op>, Reads)>> {
    let reads = (
        list("aaa"),
        (0..12 * MIB, 0..5u32),
        (key(), any::<Index>(), 0..4u32),
        (list("aaa"), any::<Index>()),
    );
    vec((step_ms(), vec(op(), 0..10), reads), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    /// The machine answers as the oracle does, every count and index agrees with a recount, repeated commands
    /// change nothing, and the same log makes the same bytes, however it was cut into batches.
    #[test]
    fn histories_agree_with_a_flat_map(history in history()) {
        let mut world = World::new();
        let founded = world.clone();
        let mut oracle = Oracle { now: world.now, ..Oracle::default() };
        for (name, tenant) in [("aaa", 1), ("bbb", 1), ("ccc", 2)] {
            oracle.buckets.insert(name.to_owned(), OBucket { tenant, ..OBucket::default() });
        }
        let mut writer = Writer::default();
        let mut applied: Vec<(Envelope, Result<Reply, Refusal>)> = Vec::new();
        let mut log: Vec<(Timestamp, Vec<Envelope>)> = Vec::new();

        for (step, ops, reads) in &history {
            world.now.0 += step;
            oracle.now = world.now;
            let (mut envelopes, mut expected) = (Vec::new(), Vec::new());
            for op in ops {
                let (envelope, result) = match (op, writer.command(&oracle, op)) {
                    (Op::Repeat(pick), _) if !applied.is_empty() => applied[pick.index(applied.len())].clone(),
                    (_, None) => continue,
                    (_, Some(command)) => {
                        let result = if names_all(&command) {
                            oracle.apply(&command)
                        } else {
                            match oracle.clone().apply(&command) {
                                Ok(_) | Err(Refusal::QuotaExceeded { .. }) => {
                                    Err(Refusal::Invalid(String::new()))
                                }
                                refused => refused,
                            }
                        };
                        let serial = applied.len() as u64;
                        let envelope = Envelope { session: 7, serial, answered_below: 0, command };
                        applied.push((envelope.clone(), result.clone()));
                        (envelope, result)
                    }
                };
                envelopes.push(envelope);
                expected.push(plain(result));
            }
            log.push((world.now, envelopes.clone()));
            let results = world.batch(envelopes);
            prop_assert_eq!(results.into_iter().map(plain).collect::<Vec<_>>(), expected);
            compare(&world, &oracle, &writer)?;
            compare_reads(&world, &oracle, reads)?;
        }

        let (mut again, mut one_by_one) = (founded.clone(), founded);
        for (at, envelopes) in log {
            (again.now, one_by_one.now) = (at, at);
            again.batch(envelopes.clone());
            for envelope in envelopes {
                one_by_one.batch(vec![envelope]);
            }
            one_by_one.batch(Vec::new());
        }
        prop_assert_eq!(&again.kv, &world.kv);
        // Alone the index of the last entry may differ.
        for kv in [&mut world.kv, &mut one_by_one.kv] {
            kv.entries.remove(&[1][..]);
        }
        prop_assert_eq!(&one_by_one.kv, &world.kv);
    }
}

fn compare(world: &World, oracle: &Oracle, writer: &Writer) -> Result<(), TestCaseError> {
    for name in BUCKETS {
        let found = world.ask(Query::Bucket { name: name.to_owned() });
        let Some(expected) = oracle.buckets.get(name) else {
            prop_assert_eq!(found, Err(Refusal::NoSuchBucket));
            continue;
        };
        let Ok(Answer::Bucket(found)) = found else { panic!("{found:?}") };
        let sum = |versions: Vec<&OVersion>| versions.iter().map(|version| version.head.size).sum::<u64>();
        let current: Vec<_> = expected.objects().collect();
        let kept: Vec<_> = expected.all().filter(|version| !version.is_marker).collect();
        prop_assert_eq!(found.object_count, current.len() as u64);
        prop_assert_eq!(found.noncurrent_count, (kept.len() - current.len()) as u64);
        prop_assert_eq!(found.object_bytes + found.noncurrent_bytes, sum(kept));
        prop_assert_eq!(found.object_bytes, sum(current));
        prop_assert_eq!((found.versioning, found.lock), (expected.versioning, expected.lock));
        let all = ListVersions { bucket: name.to_owned(), entries_max: u32::MAX, ..ListVersions::default() };
        prop_assert_eq!(listed_versions(world, &all), oracle.list_versions(&all));
        let all = ListObjects { bucket: name.to_owned(), entries_max: u32::MAX, ..ListObjects::default() };
        prop_assert_eq!(listed(world, &all), oracle.list(&all));
    }
    for id in 1..=2 {
        let Ok(Answer::Tenant(tenant)) = world.ask(Query::Tenant { id: TenantId(id) }) else { panic!() };
        prop_assert_eq!(tenant.used_bytes, oracle.used_bytes(id));
        let owned = oracle.buckets.values().filter(|bucket| bucket.tenant == id);
        let kept = owned.flat_map(OBucket::all).filter(|version| !version.is_marker);
        prop_assert_eq!(tenant.used_objects, kept.count() as u64);
    }

    // Directories exist exactly where keys imply them.
    let entries = world.keys_under(0x40);
    let directories = entries.iter().filter(|key| key.ends_with(b"/") && key.len() > 9).count();
    prop_assert_eq!(directories, oracle.directories());
    let objects: usize = oracle.buckets.values().map(|bucket| bucket.objects().count()).sum();
    prop_assert_eq!(entries.len() - directories, objects);

    // What is not current stands beside the tree, those without an id once more by their key.
    let all: usize = oracle.buckets.values().map(|bucket| bucket.all().count()).sum();
    prop_assert_eq!(world.keys_under(0x42).len(), all - objects);
    let nulls = |versions: &mut dyn Iterator<Item = &OVersion>| {
        versions.filter(|version| !version.head.has_version_id).count()
    };
    let nulls: usize =
        oracle.buckets.values().map(|bucket| nulls(&mut bucket.all()) - nulls(&mut bucket.objects())).sum();
    prop_assert_eq!(world.keys_under(0x43).len(), nulls);
    let whole = |version: &&OVersion| version.head.part_count > 0;
    let completed: usize = oracle.buckets.values().map(|bucket| bucket.all().filter(whole).count()).sum();
    prop_assert_eq!(world.keys_under(0x45).len(), completed);

    // Live blobs, each once, in their group's order; the others wait as garbage, since the time they should.
    let ask = Query::BlobsOfGroup { pg: GROUP, after_sequence: 0, entries_max: u32::MAX };
    let Ok(Answer::Blobs(live)) = world.ask(ask) else { panic!() };
    prop_assert!(live.is_sorted_by(|one, next| one.sequence < next.sequence));
    let live_ids: BTreeSet<_> = live.iter().map(|blob| blob.id).collect();
    prop_assert_eq!(live_ids.len(), live.len());
    prop_assert_eq!(live_ids, oracle.references().into_keys().collect());
    let mut garbage: Vec<(u64, BlobId)> = Vec::new();
    let waiting = oracle.blobs.iter().filter_map(|(id, blob)| Some((blob.garbage_since?.0, *id)));
    let mut expected: Vec<_> = waiting.collect();
    expected.sort();
    world
        .kv
        .scan(&[0x53], &[0x54], &mut |key, _| {
            let (since, id) = key[1..].split_at(8);
            garbage.push((
                u64::from_be_bytes(since.try_into().expect("8 bytes")),
                BlobId(id.try_into().expect("16 bytes")),
            ));
            ControlFlow::Continue(())
        })
        .expect("memory does not fail");
    prop_assert_eq!(&garbage, &expected);
    let Ok(Answer::Blobs(offered)) = world.ask(Query::Garbage { before_ms: u64::MAX, entries_max: u32::MAX })
    else {
        panic!()
    };
    let gone = expected.into_iter().filter(|(since, _)| oracle.now.0 - since > REVIVE_MS_MAX);
    prop_assert_eq!(
        offered.into_iter().map(|blob| blob.id).collect::<Vec<_>>(),
        gone.map(|(_, id)| id).collect::<Vec<_>>()
    );
    let ids: Vec<BlobId> = writer.blobs.iter().map(|blob| blob.id).collect();
    let Ok(Answer::BlobStates(states)) = world.ask(Query::BlobStates { ids: ids.clone() }) else { panic!() };
    for (id, state) in ids.iter().zip(states) {
        prop_assert_eq!(state.is_some(), oracle.blobs.contains_key(id));
        if let (Some(state), Some(known)) = (state, oracle.blobs.get(id)) {
            prop_assert_eq!((state.pg, state.plain_len, state.root), (GROUP, BLOB_BYTES, known.new.root));
            prop_assert_eq!(&state.wrapped_key, &known.new.wrapped_key);
        }
    }
    Ok(())
}

fn listed(world: &World, list: &ListObjects) -> Result<(Vec<Listed>, bool), Refusal> {
    match world.ask(Query::Objects(list.clone()))? {
        Answer::Objects { mut entries, is_truncated } => {
            for entry in &mut entries {
                if let Listed::Object(head) = entry {
                    head.inode = 0;
                }
            }
            Ok((entries, is_truncated))
        }
        other => panic!("a listing answers {other:?}"),
    }
}

fn read(
    world: &World,
    key: &str,
    version: Option<VersionId>,
    (from_offset, extents_max): (u64, u32),
) -> Result<ObjectAnswer, Refusal> {
    let (bucket, key) = ("aaa".to_owned(), key.to_owned());
    let ask = VersionQuery::Object { bucket, key, version, from_offset, extents_max };
    match world.ask(Query::Version(ask))? {
        Answer::Object(answer) => Ok(answer),
        other => panic!("a read answers {other:?}"),
    }
}

fn listed_versions(world: &World, list: &ListVersions) -> Result<(Vec<ListedVersion>, bool), Refusal> {
    match world.ask(Query::Version(VersionQuery::Versions(list.clone())))? {
        Answer::Version(VersionAnswer::Versions { mut entries, is_truncated }) => {
            for entry in &mut entries {
                if let ListedVersion::Version { head, .. } = entry {
                    head.inode = 0;
                }
            }
            Ok((entries, is_truncated))
        }
        other => panic!("a listing answers {other:?}"),
    }
}

/// Any page, and all pages one after the other, whatever version each ends with.
fn compare_version_pages(
    world: &World,
    oracle: &Oracle,
    bucket: &OBucket,
    list: &ListObjects,
    from: &Index,
) -> Result<(), TestCaseError> {
    let mut list = ListVersions {
        bucket: list.bucket.clone(),
        prefix: list.prefix.clone(),
        delimiter: list.delimiter.clone(),
        after: list.after.clone(),
        after_version: None,
        entries_max: list.entries_max,
    };
    prop_assert_eq!(listed_versions(world, &list), oracle.list_versions(&list));
    let all: Vec<_> = bucket.all().collect();
    if !all.is_empty() {
        let head = &all[from.index(all.len())].head;
        (list.after, list.after_version) = (head.key.clone(), Some(head.version_id()));
        prop_assert_eq!(listed_versions(world, &list), oracle.list_versions(&list));
        list.after_version = Some(VersionId::Null);
        prop_assert_eq!(listed_versions(world, &list), oracle.list_versions(&list));
    }
    (list.after, list.after_version) = (String::new(), None);
    let whole = ListVersions { entries_max: 1000, ..list.clone() };
    list.entries_max = list.entries_max.max(1);
    let mut paged = Vec::new();
    loop {
        let (page, is_truncated) = listed_versions(world, &list).expect("the bucket exists");
        let last = page.last().cloned();
        paged.extend(page);
        (list.after, list.after_version) = match last {
            Some(ListedVersion::Version { head, .. }) => (head.key.clone(), Some(head.version_id())),
            Some(ListedVersion::Marker { key, version, .. }) => (key, Some(version)),
            Some(ListedVersion::CommonPrefix(common)) => (common, None),
            None => break,
        };
        if !is_truncated {
            break;
        }
    }
    prop_assert_eq!(Ok((paged, false)), oracle.list_versions(&whole));
    Ok(())
}

fn compare_reads(world: &World, oracle: &Oracle, reads: &Reads) -> Result<(), TestCaseError> {
    let (list, (from_offset, extents_max), (prefix, pick, entries_max), (versions, from)) = reads;
    prop_assert_eq!(listed(world, list), oracle.list(list));
    let Some(bucket) = oracle.buckets.get("aaa") else { return Ok(()) };
    compare_version_pages(world, oracle, bucket, versions, from)?;
    let name = || "aaa".to_owned();

    for (key, versions) in &bucket.versions {
        let ask = Query::Object { bucket: name(), key: key.clone(), from_offset: 0, extents_max: 1 };
        let found = world.ask(ask).is_ok();
        prop_assert_eq!(found, bucket.current(key).is_some());
        let unknown = VersionId::Number(u64::MAX);
        prop_assert_eq!(read(world, key, Some(unknown), (0, 1)), Err(VersionRefusal::NoSuchVersion.into()));
        if let Some(newest) = versions.last().filter(|newest| newest.is_marker) {
            let (version, modified_at) = (newest.head.version_id(), newest.head.modified_at);
            let refusal = VersionRefusal::IsMarker { version, modified_at };
            prop_assert_eq!(read(world, key, None, (0, 1)), Err(refusal.clone().into()));
            prop_assert_eq!(read(world, key, Some(version), (0, 1)), Err(refusal.into()));
        }
    }
    for object in bucket.all().filter(|version| !version.is_marker) {
        let key = &object.head.key;
        let (from_offset, extents_max) = (*from_offset, *extents_max);
        let answer = read(world, key, Some(object.head.version_id()), (from_offset, extents_max));
        let Ok(mut answer) = answer else { panic!("{key:?} is not found") };
        answer.head.inode = 0;
        prop_assert_eq!(&answer.head, &object.head);
        let (mut at, mut expected) = (0, Vec::new());
        if let Content::Extents(extents) = &object.content {
            for extent in extents {
                if at + extent.length > from_offset {
                    expected.push((at, extent.clone()));
                }
                at += extent.length;
            }
            prop_assert_eq!(&answer.content, &Content::Extents(Vec::new()));
        } else {
            prop_assert_eq!(&answer.content, &object.content);
        }
        prop_assert_eq!(answer.is_truncated, expected.len() > extents_max as usize);
        expected.truncate(extents_max as usize);
        for resolved in &answer.extents {
            prop_assert_eq!(resolved.blob.id, resolved.extent.blob);
        }
        let found: Vec<_> =
            answer.extents.into_iter().map(|resolved| (resolved.at, resolved.extent)).collect();
        prop_assert_eq!(found, expected);
    }

    // Uploads by key, then by start; parts by number.
    let mut uploads: Vec<&Upload> = bucket.uploads.iter().map(|upload| &upload.upload).collect();
    uploads.sort_by(|one, next| one.key.cmp(&next.key));
    let after = if uploads.is_empty() { None } else { Some(pick.index(uploads.len())) };
    let ask = Query::Uploads {
        bucket: name(),
        prefix: prefix.clone(),
        after: after.map(|at| (uploads[at].key.clone(), uploads[at].id.clone())),
        entries_max: *entries_max,
    };
    let rest = &uploads[after.map_or(0, |at| at + 1)..];
    let mut expected: Vec<Upload> =
        rest.iter().filter(|upload| upload.key.starts_with(prefix)).map(|upload| (*upload).clone()).collect();
    let is_truncated = *entries_max > 0 && expected.len() > *entries_max as usize;
    expected.truncate(*entries_max as usize);
    prop_assert_eq!(world.ask(ask), Ok(Answer::Uploads { uploads: expected, is_truncated }));
    for upload in &bucket.uploads {
        let ask = Query::Parts {
            bucket: name(),
            key: upload.upload.key.clone(),
            upload_id: upload.upload.id.clone(),
            after: 1,
            entries_max: *entries_max,
        };
        let mut parts: Vec<Part> = upload.parts.range(2..).map(|(_, (part, _))| part.clone()).collect();
        let is_truncated = *entries_max > 0 && parts.len() > *entries_max as usize;
        parts.truncate(*entries_max as usize);
        prop_assert_eq!(world.ask(ask), Ok(Answer::Parts { parts, is_truncated }));
    }
    Ok(())
}
