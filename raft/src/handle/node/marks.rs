//! Asks other voters how far this one had come, and tells them how far all have: the shell of [`witness`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use makai_erasure::NodeId;
use openraft::errors::Fatal;

use super::MetaNode;
use crate::handle::RaftPeerError;
use crate::handle::wire::{self, Kind, Trouble};
use crate::handle::witness::{self, Ask, Known, Mark, Marks, Memory, Verdict};
use crate::log::types::{LogId, Types};

/// For a question about how far voters have come.
const WITNESS_TIMEOUT: Duration = Duration::from_millis(500);
/// How far voters have come is told this often while it changes, and again this long after it did.
const TELL_EVERY: Duration = Duration::from_secs(1);
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(10);
const SAVE_EVERY: Duration = Duration::from_secs(5);

impl MetaNode {
    pub(super) fn held_back(&self) -> Option<String> {
        if self.0.takes_part.load(Ordering::Acquire) {
            return None;
        }
        let known = self.lock(&self.0.memory).held_back();
        Some(match known {
            None => "too few other voters answer yet".into(),
            Some(known) => self.rewind(known),
        })
    }

    /// How far it is remembered that a voter had come.
    #[cfg(test)]
    pub(in crate::handle) fn remembered(&self, number: u64) -> Option<u64> {
        self.lock(&self.0.memory).of(number).and_then(|mark| mark.last_index())
    }

    /// What a person is told.
    fn rewind(&self, known: Mark) -> String {
        let own = self.own_mark();
        let at = |mark: Mark| format!("entry {} in term {}", mark.last_index().unwrap_or(0), mark.voted.0);
        format!(
            "{:?} is an older copy: this voter had come to {}, and the directory has {}. It takes no part until the leader has \
             removed it from the voters and it has learnt all again; where no leader is left, put the newer directory back, \
             or go by ops/runbooks/voters.md",
            self.0.config.dir,
            at(known),
            at(own)
        )
    }

    /// How far this node has come.
    fn own_mark(&self) -> Mark {
        let (purged, last) = self.0.log.bounds(self.0.config.group);
        let applied = self.0.store.frozen().and_then(|view| view.position()).ok();
        let applied = applied.and_then(|position| position.applied);
        let vote = self.0.log.vote(self.0.config.group);
        Mark::new(vote.map_or((0, 0), |vote| witness::leader_of(&vote)), purged.max(last).max(applied))
    }

    /// The other voters that this node knows of. What is measured of Raft may not be there yet when it starts.
    pub(super) async fn others(&self) -> Result<Vec<NodeId>, Fatal<Types>> {
        let own = self.0.config.node_number;
        let of = move |state: &openraft::RaftState<Types>| {
            let membership = state.membership_state.effective().membership();
            let others = membership.voter_ids().filter(|number| *number != own);
            others.filter_map(|number| membership.get_node(&number).map(|node| node.key)).collect()
        };
        self.0.raft.with_raft_state(of).await
    }

    pub(super) fn take_part(&self) {
        self.0.raft.runtime_config().elect(true);
        self.0.takes_part.store(true, Ordering::Release);
    }

    /// How far all have come, if this node leads.
    fn marks(&self) -> Option<Marks> {
        let metrics = self.metrics();
        let by = witness::leader_of(&metrics.vote);
        if metrics.current_leader != Some(metrics.id) || by.1 != metrics.id {
            return None;
        }
        let matched = metrics.replication.unwrap_or_default();
        let members = metrics.membership_config.membership().nodes().map(|(number, _)| *number);
        let mark = |number: u64| matched.get(&number).and_then(|matched| *matched);
        let of = members.map(|number| (number, mark(number).map(|last| Mark::new(by, Some(last))))).collect();
        let is_own = |id: &LogId| (id.leader_id.term, id.leader_id.node_id) == by;
        Some(Marks { by, is_settled: metrics.last_applied.as_ref().is_some_and(is_own), of })
    }

    /// Answers a voter that asks how far it had come.
    pub(super) fn known(&self, ask: Ask) -> Known {
        let marks = self.marks();
        let leads = marks.as_ref().is_some_and(|marks| marks.is_settled) && self.has_quorum();
        let mark = {
            let mut memory = self.lock(&self.0.memory);
            if let Some(marks) = &marks {
                memory.note(marks);
            }
            memory.of(ask.number)
        };
        if leads {
            self.note_rewound(ask.number, mark.is_some_and(|mark| mark > ask.mark));
        }
        Known { mark, leads }
    }

    fn note_rewound(&self, number: u64, is_rewound: bool) {
        let mut rewound = self.lock(&self.0.rewound);
        let is_news = if is_rewound { rewound.insert(number) } else { rewound.remove(&number) };
        if is_news && is_rewound {
            tracing::error!(
                number,
                "a voter's directory is an older copy: it takes no part until it has learnt all again"
            );
        }
    }

    /// Takes what the leader knows of all; answers how far this node has come.
    pub(super) fn take_marks(&self, marks: &Marks) -> Mark {
        let own = self.own_mark();
        self.lock(&self.0.memory).note(marks);
        let of_me = marks.of.iter().find(|(number, _)| *number == self.0.config.node_number);
        let known = Known { mark: of_me.and_then(|(_, mark)| *mark), leads: marks.is_settled };
        self.decide(own, &[known], usize::MAX);
        own
    }

    fn decide(&self, own: Mark, answers: &[Known], need: usize) {
        let (verdict, is_news) = {
            let mut memory = self.lock(&self.0.memory);
            let before = memory.held_back();
            (memory.judge(own, answers, need), memory.held_back() != before)
        };
        match verdict {
            Verdict::Unknown => {}
            Verdict::TakesPart => self.take_part(),
            Verdict::HeldBack(known) => {
                self.0.takes_part.store(false, Ordering::Release);
                self.0.raft.runtime_config().elect(false);
                if is_news {
                    tracing::error!("{}", self.rewind(known));
                }
            }
        }
    }

    /// Asks the other voters how far this one had come.
    pub(super) async fn ask_others(&self) {
        let Ok(others) = self.others().await else { return };
        let own = self.own_mark();
        let ask = Ask { number: self.0.config.node_number, mark: own };
        let Ok(message) = wire::encode(Kind::Known as u8, self.0.config.group, &ask) else { return };
        let asked = others.iter().map(|other| {
            let message = message.clone();
            async move {
                let answer = self.0.peers.request(*other, message, WITNESS_TIMEOUT).await;
                match answer.map(|answer| wire::decode_answer::<Known>(Kind::Known, &answer)) {
                    Ok(Ok(known)) => Some(known),
                    // A release that remembers nothing.
                    Ok(Err(Trouble::Malformed(_))) | Err(RaftPeerError::Refused(_)) => {
                        Some(Known { mark: None, leads: false })
                    }
                    Ok(Err(_)) | Err(_) => None,
                }
            }
        });
        let answers: Vec<Known> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        // With this one, a majority.
        self.decide(own, &answers, others.len().div_ceil(2));
    }

    /// Tells the other voters how far all have come, and hears from them how far they have.
    async fn tell_others(&self, marks: &Marks) {
        let Ok(message) = wire::encode(Kind::Marks as u8, self.0.config.group, marks) else { return };
        let membership = self.metrics().membership_config.membership().clone();
        let told = membership.voter_ids().filter(|number| *number != self.0.config.node_number);
        let told = told.filter_map(|number| Some((number, membership.get_node(&number)?.key)));
        let answers = told.map(|(number, key)| {
            let message = message.clone();
            async move {
                let answer = self.0.peers.request(key, message, WITNESS_TIMEOUT).await.ok()?;
                Some((number, wire::decode_answer::<Mark>(Kind::Marks, &answer).ok()?))
            }
        });
        for (number, mark) in futures::future::join_all(answers).await.into_iter().flatten() {
            let known = marks.of.iter().find(|(of, _)| *of == number).and_then(|(_, known)| *known);
            self.note_rewound(number, known.is_some_and(|known| known > mark));
        }
        self.lock(&self.0.rewound).retain(|number| membership.voter_ids().any(|voter| voter == *number));
    }

    /// Keeps what is remembered over a restart.
    async fn save_memory(&self, memory: Memory) {
        let (disk, dir) = (self.0.disk.clone(), self.0.config.dir.clone());
        let saved = tokio::task::spawn_blocking(move || witness::save(&*disk, &dir, &memory)).await;
        if let Ok(Err(error)) = saved {
            tracing::debug!(%error, "what other voters have was not kept; trying again");
        }
    }
}

/// What of the other voters was told and written, and when.
#[derive(Default)]
pub(super) struct Keeping {
    told: Option<(std::time::Instant, Marks)>,
    saved: Option<(std::time::Instant, Memory)>,
}

impl Keeping {
    pub(super) async fn step(&mut self, node: &MetaNode) {
        if !node.0.takes_part.load(Ordering::Acquire) {
            node.ask_others().await;
        }
        if let Some(marks) = node.marks() {
            node.lock(&node.0.memory).note(&marks);
            let is_due = self.told.as_ref().is_none_or(|(at, told)| {
                at.elapsed() >= if *told == marks { TELL_AGAIN_AFTER } else { TELL_EVERY }
            });
            if is_due {
                node.tell_others(&marks).await;
                self.told = Some((crate::handle::stopwatch(), marks));
            }
        }
        let memory = node.lock(&node.0.memory).clone();
        let is_due = match &self.saved {
            None => memory != Memory::default(),
            Some((at, saved)) => {
                memory.held_back() != saved.held_back() || (at.elapsed() >= SAVE_EVERY && memory != *saved)
            }
        };
        if is_due {
            node.save_memory(memory.clone()).await;
            self.saved = Some((crate::handle::stopwatch(), memory));
        }
    }
}
