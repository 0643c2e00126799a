//! Drills of this node: computed while nothing else is, told to voters, and opened where they ask.

use std::sync::{Arc, Mutex, PoisonError};

use makai_erasure::NodeId;
use makai_erasure::stripe::Root;
use makai_ops::computing::drill::{Opening, Place, ROWS_ASKED, Seed, Size, Transcript};
use makai_raft::facts::accounts::Hash;
use serde::{Deserialize, Serialize};

/// What a voter asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrillRequest {
    /// What was computed in an epoch. Nothing is added to it after that.
    Tell { epoch: u64 },
    /// Rows of one task.
    Open { epoch: u64, task: u32, places: Vec<Place> },
}

/// What a node says to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrillReply {
    Told {
        size: Size,
        roots: Vec<Root>,
    },
    Opened(Vec<Opening>),
    /// It has computed nothing then, or does not drill.
    Nothing,
}

/// Tasks of one epoch.
#[derive(Debug, Clone)]
struct Set {
    epoch: u64,
    beacon: Hash,
    size: Size,
    roots: Vec<Root>,
    is_told: bool,
}

/// What this node has computed in this epoch and the one before. Forgotten with the process: what was told and cannot be
/// opened counts nothing.
#[derive(Debug)]
pub struct Drills {
    node: NodeId,
    sets: Mutex<Vec<Set>>,
    /// One task is computed anew at a time.
    opening: tokio::sync::Mutex<()>,
}

impl Drills {
    #[must_use]
    pub fn new(node: NodeId) -> Arc<Self> {
        Arc::new(Self { node, sets: Mutex::default(), opening: tokio::sync::Mutex::new(()) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Set>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an epoch.
    pub fn begin(&self, epoch: u64, beacon: Hash, size: Size) {
        let mut sets = self.lock();
        sets.retain(|set| set.epoch + 1 == epoch);
        sets.push(Set { epoch, beacon, size, roots: Vec::new(), is_told: false });
    }

    /// Adds the next tasks of an epoch, in order; `false`: it was told already.
    pub fn add(&self, epoch: u64, roots: &[Root]) -> bool {
        let mut sets = self.lock();
        let open = sets.iter_mut().find(|set| set.epoch == epoch && !set.is_told);
        open.map(|set| set.roots.extend_from_slice(roots)).is_some()
    }

    /// Answers a voter.
    pub async fn answer(&self, request: DrillRequest) -> DrillReply {
        match request {
            DrillRequest::Tell { epoch } => {
                let mut sets = self.lock();
                match sets.iter_mut().find(|set| set.epoch == epoch && !set.roots.is_empty()) {
                    Some(set) => {
                        set.is_told = true;
                        DrillReply::Told { size: set.size, roots: set.roots.clone() }
                    }
                    None => DrillReply::Nothing,
                }
            }
            DrillRequest::Open { epoch, task, places } => {
                let found = self.lock().iter().find(|set| set.epoch == epoch && set.is_told).cloned();
                match found.filter(|set| (task as usize) < set.roots.len() && places.len() <= ROWS_ASKED) {
                    Some(set) => self.open(&set, task, places).await,
                    None => DrillReply::Nothing,
                }
            }
        }
    }

    /// Results are not kept: the task is computed again.
    async fn open(&self, set: &Set, task: u32, places: Vec<Place>) -> DrillReply {
        let _one_at_a_time = self.opening.lock().await;
        let (seed, size) = (Seed::new(&set.beacon, &self.node, task), set.size);
        let opened =
            tokio::task::spawn_blocking(move || Transcript::compute(seed, size, &|| false)?.open(&places));
        match opened.await {
            Ok(Some(opened)) => DrillReply::Opened(opened),
            _ => DrillReply::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_ops::computing::drill::{check, draw};

    /// What is told is fixed, and opens to whatever is asked for later.
    #[tokio::test]
    async fn what_was_told_is_opened_and_nothing_is_added() {
        const SIZE: Size = Size { rows: 256, steps: 1 };
        let (node, beacon, later) = (NodeId([1; 32]), Hash([2; 32]), Hash([3; 32]));
        let drills = Drills::new(node);
        assert_eq!(drills.answer(DrillRequest::Tell { epoch: 7 }).await, DrillReply::Nothing);
        drills.begin(7, beacon, SIZE);
        let seed = |task| Seed::new(&beacon, &node, task);
        let root = |task| Transcript::compute(seed(task), SIZE, &|| false).unwrap().root();
        assert!(drills.add(7, &[root(0)]) && drills.add(7, &[root(1)]));
        let told = drills.answer(DrillRequest::Tell { epoch: 7 }).await;
        let DrillReply::Told { size, roots } = told else { panic!("{told:?}") };
        assert_eq!((size, roots.len()), (SIZE, 2));
        assert!(!drills.add(7, &[root(2)]), "it was told");
        drills.begin(8, later, SIZE);
        for (task, places) in draw(&later, &node, size, roots.len()) {
            let request = DrillRequest::Open { epoch: 7, task, places: places.clone() };
            let DrillReply::Opened(opened) = drills.answer(request).await else { panic!("task {task}") };
            for (place, opening) in places.into_iter().zip(&opened) {
                assert_eq!(check(seed(task), size, &roots[task as usize], place, opening), Ok(()));
            }
        }
        let unknown = DrillRequest::Open { epoch: 7, task: 2, places: vec![] };
        assert_eq!(drills.answer(unknown).await, DrillReply::Nothing);
        drills.begin(9, later, SIZE);
        assert_eq!(
            drills.answer(DrillRequest::Tell { epoch: 7 }).await,
            DrillReply::Nothing,
            "two epochs are kept"
        );
    }
}
