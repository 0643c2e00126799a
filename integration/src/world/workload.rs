//! Clients that write, read, list and delete a few keys, and note what they were told.
//!
//! Every version carries its [`ValueId`] as a header, and its bytes follow from that id: a read knows which version it
//! sees, and whether each byte is that version's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use makai_gateway::identity::Caller;
use makai_gateway::objects::{ByteRange, Objects, ObjectsError, Upstream};
use makai_raft::facts::command::{Precondition, Refusal};
use makai_raft::facts::object::{ObjectHead, ObjectHeaders};
use makai_raft::facts::query::{ListObjects, Listed};
use rand::Rng;
use rand::rngs::StdRng;

use super::oracle::{Action, History, OPERATIONS_MAX, Operation, ValueId};

pub const BUCKET: &str = "bucket";
const ID_HEADER: &str = "value";
/// The sizes that clients choose from: nothing, inline, around a page, some stripes.
const SIZE_RANGES: [(u64, u64); 6] =
    [(0, 0), (1, 4096), (4097, 20_000), (65_530, 65_545), (100_000, 140_000), (200_000, 300_000)];
/// Operations on one key before clients leave it alone: room is left for the last reads.
const OPERATIONS_PER_KEY: usize = OPERATIONS_MAX - 40;

/// How one operation ended, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Refused,
    Unknown,
}

/// A read that showed what nobody wrote. Nothing excuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongBytes(pub String);

#[must_use]
pub fn key_name(number: usize) -> String {
    format!("folder-{}/key-{number}", number % 2)
}

/// The size and bytes of a version, from its id alone.
#[must_use]
pub fn content(id: ValueId) -> Bytes {
    let mut state = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (least, most) = SIZE_RANGES[(next() % SIZE_RANGES.len() as u64) as usize];
    let size = (least + next() % (most - least + 1)) as usize;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

fn headers(id: ValueId) -> ObjectHeaders {
    ObjectHeaders { user: vec![(ID_HEADER.into(), id.to_string())], ..ObjectHeaders::default() }
}

fn value_of(head: &ObjectHead) -> Result<ValueId, WrongBytes> {
    let named = head.headers.user.iter().find(|(name, _)| name == ID_HEADER);
    let id = named.and_then(|(_, id)| id.parse().ok());
    id.ok_or_else(|| WrongBytes(format!("{:?} has a version that no client wrote", head.key)))
}

fn upstream(bytes: Bytes, piece: usize) -> Upstream {
    let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Upstream {
        size: Some(bytes.len() as u64),
        body: stream::iter(pieces).boxed(),
        check: Box::new(|_| Ok(None)),
    }
}

/// A client of one gateway after the other.
pub struct Client {
    pub caller: Caller,
    pub history: Arc<History>,
    pub rng: StdRng,
    pub key_count: usize,
}

/// Whether an error says that nothing was changed, now or later.
fn is_refusal(error: &ObjectsError) -> bool {
    matches!(error, ObjectsError::Refused(_) | ObjectsError::AccessDenied | ObjectsError::Body(_))
}

impl Client {
    /// One operation by chance, through this gateway. `patience`: after it the client goes away.
    ///
    /// # Errors
    /// [`WrongBytes`]
    pub async fn step(&mut self, objects: &Objects, patience: Duration) -> Result<Outcome, WrongBytes> {
        let key = key_name(self.rng.random_range(0..self.key_count));
        if self.history.len(&key) >= OPERATIONS_PER_KEY {
            return self.list(objects, OPERATIONS_PER_KEY, patience).await;
        }
        match self.rng.random_range(0..100) {
            0..35 => self.put(objects, &key, false, patience).await,
            35..42 => self.put(objects, &key, true, patience).await,
            42..50 => self.put_in_parts(objects, &key, patience).await,
            50..60 => self.delete(objects, &key, patience).await,
            60..95 => self.get(objects, &key, patience).await,
            _ => self.list(objects, OPERATIONS_PER_KEY, patience).await,
        }
    }

    /// Notes a write, by its result; `None`: the client did not wait for it.
    fn note_write<T>(
        &self,
        key: &str,
        action: Action,
        begun: u64,
        result: Option<Result<T, ObjectsError>>,
    ) -> Outcome {
        let ended = self.history.moment();
        let noted = |action, ended| self.history.note(key, Operation { action, begun, ended });
        match result {
            Some(Ok(_)) => {
                noted(action, Some(ended));
                Outcome::Done
            }
            Some(Err(ObjectsError::Refused(Refusal::PreconditionFailed))) => {
                noted(Action::Found, Some(ended));
                Outcome::Refused
            }
            Some(Err(error)) if is_refusal(&error) => Outcome::Refused,
            Some(Err(_)) | None => {
                noted(action, None);
                Outcome::Unknown
            }
        }
    }

    async fn put(
        &mut self,
        objects: &Objects,
        key: &str,
        is_first: bool,
        patience: Duration,
    ) -> Result<Outcome, WrongBytes> {
        let id = self.history.new_value();
        let action = if is_first { Action::WriteFirst(id) } else { Action::Write(Some(id)) };
        let if_none_match = if is_first { vec!["*".to_owned()] } else { Vec::new() };
        let precondition = Precondition { if_none_match, ..Precondition::default() };
        let upstream = upstream(content(id), self.rng.random_range(1000..100_000));
        let begun = self.history.moment();
        let put = objects.put(&self.caller, BUCKET, key, headers(id), upstream, precondition);
        let result = tokio::time::timeout(patience, put).await.ok();
        Ok(self.note_write(key, action, begun, result))
    }

    /// One part is all that fits: every part but the last has 5 MiB at least.
    async fn put_in_parts(
        &mut self,
        objects: &Objects,
        key: &str,
        patience: Duration,
    ) -> Result<Outcome, WrongBytes> {
        let id = self.history.new_value();
        let prepared = async {
            let upload = objects.create_upload(&self.caller, BUCKET, key, headers(id), None, false).await?;
            if id.is_multiple_of(3) {
                // Replaced by the next one.
                let other = upstream(content(id + 1), 50_000);
                objects.put_part(&self.caller, BUCKET, key, &upload.id, 1, other).await?;
            }
            let part = upstream(content(id), 50_000);
            let part = objects.put_part(&self.caller, BUCKET, key, &upload.id, 1, part).await?;
            Ok::<_, ObjectsError>((upload.id, part.etag))
        };
        let Ok(Ok((upload, etag))) = tokio::time::timeout(patience, prepared).await else {
            return Ok(Outcome::Unknown);
        };
        let begun = self.history.moment();
        let parts = vec![(1, etag)];
        let completed =
            objects.complete_upload(&self.caller, BUCKET, key, &upload, parts, None, Precondition::default());
        let result = tokio::time::timeout(patience, completed).await.ok();
        Ok(self.note_write(key, Action::Write(Some(id)), begun, result))
    }

    async fn delete(
        &mut self,
        objects: &Objects,
        key: &str,
        patience: Duration,
    ) -> Result<Outcome, WrongBytes> {
        let begun = self.history.moment();
        let deleted = objects.delete(&self.caller, BUCKET, key, Precondition::default());
        let result = tokio::time::timeout(patience, deleted).await.ok();
        Ok(self.note_write(key, Action::Write(None), begun, result))
    }

    /// Reads the whole key or a part of it, and checks every byte.
    ///
    /// # Errors
    /// [`WrongBytes`]
    pub async fn get(
        &mut self,
        objects: &Objects,
        key: &str,
        patience: Duration,
    ) -> Result<Outcome, WrongBytes> {
        let range = match self.rng.random_range(0..4) {
            0 => ByteRange::From { first: self.rng.random_range(0..70_000), last: None },
            1 => ByteRange::Last(self.rng.random_range(1..70_000)),
            _ => ByteRange::All,
        };
        match self.get_range(objects, key, range, patience).await? {
            Ok(outcome) => Ok(outcome),
            Err(_) => Ok(Outcome::Unknown),
        }
    }

    /// The inner error: no answer, and why.
    async fn get_range(
        &mut self,
        objects: &Objects,
        key: &str,
        range: ByteRange,
        patience: Duration,
    ) -> Result<Result<Outcome, String>, WrongBytes> {
        let begun = self.history.moment();
        let got = async {
            let download = objects.get(&self.caller, BUCKET, key, range).await?;
            let mut body = download.body;
            let mut bytes = Vec::new();
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece?);
            }
            Ok::<_, ObjectsError>((download.head, download.range, bytes))
        };
        let result = tokio::time::timeout(patience, got).await;
        let seen = match result {
            Ok(Ok((head, range, bytes))) => {
                let id = value_of(&head)?;
                let whole = content(id);
                let is_right = head.size == whole.len() as u64
                    && whole.get(range.start as usize..range.end as usize) == Some(&bytes[..]);
                if !is_right {
                    let (size, count) = (head.size, bytes.len());
                    let told =
                        format!("{key:?}: {count} bytes at {range:?} of {size} are not those of value {id}");
                    return Err(WrongBytes(told));
                }
                Some(id)
            }
            Ok(Err(ObjectsError::Refused(Refusal::NoSuchKey))) => None,
            // There, but shorter than what was asked for: which version is not said.
            Ok(Err(ObjectsError::RangeNotSatisfiable { .. })) => {
                let ended = Some(self.history.moment());
                self.history.note(key, Operation { action: Action::Found, begun, ended });
                return Ok(Ok(Outcome::Refused));
            }
            Ok(Err(error)) if is_refusal(&error) => return Err(WrongBytes(format!("{key:?}: {error}"))),
            Ok(Err(error)) => return Ok(Err(error.to_string())),
            Err(_) => return Ok(Err("no answer in time".into())),
        };
        let ended = Some(self.history.moment());
        self.history.note(key, Operation { action: Action::Read(seen), begun, ended });
        Ok(Ok(Outcome::Done))
    }

    /// Whether the gateway writes and reads: a version of any key, and that key back.
    ///
    /// # Errors
    /// [`WrongBytes`]
    pub async fn probe(&mut self, objects: &Objects, patience: Duration) -> Result<Outcome, WrongBytes> {
        let key = key_name(self.rng.random_range(0..self.key_count));
        match self.put(objects, &key, false, patience).await? {
            Outcome::Done => self.get(objects, &key, patience).await,
            other => Ok(other),
        }
    }

    /// Reads a whole key, which must answer.
    ///
    /// # Errors
    /// What it answers instead.
    pub async fn read_whole(
        &mut self,
        objects: &Objects,
        key: &str,
        patience: Duration,
    ) -> Result<(), WrongBytes> {
        self.get_range(objects, key, ByteRange::All, patience).await?.map(|_| ()).map_err(WrongBytes)
    }

    /// Lists the bucket: a look at every key at once, noted for those with fewer than `noted_max` operations.
    ///
    /// # Errors
    /// [`WrongBytes`]
    pub async fn list(
        &mut self,
        objects: &Objects,
        noted_max: usize,
        patience: Duration,
    ) -> Result<Outcome, WrongBytes> {
        let begun = self.history.moment();
        let list = ListObjects { bucket: BUCKET.into(), entries_max: 1000, ..ListObjects::default() };
        let listed = match tokio::time::timeout(patience, objects.list(&self.caller, list)).await {
            Ok(Ok((listed, _))) => listed,
            Ok(Err(error)) if is_refusal(&error) => {
                return Err(WrongBytes(format!("the bucket cannot be listed: {error}")));
            }
            Ok(Err(_)) | Err(_) => return Ok(Outcome::Unknown),
        };
        let ended = Some(self.history.moment());
        let mut seen = BTreeMap::new();
        for entry in &listed {
            match entry {
                Listed::Object(head) => _ = seen.insert(head.key.clone(), value_of(head)?),
                Listed::CommonPrefix(prefix) => {
                    return Err(WrongBytes(format!(
                        "a listing without a delimiter shows the prefix {prefix:?}"
                    )));
                }
            }
        }
        for key in (0..self.key_count).map(key_name) {
            let action = Action::Read(seen.remove(&key));
            if self.history.len(&key) < noted_max {
                self.history.note(&key, Operation { action, begun, ended });
            }
        }
        match seen.keys().next() {
            None => Ok(Outcome::Done),
            Some(key) => Err(WrongBytes(format!("{key:?} is listed and nobody wrote it"))),
        }
    }
}
