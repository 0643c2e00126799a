//! What a kernel's steps read and write, where it branches, and what is still wanted later: all that is known before a line of
//! machine code is made.

use std::collections::{BTreeMap, BTreeSet};

use super::span::{self, Span};
use crate::module::ptx::code::{Atom, Binary, Code, NO_GUARD, Op, SPECIAL, Slot, Step, Type, Unary};

/// How a step looks at a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Its lowest bits, as an integer.
    Integer(u32),
    /// Its lowest bits, as a float to reckon with.
    Float(u32),
    /// Its lowest bits, whatever they stand for.
    Bits(u32),
    /// What is wanted of another slot.
    Like(Slot),
}

/// How a register is held between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// 0 or 1.
    Truth,
    Narrow,
    Wide,
    Single,
    Double,
}

/// A kernel as the compiler sees it.
#[derive(Debug)]
pub struct Flow {
    /// Steps that begin a run of steps without a branch into or out of it, ascending; the first is 0.
    pub leaders: Vec<u32>,
    /// How each register is held; `None`: nothing reads it.
    pub classes: Vec<Option<Class>>,
    /// Registers that only arithmetic writes: a NaN in them may have any bits until they are looked at.
    pub lazy: Vec<bool>,
    /// The steps that threads wait at, ascending.
    pub waits: Vec<Wait>,
    /// Which accesses to memory are held against its length together.
    pub spans: BTreeMap<u32, Span>,
}

/// A step that threads wait at. The carry counts as the register behind the last.
#[derive(Debug)]
pub struct Wait {
    pub at: u32,
    /// Registers that go into the frame here: those read later or by the exchange itself, but for those that stand there already.
    pub aside: Vec<Slot>,
    /// Registers that come back from it.
    pub back: Vec<Slot>,
}

/// Kernels beyond these take longer to compile than they are worth, and memory with it.
const STEPS_MAX: usize = 20_000;
const LIVE_WORDS_MAX: usize = 4 << 20;

/// Whether a thread waits here for others.
#[must_use]
pub fn waits(op: &Op) -> bool {
    matches!(op, Op::Barrier | Op::WarpBarrier { .. } | Op::Shuffle { .. } | Op::Vote { .. })
}

/// The number of registers: slots behind them are constants and what differs from thread to thread.
#[must_use]
pub fn registers(code: &Code) -> usize {
    code.special_at
}

/// A slot's value, where it is a constant.
#[must_use]
pub fn constant(code: &Code, slot: Slot) -> Option<u64> {
    let slot = slot as usize;
    if slot < code.special_at + SPECIAL.len() { None } else { code.frame.get(slot).copied() }
}

/// Looks at a kernel.
///
/// # Errors
/// Why it is not compiled.
pub fn of(code: &Code) -> Result<Flow, String> {
    if code.steps.len() > STEPS_MAX {
        return Err(format!("{} instructions; at most {STEPS_MAX} are compiled", code.steps.len()));
    }
    check_order(code)?;
    let leaders = leaders(code);
    let (classes, lazy) = classes(code);
    let waits = if code.steps.iter().any(|step| waits(&step.op)) {
        places_to_wait(code, &leaders, &classes)?
    } else {
        Vec::new()
    };
    let spans = span::spans(code, &leaders);
    Ok(Flow { leaders, classes, lazy, waits, spans })
}

/// Where a kernel's atomics are, what they do, and whether any order of them comes to the same: they commute with their like, and
/// nobody reads what they find.
fn atomics(code: &Code) -> Vec<(usize, Option<Atom>, bool)> {
    let mut read = BTreeSet::new();
    for step in &code.steps {
        looks(step, &mut |slot, _| _ = read.insert(slot));
    }
    let of = |(at, step): (usize, &Step)| match step.op {
        Op::Atomic { op, kind, d, .. } => {
            let commutes = !kind.is_float()
                && matches!(op, Atom::Add | Atom::Min | Atom::Max | Atom::And | Atom::Or | Atom::Xor);
            Some((at, Some(op), commutes && !read.contains(&d)))
        }
        Op::Swap { .. } => Some((at, None, false)),
        _ => None,
    };
    code.steps.iter().enumerate().filter_map(of).collect()
}

fn are_alike(atomics: &[(usize, Option<Atom>, bool)]) -> bool {
    atomics.iter().all(|(_, op, commutes)| *commutes && *op == atomics[0].1)
}

/// Whether what a kernel computes may depend on the order of its threads, on any machine: it has atomics of several kinds, or such
/// whose finds are read, or accesses by which threads talk without a barrier.
pub fn depends_on_order(code: &Code) -> bool {
    code.talks.is_some() || !are_alike(&atomics(code))
}

/// Refuses kernels whose results may depend on the order in which threads run between two barriers: compiled threads run
/// one after the other, interpreted ones in step. What PTX leaves open is not looked for: plain accesses that race.
fn check_order(code: &Code) -> Result<(), String> {
    if let Some(line) = code.talks {
        return Err(format!("line {line}: its threads talk through memory without a barrier"));
    }
    let atomics = atomics(code);
    let all_alike = are_alike(&atomics);
    let is_in_loop = |at: usize| {
        code.steps.iter().enumerate().any(|(from, step)| match step.op {
            Op::Branch { to } => (to as usize..=from).contains(&at),
            _ => false,
        })
    };
    match atomics.as_slice() {
        _ if all_alike => Ok(()),
        [(at, ..)] if !is_in_loop(*at) => Ok(()),
        [(at, ..), ..] => {
            Err(format!("line {}: what its atomics find depends on the threads' order", code.steps[*at].line))
        }
        [] => Ok(()),
    }
}

fn leaders(code: &Code) -> Vec<u32> {
    let mut leaders = BTreeSet::from([0]);
    for (at, step) in (1u32..).zip(&code.steps) {
        match step.op {
            Op::Branch { to } => leaders.extend([to, at]),
            Op::Exit | Op::Trap => _ = leaders.insert(at),
            ref op if waits(op) => _ = leaders.insert(at),
            _ => {}
        }
    }
    leaders.retain(|leader| (*leader as usize) < code.steps.len());
    leaders.into_iter().collect()
}

/// Calls back with every slot that a step reads.
pub fn looks(step: &Step, see: &mut dyn FnMut(Slot, Look)) {
    if step.guard != NO_GUARD {
        see(step.guard, Look::Integer(1));
    }
    let number = |kind: Type| match kind {
        Type::F32 => Look::Float(32),
        Type::F64 => Look::Float(64),
        kind => Look::Integer(kind.bits()),
    };
    match step.op {
        Op::Binary { op, kind, a, b, .. } => {
            see(a, number(kind));
            see(b, if matches!(op, Binary::Shl | Binary::Shr) { Look::Integer(32) } else { number(kind) });
        }
        Op::Unary { op, kind, d, a, .. } => see(
            a,
            match (op, kind) {
                (Unary::Mov, kind) => Look::Bits(kind.bits()),
                (Unary::Not, Type::Pred) => Look::Like(d),
                (Unary::Not | Unary::Cnot | Unary::Neg | Unary::Abs, kind) => number(kind),
                (Unary::Popc | Unary::Clz | Unary::Brev | Unary::Bfind, kind) => Look::Integer(kind.bits()),
                (_, kind) if kind.is_float() => number(kind),
                _ => Look::Integer(64),
            },
        ),
        Op::Mad { kind, a, b, c, .. } => [a, b, c].into_iter().for_each(|slot| see(slot, number(kind))),
        Op::MulWide { kind, a, b, c, .. } => {
            see(a, number(kind));
            see(b, number(kind));
            see(c, Look::Integer((kind.bits() * 2).min(64)));
        }
        Op::Fma { kind, a, b, c, .. } => [a, b, c].into_iter().for_each(|slot| see(slot, number(kind))),
        Op::Carry { kind, a, b, .. } => [a, b].into_iter().for_each(|slot| see(slot, number(kind))),
        Op::Lop3 { a, b, c, .. } | Op::Funnel { a, b, c, .. } | Op::Prmt { a, b, c, .. } => {
            [a, b, c].into_iter().for_each(|slot| see(slot, Look::Integer(32)));
        }
        Op::Bfe { kind, a, b, c, .. } => {
            see(a, Look::Integer(kind.bits()));
            [b, c].into_iter().for_each(|slot| see(slot, Look::Integer(32)));
        }
        Op::Bfi { kind, a, b, c, e, .. } => {
            [a, b].into_iter().for_each(|slot| see(slot, Look::Integer(kind.bits())));
            [c, e].into_iter().for_each(|slot| see(slot, Look::Integer(32)));
        }
        Op::Setp { kind, a, b, with, .. } => {
            [a, b].into_iter().for_each(|slot| see(slot, number(kind)));
            if let Some((_, other, _)) = with {
                see(other, Look::Integer(1));
            }
        }
        Op::Select { d, a, b, p } => {
            [a, b].into_iter().for_each(|slot| see(slot, Look::Like(d)));
            see(p, Look::Integer(1));
        }
        Op::Convert { from, a, .. } => see(a, number(from)),
        Op::Pack { bits, parts, count, .. } => {
            parts[..usize::from(count)].iter().for_each(|slot| see(*slot, Look::Bits(bits)));
        }
        Op::Unpack { bits, a, count, .. } => see(a, Look::Bits((bits * u32::from(count)).min(64))),
        Op::Load { base, .. } => see(base, Look::Integer(64)),
        Op::Store { kind, base, a, count, .. } => {
            see(base, Look::Integer(64));
            a[..usize::from(count)].iter().for_each(|slot| see(*slot, Look::Bits(kind.bits().max(8))));
        }
        Op::Window { a, .. } => see(a, Look::Integer(64)),
        Op::Atomic { kind, base, a, .. } => {
            see(base, Look::Integer(64));
            see(a, number(kind));
        }
        Op::Swap { kind, base, a, b, .. } => {
            see(base, Look::Integer(64));
            [a, b].into_iter().for_each(|slot| see(slot, Look::Bits(kind.bits())));
        }
        Op::WarpBarrier { mask } => see(mask, Look::Bits(32)),
        Op::Shuffle { a, b, c, mask, .. } => {
            [a, b, c, mask].into_iter().for_each(|slot| see(slot, Look::Bits(32)));
        }
        Op::Vote { p, mask, .. } => {
            see(p, Look::Integer(1));
            see(mask, Look::Bits(32));
        }
        Op::Parameter { .. } | Op::Branch { .. } | Op::Barrier | Op::Fence | Op::Exit | Op::Trap => {}
    }
}

/// What a step leaves in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Integer,
    /// A float that arithmetic made, of that many bits.
    Reckoned(u32),
    /// Bits from elsewhere.
    Bits,
}

/// Calls back with every slot that a step writes.
pub fn writes(code: &Code, op: &Op, see: &mut dyn FnMut(Slot, Left)) {
    let number = |kind: Type| if kind.is_float() { Left::Reckoned(kind.bits()) } else { Left::Integer };
    match *op {
        Op::Binary { kind, d, .. } | Op::Fma { kind, d, .. } => see(d, number(kind)),
        Op::Unary { op: Unary::Mov, kind, d, a, .. } => {
            let is_number = |value: u64| match kind.bits() {
                32 => !f32::from_bits(value as u32).is_nan(),
                64 => !f64::from_bits(value).is_nan(),
                _ => false,
            };
            let left = constant(code, a).is_some_and(is_number);
            see(d, if left { Left::Reckoned(kind.bits()) } else { Left::Bits });
        }
        Op::Unary { op: Unary::Neg | Unary::Abs, kind, d, .. } if kind.is_float() => see(d, Left::Bits),
        Op::Unary { op: Unary::Popc | Unary::Clz | Unary::Brev | Unary::Bfind, d, .. } => {
            see(d, Left::Integer)
        }
        Op::Unary { kind, d, .. } => see(d, number(kind)),
        Op::Convert { to, d, .. } => see(d, number(to)),
        Op::Mad { d, .. }
        | Op::MulWide { d, .. }
        | Op::Carry { d, .. }
        | Op::Lop3 { d, .. }
        | Op::Funnel { d, .. }
        | Op::Bfe { d, .. }
        | Op::Bfi { d, .. }
        | Op::Prmt { d, .. }
        | Op::Window { d, .. } => see(d, Left::Integer),
        Op::Setp { p, q, .. } => {
            see(q, Left::Integer);
            see(p, Left::Integer);
        }
        Op::Select { d, .. }
        | Op::Pack { d, .. }
        | Op::Parameter { d, .. }
        | Op::Atomic { d, .. }
        | Op::Swap { d, .. } => see(d, Left::Bits),
        Op::Unpack { parts, count, .. } => {
            parts[..usize::from(count)].iter().for_each(|slot| see(*slot, Left::Bits));
        }
        Op::Load { d, count, .. } => d[..usize::from(count)].iter().for_each(|slot| see(*slot, Left::Bits)),
        Op::Shuffle { d, p, .. } => {
            see(d, Left::Bits);
            see(p, Left::Integer);
        }
        Op::Vote { d, .. } => see(d, Left::Integer),
        Op::Store { .. }
        | Op::WarpBarrier { .. }
        | Op::Branch { .. }
        | Op::Barrier
        | Op::Fence
        | Op::Exit
        | Op::Trap => {}
    }
}

/// Gives every register the narrowest form that keeps all bits that anything looks at.
fn classes(code: &Code) -> (Vec<Option<Class>>, Vec<bool>) {
    let count = registers(code);
    let (mut width, mut votes) = (vec![0u32; count], vec![0i64; count]);
    let mut like: Vec<(usize, usize)> = Vec::new();
    for step in &code.steps {
        looks(step, &mut |slot, look| {
            let slot = slot as usize;
            if slot >= count {
                return;
            }
            let (bits, vote) = match look {
                Look::Integer(bits) => (bits, -1),
                Look::Float(bits) => (bits, 1),
                Look::Bits(bits) => (bits, 0),
                Look::Like(other) => {
                    like.push((slot, other as usize));
                    (0, 0)
                }
            };
            width[slot] = width[slot].max(bits);
            votes[slot] += vote;
        });
        writes(code, &step.op, &mut |slot, left| {
            if let Some(votes) = votes.get_mut(slot as usize) {
                *votes += match left {
                    Left::Integer => -1,
                    Left::Reckoned(_) if !matches!(step.op, Op::Unary { op: Unary::Mov, .. }) => 1,
                    _ => 0,
                };
            }
        });
    }
    loop {
        let mut changed = false;
        for (slot, other) in &like {
            let wanted = width.get(*other).copied().unwrap_or(0);
            changed |= wanted > width[*slot];
            width[*slot] = width[*slot].max(wanted);
        }
        if !changed {
            break;
        }
    }
    let classes: Vec<_> = width
        .iter()
        .zip(&votes)
        .map(|(width, votes)| match (*width, *votes > 0) {
            (0, _) => None,
            (1, _) => Some(Class::Truth),
            (32, true) => Some(Class::Single),
            (64, true) => Some(Class::Double),
            (2..=32, _) => Some(Class::Narrow),
            _ => Some(Class::Wide),
        })
        .collect();
    let mut lazy: Vec<_> =
        classes.iter().map(|class| matches!(class, Some(Class::Single | Class::Double))).collect();
    for step in &code.steps {
        writes(code, &step.op, &mut |slot, left| {
            let slot = slot as usize;
            if slot < count {
                let bits = if classes[slot] == Some(Class::Single) { 32 } else { 64 };
                lazy[slot] &= left == Left::Reckoned(bits);
            }
        });
    }
    (classes, lazy)
}

/// What is read after each step that threads wait at, by the usual backward pass over sets of registers; and what of that
/// stands in the frame already, by a forward one.
fn places_to_wait(code: &Code, leaders: &[u32], classes: &[Option<Class>]) -> Result<Vec<Wait>, String> {
    let count = registers(code) + 1; // The carry is one more.
    let words = count.div_ceil(64);
    if words * leaders.len() > LIVE_WORDS_MAX {
        return Err(format!("{count} registers in {} pieces are too many to compile", leaders.len()));
    }
    let end = |piece: usize| leaders.get(piece + 1).map_or(code.steps.len(), |next| *next as usize);
    let piece_at = |step: u32| leaders.binary_search(&step).ok();
    let has = |set: &[u64], slot: usize| set[slot / 64] >> (slot % 64) & 1 == 1;
    let mut live = vec![vec![0u64; words]; leaders.len()];
    let back = |piece: usize, live: &[Vec<u64>]| {
        let last = end(piece) - 1;
        let mut set = vec![0u64; words];
        let mut flow = |to: u32| {
            if let Some(piece) = piece_at(to) {
                set.iter_mut().zip(&live[piece]).for_each(|(set, more)| *set |= more);
            }
        };
        let step = &code.steps[last];
        let is_sure = step.guard == NO_GUARD;
        match step.op {
            Op::Branch { to } => {
                flow(to);
                if !is_sure {
                    flow(last as u32 + 1);
                }
            }
            Op::Exit | Op::Trap if is_sure => {}
            _ => flow(last as u32 + 1),
        }
        for step in code.steps[leaders[piece] as usize..=last].iter().rev() {
            if step.guard == NO_GUARD {
                writes(code, &step.op, &mut |slot, _| {
                    if (slot as usize) < count - 1 {
                        set[slot as usize / 64] &= !(1 << (slot % 64));
                    }
                });
                if let Op::Carry { gives: true, .. } = step.op {
                    set[(count - 1) / 64] &= !(1 << ((count - 1) % 64));
                }
            }
            looks(step, &mut |slot, _| {
                if (slot as usize) < count - 1 {
                    set[slot as usize / 64] |= 1 << (slot % 64);
                }
            });
            if let Op::Carry { takes: true, .. } = step.op {
                set[(count - 1) / 64] |= 1 << ((count - 1) % 64);
            }
        }
        set
    };
    loop {
        let mut changed = false;
        for piece in (0..leaders.len()).rev() {
            let set = back(piece, &live);
            changed |= set != live[piece];
            live[piece] = set;
        }
        if !changed {
            break;
        }
    }
    let is_held = |slot: usize| slot == count - 1 || classes[slot].is_some();
    // What each piece begins with in the frame, until it is shown otherwise: all; the first: nothing.
    let mut kept = vec![vec![u64::MAX; words]; leaders.len()];
    kept[0].fill(0);
    let forth = |piece: usize, kept: &[Vec<u64>]| {
        let mut set = kept[piece].clone();
        let last = end(piece) - 1;
        for step in &code.steps[leaders[piece] as usize..=last] {
            if waits(&step.op) {
                break;
            }
            writes(code, &step.op, &mut |slot, _| {
                if (slot as usize) < count - 1 {
                    set[slot as usize / 64] &= !(1 << (slot % 64));
                }
            });
            if let Op::Carry { gives: true, .. } = step.op {
                set[(count - 1) / 64] &= !(1 << ((count - 1) % 64));
            }
        }
        set
    };
    loop {
        let mut changed = false;
        for piece in 0..leaders.len() {
            let set = forth(piece, &kept);
            let last = end(piece) - 1;
            let step = &code.steps[last];
            let mut meet = |to: u32, set: &[u64]| {
                if let Some(to) = piece_at(to) {
                    for (kept, one) in kept[to].iter_mut().zip(set) {
                        changed |= *kept & !one != 0;
                        *kept &= one;
                    }
                }
            };
            match step.op {
                Op::Branch { to } => {
                    meet(to, &set);
                    meet(last as u32 + 1, &set);
                }
                // Behind a wait the frame holds all that is read there; past one that was skipped, what it held.
                ref op if waits(op) => {
                    if let Some(next) = piece_at(last as u32 + 1) {
                        let after = live[next].clone();
                        meet(last as u32 + 1, &after);
                    }
                    if step.guard != NO_GUARD {
                        meet(last as u32 + 1, &set);
                    }
                }
                _ => meet(last as u32 + 1, &set),
            }
        }
        if !changed {
            break;
        }
    }
    let mut found = Vec::new();
    for (piece, start) in leaders.iter().enumerate() {
        let last = end(piece) - 1;
        debug_assert!(*start as usize <= last);
        let step = &code.steps[last];
        if !waits(&step.op) {
            continue;
        }
        let held = forth(piece, &kept);
        let next = piece_at(last as u32 + 1).map(|next| &live[next]);
        let back: Vec<Slot> = (0..count)
            .filter(|slot| next.is_some_and(|set| has(set, *slot)) && is_held(*slot))
            .map(|slot| slot as Slot)
            .collect();
        let mut aside = back.clone();
        writes(code, &step.op, &mut |written, _| aside.retain(|slot| *slot != written));
        looks(&Step { guard: NO_GUARD, ..*step }, &mut |slot, _| {
            if (slot as usize) < count - 1 && !aside.contains(&slot) {
                aside.push(slot);
            }
        });
        aside.retain(|slot| !has(&held, *slot as usize));
        found.push(Wait { at: last as u32, aside, back });
    }
    Ok(found)
}
