//! Sessions: what makes a command that comes twice apply once.
//!
//! Each reply is kept under its session and serial until the session says that it was answered. Below that
//! floor nothing is applied: a copy of an answered command that lay about in a network changes nothing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::draft::{Draft, read, scan_records};
use super::keys;
use super::kv::KvError;
use crate::facts::Timestamp;
use crate::facts::command::{Envelope, Refusal, Reply};

/// Replies kept for one session; older ones are dropped, and their commands refused from then on.
pub const REPLIES_KEPT_MAX: u64 = 65_536;
/// How old `last_seen` may be: an idle session that only repeats itself is not written each time.
pub const SEEN_STEP_MS: u64 = 60_000;
/// Sessions that one command drops at most.
pub const EXPIRED_AT_ONCE_MAX: usize = 1000;

type Remembered = Result<Reply, Refusal>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    last_seen: Timestamp,
    /// Serials below it are answered, and their replies gone.
    floor: u64,
}

struct Session {
    stored: Option<Record>,
    floor: u64,
}

/// The sessions that a batch has met.
#[derive(Default)]
pub struct Sessions {
    met: BTreeMap<u64, Session>,
}

impl Sessions {
    /// The reply to a command that was applied before; `None`: apply it.
    pub fn recall(&mut self, draft: &Draft<'_>, envelope: &Envelope) -> Result<Option<Remembered>, KvError> {
        let session = match self.met.entry(envelope.session) {
            std::collections::btree_map::Entry::Occupied(met) => met.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let stored: Option<Record> = read(draft, &keys::session(envelope.session))?;
                new.insert(Session { stored, floor: stored.map_or(0, |record| record.floor) })
            }
        };
        if envelope.serial < session.floor {
            let why = format!("command {} of its session was answered before", envelope.serial);
            return Ok(Some(Err(Refusal::Invalid(why))));
        }
        let remembered = read(draft, &keys::reply(envelope.session, envelope.serial))?;
        let outgrown = envelope.serial.saturating_sub(REPLIES_KEPT_MAX - 1);
        session.floor = session.floor.max(envelope.answered_below).max(outgrown);
        Ok(remembered)
    }

    pub fn remember(
        &self,
        draft: &mut Draft<'_>,
        envelope: &Envelope,
        result: &Remembered,
    ) -> Result<(), KvError> {
        draft.write(keys::reply(envelope.session, envelope.serial), result)
    }

    /// Forgets what was answered, and writes that the sessions were seen.
    pub fn close(self, draft: &mut Draft<'_>) -> Result<(), KvError> {
        for (id, Session { stored, floor }) in self.met {
            let before = stored.map_or(0, |record| record.floor);
            if before < floor {
                draft.delete_range(&keys::reply(id, before), &keys::reply(id, floor))?;
            }
            let is_seen = stored.is_some_and(|record| {
                record.floor == floor && draft.now.millis_since(record.last_seen) < SEEN_STEP_MS
            });
            if !is_seen {
                draft.write(keys::session(id), &Record { last_seen: draft.now, floor })?;
            }
        }
        Ok(())
    }

    /// Drops sessions that were not heard of for `idle_ms`, those met in this batch left out.
    pub fn expire(&self, draft: &mut Draft<'_>, idle_ms: u64) -> Result<(), KvError> {
        let mut idle = Vec::new();
        let from = keys::sessions();
        scan_records(draft, &from, &keys::end_of(&from), &mut |key, record: Record| {
            let unheard_ms = draft.now.millis_since(record.last_seen).saturating_sub(SEEN_STEP_MS);
            if let Ok(id) = <[u8; 8]>::try_from(&key[1..])
                && unheard_ms > idle_ms
                && !self.met.contains_key(&u64::from_be_bytes(id))
            {
                idle.push(u64::from_be_bytes(id));
            }
            if idle.len() < EXPIRED_AT_ONCE_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        for id in idle {
            draft.delete_all(&keys::replies(id))?;
            draft.delete(keys::session(id));
        }
        Ok(())
    }
}
