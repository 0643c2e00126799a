//! Nodes, their disks, the groups made of them, and the tokens they join with.
//!
//! The map's epoch grows with every command that changes what the map shows, and with no other.

use std::collections::BTreeSet;

use makai_erasure::{DiskId, NodeId, PgId};
use serde::{Deserialize, Serialize};

use super::draft::{Draft, Outcome, all, is_empty, keys_in, read};
use super::keys::{self, Counter};
use super::kv::{KvError, View};
use crate::facts::cluster::{ClusterMap, Condition, Disk, Group, JoinToken, Node, Role, SlotMove, Standing};
use crate::facts::command::{Refusal, Reply};
use crate::facts::query::Answer;

const CLUSTER_ID_BYTES_MAX: usize = 128;
/// Bytes of a node's name, owner, site, version or one address, and of a token's id.
const TEXT_BYTES_MAX: usize = 255;
const ADDRESSES_MAX: usize = 32;
/// Disks that one node may announce at once.
const DISKS_MAX: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Cluster {
    id: String,
}

/// Empty before the cluster was founded.
pub fn id(view: &dyn View) -> Result<String, KvError> {
    Ok(read::<Cluster>(view, &keys::cluster())?.map(|cluster| cluster.id).unwrap_or_default())
}

fn epoch(view: &dyn View) -> Result<u64, KvError> {
    Ok(read(view, &keys::counter(Counter::MapEpoch))?.unwrap_or(0))
}

fn not_found(what: &str, id: &dyn std::fmt::Display) -> Refusal {
    Refusal::NotFound(format!("{what} {id}"))
}

pub fn init(draft: &mut Draft<'_>, cluster_id: &str) -> Outcome<Reply> {
    if draft.get(&keys::cluster())?.is_some() {
        return Err(Refusal::AlreadyExists("the cluster".to_owned()).into());
    }
    if cluster_id.is_empty() || cluster_id.len() > CLUSTER_ID_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a cluster's id has 1 to {CLUSTER_ID_BYTES_MAX} bytes")).into());
    }
    draft.write(keys::cluster(), &Cluster { id: cluster_id.to_owned() })?;
    draft.next(Counter::MapEpoch)?;
    Ok(Reply::Done)
}

/// Tokens that have expired go, so that they stay few.
pub fn create_token(draft: &mut Draft<'_>, token: &JoinToken) -> Outcome<Reply> {
    if token.id.is_empty() || token.id.len() > TEXT_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a token's id has 1 to {TEXT_BYTES_MAX} bytes")).into());
    }
    if token.uses_left == 0 || token.expires_at <= draft.now {
        return Err(Refusal::Invalid("the token could never be used".to_owned()).into());
    }
    for old in all::<JoinToken>(draft, &keys::tokens())? {
        if old.expires_at <= draft.now {
            draft.delete(keys::token(&old.id));
        }
    }
    let place = keys::token(&token.id);
    if draft.get(&place)?.is_some() {
        return Err(Refusal::AlreadyExists(format!("token {}", token.id)).into());
    }
    draft.write(place, &JoinToken { roles: distinct(&token.roles), ..token.clone() })?;
    Ok(Reply::Done)
}

fn distinct(roles: &[Role]) -> Vec<Role> {
    roles.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
}

/// A token is needed, and used up by one, where a node is new or asks for roles that it did not have.
pub fn join(
    draft: &mut Draft<'_>,
    asked: &Node,
    disks: &[Disk],
    token: Option<&(String, [u8; 32])>,
) -> Outcome<Reply> {
    check_texts(asked)?;
    let roles = distinct(&asked.roles);
    let place = keys::node(&asked.id);
    let known: Option<Node> = read(draft, &place)?;
    let held = known.as_ref().map_or(&[][..], |node| &node.roles);
    let added: Vec<Role> = roles.iter().filter(|role| !held.contains(role)).copied().collect();
    let is_first = known.is_none() && is_empty(draft, &keys::nodes())?;
    if !is_first && (known.is_none() || !added.is_empty()) {
        match token {
            Some((id, secret_hash)) => use_token(draft, id, secret_hash, &added)?,
            None if known.is_some() => return Err(Refusal::RoleDenied(added).into()),
            None => return Err(Refusal::BadToken.into()),
        }
    }
    let is_new = known.is_none();
    let node = match &known {
        Some(known) => Node {
            number: known.number,
            roles,
            standing: known.standing,
            joined_at: known.joined_at,
            is_up: known.is_up,
            changed_at: known.changed_at,
            down_ppm: known.down_ppm,
            ..asked.clone()
        },
        None => Node {
            number: draft.next(Counter::Node)?,
            roles,
            standing: Standing::Active,
            joined_at: draft.now,
            is_up: true,
            changed_at: draft.now,
            down_ppm: 0,
            ..asked.clone()
        },
    };
    let mut is_changed = is_new || known.as_ref() != Some(&node);
    is_changed |= announce(draft, &node.id, disks)?;
    if is_changed {
        draft.write(place, &node)?;
        draft.next(Counter::MapEpoch)?;
    }
    Ok(Reply::Node(node))
}

fn check_texts(node: &Node) -> Result<(), Refusal> {
    let texts = [&node.name, &node.owner, &node.site, &node.version];
    if texts.into_iter().chain(&node.addresses).any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(Refusal::Invalid(format!("a node's texts have at most {TEXT_BYTES_MAX} bytes each")));
    }
    if node.addresses.len() > ADDRESSES_MAX {
        return Err(Refusal::Invalid(format!("a node has at most {ADDRESSES_MAX} addresses")));
    }
    Ok(())
}

fn use_token(draft: &mut Draft<'_>, id: &str, secret_hash: &[u8; 32], roles: &[Role]) -> Outcome<()> {
    let place = keys::token(id);
    let Some(mut token) = read::<JoinToken>(draft, &place)? else { return Err(Refusal::BadToken.into()) };
    if token.secret_hash != *secret_hash || token.expires_at <= draft.now || token.uses_left == 0 {
        return Err(Refusal::BadToken.into());
    }
    let denied: Vec<Role> = roles.iter().filter(|role| !token.roles.contains(role)).copied().collect();
    if !denied.is_empty() {
        return Err(Refusal::RoleDenied(denied).into());
    }
    token.uses_left -= 1;
    if token.uses_left == 0 {
        draft.delete(place);
    } else {
        draft.write(place, &token)?;
    }
    Ok(())
}

/// Adds a node's disks, or renews their sizes. Disks that it does not name stay. Returns whether any changed.
fn announce(draft: &mut Draft<'_>, node: &NodeId, disks: &[Disk]) -> Outcome<bool> {
    if disks.len() > DISKS_MAX {
        return Err(Refusal::Invalid(format!("a node announces at most {DISKS_MAX} disks")).into());
    }
    let mut is_changed = false;
    let mut named = BTreeSet::new();
    for asked in disks {
        if asked.node != *node || !named.insert(asked.id) {
            let why = format!("disk {} is named twice, or as another node's", asked.id);
            return Err(Refusal::Invalid(why).into());
        }
        let place = keys::disk(&asked.id);
        let known: Option<Disk> = read(draft, &place)?;
        let disk = match &known {
            Some(known) if known.node != *node => {
                return Err(Refusal::AlreadyExists(format!("disk {} of another node", asked.id)).into());
            }
            Some(known) => Disk {
                capacity_bytes: asked.capacity_bytes,
                speed_bytes_per_sec: asked.speed_bytes_per_sec,
                ..known.clone()
            },
            None => Disk {
                standing: Standing::Active,
                added_at: draft.now,
                condition: Condition::Well,
                ..asked.clone()
            },
        };
        if known.as_ref() != Some(&disk) {
            draft.write(place, &disk)?;
            is_changed = true;
        }
    }
    Ok(is_changed)
}

pub fn set_node_up(draft: &mut Draft<'_>, id: &NodeId, is_up: bool) -> Outcome<Reply> {
    let place = keys::node(id);
    let mut node: Node = read(draft, &place)?.ok_or_else(|| not_found("node", id))?;
    if node.note_up(is_up, draft.now) {
        draft.write(place, &node)?;
        draft.next(Counter::MapEpoch)?;
    }
    Ok(Reply::Done)
}

pub fn set_node_standing(draft: &mut Draft<'_>, id: &NodeId, standing: Standing) -> Outcome<Reply> {
    let place = keys::node(id);
    let mut node: Node = read(draft, &place)?.ok_or_else(|| not_found("node", id))?;
    if node.standing != standing {
        node.standing = standing;
        draft.write(place, &node)?;
        draft.next(Counter::MapEpoch)?;
    }
    Ok(Reply::Done)
}

pub fn set_disk_standing(draft: &mut Draft<'_>, id: &DiskId, standing: Standing) -> Outcome<Reply> {
    let place = keys::disk(id);
    let mut disk: Disk = read(draft, &place)?.ok_or_else(|| not_found("disk", id))?;
    if disk.standing != standing {
        disk.standing = standing;
        draft.write(place, &disk)?;
        draft.next(Counter::MapEpoch)?;
    }
    Ok(Reply::Done)
}

pub fn set_disk_condition(draft: &mut Draft<'_>, id: &DiskId, condition: Condition) -> Outcome<Reply> {
    let place = keys::disk(id);
    let mut disk: Disk = read(draft, &place)?.ok_or_else(|| not_found("disk", id))?;
    if disk.condition != condition {
        disk.condition = condition;
        draft.write(place, &disk)?;
        draft.next(Counter::MapEpoch)?;
    }
    Ok(Reply::Done)
}

pub fn set_rebalance(draft: &mut Draft<'_>, is_paused: bool) -> Outcome<Reply> {
    let place = keys::rebalance_paused();
    if read::<bool>(draft, &place)?.unwrap_or(false) != is_paused {
        draft.write(place, &is_paused)?;
        draft.next(Counter::MapEpoch)?;
    }
    Ok(Reply::Done)
}

/// A group given as it is changes nothing.
pub fn put_groups(draft: &mut Draft<'_>, map_epoch: u64, groups: &[Group]) -> Outcome<Reply> {
    let epoch = epoch(draft)?;
    if epoch != map_epoch {
        return Err(Refusal::StaleMap(epoch).into());
    }
    let mut named: BTreeSet<PgId> = BTreeSet::new();
    let mut is_changed = false;
    for group in groups {
        let place = keys::group(group.id);
        let known: Option<Group> = read(draft, &place)?;
        check_group(draft, group, known.as_ref())?;
        if !named.insert(group.id) {
            return Err(Refusal::Invalid(format!("group {} is named twice", group.id)).into());
        }
        if known.as_ref() != Some(group) {
            draft.write(place, group)?;
            is_changed = true;
        }
    }
    if is_changed {
        draft.next(Counter::MapEpoch)?;
    }
    Ok(Reply::Done)
}

fn check_group(view: &dyn View, group: &Group, known: Option<&Group>) -> Outcome<()> {
    if let Err(why) = group.check_change(known) {
        return Err(Refusal::Invalid(format!("group {}: {why}", group.id)).into());
    }
    for disk in group.holding() {
        if view.get(&keys::disk(disk))?.is_none() {
            return Err(not_found("disk", disk).into());
        }
    }
    Ok(())
}

/// A blob committed by a writer that began before the switch and wrote to the slot's former disk is behind the group's
/// order then, and found missing as any shard that a write missed.
pub fn finish_move(
    draft: &mut Draft<'_>,
    pg: PgId,
    (slot, to): (u8, DiskId),
    version: u32,
    sequence: u64,
) -> Outcome<Reply> {
    let place = keys::group(pg);
    let mut group: Group = read(draft, &place)?.ok_or_else(|| not_found("group", &pg))?;
    let newer = keys::group_blob(pg, sequence.saturating_add(1))..keys::end_of(&keys::group_blobs(pg));
    let has_newer = !keys_in(draft, &newer.start, &newer.end, 1)?.is_empty();
    let is_meant = |moving: &SlotMove| moving.slot == slot && moving.to == to;
    if group.version != version || has_newer || !group.moves.iter().any(is_meant) {
        return Err(Refusal::PreconditionFailed.into());
    }
    let next = group.version.checked_add(1).filter(|_| usize::from(slot) < group.disks.len());
    let Some(next) = next else {
        return Err(Refusal::Invalid(format!("group {pg} cannot change any more")).into());
    };
    group.version = next;
    group.disks[usize::from(slot)] = to;
    group.moves.retain(|other| !is_meant(other));
    draft.write(place, &group)?;
    draft.next(Counter::MapEpoch)?;
    Ok(Reply::Done)
}

pub fn map(view: &dyn View, known_epoch: Option<u64>) -> Outcome<Answer> {
    let epoch = epoch(view)?;
    if known_epoch == Some(epoch) {
        return Ok(Answer::Unchanged);
    }
    let cluster: Option<Cluster> = read(view, &keys::cluster())?;
    Ok(Answer::ClusterMap(ClusterMap {
        epoch,
        cluster_id: cluster.map(|cluster| cluster.id).unwrap_or_default(),
        nodes: all(view, &keys::nodes())?,
        disks: all(view, &keys::disks())?,
        groups: all(view, &keys::groups())?,
        is_rebalance_paused: read(view, &keys::rebalance_paused())?.unwrap_or(false),
    }))
}
