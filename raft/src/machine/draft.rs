//! Records in the store, and the changes of one batch before they reach it.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::keys::{self, Counter};
use super::kv::{Edit, KvError, View};
use crate::facts::Timestamp;
use crate::facts::command::Refusal;
use crate::facts::files::FileRefusal;

/// First byte of every value: how the rest is written.
pub const FORMAT: u8 = 1;

/// Why a command or query ended early.
#[derive(Debug)]
pub enum Stop {
    /// It may not be: nothing of it stays.
    Refused(Refusal),
    /// The store failed: nothing of the batch stays.
    Broken(KvError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<FileRefusal> for Stop {
    fn from(refusal: FileRefusal) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<KvError> for Stop {
    fn from(error: KvError) -> Self {
        Self::Broken(error)
    }
}

pub type Outcome<T> = Result<T, Stop>;

/// Parts the cluster's answer from the store's failure.
pub fn settle<T>(outcome: Outcome<T>) -> Result<Result<T, Refusal>, KvError> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
        Err(Stop::Broken(error)) => Err(error),
    }
}

/// A stored record that no release of the machine wrote.
pub fn corrupt(what: &str, key: &[u8]) -> KvError {
    let shown: String = key.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
    KvError(format!("record {shown} is damaged ({what}); replace this node's store with a snapshot"))
}

pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, KvError> {
    let mut bytes = vec![FORMAT];
    append(&mut bytes, value)?;
    Ok(bytes)
}

/// Adds one more MessagePack value to a record.
pub fn append<T: Serialize + ?Sized>(bytes: &mut Vec<u8>, value: &T) -> Result<(), KvError> {
    rmp_serde::encode::write(bytes, value).map_err(|error| KvError(format!("write a record: {error}")))
}

pub fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, KvError> {
    let body = body_of(key, bytes)?;
    rmp_serde::from_slice(body).map_err(|error| corrupt(&error.to_string(), key))
}

/// What follows the format byte.
pub fn body_of<'a>(key: &[u8], bytes: &'a [u8]) -> Result<&'a [u8], KvError> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => Ok(body),
        Some((format, _)) => Err(corrupt(&format!("format {format} is not known to this release"), key)),
        None => Err(corrupt("empty", key)),
    }
}

pub fn read<T: DeserializeOwned>(view: &dyn View, key: &[u8]) -> Result<Option<T>, KvError> {
    view.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Reads what another record says is there.
pub fn expect<T: DeserializeOwned>(view: &dyn View, key: &[u8]) -> Result<T, KvError> {
    read(view, key)?.ok_or_else(|| corrupt("missing", key))
}

/// Visits decoded records of `from..to` until `visit` breaks or fails.
pub fn scan_records<T: DeserializeOwned>(
    view: &dyn View,
    from: &[u8],
    to: &[u8],
    visit: &mut dyn FnMut(&[u8], T) -> ControlFlow<()>,
) -> Result<(), KvError> {
    let mut failure = None;
    view.scan(from, to, &mut |key, value| match decode(key, value) {
        Ok(record) => visit(key, record),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failure.map_or(Ok(()), Err)
}

/// Every record whose key begins with `prefix`.
pub fn all<T: DeserializeOwned>(view: &dyn View, prefix: &[u8]) -> Result<Vec<T>, KvError> {
    let mut records = Vec::new();
    scan_records(view, prefix, &keys::end_of(prefix), &mut |_, record| {
        records.push(record);
        ControlFlow::Continue(())
    })?;
    Ok(records)
}

pub fn is_empty(view: &dyn View, prefix: &[u8]) -> Result<bool, KvError> {
    let mut is_empty = true;
    view.scan(prefix, &keys::end_of(prefix), &mut |_, _| {
        is_empty = false;
        ControlFlow::Break(())
    })?;
    Ok(is_empty)
}

/// The keys of `from..to`, at most `keys_max`.
pub fn keys_in(view: &dyn View, from: &[u8], to: &[u8], keys_max: usize) -> Result<Vec<Vec<u8>>, KvError> {
    let mut found = Vec::new();
    if keys_max > 0 {
        view.scan(from, to, &mut |key, _| {
            found.push(key.to_vec());
            if found.len() < keys_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    Ok(found)
}

/// `value + plus - minus` of a count that can be neither negative nor too large.
pub fn shift(value: u64, plus: u64, minus: u64, what: &str) -> Result<u64, KvError> {
    let shifted = i128::from(value) + i128::from(plus) - i128::from(minus);
    u64::try_from(shifted)
        .map_err(|_| KvError(format!("count of {what} would be {shifted}; replace this node's store")))
}

/// A value to be written; `None`: to be deleted.
type Change = Option<Vec<u8>>;

/// The store as it will be after the batch. Each command's changes can be taken back until the next begins;
/// the store itself is written once, in key order, by [`Draft::commit`].
pub struct Draft<'a> {
    base: &'a mut dyn Edit,
    pub now: Timestamp,
    changes: BTreeMap<Vec<u8>, Change>,
    /// What `changes` held before the command under way touched it, oldest first.
    undo: Vec<(Vec<u8>, Option<Change>)>,
}

impl<'a> Draft<'a> {
    pub fn new(base: &'a mut dyn Edit, now: Timestamp) -> Self {
        Self { base, now, changes: BTreeMap::new(), undo: Vec::new() }
    }

    /// Whatever was written so far stays.
    pub fn begin_command(&mut self) {
        self.undo.clear();
    }

    /// Takes back all that was written since [`Draft::begin_command`].
    pub fn undo_command(&mut self) {
        self.undo_to(0);
    }

    /// How far the command under way has come.
    pub fn mark(&self) -> usize {
        self.undo.len()
    }

    /// Takes back all that the command has written since `mark`.
    pub fn undo_to(&mut self, mark: usize) {
        while self.undo.len() > mark
            && let Some((key, before)) = self.undo.pop()
        {
            match before {
                Some(change) => _ = self.changes.insert(key, change),
                None => _ = self.changes.remove(&key),
            }
        }
    }

    pub fn commit(self) -> Result<(), KvError> {
        for (key, change) in self.changes {
            match change {
                Some(value) => self.base.put(key, value)?,
                None => self.base.delete(key)?,
            }
        }
        Ok(())
    }

    pub fn write<T: Serialize + ?Sized>(&mut self, key: Vec<u8>, record: &T) -> Result<(), KvError> {
        let bytes = encode(record)?;
        self.put(key, bytes);
        Ok(())
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.change(key, Some(value));
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.change(key, None);
    }

    fn change(&mut self, key: Vec<u8>, change: Change) {
        let before = self.changes.insert(key.clone(), change);
        self.undo.push((key, before));
    }

    /// Deletes `from..to`.
    pub fn delete_range(&mut self, from: &[u8], to: &[u8]) -> Result<(), KvError> {
        for key in keys_in(self, from, to, usize::MAX)? {
            self.delete(key);
        }
        Ok(())
    }

    pub fn delete_all(&mut self, prefix: &[u8]) -> Result<(), KvError> {
        self.delete_range(prefix, &keys::end_of(prefix))
    }

    /// The next number of `counter`, from 1.
    pub fn next(&mut self, counter: Counter) -> Result<u64, KvError> {
        self.next_at(keys::counter(counter))
    }

    pub fn next_at(&mut self, key: Vec<u8>) -> Result<u64, KvError> {
        let last: u64 = read(self, &key)?.unwrap_or(0);
        let next = shift(last, 1, 0, "numbers given")?;
        self.write(key, &next)?;
        Ok(next)
    }
}

impl View for Draft<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        if from >= to {
            return Ok(());
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut changes = self.changes.range::<[u8], _>(range).peekable();
        let mut is_over = false;
        self.base.scan(from, to, &mut |key, value| {
            while let Some((changed, change)) = changes.next_if(|(changed, _)| changed.as_slice() <= key) {
                if let Some(value) = change
                    && visit(changed, value).is_break()
                {
                    is_over = true;
                    return ControlFlow::Break(());
                }
                if changed == key {
                    return ControlFlow::Continue(());
                }
            }
            let next = visit(key, value);
            is_over = next.is_break();
            next
        })?;
        if !is_over {
            for (key, change) in changes {
                if let Some(value) = change
                    && visit(key, value).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}
