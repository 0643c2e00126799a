//! What clients did and saw, and whether one order of events explains it.
//!
//! Each key is a register: empty, or one value. A history is right if all that happened can be put in one order in
//! which every operation lies between its call and its answer and every answer is what that order gives. An operation
//! without an answer may have happened at any time after its call, or not at all.
//!
//! Found by search (Wing and Gong), with states seen before left out.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Operations on one key that a search takes.
pub const OPERATIONS_MAX: usize = 128;

/// Names one version that a client wrote. Never reused.
pub type ValueId = u64;

/// What an operation did or saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `None`: deleted.
    Write(Option<ValueId>),
    /// Written where nothing was.
    WriteFirst(ValueId),
    /// Told that something was there.
    Found,
    Read(Option<ValueId>),
}

/// One operation on one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub action: Action,
    pub begun: u64,
    /// `None`: never answered.
    pub ended: Option<u64>,
}

/// All that was done, by key. `begun` and `ended` are places in the order in which the world saw calls and answers.
#[derive(Debug, Default)]
pub struct History {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_moment: u64,
    next_value: ValueId,
    keys: BTreeMap<String, Vec<Operation>>,
}

impl History {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn moment(&self) -> u64 {
        let mut state = self.state();
        state.next_moment += 1;
        state.next_moment
    }

    pub fn new_value(&self) -> ValueId {
        let mut state = self.state();
        state.next_value += 1;
        state.next_value
    }

    pub fn note(&self, key: &str, operation: Operation) {
        self.state().keys.entry(key.to_owned()).or_default().push(operation);
    }

    #[must_use]
    pub fn len(&self, key: &str) -> usize {
        self.state().keys.get(key).map_or(0, Vec::len)
    }

    #[must_use]
    pub fn is_empty(&self, key: &str) -> bool {
        self.len(key) == 0
    }

    /// # Errors
    /// The key whose operations no order explains, and these.
    pub fn check(&self) -> Result<(), String> {
        for (key, operations) in &self.state().keys {
            if !is_linearizable(operations) {
                return Err(told(key, operations));
            }
        }
        Ok(())
    }
}

fn told(key: &str, operations: &[Operation]) -> String {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.begun);
    let mut text = format!("no order of events explains what was seen of {key:?}:\n");
    for Operation { action, begun, ended } in operations {
        let ended = ended.map_or_else(|| "?".into(), |ended| ended.to_string());
        _ = writeln!(text, "  {begun:>6} .. {ended:>6}  {action:?}");
    }
    text
}

fn after(state: Option<ValueId>, action: Action) -> Option<Option<ValueId>> {
    match action {
        Action::Write(value) => Some(value),
        Action::WriteFirst(value) => state.is_none().then_some(Some(value)),
        Action::Found => state.is_some().then_some(state),
        Action::Read(seen) => (seen == state).then_some(state),
    }
}

/// Whether one order explains these operations of one key, at most [`OPERATIONS_MAX`] of them.
#[must_use]
pub fn is_linearizable(operations: &[Operation]) -> bool {
    let operations = settled(operations);
    assert!(operations.len() <= OPERATIONS_MAX, "{} operations on one key", operations.len());
    let definite: u128 = operations
        .iter()
        .enumerate()
        .filter(|(_, operation)| operation.ended.is_some())
        .fold(0, |mask, (at, _)| mask | 1 << at);
    let mut seen = HashSet::new();
    let mut open: Vec<(u128, Option<ValueId>)> = vec![(0, None)];
    while let Some((done, state)) = open.pop() {
        if done & definite == definite {
            return true;
        }
        if !seen.insert((done, state)) {
            continue;
        }
        let left = || operations.iter().enumerate().filter(|(at, _)| done & (1 << at) == 0);
        // What begins after another has ended cannot come before it.
        let horizon = left().filter_map(|(_, operation)| operation.ended).min().unwrap_or(u64::MAX);
        for (at, operation) in left().filter(|(_, operation)| operation.begun < horizon) {
            if let Some(next) = after(state, operation.action) {
                open.push((done | 1 << at, next));
            }
        }
    }
    false
}

/// Leaves out what cannot matter: an unanswered write that nobody saw, if nothing else could tell that it was there.
/// One that somebody saw happened before that was answered.
fn settled(operations: &[Operation]) -> Vec<Operation> {
    let has_found = operations.iter().any(|operation| operation.action == Action::Found);
    let first_seen = |value: ValueId| {
        let reads = operations.iter().filter(|other| other.action == Action::Read(Some(value)));
        reads.filter_map(|read| read.ended).min()
    };
    let settle = |operation: &Operation| match (operation.action, operation.ended) {
        (Action::Write(Some(value)) | Action::WriteFirst(value), None) => match first_seen(value) {
            Some(seen) => Some(Operation { ended: Some(seen), ..*operation }),
            None => has_found.then_some(*operation),
        },
        (Action::Read(_) | Action::Found, None) => None,
        _ => Some(*operation),
    };
    operations.iter().filter_map(settle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Found, Read, Write, WriteFirst};

    fn operation(action: Action, begun: u64, ended: impl Into<Option<u64>>) -> Operation {
        Operation { action, begun, ended: ended.into() }
    }

    #[test]
    fn what_one_copy_could_do_is_right() {
        let right = [
            operation(Read(None), 1, 2),
            operation(Write(Some(1)), 3, 8),
            // Beside the write: before or after it.
            operation(Read(None), 4, 5),
            operation(Read(Some(1)), 6, 7),
            operation(Write(Some(2)), 9, None),
            operation(Read(Some(1)), 10, 11),
            operation(Read(Some(2)), 12, 13),
            operation(Write(None), 14, None),
            operation(Read(Some(2)), 15, 16),
            operation(Read(None), 17, 18),
            operation(WriteFirst(3), 19, 20),
            operation(Found, 21, 22),
            operation(Read(Some(3)), 23, 24),
        ];
        assert!(is_linearizable(&right));
    }

    #[test]
    fn what_no_single_copy_could_do_is_wrong() {
        let written = operation(Write(Some(1)), 1, 2);
        let wrong: [&[Operation]; 7] = [
            // Lost.
            &[written, operation(Read(None), 3, 4)],
            // Never written.
            &[written, operation(Read(Some(9)), 3, 4)],
            // Overwritten, and seen again.
            &[written, operation(Write(Some(2)), 3, 4), operation(Read(Some(1)), 5, 6)],
            // Seen, and then not.
            &[
                written,
                operation(Write(Some(2)), 3, None),
                operation(Read(Some(2)), 4, 5),
                operation(Read(Some(1)), 6, 7),
            ],
            // Seen before it was asked for.
            &[operation(Read(Some(1)), 1, 2), operation(Write(Some(1)), 3, 4)],
            // Applied twice.
            &[operation(WriteFirst(1), 1, 2), operation(WriteFirst(2), 3, 4)],
            // Refused for what was not there.
            &[operation(Write(None), 1, 2), operation(Found, 3, 4)],
        ];
        for operations in wrong {
            assert!(!is_linearizable(operations), "{operations:?}");
        }
    }

    /// An unanswered write that nobody read can still be what a first write was refused for.
    #[test]
    fn an_unanswered_write_may_be_why_another_was_refused() {
        let maybe = operation(Write(Some(1)), 1, None);
        assert!(is_linearizable(&[maybe, operation(Found, 2, 3), operation(Write(None), 4, 5)]));
        assert!(is_linearizable(&[maybe, operation(Read(None), 2, 3)]));
    }
}
