//! Mounts: their leases, the inode numbers they may give, what they are told, and what they hold without a name.
//!
//! While a bucket is mounted, each change that a session did not make itself becomes an event, numbered in order. An
//! inode that loses its last name is kept for the sessions that may have it open; each lets go of it with a renewal
//! that has seen the event and does not name the inode.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::node::{self, free};
use super::tree::{Child, Dir};
use super::{kept, keys, leases, locks};
use crate::facts::Timestamp;
use crate::facts::bucket::Bucket;
use crate::facts::command::Refusal;
use crate::facts::files::{
    EVENTS_KEPT, FileAnswer, FileDone, FileEvent, FileRefusal, GRANT_MAX, LEASE_MS, Name, SESSIONS_MAX,
    SessionGrant,
};
use crate::machine::blobs::Ledger;
use crate::machine::buckets::{self, Change, Flow};
use crate::machine::draft::{Draft, Outcome, keys_in, read, scan_records, shift};
use crate::machine::keys::{self as store_keys, Counter};
use crate::machine::kv::{KvError, View};
use crate::machine::page;

/// Grants of inode numbers that a session can use; older ones are over.
const GRANTS_KEPT: usize = 4;
/// Requests whose results are remembered.
const REQUESTS_KEPT: usize = 64;
/// Inodes that a session may hold without a name.
pub const HELD_MAX: usize = 65_536;
/// Orphans that one renewal looks at.
const ORPHANS_AT_ONCE_MAX: usize = 1000;
const CLIENT_BYTES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    client: String,
    opened_at: Timestamp,
    renewed_at: Timestamp,
    /// First and count.
    grants: Vec<(u64, u32)>,
    /// The last requests, oldest first.
    requests: Vec<u64>,
    /// Until when the directories that it leased are its alone; moves with each change that it makes.
    #[serde(default)]
    leased_until: Option<Timestamp>,
}

impl Session {
    fn is_over(&self, now: Timestamp) -> bool {
        now.millis_since(self.renewed_at) > LEASE_MS
    }
}

/// An inode without a name, and who may hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    pub sequence: u64,
    pub holders: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Event {
    /// The session that made the change; 0: none.
    origin: u64,
    event: FileEvent,
}

pub fn open(
    draft: &mut Draft<'_>,
    mut bucket: Bucket,
    session: u64,
    client: &str,
    below: &[Name],
    inodes_wanted: u32,
) -> Outcome<SessionGrant> {
    if session == 0 || client.len() > CLIENT_BYTES_MAX {
        let why = format!("a session has a number, and a client at most {CLIENT_BYTES_MAX} bytes");
        return Err(Refusal::Invalid(why).into());
    }
    let mut root = Dir::open(draft, &bucket, bucket.root)?;
    for name in below {
        root = match root.child(draft, &bucket, name)? {
            Some(Child::Directory(directory)) => directory,
            Some(Child::File { .. }) => return Err(FileRefusal::NotDirectory.into()),
            None => return Err(FileRefusal::NotFound.into()),
        };
    }
    bucket = expired(draft, bucket)?;
    let key = keys::session(bucket.root, session);
    if draft.get(&key)?.is_some() {
        return Err(Refusal::AlreadyExists("a session of this number".to_owned()).into());
    }
    if bucket.mounts >= SESSIONS_MAX {
        return Err(FileRefusal::NotPermitted(format!(
            "{SESSIONS_MAX} mounts of one bucket are as many as may be"
        ))
        .into());
    }
    bucket.mounts += 1;
    let mut record = Session {
        client: client.to_owned(),
        opened_at: draft.now,
        renewed_at: draft.now,
        grants: Vec::new(),
        requests: Vec::new(),
        leased_until: None,
    };
    // The root's times are kept from the first mount on.
    if root.seat.is_none() && draft.get(&keys::directory(bucket.root))?.is_none() {
        root.write(draft)?;
    }
    let inodes = grant(draft, &mut record, inodes_wanted)?;
    draft.write(key, &record)?;
    draft.write(store_keys::bucket(&bucket.name), &bucket)?;
    let sequence = last_sequence(draft, bucket.root)?;
    Ok(SessionGrant { root: root.stat(), sequence, inodes })
}

fn grant(draft: &mut Draft<'_>, session: &mut Session, count: u32) -> Result<(u64, u32), KvError> {
    let count = count.min(GRANT_MAX);
    if count == 0 {
        return Ok((0, 0));
    }
    let key = store_keys::counter(Counter::Inode);
    let last: u64 = read(draft, &key)?.unwrap_or(0);
    draft.write(key, &shift(last, u64::from(count), 0, "inode numbers given")?)?;
    let grant = (shift(last, 1, 0, "inode numbers given")?, count);
    session.grants.push(grant);
    if session.grants.len() > GRANTS_KEPT {
        session.grants.remove(0);
    }
    Ok(grant)
}

fn of(view: &dyn View, root: u64, session: u64) -> Outcome<Session> {
    let applied = read::<Session>(view, &keys::session(root, session))?;
    Ok(applied.ok_or(FileRefusal::SessionEnded)?)
}

/// Whether the session's lease stands.
pub fn check(draft: &Draft<'_>, root: u64, session: u64) -> Outcome<()> {
    if of(draft, root, session)?.is_over(draft.now) { Err(FileRefusal::SessionEnded.into()) } else { Ok(()) }
}

/// Whether the session may give this number to what it makes.
pub fn check_granted(view: &dyn View, root: u64, session: u64, inode: u64) -> Outcome<()> {
    let grants = of(view, root, session)?.grants;
    let is_granted = grants.iter().any(|(first, count)| inode >= *first && inode - first < u64::from(*count));
    if !is_granted || node::is_used(view, inode)? {
        return Err(FileRefusal::Invalid(format!("inode number {inode} is not the session's to give")).into());
    }
    Ok(())
}

pub fn renew(
    draft: &mut Draft<'_>,
    bucket: Bucket,
    session: u64,
    seen: u64,
    held: &[u64],
    inodes_wanted: u32,
) -> Outcome<SessionGrant> {
    if held.len() > HELD_MAX {
        return Err(Refusal::Invalid(format!("{} inodes held; at most {HELD_MAX}", held.len())).into());
    }
    let root = bucket.root;
    check(draft, root, session)?;
    let mut record = of(draft, root, session)?;
    record.renewed_at = draft.now;
    let inodes = grant(draft, &mut record, inodes_wanted)?;
    draft.write(keys::session(root, session), &record)?;
    let held: std::collections::BTreeSet<u64> = held.iter().copied().collect();
    release(draft, &bucket, session, &|inode, sequence| sequence <= seen && !held.contains(&inode))?;
    let directory = Dir::open(draft, &bucket, root)?;
    Ok(SessionGrant { root: directory.stat(), sequence: last_sequence(draft, root)?, inodes })
}

/// Lets go of orphans that the session holds and `is_free`; those that nobody holds then are freed.
fn release(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    session: u64,
    is_free: &dyn Fn(u64, u64) -> bool,
) -> Outcome<()> {
    let from = keys::orphans(bucket.root);
    let mut found = Vec::new();
    scan_records(draft, &from, &store_keys::end_of(&from), &mut |key, orphan: Orphan| {
        let inode = keys::last_number(key);
        if orphan.holders.contains(&session) && is_free(inode, orphan.sequence) {
            found.push((inode, orphan));
        }
        if found.len() < ORPHANS_AT_ONCE_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    for (inode, mut orphan) in found {
        orphan.holders.retain(|holder| *holder != session);
        let key = keys::orphan(bucket.root, inode);
        if orphan.holders.is_empty() {
            draft.delete(key);
            free_orphan(draft, bucket, inode)?;
        } else {
            draft.write(key, &orphan)?;
        }
    }
    Ok(())
}

fn free_orphan(draft: &mut Draft<'_>, bucket: &Bucket, inode: u64) -> Outcome<()> {
    let Some(file) = node::read_node(draft, inode)? else { return Ok(()) };
    let mut ledger = Ledger::new(bucket.tenant);
    let removed = free(draft, &file, &mut ledger)?;
    ledger.settle(draft)?;
    let object_bytes = Flow { added: 0, removed };
    // Read anew: each freed inode changes what the bucket holds.
    let bucket = buckets::get(draft, &bucket.name)?;
    buckets::account(draft, bucket, Change { object_bytes, ..Change::default() })
}

/// A session that has ended already has: closing it again is no fault.
pub fn close(draft: &mut Draft<'_>, bucket: Bucket, session: u64) -> Outcome<()> {
    let root = bucket.root;
    if draft.get(&keys::session(root, session))?.is_some() {
        end(draft, &bucket, session)?;
    }
    Ok(())
}

fn end(draft: &mut Draft<'_>, bucket: &Bucket, session: u64) -> Outcome<()> {
    let root = bucket.root;
    draft.delete(keys::session(root, session));
    draft.delete_all(&keys::requests(root, session))?;
    locks::release_session(draft, bucket, session)?;
    leases::release_session(draft, root, session)?;
    kept::release_session(draft, bucket, session)?;
    loop {
        let before =
            keys_in(draft, &keys::orphans(root), &store_keys::end_of(&keys::orphans(root)), usize::MAX)?;
        release(draft, bucket, session, &|_, _| true)?;
        let after =
            keys_in(draft, &keys::orphans(root), &store_keys::end_of(&keys::orphans(root)), usize::MAX)?;
        if before.len() == after.len() || before.len() < ORPHANS_AT_ONCE_MAX {
            break;
        }
    }
    let mut bucket = buckets::get(draft, &bucket.name)?;
    bucket.mounts = bucket.mounts.saturating_sub(1);
    if bucket.mounts == 0 {
        // The number stays, so that it never goes back.
        draft.delete_range(&keys::event(root, 0), &store_keys::end_of(&keys::events(root)))?;
    }
    draft.write(store_keys::bucket(&bucket.name), &bucket)?;
    Ok(())
}

/// Ends sessions whose lease is over.
pub fn expire(draft: &mut Draft<'_>, bucket: Bucket) -> Outcome<()> {
    expired(draft, bucket).map(|_| ())
}

fn expired(draft: &mut Draft<'_>, bucket: Bucket) -> Outcome<Bucket> {
    let mut over = Vec::new();
    for (session, record) in all(draft, bucket.root)? {
        if record.is_over(draft.now) {
            over.push(session);
        }
    }
    for session in over {
        end(draft, &bucket, session)?;
    }
    buckets::get(draft, &bucket.name)
}

/// Whether [`expire`] at `now` would end any.
pub fn is_any_over(view: &dyn View, root: u64, now: Timestamp) -> Result<bool, KvError> {
    Ok(all(view, root)?.iter().any(|(_, record)| record.is_over(now)))
}

fn all(view: &dyn View, root: u64) -> Result<Vec<(u64, Session)>, KvError> {
    let from = keys::sessions(root);
    let mut sessions = Vec::new();
    scan_records(view, &from, &store_keys::end_of(&from), &mut |key, record| {
        sessions.push((keys::last_number(key), record));
        ControlFlow::Continue(())
    })?;
    Ok(sessions)
}

/// Until when a session's leases of directories stand.
pub fn leased_until(view: &dyn View, root: u64, session: u64) -> Result<Option<Timestamp>, KvError> {
    let record: Option<Session> = read(view, &keys::session(root, session))?;
    Ok(record.and_then(|record| record.leased_until))
}

/// The session leases directories from now on.
pub fn lease(draft: &mut Draft<'_>, root: u64, session: u64) -> Outcome<()> {
    let mut record = of(draft, root, session)?;
    record.leased_until = Some(leases::until(draft));
    Ok(draft.write(keys::session(root, session), &record)?)
}

/// Whose lease stands.
pub fn is_alive(draft: &Draft<'_>, root: u64, session: u64) -> Result<bool, KvError> {
    let record: Option<Session> = read(draft, &keys::session(root, session))?;
    Ok(record.is_some_and(|record| !record.is_over(draft.now)))
}

/// Sessions that may have a file open that loses its last name.
pub fn holders(draft: &Draft<'_>, bucket: &Bucket, origin: u64, is_held: bool) -> Result<Vec<u64>, KvError> {
    if bucket.mounts == 0 || (bucket.mounts == 1 && origin != 0 && !is_held) {
        return Ok(Vec::new());
    }
    let sessions = all(draft, bucket.root)?.into_iter();
    let alive = sessions.filter(|(_, record)| !record.is_over(draft.now)).map(|(session, _)| session);
    Ok(alive.filter(|session| is_held || *session != origin).collect())
}

/// Tells the other sessions.
pub fn note(draft: &mut Draft<'_>, bucket: &Bucket, origin: u64, event: FileEvent) -> Result<(), KvError> {
    if bucket.mounts > u32::from(origin != 0) {
        note_always(draft, bucket, origin, event)?;
    }
    Ok(())
}

pub fn note_always(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    origin: u64,
    event: FileEvent,
) -> Result<u64, KvError> {
    let sequence = draft.next_at(keys::events(bucket.root))?;
    draft.write(keys::event(bucket.root, sequence), &Event { origin, event })?;
    if let Some(old) = sequence.checked_sub(EVENTS_KEPT) {
        draft.delete(keys::event(bucket.root, old));
    }
    Ok(sequence)
}

pub fn last_sequence(view: &dyn View, root: u64) -> Result<u64, KvError> {
    Ok(read(view, &keys::events(root))?.unwrap_or(0))
}

/// Events after a sequence that the session did not cause.
pub fn events(
    view: &dyn View,
    bucket: &Bucket,
    session: u64,
    after: u64,
    entries_max: u32,
) -> Outcome<FileAnswer> {
    let root = bucket.root;
    of(view, root, session)?;
    let last = last_sequence(view, root)?;
    let is_lost = last.saturating_sub(after) >= EVENTS_KEPT;
    let after = if is_lost { last } else { after };
    let (mut events, mut sequence) = (Vec::new(), after);
    let entries_max = page(entries_max);
    let mut seen = 0;
    let to = store_keys::end_of(&keys::events(root));
    scan_records(view, &keys::event(root, after.saturating_add(1)), &to, &mut |key, event: Event| {
        if seen == entries_max {
            return ControlFlow::Break(());
        }
        seen += 1;
        sequence = keys::last_number(key);
        if event.origin != session {
            events.push(event.event);
        }
        ControlFlow::Continue(())
    })?;
    Ok(FileAnswer::Events { sequence, events, is_lost })
}

/// Remembers what came of a request, so that it is done once.
pub fn remember(
    draft: &mut Draft<'_>,
    root: u64,
    session: u64,
    request: u64,
    results: &[Result<FileDone, Refusal>],
) -> Outcome<()> {
    let mut record = of(draft, root, session)?;
    draft.write(keys::request(root, session, request), results)?;
    record.requests.push(request);
    record.leased_until = record.leased_until.map(|_| leases::until(draft));
    if record.requests.len() > REQUESTS_KEPT {
        let oldest = record.requests.remove(0);
        draft.delete(keys::request(root, session, oldest));
    }
    draft.write(keys::session(root, session), &record)?;
    Ok(())
}

/// Ends all that mounts have of a bucket that goes.
pub fn purge(draft: &mut Draft<'_>, bucket: Bucket) -> Outcome<Bucket> {
    for (session, _) in all(draft, bucket.root)? {
        end(draft, &bucket, session)?;
    }
    draft.delete(keys::directory(bucket.root));
    draft.delete_all(&keys::xattrs(bucket.root))?;
    draft.delete_all(&keys::events(bucket.root))?;
    draft.delete_all(&keys::all_locks(bucket.root))?;
    draft.delete_all(&keys::all_writers(bucket.root))?;
    buckets::get(draft, &bucket.name)
}
