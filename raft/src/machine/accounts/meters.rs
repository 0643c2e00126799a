//! How many bytes lie in every group, what gateways and auditors report, and what follows for each node.
//!
//! All shards of a blob have one length, so a group needs one number: the bytes in each of its slots. Its integral over
//! time is what storage is paid by. A slot that changed hands within an epoch is credited from the next one on.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use makai_erasure::layout::BlobLayout;
use makai_erasure::{DiskId, NodeId, PgId};
use serde::{Deserialize, Serialize};

use super::keys::{self, ReportKind};
use super::{DONE, billing, invalid, pledges, refused, stakes, standing};
use crate::facts::Timestamp;
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, AuditRow, EVIDENCE_MAX, Hash, Lot, NodeUsage, Payout, ROWS_MAX,
    ServedRow, TenantRow,
};
use crate::facts::cluster::{Disk, Group, Node, Role, Standing};
use crate::facts::tenant::TenantId;
use crate::machine::draft::{Draft, Outcome, all, read, scan_records, shift};
use crate::machine::keys as facts;
use crate::machine::kv::{KvError, View};

/// Bytes of the text of one piece of evidence.
const WHY_BYTES_MAX: usize = 256;

/// What lies in each slot of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMeter {
    pub slot_bytes: u64,
    /// Integral of `slot_bytes` since the last sealing, up to `counted_to`.
    pub byte_ms: u128,
    pub counted_to: Timestamp,
}

impl GroupMeter {
    fn count_to(&mut self, now: Timestamp) {
        let span = u128::from(now.millis_since(self.counted_to));
        self.byte_ms = self.byte_ms.saturating_add(span.saturating_mul(u128::from(self.slot_bytes)));
        self.counted_to = now.max(self.counted_to);
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Served {
    served: Vec<ServedRow>,
    tenants: Vec<TenantRow>,
}

/// A blob is referred to from now on.
pub fn blob_came(draft: &mut Draft<'_>, pg: PgId, plain_len: u64) -> Result<(), KvError> {
    count(draft, pg, plain_len, true)
}

/// Nothing refers to a blob any more: what still lies on disks of it is not paid.
pub fn blob_went(draft: &mut Draft<'_>, pg: PgId, plain_len: u64) -> Result<(), KvError> {
    count(draft, pg, plain_len, false)
}

fn count(draft: &mut Draft<'_>, pg: PgId, plain_len: u64, has_come: bool) -> Result<(), KvError> {
    let Some(group) = read::<Group>(draft, &facts::group(pg))? else { return Ok(()) };
    let bytes = BlobLayout::new(group.scheme, plain_len).map_or(0, |layout| layout.shard_len());
    let place = keys::group_meter(pg);
    let fresh = GroupMeter { counted_to: draft.now, ..GroupMeter::default() };
    let mut meter = read(draft, &place)?.unwrap_or(fresh);
    meter.count_to(draft.now);
    meter.slot_bytes = match has_come {
        true => shift(meter.slot_bytes, bytes, 0, "bytes in a group")?,
        // What was there before its bytes were counted goes uncounted too.
        false => meter.slot_bytes.saturating_sub(bytes),
    };
    draft.write(place, &meter)
}

pub(super) fn open_epoch(view: &dyn View, epoch: u64) -> Outcome<()> {
    match standing(view)?.open {
        0 => refused(AccountsRefusal::NotOpen),
        open if open == epoch => Ok(()),
        _ => refused(AccountsRefusal::EpochClosed(epoch)),
    }
}

/// A report that was taken already changes nothing: a retry may come from a process that forgot.
pub fn report_served(
    draft: &mut Draft<'_>,
    epoch: u64,
    reporter: &NodeId,
    part: u32,
    served: &[ServedRow],
    tenants: &[TenantRow],
) -> Outcome<AccountsReply> {
    open_epoch(draft, epoch)?;
    if served.len() > ROWS_MAX || tenants.len() > ROWS_MAX {
        return Err(invalid(format!("a report has at most {ROWS_MAX} rows of a kind; send it in parts")));
    }
    let node: Option<Node> = read(draft, &facts::node(reporter))?;
    if !node.is_some_and(|node| node.roles.contains(&Role::Gateway) || node.roles.contains(&Role::Voter)) {
        return Err(invalid(format!("node {reporter} is no gateway and no voter: it reports nothing")));
    }
    let place = keys::report(epoch, ReportKind::Served, reporter, part);
    if read::<Served>(draft, &place)?.is_none() {
        draft.write(place, &Served { served: served.to_vec(), tenants: tenants.to_vec() })?;
    }
    Ok(DONE)
}

/// As [`report_served`].
pub fn report_audits(
    draft: &mut Draft<'_>,
    epoch: u64,
    auditor: &NodeId,
    part: u32,
    rows: &[AuditRow],
) -> Outcome<AccountsReply> {
    open_epoch(draft, epoch)?;
    let is_too_long = |row: &AuditRow| {
        row.evidence.len() > EVIDENCE_MAX || row.evidence.iter().any(|one| one.why.len() > WHY_BYTES_MAX)
    };
    if rows.len() > ROWS_MAX || rows.iter().any(is_too_long) {
        return Err(invalid(format!(
            "a report has at most {ROWS_MAX} rows, each at most {EVIDENCE_MAX} pieces of evidence of {WHY_BYTES_MAX} bytes"
        )));
    }
    let node: Option<Node> = read(draft, &facts::node(auditor))?;
    if !node.is_some_and(|node| node.roles.contains(&Role::Voter)) {
        return Err(invalid(format!("node {auditor} is no voter: it audits nobody")));
    }
    let place = keys::report(epoch, ReportKind::Audits, auditor, part);
    if read::<Vec<AuditRow>>(draft, &place)?.is_none() {
        draft.write(place, rows)?;
    }
    Ok(DONE)
}

/// Fixes what each node and tenant used until now; returns the nodes' count and the hash of their records.
pub fn seal(draft: &mut Draft<'_>, epoch: u64) -> Outcome<(u64, Hash)> {
    let mut usage: BTreeMap<NodeId, NodeUsage> = BTreeMap::new();
    for node in all::<Node>(draft, &facts::nodes())? {
        if node.standing == Standing::Lost {
            continue;
        }
        let payout: Option<Payout> = read(draft, &keys::payout(&node.id))?;
        let payout = payout.and_then(|payout| payout.in_force(draft.now));
        let (owner, joined_at) = (node.owner, node.joined_at);
        usage.insert(node.id, NodeUsage { payout, owner, joined_at, ..NodeUsage::of(node.id) });
    }
    credit_storage(draft, &mut usage)?;
    let tenants = credit_reports(draft, epoch, &mut usage)?;
    let tenants = billing::seal(draft, &mut usage, tenants)?;
    stakes::seal(draft, epoch, &mut usage)?;
    pledges::seal(draft, epoch, &tenants)?;
    let mut hasher = blake3::Hasher::new_derive_key("makai usage 1");
    for record in usage.values() {
        let place = keys::usage(epoch, &record.node);
        let bytes = rmp_serde::to_vec(record).map_err(|error| KvError(format!("write usage: {error}")))?;
        hasher.update(&(bytes.len() as u64).to_be_bytes()).update(&bytes);
        draft.write(place, record)?;
    }
    draft.write(keys::tenant_usage(epoch), &tenants)?;
    draft.delete_all(&keys::all_reports(epoch))?;
    Ok((usage.len() as u64, Hash(*hasher.finalize().as_bytes())))
}

fn credit_storage(draft: &mut Draft<'_>, usage: &mut BTreeMap<NodeId, NodeUsage>) -> Outcome<()> {
    let disks: BTreeMap<DiskId, Disk> =
        all::<Disk>(draft, &facts::disks())?.into_iter().map(|disk| (disk.id, disk)).collect();
    for group in all::<Group>(draft, &facts::groups())? {
        let place = keys::group_meter(group.id);
        let fresh = GroupMeter { counted_to: draft.now, ..GroupMeter::default() };
        let mut meter: GroupMeter = read(draft, &place)?.unwrap_or(fresh);
        meter.count_to(draft.now);
        let before: Vec<DiskId> = read(draft, &keys::group_slots(group.id))?.unwrap_or_default();
        for (slot, disk) in group.disks.iter().enumerate() {
            let Some(disk) = disks.get(disk).filter(|disk| disk.standing != Standing::Lost) else { continue };
            let Some(record) = usage.get_mut(&disk.node) else { continue };
            record.stored_bytes = record.stored_bytes.saturating_add(meter.slot_bytes);
            let is_its_own = before.get(slot) == Some(&disk.id) || before.is_empty();
            if is_its_own {
                record.storage_byte_ms = record.storage_byte_ms.saturating_add(meter.byte_ms);
            }
        }
        meter.byte_ms = 0;
        draft.write(place, &meter)?;
        if before != group.disks {
            draft.write(keys::group_slots(group.id), &group.disks)?;
        }
    }
    Ok(())
}

/// Sums reports up by node and by tenant. What is reported of nodes that are not there is left out.
fn credit_reports(
    draft: &Draft<'_>,
    epoch: u64,
    usage: &mut BTreeMap<NodeId, NodeUsage>,
) -> Outcome<BTreeMap<TenantId, TenantRow>> {
    let mut tenants: BTreeMap<TenantId, TenantRow> = BTreeMap::new();
    for report in all::<Served>(draft, &keys::reports(epoch, ReportKind::Served))? {
        for row in report.served {
            let Some(record) = usage.get_mut(&row.node) else { continue };
            record.egress_bytes = record.egress_bytes.saturating_add(row.egress_bytes);
            record.repair_bytes = record.repair_bytes.saturating_add(row.repair_bytes);
            record.work_mut = record.work_mut.saturating_add(row.work_mut);
            record.jobs_ok = record.jobs_ok.saturating_add(row.jobs_ok);
            record.jobs_disputed = record.jobs_disputed.saturating_add(row.jobs_disputed);
            record.computed = record.computed.plus(row.computed);
        }
        for row in report.tenants {
            let sum = tenants.entry(row.tenant).or_insert_with(|| TenantRow::of(row.tenant));
            sum.ingress_bytes = sum.ingress_bytes.saturating_add(row.ingress_bytes);
            sum.egress_bytes = sum.egress_bytes.saturating_add(row.egress_bytes);
            sum.requests = sum.requests.saturating_add(row.requests);
        }
    }
    for rows in all::<Vec<AuditRow>>(draft, &keys::reports(epoch, ReportKind::Audits))? {
        for row in rows {
            let Some(record) = usage.get_mut(&row.node) else { continue };
            record.audits_pass = record.audits_pass.saturating_add(row.pass);
            record.audits_fail = record.audits_fail.saturating_add(row.fail);
            record.audits_unknown = record.audits_unknown.saturating_add(row.unknown);
            record.audits_offline = record.audits_offline.saturating_add(row.offline);
            record.audit_bytes = record.audit_bytes.saturating_add(row.bytes);
            let room = EVIDENCE_MAX.saturating_sub(record.evidence.len());
            record.evidence.extend(row.evidence.into_iter().take(room));
        }
    }
    for (node, lot) in all::<(NodeId, Lot)>(draft, &keys::reports(epoch, ReportKind::Lots))? {
        let Some(record) = usage.get_mut(&node) else { continue };
        record.extra.lot = Some(lot);
    }
    Ok(tenants)
}

/// Every group's slot bytes, by group.
pub fn group_meters(view: &dyn View) -> Outcome<Vec<(PgId, GroupMeter)>> {
    let mut found = Vec::new();
    let prefix = keys::group_meters();
    scan_records(view, &prefix, &facts::end_of(&prefix), &mut |key, meter| {
        if let Ok(pg) = <[u8; 4]>::try_from(&key[1..]) {
            found.push((PgId(u32::from_be_bytes(pg)), meter));
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
