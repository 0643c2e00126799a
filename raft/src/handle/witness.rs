//! What voters remember of each other, so that an old copy of a voter's directory is noticed.
//!
//! ```text
//! leader ─ how far each voter has come (a Mark each) ─> all voters: kept in memory, and in a file
//! voter that starts ─ its own mark ─> the others ─ theirs of it ─> no later than its own: it takes part
//!                                                              └─> later: it is held back
//! held back ─ the leader takes it out of the voters and has it learn all there is ─> it takes part again
//! ```
//!
//! A voter that forgot what it promised can undo what customers were told: with it, a leader may be elected that lacks an entry
//! that it had acknowledged. Its directory never goes back in the order of [`Mark`]; an older copy of it does.
//!
//! Always: who is held back neither votes nor acknowledges; it is let in again only by a leader whose own entries are agreed
//! without it. What cannot be noticed: what was acknowledged since the marks were last passed on, if none that remember
//! it answer.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::log::disk::Disk;
use crate::log::types::{LogId, Vote};

const MAGIC: &[u8; 8] = b"MKMARKS\x01";
const FILE: &str = "marks";
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Term and number of who leads, or asks to.
pub(super) type Leader = (u64, u64);

/// How far a voter has come: whom it last voted for or followed, and the last entry that it has. Under one leader entries are
/// added only; later ones are preferred whatever they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Mark {
    pub voted: Leader,
    pub last: Option<(Leader, u64)>,
}

impl Mark {
    pub fn new(voted: Leader, last: Option<LogId>) -> Self {
        Self { voted, last: last.map(|id| ((id.leader_id.term, id.leader_id.node_id), id.index)) }
    }

    pub fn last_index(&self) -> Option<u64> {
        self.last.map(|(_, index)| index)
    }
}

pub(super) fn leader_of(vote: &Vote) -> Leader {
    (vote.leader_id.term, vote.leader_id.node_id)
}

/// What a leader tells the other voters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marks {
    pub by: Leader,
    /// Entries of its own are agreed: all that was agreed before is where it cannot be lost.
    pub is_settled: bool,
    /// Every voter and learner; `None`: it has not acknowledged anything to this leader yet.
    pub of: Vec<(u64, Option<Mark>)>,
}

/// A voter asks what others know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    pub number: u64,
    pub mark: Mark,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub mark: Option<Mark>,
    /// Who answers leads, and is settled as in [`Marks`].
    pub leads: bool,
}

/// What is remembered of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    by: Leader,
    marks: BTreeMap<u64, Mark>,
    /// This voter itself is held back: others know of this.
    held_back: Option<Mark>,
}

impl Memory {
    pub fn of(&self, number: u64) -> Option<Mark> {
        self.marks.get(&number).copied()
    }

    pub fn held_back(&self) -> Option<Mark> {
        self.held_back
    }

    /// Takes what a leader knows, unless a later one told already. Who is no member any more is forgotten: it may come again
    /// with an empty directory. Returns whether anything changed.
    pub fn note(&mut self, told: &Marks) -> bool {
        if told.by < self.by {
            return false;
        }
        let before = self.clone();
        self.by = told.by;
        self.marks.retain(|number, _| told.of.iter().any(|(member, _)| member == number));
        for (number, mark) in &told.of {
            let Some(mark) = *mark else { continue };
            let known = self.marks.entry(*number).or_insert(mark);
            *known = mark.max(*known);
        }
        *self != before
    }

    /// Decides what answers mean for a voter that has come as far as `own`; `need`: how many others must have answered. Pure.
    pub fn judge(&mut self, own: Mark, answers: &[Known], need: usize) -> Verdict {
        let later = answers.iter().filter_map(|known| known.mark).filter(|mark| *mark > own).max();
        if let Some(later) = later {
            self.held_back = self.held_back.max(Some(later));
        }
        let is_clean = |known: &Known| known.leads && known.mark.is_none_or(|mark| mark <= own);
        match self.held_back {
            Some(known) if own < known && !answers.iter().any(is_clean) => Verdict::HeldBack(known),
            None if answers.len() < need => Verdict::Unknown,
            _ => {
                self.held_back = None;
                Verdict::TakesPart
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    TakesPart,
    /// Too few answered.
    Unknown,
    /// Others know that it was further.
    HeldBack(Mark),
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// What was remembered; nothing where the file does not read back: it is a help, never needed.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Memory {
    let read = || -> io::Result<Option<Memory>> {
        if !disk.list(dir)?.iter().any(|name| name == FILE) {
            return Ok(None);
        }
        let file = disk.open(&path(dir))?;
        let mut bytes = vec![0; file.len()?.min(FILE_BYTES_MAX) as usize];
        file.read_at(0, &mut bytes)?;
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| io::Error::other("it has no such format"))?;
        rmp_serde::from_slice(body).map(Some).map_err(io::Error::other)
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(path = ?path(dir), %error, "what other voters had was not read; it is learnt anew");
        None
    }).unwrap_or_default()
}

/// Replaces the file.
pub(super) fn save(disk: &dyn Disk, dir: &Path, memory: &Memory) -> io::Result<()> {
    let body = rmp_serde::to_vec_named(memory).map_err(io::Error::other)?;
    let new = dir.join("marks-new");
    let file = disk.open(&new)?;
    file.set_len(0)?;
    file.write_at(0, &[MAGIC, body.as_slice()].concat())?;
    file.sync_data()?;
    disk.rename(&new, &path(dir))?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(term: u64, index: u64) -> Mark {
        Mark { voted: (term, 1), last: Some(((term, 1), index)) }
    }

    fn answer(mark: Option<Mark>, leads: bool) -> Known {
        Known { mark, leads }
    }

    #[test]
    fn an_older_copy_is_held_back_until_a_leader_lets_it_in() {
        let mut memory = Memory::default();
        let own = mark(3, 50);
        assert_eq!(memory.judge(own, &[], 1), Verdict::Unknown, "nobody answered");
        let further = mark(3, 60);
        assert_eq!(memory.judge(own, &[answer(Some(further), false)], 1), Verdict::HeldBack(further));
        let silent_others = [answer(None, false), answer(Some(own), false)];
        assert_eq!(memory.judge(own, &silent_others, 1), Verdict::HeldBack(further), "who knew is gone");
        assert_eq!(memory.judge(own, &[answer(Some(further), true)], 1), Verdict::HeldBack(further));
        assert_eq!(memory.judge(own, &[answer(None, true)], 1), Verdict::TakesPart);
        assert_eq!(memory.held_back(), None);
    }

    #[test]
    fn a_later_vote_may_go_with_a_shorter_log() {
        // A new leader had it cut what nobody was told of.
        let own = Mark { voted: (4, 2), last: Some(((3, 1), 50)) };
        assert_eq!(Memory::default().judge(own, &[answer(Some(mark(3, 60)), true)], 1), Verdict::TakesPart);
    }

    #[test]
    fn who_left_is_forgotten_and_an_old_leader_is_not_believed() {
        let mut memory = Memory::default();
        let told = |by, of| Marks { by, is_settled: true, of };
        assert!(memory.note(&told((3, 1), vec![(1, Some(mark(3, 9))), (2, Some(mark(3, 8)))])));
        assert!(!memory.note(&told((2, 1), vec![])));
        assert_eq!(memory.of(2), Some(mark(3, 8)));
        assert!(memory.note(&told((4, 1), vec![(1, None)])));
        assert_eq!((memory.of(1), memory.of(2)), (Some(mark(3, 9)), None));
    }

    proptest! {
        /// Whatever order marks come in, the furthest is remembered; and who has come that far takes part.
        #[test]
        fn the_furthest_is_remembered(seen in prop::collection::vec((1u64..4, 0u64..20), 1..20)) {
            let mut memory = Memory::default();
            for (term, index) in &seen {
                let of = vec![(7, Some(mark(*term, *index)))];
                memory.note(&Marks { by: (9, 9), is_settled: false, of });
            }
            let furthest = seen.iter().map(|(term, index)| mark(*term, *index)).max().unwrap();
            prop_assert_eq!(memory.of(7), Some(furthest));
            for (term, index) in seen {
                let own = mark(term, index);
                let verdict = Memory::default().judge(own, &[answer(memory.of(7), false)], 1);
                prop_assert_eq!(verdict == Verdict::TakesPart, own == furthest);
            }
        }
    }
}
