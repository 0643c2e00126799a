//! The one thread of a disk that makes things durable.
//!
//! It takes all that waits, writes the footers, syncs each touched segment once, and answers all: while one
//! sync runs the next group gathers. Deaths (deletes, and records replaced by later ones) come second, so that
//! whatever is acknowledged dead is dead before anyone hears of it.
//!
//! Being the only one that moves the index, it decides the order of all finishes, moves and deletes.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::core::{Core, lock};
use super::disk::DiskFile;
use super::error::StoreError;
use super::format::{HEADER_BYTES, RecordFooter, STATE_AT, STATE_DEAD, encode_footer};
use super::index::Entry;
use super::janitor::Chore;
use super::segment::Room;
use super::writer::Permit;
use crate::ids::ShardKey;

/// A record whose cells are written and whose footer is not.
pub struct Finish {
    pub room: Room,
    /// All but `sequence` and `durable_through`.
    pub footer: RecordFooter,
    /// The record that this is a copy of: it counts only while that one is current.
    pub copy_of: Option<Entry>,
    /// Held until the answer: it bounds what waits.
    pub permit: Option<Permit>,
    pub reply: oneshot::Sender<Result<(), StoreError>>,
}

pub struct Delete {
    pub keys: Vec<ShardKey>,
    pub reply: oneshot::Sender<Result<(), StoreError>>,
}

#[derive(Default)]
struct Waiting {
    finishes: Vec<Finish>,
    deletes: Vec<Delete>,
    is_stopped: bool,
}

/// What waits for the flusher: at most one finish an open writer.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl Queue {
    /// Gives the job back once the flusher is stopping.
    pub fn finish(&self, finish: Finish) -> Result<(), Box<Finish>> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_stopped {
            return Err(Box::new(finish));
        }
        waiting.finishes.push(finish);
        self.wake.notify_one();
        Ok(())
    }

    pub fn delete(&self, delete: Delete) -> Result<(), Delete> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_stopped {
            return Err(delete);
        }
        waiting.deletes.push(delete);
        self.wake.notify_one();
        Ok(())
    }

    /// What waits is still done.
    pub fn stop(&self) {
        lock(&self.waiting).is_stopped = true;
        self.wake.notify_one();
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        lock(&self.waiting).finishes.len()
    }

    fn next(&self) -> Option<(Vec<Finish>, Vec<Delete>)> {
        let waiting = lock(&self.waiting);
        let idle = |waiting: &mut Waiting| {
            waiting.finishes.is_empty() && waiting.deletes.is_empty() && !waiting.is_stopped
        };
        let mut waiting = self.wake.wait_while(waiting, idle).unwrap_or_else(PoisonError::into_inner);
        let (finishes, deletes) = (mem::take(&mut waiting.finishes), mem::take(&mut waiting.deletes));
        (!finishes.is_empty() || !deletes.is_empty()).then_some((finishes, deletes))
    }
}

/// Runs until the queue is stopped and empty. `sequence` is the last one given out.
pub fn run(core: &Core, mut sequence: u64) {
    let mut durable_through = sequence;
    while let Some((finishes, deletes)) = core.queue.next() {
        let replaced = commit(core, finishes, &mut sequence, durable_through);
        if core.check_working().is_ok() {
            durable_through = sequence;
        }
        erase(core, replaced, deletes);
    }
}

/// A finish on its way: its record and where it lies.
struct Written {
    key: ShardKey,
    entry: Entry,
    room: Room,
    is_copy: bool,
    _permit: Option<Permit>,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

/// Makes the finished records durable and readable; returns those they replace.
fn commit(core: &Core, mut finishes: Vec<Finish>, sequence: &mut u64, durable_through: u64) -> Vec<Entry> {
    // Copies go first: whatever is written anew in the same group is later than any copy.
    finishes.sort_by_key(|finish| finish.copy_of.is_none());
    let mut written = Vec::with_capacity(finishes.len());
    for finish in finishes {
        let reply = finish.reply;
        match write_footer(core, finish.room, finish.footer, finish.copy_of, sequence, durable_through) {
            Ok((room, footer)) => {
                let entry = Entry::new(room.segment.number, &footer.index_entry(room.at));
                written.push(Written {
                    key: footer.key,
                    entry,
                    room,
                    is_copy: finish.copy_of.is_some(),
                    _permit: finish.permit,
                    reply,
                });
            }
            Err(error) => _ = reply.send(Err(error)),
        }
    }
    if let Err(error) = sync_rooms(core, &written) {
        for finish in written {
            _ = finish.reply.send(Err(error.clone()));
        }
        return Vec::new();
    }
    let mut replaced = Vec::new();
    for Written { key, mut entry, room, is_copy, reply, _permit } in written {
        core.admit(&entry);
        if is_copy && core.index.get(key).is_some_and(|current| current.is_damaged()) {
            entry.set_damaged();
        }
        if let Some(old) = core.index.insert(key, entry) {
            core.forget(&old);
            replaced.push(old);
        }
        room.keep(entry.record_bytes());
        _ = reply.send(Ok(()));
    }
    replaced
}

fn write_footer(
    core: &Core,
    room: Room,
    mut footer: RecordFooter,
    copy_of: Option<Entry>,
    sequence: &mut u64,
    durable_through: u64,
) -> Result<(Room, RecordFooter), StoreError> {
    core.check_working()?;
    if let Some(original) = copy_of
        && !core.index.get(footer.key).is_some_and(|current| current.is_at(&original))
    {
        return Err(StoreError::Missing { key: footer.key });
    }
    *sequence += 1;
    footer.sequence = *sequence;
    footer.durable_through = durable_through;
    let path = &room.segment.path;
    if let Err(error) = room.file.write_at(&encode_footer(&footer), room.at + HEADER_BYTES as u64) {
        // Its sequence will count as durable: part of a footer must not come to life after a crash.
        let dead = room.file.write_at(&[STATE_DEAD], room.at + STATE_AT).and_then(|()| room.file.sync());
        return match dead {
            Ok(()) => Err(StoreError::io("write to", path, error)),
            Err(error) => Err(core.fail("write to", path, &error)),
        };
    }
    Ok((room, footer))
}

fn sync_rooms(core: &Core, written: &[Written]) -> Result<(), StoreError> {
    let mut files: BTreeMap<u32, &Room> = BTreeMap::new();
    for finish in written {
        files.entry(finish.room.segment.number).or_insert(&finish.room);
    }
    for room in files.values() {
        let file: &Arc<dyn DiskFile> = &room.file;
        file.sync().map_err(|error| core.fail("sync", &room.segment.path, &error))?;
    }
    Ok(())
}

/// Makes the replaced and the deleted records dead for good, then gives their room back.
fn erase(core: &Core, replaced: Vec<Entry>, deletes: Vec<Delete>) {
    let mut victims = replaced;
    if let Err(error) = core.check_working() {
        for delete in deletes {
            _ = delete.reply.send(Err(error.clone()));
        }
        return;
    }
    for delete in &deletes {
        for key in &delete.keys {
            if let Some(entry) = core.index.remove(*key) {
                core.forget(&entry);
                victims.push(entry);
            }
        }
    }
    let buried = if victims.is_empty() { Ok(()) } else { core.bury(&victims) };
    if let Err(error) = &buried {
        tracing::warn!(dir = ?core.dir, %error, "records could not be marked dead");
    }
    for delete in deletes {
        _ = delete.reply.send(buried.clone());
    }
    if buried.is_ok() {
        for victim in victims {
            let from = victim.record_at() + victim.body_at() as u64;
            let to = victim.record_at() + victim.record_bytes();
            core.chore(Chore::Punch { number: victim.segment, from, to });
        }
    }
}
