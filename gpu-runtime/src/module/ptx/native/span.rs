//! Accesses to memory that are held against its length together.

use std::collections::BTreeMap;

use super::flow::{waits, writes};
use crate::module::ptx::code::{At, Code, NO_GUARD, Op, Slot, Type};
use crate::module::ptx::text::Space;

/// Accesses of one size off one base, in one run of steps: all of them are made, or the kernel faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first of them in the code, which holds all against the length.
    pub lead: u32,
    /// The least offset among them, and by how many accesses the farthest is away from it.
    pub low: i64,
    pub reach: u32,
}

/// Bytes between the first and the last access of a span.
const SPAN_BYTES_MAX: i64 = 1 << 20;

/// Steps of the same span, from its first on: each with how far its address is from the first's.
pub fn span_from(code: &Code, first: u32) -> Vec<(u32, i64)> {
    let Some((space, base, start, bytes)) = access(&code.steps[first as usize].op) else { return Vec::new() };
    let mut found = Vec::new();
    for (at, step) in (first..).zip(&code.steps[first as usize..]) {
        let is_end = matches!(step.op, Op::Branch { .. } | Op::Exit | Op::Trap) || waits(&step.op);
        if let Some((other, from, offset, size)) = access(&step.op)
            && (other, from, size) == (space, base, bytes)
            && (step.guard == NO_GUARD || at == first)
        {
            found.push((at, offset.wrapping_sub(start)));
        }
        let mut is_moved = is_end;
        writes(code, &step.op, &mut |slot, _| is_moved |= slot == base);
        if is_moved {
            break;
        }
    }
    found
}

/// What a step touches: the space, the base, the offset and the bytes.
fn access(op: &Op) -> Option<(At, Slot, i64, u32)> {
    let bytes = |kind: Type, count: u8| kind.bits() / 8 * u32::from(count);
    match *op {
        Op::Load { at, kind, base, offset, count, .. } | Op::Store { at, kind, base, offset, count, .. } => {
            Some((at, base, offset, bytes(kind, count)))
        }
        Op::Atomic { at, kind, base, offset, .. } | Op::Swap { at, kind, base, offset, .. } => {
            Some((at, base, offset, bytes(kind, 1)))
        }
        _ => None,
    }
}

/// Finds accesses off the same base without a write to it, a branch or a wait between them. Where the whole span does not
/// fit its memory, one of them would fault, and nothing that another did in the meantime is ever seen.
pub fn spans(code: &Code, leaders: &[u32]) -> BTreeMap<u32, Span> {
    type Open = Vec<((Option<Space>, Slot, u32), Vec<(u32, i64)>)>;
    let mut spans = BTreeMap::new();
    let mut close = |members: &[(u32, i64)], bytes: u32| {
        let (Some((lead, _)), Some(low)) = (members.first(), members.iter().map(|(_, offset)| *offset).min())
        else {
            return;
        };
        let high = members.iter().map(|(_, offset)| *offset).max().unwrap_or(low);
        let span = Span { lead: *lead, low, reach: ((high - low) / i64::from(bytes)) as u32 };
        spans.extend(members.iter().map(|(at, _)| (*at, span)));
    };
    for (piece, start) in leaders.iter().enumerate() {
        let end = leaders.get(piece + 1).map_or(code.steps.len(), |next| *next as usize);
        let mut open: Open = Vec::new();
        for at in *start..end as u32 {
            let step = &code.steps[at as usize];
            if let Some((space, base, offset, bytes)) = access(&step.op).filter(|_| step.guard == NO_GUARD)
                && bytes > 0
            {
                let key = (space, base, bytes);
                let fits = |first: i64| {
                    let apart = offset.saturating_sub(first);
                    apart.saturating_abs() <= SPAN_BYTES_MAX && apart % i64::from(bytes) == 0
                };
                match open.iter_mut().find(|(one, members)| *one == key && fits(members[0].1)) {
                    Some((_, members)) => members.push((at, offset)),
                    None => open.push((key, vec![(at, offset)])),
                }
            }
            writes(code, &step.op, &mut |slot, _| {
                open.retain(|((_, base, bytes), members)| {
                    if *base == slot {
                        close(members, *bytes);
                    }
                    *base != slot
                });
            });
        }
        open.iter().for_each(|((_, _, bytes), members)| close(members, *bytes));
    }
    spans
}
