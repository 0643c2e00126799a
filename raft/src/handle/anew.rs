//! Facts on their way out of a cluster and into one that begins anew with them: a backup, and what is left when most voters
//! are lost.
//!
//! ```text
//! running voter ─ backup ─────────────┐
//! stopped voter ─ salvage (log too) ──┴─> file (a snapshot) ─ restore ─> an empty directory: the only voter of its cluster
//! ```
//!
//! Always: a restored voter continues the file's history under the same cluster, and alone: no other node is a voter in its
//! facts, so that what is left of the former voters is not believed. They come back as new ones, with empty directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::RaftLogReader as _;

use super::node::{MetaConfig, MetaStartError, identify, open};
use crate::facts::cluster::{Node, Role};
use crate::log::GroupStorage;
use crate::log::disk::{Disk, DiskFile, RealDisk};
use crate::log::types::{LogId, StoredMembership, VoterNode};
use crate::machine::draft::{decode, encode};
use crate::machine::keys::{self, Counter};
use crate::machine::kv::KvError;
use crate::store::snapshot::{self, Head};
use crate::store::{MetaStore, Position, StoreConfig};

/// Entries of the log applied at once.
const ENTRIES_AT_ONCE: u64 = 1000;

fn io_at(path: &Path) -> impl Fn(io::Error) -> MetaStartError {
    let path = path.to_path_buf();
    move |source| MetaStartError::Io { path: path.clone(), source }
}

fn invalid(why: impl ToString) -> MetaStartError {
    MetaStartError::Invalid(why.to_string())
}

/// Writes the facts of a stopped voter to a file, which must not exist. Entries of its log that were not applied yet are: of a
/// change that nobody was answered for, either outcome is right.
///
/// # Errors
/// It runs, its directory does not read back, or the file cannot be written.
pub async fn salvage(config: &MetaConfig, file: &Path) -> Result<(), MetaStartError> {
    let (lock, log, store) = open(Arc::new(RealDisk), config)?;
    let mut entries = GroupStorage::new(log.clone(), config.group);
    loop {
        let applied = store.frozen().and_then(|view| view.position()).map_err(|error| invalid(error.0))?;
        let next = applied.applied.map_or(0, |applied| applied.index + 1);
        let piece = entries.try_get_log_entries(next..next + ENTRIES_AT_ONCE).await;
        let piece = piece.map_err(io_at(&config.dir))?;
        if piece.is_empty() {
            break;
        }
        store.apply(&piece).map_err(|error| invalid(error.0))?;
    }
    let view = store.commit_durably().map_err(|error| invalid(error.0))?;
    let mut out = File::options().write(true).create_new(true).open(file).map_err(io_at(file))?;
    let mut failure = Ok(());
    let written = snapshot::write(&config.cluster_id, &view, &mut |piece: Bytes| {
        failure = out.write_all(&piece);
        if failure.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written.map_err(|error| invalid(error.0))?;
    failure.and_then(|()| out.sync_all()).map_err(io_at(file))?;
    log.close();
    drop(lock);
    Ok(())
}

/// What a file of facts says of itself.
///
/// # Errors
/// It is none, of a later release, or damaged: it is read to its end.
pub fn inspect(file: &Path) -> Result<Head, MetaStartError> {
    let opened = open_existing(file)?;
    snapshot::read(&*opened, |_, _| Ok(())).map_err(|why| invalid(format!("{file:?}: {why}")))
}

fn open_existing(file: &Path) -> Result<Box<dyn DiskFile>, MetaStartError> {
    // The port creates what is missing.
    std::fs::metadata(file).map_err(io_at(file))?;
    RealDisk.open(file).map_err(io_at(file))
}

/// Makes `me` the only voter of the cluster that `file` is of, in the directory of `config`, which must be empty or missing.
/// Returns the node as the facts have it now, with its number. Every other node counts as down and votes no more, until it
/// joins again.
///
/// # Errors
/// The directory has facts already, or the file is not whole: nothing is left behind.
pub fn restore(config: &MetaConfig, file: &Path, me: &Node) -> Result<Node, MetaStartError> {
    if std::fs::read_dir(&config.dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(invalid(format!("{:?} holds facts already; move it away first", config.dir)));
    }
    let done = restore_into(config, file, me);
    if done.is_err() {
        _ = std::fs::remove_dir_all(&config.dir);
    }
    done
}

fn restore_into(config: &MetaConfig, file: &Path, me: &Node) -> Result<Node, MetaStartError> {
    let (head, before) = read_nodes(file)?;
    let (me, changes) = changes(&head, before, me).map_err(|error| invalid(error.0))?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let store_config = StoreConfig {
        dir: config.dir.join("store"),
        cluster_id: head.cluster_id.clone(),
        cache_bytes: config.store_cache_bytes,
    };
    let store = MetaStore::open(Arc::clone(&disk), store_config)?;
    store.install_changed(&*open_existing(file)?, &position(&head, &me)?, changes)?;
    store.close().map_err(|error| invalid(error.0))?;
    let identity =
        MetaConfig { cluster_id: head.cluster_id, node_number: me.number, node: me.id, ..config.clone() };
    identify(&*disk, &identity)?;
    Ok(me)
}

/// The nodes in a file of facts, and the counters that change with them.
#[derive(Default)]
struct Before {
    nodes: Vec<Node>,
    last_number: u64,
    map_epoch: u64,
}

fn read_nodes(file: &Path) -> Result<(Head, Before), MetaStartError> {
    let mut before = Before::default();
    let counter = |key: &[u8], value: &[u8], counter: Counter, to: &mut u64| -> Result<(), KvError> {
        if *key == keys::counter(counter) {
            *to = decode(key, value)?;
        }
        Ok(())
    };
    let mut visit = |key: &[u8], value: &[u8]| -> Result<(), KvError> {
        counter(key, value, Counter::Node, &mut before.last_number)?;
        counter(key, value, Counter::MapEpoch, &mut before.map_epoch)?;
        if key.starts_with(&keys::nodes()) {
            before.nodes.push(decode(key, value)?);
        }
        Ok(())
    };
    let read =
        snapshot::read(&*open_existing(file)?, |key, value| visit(key, value).map_err(|error| error.0));
    Ok((read.map_err(|why| invalid(format!("{file:?}: {why}")))?, before))
}

/// This node as it will be, and the records that differ from the file's.
#[allow(clippy::type_complexity)]
fn changes(head: &Head, before: Before, me: &Node) -> Result<(Node, Vec<(Vec<u8>, Vec<u8>)>), KvError> {
    let known = before.nodes.iter().find(|known| known.id == me.id);
    let next = before.last_number + 1;
    let mut roles = me.roles.clone();
    roles.push(Role::Voter);
    let me = Node {
        number: known.map_or(next, |known| known.number),
        joined_at: known.map_or(head.stamp, |known| known.joined_at),
        changed_at: head.stamp,
        standing: crate::facts::cluster::Standing::Active,
        is_up: true,
        roles: roles.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
        ..me.clone()
    };
    let mut changed = vec![(keys::node(&me.id), encode(&me)?)];
    for other in before.nodes.into_iter().filter(|other| other.id != me.id) {
        let roles = other.roles.iter().copied().filter(|role| *role != Role::Voter).collect();
        let other = Node { roles, is_up: false, changed_at: head.stamp, ..other };
        changed.push((keys::node(&other.id), encode(&other)?));
    }
    changed.push((keys::counter(Counter::MapEpoch), encode(&(before.map_epoch + 1))?));
    changed.push((keys::counter(Counter::Node), encode(&before.last_number.max(me.number))?));
    Ok((me, changed))
}

/// The beginning of a history of its own: every entry to come has a later term.
fn position(head: &Head, me: &Node) -> Result<Position, MetaStartError> {
    let index = head.meta.last_log_id.map_or(0, |last| last.index);
    let log_id = LogId { leader_id: LeaderId { term: 0, node_id: 0 }, index };
    let voters = vec![BTreeSet::from([me.number])];
    let nodes = BTreeMap::from([(me.number, VoterNode { key: me.id })]);
    let membership = openraft::Membership::new(voters, nodes).map_err(invalid)?;
    Ok(Position {
        applied: Some(log_id),
        membership: StoredMembership::new(Some(log_id), membership),
        stamp: head.stamp,
    })
}
